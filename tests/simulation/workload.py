"""The random operations of workers and controllers, with the times of one of two clocks.

The layout is so small that every ring wraps every few steps, keys and accounts are so few that most are known, and ids
and positions are at the edges of what exists: cases that are rare in a large block are common here.

The log times that are given jump forward by years and fall back; most operations use them, because the block must
tolerate any time. The boot clock only advances and jumps ahead: emergencies require one that never falls back, and so
do buckets, which with the first times would mostly refuse.
"""

import random
from collections.abc import Callable
from typing import Any, Final

from core.regime import GovernorSettings, Regime, RhythmSettings
from core.settings.config import Config
from shm.layout import Layout
from shm.store import ANY_TICKET
from testing.block_fixture import Formed
from tests.simulation.accounts import ACCOUNTS
from tests.simulation.actor import Actor
from tests.simulation.faults import Faults
from tests.simulation.history import COMMAND_KINDS, History
from tests.simulation.player import KeyOf, Operation

WORKERS: Final = 3
LAYOUT: Final = Layout(  # so small that every ring wraps every few steps
    dimension=5, capacity=7, payload_size_max=24, log_capacity=48, rows=WORKERS, receipt_capacity=6
)
YEAR_NS: Final = 365 * 86_400 * 10**9
KEYS: Final = 16  # so few that most have been used

_DEFAULT: Final = Regime.of(Config())
REGIMES: Final = tuple(
    Regime.of_record(regime.to_record())  # λ and gains as float32 has them
    for regime in (
        _DEFAULT,
        _DEFAULT._replace(rhythm=RhythmSettings(2, 2, True, True), synapse=_DEFAULT.synapse._replace(theta_l1=0.3)),
        _DEFAULT._replace(
            governor=GovernorSettings(0.4, 0.2, 0.8, 0.01, 0.3, 0.1),
            rhythm=RhythmSettings(1, 5, True, False),
            cycle_ns=10**8,
        ),
        _DEFAULT._replace(
            rhythm=RhythmSettings(3, 1, True, False),
            synapse=_DEFAULT.synapse._replace(theta_l1=0.1, by_element=True),
        ),
    )
)

# Relative frequency of each operation.
WORKER_WEIGHTS: Final = {
    "admit": 30, "batch": 8, "forget": 10, "recall": 9, "read_state": 6, "read_tallies": 5, "read_memory": 7,
    "read_entries": 6, "post": 5, "withdraw": 3, "release": 2, "spend": 12, "refund": 9,
}  # fmt: skip
CONTROLLER_WEIGHTS: Final = {
    "round": 12, "tick": 5, "apply": 5, "scrub": 3, "lose": 1, "read_state": 1, "take_over": 2,
}  # fmt: skip
TOKEN_OPERATIONS: Final = ("spend", "refund")  # without the lock


class Workload:
    """The operations of one world, which begins at the times of `formed`."""

    def __init__(self, chance: random.Random, formed: Formed, history: History, faults: Faults) -> None:
        self.time_ns, self.boot_ns = formed.now(), formed.boot_now()
        self._random = chance
        self._history = history
        self._faults = faults

    def pass_time(self) -> None:
        """Advance both clocks; at times one jumps, and one falls back."""
        chance = self._random.random()
        if chance < 0.01:
            self.time_ns = self._random.randrange(-10 * YEAR_NS, 60 * YEAR_NS)
        else:
            self.time_ns += self._random.randrange(-(10**6), 10**9)
        self.boot_ns += self._random.randrange(YEAR_NS if chance > 0.999 else 10**9)

    def next_operation(self, actor: Actor, *, begun: bool, paying: bool, alarmed: bool) -> Operation:
        """Return the next operation of an idle actor.

        `begun`: it has its row, or has once tried to take over. `paying`: an actor is stopped in a token operation.
        `alarmed`: there is an emergency, in which operators give orders.
        """
        if actor.name.startswith("worker"):
            if not begun:
                return Operation("claim")
            kinds = WORKER_WEIGHTS
        elif not begun:
            return Operation("take_over", (self.boot_ns,))
        elif not actor.epoch:
            return Operation("round", self._round())
        else:
            kinds = CONTROLLER_WEIGHTS
        name = self._random.choices(list(kinds), list(kinds.values()))[0]
        if kinds is WORKER_WEIGHTS and paying and self._random.random() < 0.7:  # so that it meets the stopped one
            name = self._random.choice(TOKEN_OPERATIONS)
        if kinds is WORKER_WEIGHTS and alarmed and self._random.random() < 0.06:
            return Operation("post", ("resume", None, 0, ANY_TICKET))
        if name == "withdraw" and not actor.tickets:
            name = "post"
        if name == "refund" and not actor.paid:
            name = "spend"
        asks: dict[str, Callable[[], tuple[Any, ...]]] = {
            "admit": lambda: (self.time_ns, *self._event()),
            "batch": self._batch,
            "forget": lambda: (self.time_ns, self._id()),
            "lose": lambda: (self.time_ns, self._id()),
            "recall": self._query,
            "read_memory": lambda: (self._id(),),
            "read_entries": self._page,
            "post": self._post,
            "withdraw": lambda: (self._random.choice(actor.tickets),),
            "spend": self._tokens,
            "refund": lambda: self._random.choice(actor.paid),
            "take_over": lambda: (self.boot_ns,),
            "tick": lambda: (self.time_ns,),
            "apply": lambda: (self.time_ns,),
            "round": self._round,
        }
        return Operation(name, asks[name]() if name in asks else ())

    def _number(self) -> int:
        """Return the number of an event: in half of the calls one that any threshold accepts."""
        return self._random.randrange(900_000, 10**6) if self._random.random() < 0.5 else self._random.randrange(10**6)

    def _payload(self) -> bytes:
        return self._random.randbytes(self._random.randint(0, LAYOUT.payload_size_max))

    def _event(self) -> tuple[int, bytes, KeyOf | None]:
        if self._random.random() < 0.5:
            return self._number(), self._payload(), None
        key = self._random.randrange(KEYS)
        return self._number(), self._payload(), (1, key, self._random.random() < 0.05)

    def _batch(self) -> tuple[int, list[int], list[bytes], KeyOf | None]:
        count = self._random.randint(1, LAYOUT.receipt_capacity - 1)
        key = (1, self._random.randrange(KEYS), 0) if self._random.random() < 0.5 else None
        return self.time_ns, [self._number() for _ in range(count)], [self._payload() for _ in range(count)], key

    def _query(self) -> tuple[int, int, str]:
        k = self._random.randint(1, LAYOUT.capacity + 2)
        return self._random.randrange(10**6), k, self._random.choice(("any", "wake", "sleep", "current"))

    def _id(self) -> int:
        """Return an id inside the window, at its edges, or beyond."""
        newest = self._history.model.newest_id
        return max(0, newest + 2 - self._random.randrange(LAYOUT.capacity + 4))

    def _tokens(self) -> tuple[int, int, int]:
        """Return the arguments of a spend: often for one of a few accounts, so that actors meet there."""
        few = ACCOUNTS if self._random.random() < 0.6 else ACCOUNTS[4:8]
        account = ACCOUNTS.index(self._random.choice(few))
        now_ns = self.time_ns if self._random.random() < 0.03 else self.boot_ns
        return now_ns, account, self._random.randint(1, ACCOUNTS[account].burst)

    def _round(self) -> tuple[int, float]:
        self.boot_ns += 10**9  # once a second the machine is sampled
        return self.boot_ns, self._faults.memory_percent

    def _page(self) -> tuple[int, int]:
        newest = self._history.newest
        return max(1, newest + 3 - self._random.randrange(LAYOUT.log_capacity + 6)), self._random.randint(1, 20)

    def _post(self) -> tuple[str, Regime | None, int, int]:
        kind = self._random.choices(COMMAND_KINDS, (5, 2, 1, 3))[0]
        after = ANY_TICKET if self._random.random() < 0.7 else self._history.commands
        return kind, self._random.choice(REGIMES) if kind == "configure" else None, self._random.randrange(2), after
