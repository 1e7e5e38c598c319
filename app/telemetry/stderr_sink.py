"""Standard error, where the log goes: written to without standing still for whoever reads it.

A container's standard error is a pipe of 64 kB, or a socket. When its reader stands still (a log collector that is
stuck, a disk below it that is full), a plain write waits: a worker's loop would stand still with it, then the arbiter,
and the whole service would be down because nobody reads what it says. So what finds no room is left out and counted,
and the next line that does find room comes behind one that says how many were lost. One wait of WAIT_MILLISECONDS is
granted, because a reader may be busy; who let that pass is not waited for again until it has read.

The kernel is asked not to wait in a way that nobody else notices. O_NONBLOCK belongs to the open file and not to the
descriptor, so setting it on a descriptor that was inherited changes it for the parent, too, and for its terminal. A
pipe is opened anew under /proc/self/fd, which makes an open file of our own; a socket takes the wish with each message.
Where the pipe must not be opened (it is another user's), and for files and terminals, writing is what it always was.

Invariants. A line is written whole, or not at all, or its rest is the next thing that is written: lines of one process
never mix. Nothing is raised, whatever the kernel answers: who has something to log must not fail because of it.

Rejected: a thread that writes what others queue. It survives no fork, loses what is queued when a process dies, which
is when it matters, and costs each line two switches of threads.
"""

import logging
import os
import select
import socket
import stat
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Final

STDERR: Final = 2
WAIT_MILLISECONDS: Final = 20  # for a reader that is merely slow; once, and then not until there is room


class Sink:
    """One descriptor, for all handlers of a process and of its forks."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._socket: socket.socket | None = None
        self._rest = b""  # of a line that was begun
        self._lost = 0
        self._is_patient = True
        self._lock = threading.Lock()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode):
            with suppress(OSError):  # another user's
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writable = select.poll()
        self._writable.register(self._descriptor, select.POLLOUT)
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """What the parent has not finished is the parent's."""
        self._rest, self._lost = b"", 0

    def write(self, line: bytes, told: "StderrHandler") -> None:
        """Write a line if there is room, behind one by `told` about those that were lost before. Never raises."""
        with self._lock:
            self._finish()
            if self._lost and not self._rest and self._begin(told.lost_lines_record(self._lost)):
                self._lost = 0
            if self._lost or self._rest or not self._begin(line):
                self._lost += 1

    def _begin(self, data: bytes) -> bool:
        """Write a line, or some of it. False when nothing of it was written."""
        self._rest = data
        self._finish()
        if len(self._rest) == len(data):
            self._rest = b""
            return False
        return True

    def _finish(self) -> None:
        """Write what is left of the line that was begun, as far as there is room."""
        if not self._rest:
            return  # and nothing is known of the reader
        try:
            while self._rest:
                try:
                    self._rest = self._rest[self._send(self._rest) :]
                except BlockingIOError:
                    if not self._is_patient or not self._writable.poll(WAIT_MILLISECONDS):
                        self._is_patient = False
                        return
        except OSError:  # nobody there, or a file that must not grow
            return
        self._is_patient = True

    def _send(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._descriptor, data)


sink_of: Final = lru_cache(maxsize=None)(Sink)  # one each, over all reloads


class StderrHandler(logging.Handler):
    """A handler of `logging` that writes to standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._sink = sink_of(STDERR)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Never raises."""
        try:
            line = self._line(record)
        except Exception as error:  # noqa: BLE001 - arguments that do not fit their message, or cannot be shown
            line = self._line(_record(logging.ERROR, "a log line cannot be made: %r", error, source=record.name))
        self._sink.write(line, self)

    def lost_lines_record(self, count: int) -> bytes:
        """Return the line that says how many were lost."""
        return self._line(_record(logging.WARNING, "nobody read the log: %d lines are lost", count, lost=count))

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"


def _record(level: int, message: str, argument: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("mlsdm.log", level, __file__, 0, message, (argument,), None)
    vars(record).update(extra)
    return record
