"""A child that can be killed after any chosen instruction of a critical section.

A random SIGKILL hardly ever hits the two microseconds that matter, and never proves that it missed none. So one child
is stepped through the section (ptrace(2)) to record its path; then, for each instruction of the path, a fresh child is
stopped there by a breakpoint and killed. Forked children have the same addresses and, from the same block, take the
same path.

A path is a `Stretch`. That of a section begins when the mutex is taken (pthread_mutex_trylock) and ends when
pthread_mutex_unlock returns; functions without a lock are stepped from their first instruction until they return.
x86-64 only.
"""

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

TRACEME, PEEKTEXT, PEEKUSER, POKETEXT, POKEUSER, CONT, SINGLESTEP = 0, 1, 3, 4, 6, 7, 9
RIP, _RSP = 16 * 8, 19 * 8  # in struct user_regs_struct
_WORD: Final = (1 << 64) - 1
_LONGEST: Final = 100_000  # instructions; a section that is longer is a bug of the test

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """Make one request of ptrace(2); returns the word it answers. Raises OSError."""
    ctypes.set_errno(0)
    result = int(_libc.ptrace(request, pid, address, data))
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace request {request}")
    return result & _WORD


def _address(name: str) -> int:
    address = ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value
    assert address
    return address


class Stretch(NamedTuple):
    """From the `passes` + 1st time that address `first` is next, until the function at `last` returns."""

    first: int
    last: int
    passes: int = 0


SECTION: Final = Stretch(_address("pthread_mutex_trylock"), _address("pthread_mutex_unlock"))


class Tracee:
    """One child, stopped. It runs `work` when it is let go."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ptrace(TRACEME, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
                work()
            finally:
                os._exit(0)
        self._stopped()

    def _stopped(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSTOPPED(status), f"the child ended with {os.waitstatus_to_exitcode(status)}"
        self.signal = os.WSTOPSIG(status)

    def step(self) -> int:
        """Run one instruction; returns the address of the next."""
        ptrace(SINGLESTEP, self.pid)
        self._stopped()
        return self.at

    @property
    def at(self) -> int:
        """The address of the next instruction."""
        return ptrace(PEEKUSER, self.pid, RIP)

    @property
    def returns_to(self) -> int:
        """At the entry of a function: where it will return to."""
        return ptrace(PEEKTEXT, self.pid, ptrace(PEEKUSER, self.pid, _RSP))

    def run_to(self, address: int, passes: int = 0) -> None:
        """Run until `address` is next, for the `passes` + 1st time."""
        original = ptrace(PEEKTEXT, self.pid, address)
        for left in range(passes, -1, -1):
            ptrace(POKETEXT, self.pid, address, original & ~0xFF | 0xCC)  # int3
            ptrace(CONT, self.pid)
            self._stopped()
            assert self.at == address + 1
            ptrace(POKEUSER, self.pid, RIP, address)
            ptrace(POKETEXT, self.pid, address, original)
            if left:
                self.step()

    def let_go(self) -> None:
        """Let it run to its end."""
        ptrace(CONT, self.pid)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFEXITED(status)

    def kill(self) -> None:
        """SIGKILL it where it is, and reap it."""
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, and whoever noticed says so
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def possible() -> bool:
    """Return whether this machine lets us trace: x86-64, and ptrace is not forbidden."""
    if platform.machine() != "x86_64":
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(_libc.ptrace(TRACEME, 0, None, None) != 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def path_of(work: Callable[[], object], stretch: Stretch = SECTION) -> list[int]:
    """Return the addresses of all instructions of a stretch of `work`: of the section that it enters first."""
    child = Tracee(work)
    try:
        child.run_to(stretch.first, stretch.passes)
        path: list[int] = []
        end = 0
        while not path or child.at != end:
            assert len(path) < _LONGEST
            path.append(child.at)
            if path[-1] == stretch.last:
                end = child.returns_to
            child.step()
        return [*path, end]
    finally:
        child.kill()


def kill_at(path: list[int], work: Callable[[], object], number: int, stretch: Stretch = SECTION) -> None:
    """Kill a fresh child before instruction `number` of a path."""
    child = Tracee(work)
    try:
        child.run_to(path[0], stretch.passes)
        if number:
            child.run_to(path[number], path[:number].count(path[number]))
    finally:
        child.kill()


def killed_along(
    path: list[int], work: Callable[[], object], stride: int, first: int = 0, stretch: Stretch = SECTION
) -> Iterator[int]:
    """Kill a fresh child before instruction `first`, `first` + `stride`, … of a path; yields each time it is dead."""
    for number in range(first % stride, len(path), stride):
        kill_at(path, work, number, stretch)
        yield number
