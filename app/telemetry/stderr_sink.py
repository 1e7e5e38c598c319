"""Standard error sink: writes the log without ever waiting for its reader.

The standard error of a container is a pipe of 64 kB, or a socket. If its reader stops (a stuck log collector, a full
disk), a plain write waits, and with it the loop of a worker, then the arbiter, then the whole server. So a line that
does not fit is dropped and counted (`lost_lines`, for metrics), and the next line that fits is preceded by one with
the number of lost lines. A slow reader is waited for once, for WAIT_MILLISECONDS. If it does not read, no line waits
until it has read.

Invariants: a line is written whole, or not at all, or its rest is written next: lines of one process never mix. Nothing
is raised, whatever the kernel answers: logging must not make its caller fail. The parent's descriptor is not changed:
O_NONBLOCK belongs to the open file, so setting it would affect the parent and its terminal, too. Instead a pipe is
opened again under /proc/self/fd, and a socket gets MSG_DONTWAIT with each message. A pipe of another user cannot be
opened, and then blocks as usual, like files and terminals.
Rejected: a thread that writes a queue. It does not survive a fork, loses its queue when the process dies, and costs
each line two thread switches.
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

from app.telemetry.lost_lines import LostLines

STDERR: Final = 2
WAIT_MILLISECONDS: Final = 20  # once for a slow reader, then not again until it has read


class Sink:
    """Writes lines to one descriptor, for all handlers of a process and of its forks."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._socket: socket.socket | None = None
        self._rest = b""  # of a line that was written in part
        self._lost = 0  # lines since the last one that was written
        self.lost_lines = LostLines()
        self._may_wait = True
        self._lock = threading.Lock()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode):
            with suppress(OSError):  # the pipe of another user
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writable = select.poll()
        self._writable.register(self._descriptor, select.POLLOUT)
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Leave the unfinished line and the count of lost lines to the parent."""
        self._rest, self._lost = b"", 0

    def write(self, line: bytes, handler: "StderrHandler") -> None:
        """Write a line if there is room, after a line of `handler` about lost lines. Never raises."""
        with self._lock:
            self._finish()
            if self._lost and not self._rest and self._begin(handler.lost_lines_record(self._lost)):
                self._lost = 0
            if self._lost or self._rest or not self._begin(line):
                self._lost += 1
                self.lost_lines.add()

    def _begin(self, data: bytes) -> bool:
        """Write a line, or a part of it. Return False if nothing was written."""
        self._rest = data
        self._finish()
        if len(self._rest) == len(data):
            self._rest = b""
            return False
        return True

    def _finish(self) -> None:
        """Write the rest of the line that was written in part, as far as there is room."""
        if not self._rest:
            return  # so it is unknown whether the reader reads
        try:
            while self._rest:
                try:
                    self._rest = self._rest[self._send(self._rest) :]
                except BlockingIOError:
                    if not self._may_wait or not self._writable.poll(WAIT_MILLISECONDS):
                        self._may_wait = False
                        return
        except OSError:  # no reader, or a file that must not grow
            return
        self._may_wait = True

    def _send(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._descriptor, data)


sink_of: Final = lru_cache(maxsize=None)(Sink)  # one for each descriptor, over all reloads


class StderrHandler(logging.Handler):
    """A handler of `logging` that writes to standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._sink = sink_of(STDERR)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Never raises."""
        try:
            line = self._line(record)
        except Exception as error:  # noqa: BLE001 - the arguments do not fit the message, or a repr raises
            line = self._line(_record(logging.ERROR, "a log line cannot be made: %r", error, source=record.name))
        self._sink.write(line, self)

    def lost_lines_record(self, count: int) -> bytes:
        """Return the line with the number of lost lines."""
        return self._line(
            _record(
                logging.WARNING,
                "the log could not be written (no reader, or a full disk): %d lines are lost",
                count,
                lost=count,
            )
        )

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"


def _record(level: int, message: str, argument: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("mlsdm.log", level, __file__, 0, message, (argument,), None)
    vars(record).update(extra)
    return record
