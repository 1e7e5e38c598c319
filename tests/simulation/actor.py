"""An actor: a process of the simulated server that runs only when the scheduler moves it.

It is a child under ptrace. It gets one operation at a time and carries it out completely, or up to a place in the
native core plus some instructions. Then it is stopped there, like a process that was preempted or stopped, or that is
about to be killed. Only one actor moves at a time, so everything happens in one order, which the scheduler chooses.

A child reports completion by stopping itself; its answer is in a pipe.
"""

import ctypes
import os
import pickle
import signal
import traceback
from pathlib import Path
from typing import Final, Literal

from shm import _native, process
from shm.layout import NO_ROW
from testing.block_fixture import Formed
from tests import tracee
from tests.simulation.player import Operation, Outcome, Player

Place = Literal["call", "section", "leaving"]
Trails = tuple[dict[int, None], dict[int, None]]  # addresses as they were met, without the lock and with it

# The native function that an operation calls.
CALLS: Final = {
    "claim": "row_claim",
    "release": "row_claim",
    "admit": "admit",
    "batch": "admit_batch",
    "forget": "forget",
    "lose": "lose",
    "recall": "recall",
    "read_state": "state_read",
    "read_tallies": "tallies_read",
    "read_memory": "memory_read",
    "read_entries": "entries_read",
    "post": "command_post",
    "withdraw": "command_withdraw",
    "spend": "tokens_spend",
    "refund": "tokens_refund",
    "take_over": "epoch_begin",
    "tick": "tick",
    "apply": "command_apply",
    "scrub": "slot_check",
}


# Those of a controller's round, which calls several.
ROUND: Final = ("epoch_begin", "command_apply", "state_read", "tick", "vitals_write", "vitals_write_unlocked")

_CORE: Final = ctypes.CDLL(_native.__file__)


def address_of(place: Place, call: str) -> int:
    """Return where the native core begins with a call, takes the mutex, or gives the mutex back."""
    if place == "section":
        return tracee.SECTION.first
    if place == "leaving":
        return tracee.SECTION.last
    function = getattr(_CORE, "mlsdm_" + call)  # cffi's own pointer is to a wrapper that is not called
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _mapped(name: str) -> range:
    """Return the addresses at which a file's code is mapped, here and in every child."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    code = [
        line.split()[0].split("-")
        for line in lines
        if " r-xp " in line and line.split()[-1].rpartition("/")[2].startswith(name)
    ]
    return range(int(code[0][0], 16), int(code[0][1], 16))


KERNEL: Final = _mapped("[vdso]")
NATIVE: Final = _mapped("_native.")
LIBRARY: Final = _mapped("libc.so")


class Actor(tracee.Tracee):
    """One child. `row`, `epoch` and `tickets` are those it was given; `operation` is None while it is idle."""

    def __init__(self, name: str, formed: Formed) -> None:
        self.name = name
        self._block = formed.block
        self.row = NO_ROW
        self.epoch = 0
        self.predecessors: set[int] = set()  # pids; one of them is that of the controller before it
        self.tickets: list[int] = []  # of commands that it posted and has not withdrawn
        self.paid: list[tuple[int, int]] = []  # (account, tokens) that it has spent and may refund
        self.operation: Operation | None = None
        asked, self._asks = os.pipe()
        self._answers, answering = os.pipe()
        parent = os.getpid()
        super().__init__(lambda: _serve(formed, parent, asked, answering))
        os.close(asked)
        os.close(answering)

    def give(self, operation: Operation) -> None:
        """Give it something to do. It does not begin before it is moved."""
        assert self.operation is None
        self.operation = operation
        os.write(self._asks, pickle.dumps(operation))

    def finish(self) -> Outcome:
        """Let it carry its operation out to the end."""
        assert self._moved(tracee.CONT), f"{self.name} stopped with signal {self.signal} at {self.at:#x}"
        return self._answer()

    def go_to(self, address: int) -> Outcome | None:
        """Let it run until the instruction at an address is next; returns the outcome when it was done without, else
        None.
        """
        original = tracee.ptrace(tracee.PEEKTEXT, self.pid, address)
        tracee.ptrace(tracee.POKETEXT, self.pid, address, original & ~0xFF | 0xCC)  # int3
        done = self._moved(tracee.CONT)
        tracee.ptrace(tracee.POKETEXT, self.pid, address, original)
        if done:
            return self._answer()
        assert self.at == address + 1, f"{self.name} stopped with signal {self.signal} at {self.at:#x}"
        tracee.ptrace(tracee.POKEUSER, self.pid, tracee.RIP, address)
        return None

    def advance(self, instructions: int, trails: Trails) -> Outcome | None:
        """Let it carry out some instructions of the native core and of the C library; returns the outcome when it was
        done before, else None. `trails` get the addresses of those of the native core.

        It stops at the latest where the native core returns to Python. The kernel's clock function takes a varying
        number of instructions, so these do not count.
        """
        while instructions > 0:
            if self._moved(tracee.SINGLESTEP):
                return self._answer()
            at = self.at
            if at in NATIVE:
                trails[self._block.mutex_owner() == self.pid][at] = None
            elif at not in LIBRARY and at not in KERNEL:
                return None
            instructions -= at not in KERNEL
        return None

    def kill(self) -> None:
        """SIGKILL it where it stands, and reap it."""
        super().kill()
        os.close(self._asks)
        os.close(self._answers)

    def _moved(self, request: int) -> bool:
        """Let it move until it stops again; returns whether it says that it is done."""
        tracee.ptrace(request, self.pid)
        self._stopped()
        return self.signal == signal.SIGSTOP

    def _answer(self) -> Outcome:
        answer: Outcome | str = pickle.loads(os.read(self._answers, 65_536))
        assert isinstance(answer, Outcome), f"{self.name} failed at {self.operation}:\n{answer}"
        self.operation = None
        return answer


def _serve(formed: Formed, parent: int, asked: int, answering: int) -> None:
    """Run in the child: carry out an operation, answer and stop, until killed."""
    process.die_with_parent(parent)
    player = Player(formed)
    while True:
        operation: Operation = pickle.loads(os.read(asked, 65_536))
        answer: Outcome | str
        try:
            answer = player.play(operation)
        except Exception:  # noqa: BLE001  the simulator says it, with the steps that led here
            answer = traceback.format_exc()
        os.write(answering, pickle.dumps(answer))
        os.kill(player.me.pid, signal.SIGSTOP)
