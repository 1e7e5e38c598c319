"""A supervised child of the arbiter: its declaration, what it is given, and its first steps after the fork.

Owns: the access of children to the block. Only this file, app/main.py and app/server.py pass the block on. A child with
`Access.NONE` cannot read it and one with `Access.READ` cannot write it: their mapping is protected by the kernel, so a
stray pointer in a library ends that child and nothing else. A child with `Access.write` keeps the writable mapping. It
must write only the regions that it declares; the kernel does not check that.

Invariants: a child dies with its arbiter (PR_SET_PDEATHSIG; `wait` also checks its parent). It obeys SIGTERM, which
makes `wait` return True, and ignores the other signals of SIGNALS: a terminal sends SIGINT to the whole process group,
but only the arbiter ends a child. It never returns into the arbiter's code.
"""

import logging
import math
import os
import re
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import ClassVar, Final, NoReturn, Self

import msgspec

from app.processes.child_table import NAME_SIZE_MAX, ChildRecord
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.memory_view import MemoryView
from core.settings.config import Config
from shm import process
from shm.block import Block
from shm.layout import NO_ROW, REGIONS
from shm.process import Identity

CONTROLLER: Final = "controller"
# Blocked from the fork until the child has its own handlers. It inherits the arbiter's, which only queue a signal.
SIGNALS: Final = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_NAME: Final = re.compile(rf"[a-z][a-z0-9_-]{{0,{NAME_SIZE_MAX - 1}}}")
# Of silence_seconds and start_seconds. The arbiter's loop turns at most twenty times a second, ten times within either.
SILENCE_SECONDS_MIN: Final = 0.5
START_SECONDS: Final = 60.0  # unless declared; to load a model of 100 MB from a slow disk takes about 20 s
START_SECONDS_MAX: Final = 600.0
_BEATS_PER_SILENCE: Final = 4  # while a child waits, it beats this often within the silence that it is allowed

log = logging.getLogger("mlsdm.server")


class Access(msgspec.Struct, frozen=True):
    """What a child may do with the block: nothing, read it, or write the regions `columns` of the layout table too."""

    reads: bool = False
    columns: tuple[str, ...] = ()

    NONE: ClassVar["Access"]
    READ: ClassVar["Access"]

    @classmethod
    def write(cls, *columns: str) -> Self:
        """Return the access of a child that writes these regions. Raises ValueError for one that does not exist."""
        unknown = [column for column in columns if column not in REGIONS]
        if unknown or not columns:
            raise ValueError(
                f"write access to {', '.join(unknown) or 'nothing'}: expected some of {', '.join(REGIONS)}"
            )
        return cls(reads=True, columns=columns)


Access.NONE = Access()
Access.READ = Access(reads=True)


class Child(msgspec.Struct, frozen=True):
    """One supervised process.

    `run` is called in the child, after the fork; it returns the exit status. A child is killed and started again when
    its first beat does not come within `start_seconds`, when no beat comes for `silence_seconds` after
    that, and when it has more than `memory_size_max` bytes of anonymous memory (0: no limit); what it shares with the
    arbiter since the fork, some 30 MB, is counted. With `once` the exit status 0 ends it for good. A reload replaces a
    child whose `settings` or `access` differ.
    """

    name: str
    run: Callable[["ChildContext"], int]
    access: Access = Access.NONE
    silence_seconds: float = 30.0
    start_seconds: float = START_SECONDS
    memory_size_max: int = 0
    once: bool = False
    settings: object = None

    def __post_init__(self) -> None:
        """Raise ValueError when a field is out of its range."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the child's name {self.name!r}: expected {_NAME.pattern}")
        for field, value, least, most in (
            ("silence_seconds", self.silence_seconds, SILENCE_SECONDS_MIN, math.inf),
            ("start_seconds", self.start_seconds, SILENCE_SECONDS_MIN, START_SECONDS_MAX),
            ("memory_size_max", self.memory_size_max, 0, math.inf),
        ):
            if not least <= value <= most:  # false for NaN, too
                raise ValueError(f"child {self.name}: {field} is {value!r}, expected from {least} to {most}")


class ChildContext:
    """What a child is given. `memory` is None unless its access includes reading; `arbiter` is its parent."""

    def __init__(
        self, child: Child, config: Config, memory: MemoryView | None, record: ChildRecord, arbiter: Identity
    ) -> None:
        self.name = child.name
        self.config = config
        self.memory = memory
        self.arbiter = arbiter
        self._record = record
        self._beat_seconds = child.silence_seconds / _BEATS_PER_SILENCE
        self._is_ending = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, self._end)

    def beat(self) -> None:
        """Tell the supervisor that this child makes progress. The first beat tells it that the child has started."""
        self._record.beat()

    def begin_start(self) -> None:
        """Tell the supervisor that this child starts only now: the next beat may take `start_seconds`.

        For a child that had to beat before, while it waited for something that it needs to start.
        """
        self._record.begin_start()

    def wait(self, seconds: float) -> bool:
        """Wait, and beat meanwhile, until the time is over or this child should end; return whether it should end."""
        deadline = time.monotonic() + seconds
        while True:
            self.beat()
            if self._is_ending or os.getppid() != self.arbiter.pid:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self._woken], [], [], min(left, self._beat_seconds))

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_ending = True
        with suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake, b"\0")


class Inheritance(msgspec.Struct, frozen=True):
    """What a child gets from its arbiter. `release` closes what only the arbiter may keep open."""

    block: Block
    config: Config
    arbiter: Identity
    release: Callable[[], None]


def become(child: Child, record: ChildRecord, inherited: Inheritance) -> NoReturn:
    """Run a child and exit. To be called in the new process after the fork, with SIGNALS blocked."""
    status = 1
    try:
        inherited.release()
        process.die_with_parent(inherited.arbiter.pid)  # not earlier: a change of credentials clears it (prctl(2))
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for ignored in SIGNALS:
            if ignored != signal.SIGTERM:  # to ignore SIGTERM even for a moment would discard a pending one
                signal.signal(ignored, signal.SIG_IGN)
        memory = _hand_on(inherited.block, child.access)
        context = ChildContext(child, inherited.config, memory, record, inherited.arbiter)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if child.name != CONTROLLER:  # the controller has a logger of its own
            _name_log_lines(child.name)
        status = int(child.run(context)) & 0xFF
    except BaseException:
        log.exception("%s pid=%d ends with an exception", child.name, os.getpid())
    finally:
        os._exit(status)


def _hand_on(block: Block, access: Access) -> MemoryView | None:
    """Reduce this process's mapping of the block to `access`; return the facade to read it by, if it may be read."""
    if access.columns:
        block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value // 4, VECTOR_NORM.value)
    else:
        block.restrict(readable=access.reads)
        block.bind(os.getpid(), NO_ROW, 0, VECTOR_NORM.value)  # 0: it reads, and never waits for the lock
    return MemoryView(block) if access.reads else None


def _name_log_lines(name: str) -> None:
    """Have every log line of this process carry the member `child`."""
    make = logging.getLogRecordFactory()

    def make_named(*arguments: object, **named: object) -> logging.LogRecord:
        record = make(*arguments, **named)
        record.child = name
        return record

    logging.setLogRecordFactory(make_named)
