"""Rehearsals: code of a package runs once in a fork, with a deadline and a bound on memory, before the arbiter runs it.

The arbiter must survive everything, because every memory ends with it. A rehearsal reports what was raised; whatever
hangs, dies or grows does so in the fork. It also reports what would stay in the arbiter: a thread, which makes each
later fork unsafe and may keep the arbiter from ending, and the handler of a signal, by which the arbiter is told to end
or learns of deaths.

Owns: the time of all rehearsals of one start or reload. Each may take at most half of what is left, so that packages
that hang cannot take the time of those that do not.
Invariants: `serve` is called all the while, so that the arbiter's children are looked after. No process is left: the
fork dies with the arbiter, and ends together with what it has started.
Rejected: a new interpreter for each, which would import the whole server again. All at once: each may take 1 GB.
"""

import errno
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Final

from core.startup import ConfigurationError
from shm.process import die_with_parent

REHEARSAL_SECONDS_MAX: Final = 5.0
REHEARSALS_SECONDS_MAX: Final = 15.0  # all of one start or reload
REHEARSAL_SIZE_MAX: Final = 1 << 30  # bytes of address space beyond those of the arbiter
SERVE_SECONDS: Final = 0.05  # between two calls of `serve`
DESCRIPTORS_MIN: Final = 16  # an import needs a few; one that runs out of this many is at fault itself
# Errors of a machine that is short of something for a while. They say nothing against the module.
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
_DONE, _NO_DESCRIPTORS = b"=", b"!"  # the first byte that a rehearsal writes; what was raised follows


class Shortage(ConfigurationError):
    """The machine lacks descriptors, processes, memory or time, so nothing is known of a module."""

    def __init__(self, name: str, lack: object) -> None:
        super().__init__([f"modules.enabled: the machine is too short of something to load the module {name}: {lack}"])


class Rehearsals:
    """The rehearsals of one start or reload."""

    def __init__(self, serve: Callable[[], object] = lambda: None, seconds: float = REHEARSALS_SECONDS_MAX) -> None:
        """`serve()` is called at least every SERVE_SECONDS while one runs; `seconds` is the time for all together."""
        self._serve = serve
        self._seconds = seconds

    def rehearse(self, name: str, work: Callable[[], object]) -> str:
        """Do `work` of the module `name` in a fork; return why it would have done harm here, "" if it would not.

        Raises Shortage when it cannot be tried.
        """
        began = time.monotonic()
        seconds = min(REHEARSAL_SECONDS_MAX, self._seconds / 2)
        try:
            said = self._rehearse(work, began + seconds)
        except OSError as error:
            raise Shortage(name, error) from error
        finally:
            self._seconds -= time.monotonic() - began
        if said is None:
            return f"it took more than {seconds:.1f} s"
        if not said:
            return "the process died"
        reason = said[1:].decode(errors="replace")
        if said[:1] == _NO_DESCRIPTORS and not has_descriptors():
            raise Shortage(name, reason)
        return reason

    def _rehearse(self, work: Callable[[], object], deadline: float) -> bytes | None:
        """Return what a fork has written until its end, None when it has not ended. Raises OSError without one."""
        reading, writing = os.pipe()
        arbiter = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            raise
        if pid == 0:
            os.close(reading)
            _rehearse_here(work, writing, arbiter)
        os.close(writing)
        said = b""
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([reading], [], [], min(left, SERVE_SECONDS))[0]:
                    self._serve()
                    continue
                chunk = os.read(reading, 4096)
                if not chunk:
                    return said
                said += chunk
            return None
        finally:
            os.close(reading)
            for kill in (os.killpg, os.kill):  # it may not have made its group yet
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def shortage_in(error: BaseException) -> OSError | MemoryError | None:
    """Return the shortage of the machine that is `error` or led to it; None if there is none."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno in _SHORTAGES):
            return link
        link = link.__cause__ or link.__context__
    return None


def has_descriptors() -> bool:
    """Return whether DESCRIPTORS_MIN descriptors are free."""
    held: list[int] = []
    try:
        held.extend(os.dup(0) for _ in range(DESCRIPTORS_MIN))
    except OSError as error:
        return error.errno not in _SHORTAGES
    else:
        return True
    finally:
        for descriptor in held:
            os.close(descriptor)


def _rehearse_here(work: Callable[[], object], writing: int, arbiter: int) -> None:
    """In the fork: do the work under a bound of memory, write `=` and what was raised, and leave."""
    said = _DONE
    try:
        die_with_parent(arbiter)
        os.setpgid(0, 0)  # so that what the work starts is killed with it
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, _leave)  # not SIG_DFL, so that work that sets that is noticed
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(-1)
        with open("/proc/self/statm", encoding="ascii") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + REHEARSAL_SIZE_MAX, size + REHEARSAL_SIZE_MAX))
        handlers = _handlers()
        work()
        said += _left_behind(handlers).encode()
    except BaseException as error:  # noqa: BLE001 - that is what is asked
        lack = shortage_in(error)
        is_short = isinstance(lack, OSError) and lack.errno in (errno.EMFILE, errno.ENFILE)
        said = (_NO_DESCRIPTORS if is_short else _DONE) + f"{type(error).__name__}: {error}".encode(errors="replace")
    finally:
        os.write(writing, said[:1000])
        os._exit(0)


def _left_behind(handlers: Mapping[signal.Signals, object]) -> str:
    """Return what is left of some work in this process that the arbiter must not have; `handlers` were set before it.

    Threads of native libraries are not seen; those libraries are prepared for a fork.
    """
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]:
        return f"it leaves the thread {others[0]} behind"
    changed = [number.name for number, handler in _handlers().items() if handlers[number] != handler]
    return f"it changes the handler of {', '.join(changed)}" if changed else ""


def _handlers() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in signal.Signals}


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os._exit(1)


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing, as the default does for SIGCHLD."""
