"""The operations that workers and controllers get, at random, with the times of one of two clocks.

The layout is so small that every ring wraps every few steps, keys and accounts are so few that most are known, and ids
and positions are at the edges of what exists: cases that are rare in a large block are common here.

One clock jumps forward by years and falls back; most operations use it, because the block must tolerate any time. The
other only advances and jumps ahead, like CLOCK_BOOTTIME: emergencies require one that never falls back, and so do
buckets, which with the first clock would mostly refuse.
"""

import random
from collections.abc import Callable
from typing import Any, Final

from core.regime import GovernorSettings, Regime, RhythmSettings
from core.settings.config import Config
from shm.layout import Layout
from shm.store import ANY_TICKET
from tests.simulation.accounts import ACCOUNTS
from tests.simulation.actor import Actor
from tests.simulation.chronicle import COMMANDED, Chronicle
from tests.simulation.harm import Harm
from tests.simulation.player import KeyOf, Operation

WORKERS: Final = 3
LAYOUT: Final = Layout(  # so small that every ring goes round every few steps
    dimension=5, capacity=7, payload_size_max=24, log_capacity=48, rows=WORKERS, receipt_capacity=6
)
YEAR_NS: Final = 365 * 86_400 * 10**9
KEYS: Final = 16  # so few that most are known, or were

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

# How often each is asked for, beside the others of its kind.
WORKERS_DO: Final = {
    "admit": 30, "batch": 8, "forget": 10, "recall": 9, "look": 6, "add_up": 5, "read": 7, "page": 6, "post": 5,
    "withdraw": 3, "release": 2, "take": 12, "give_back": 9,
}  # fmt: skip
CONTROLLERS_DO: Final = {"round": 12, "tick": 5, "apply": 5, "scrub": 3, "forget": 1, "look": 1, "take_over": 2}
PAID: Final = ("take", "give_back")  # of tokens, without the lock


class Errands:
    """What is asked in one world, which begins at `now_ns`."""

    def __init__(self, chance: random.Random, now_ns: int, chronicle: Chronicle, harm: Harm) -> None:
        self.now_ns = self.boot_ns = now_ns
        self._random = chance
        self._chronicle = chronicle
        self._harm = harm

    def pass_time(self) -> None:
        """Let the clocks run, leap, and one of them fall back."""
        chance = self._random.random()
        if chance < 0.01:
            self.now_ns = self._random.randrange(-10 * YEAR_NS, 60 * YEAR_NS)
        else:
            self.now_ns += self._random.randrange(-(10**6), 10**9)
        self.boot_ns += self._random.randrange(YEAR_NS if chance > 0.999 else 10**9)

    def of(self, actor: Actor, *, begun: bool, paying: bool, alarmed: bool) -> Operation:
        """Return what an idle actor is asked to do next.

        `begun` says that it has its row, or has once tried to take over; `paying` that somebody stands at a bucket;
        `alarmed` that there is an emergency, in which operators give orders.
        """
        if actor.name.startswith("worker"):
            if not begun:
                return Operation("claim")
            kinds = WORKERS_DO
        elif not begun:
            return Operation("take_over", (self.boot_ns,))
        elif not actor.epoch:
            return Operation("round", self._round())
        else:
            kinds = CONTROLLERS_DO
        name = self._random.choices(list(kinds), list(kinds.values()))[0]
        if kinds is WORKERS_DO and paying and self._random.random() < 0.7:  # who stands there should be met
            name = self._random.choice(PAID)
        if kinds is WORKERS_DO and alarmed and self._random.random() < 0.06:
            return Operation("post", ("resume", None, 0, ANY_TICKET))
        if name == "withdraw" and not actor.tickets:
            name = "post"
        if name == "give_back" and not actor.paid:
            name = "take"
        asks: dict[str, Callable[[], tuple[Any, ...]]] = {
            "admit": lambda: (self.now_ns, *self._event()),
            "batch": self._batch,
            "forget": lambda: (self.now_ns, self._id()),
            "recall": self._query,
            "read": lambda: (self._id(),),
            "page": self._page,
            "post": self._post,
            "withdraw": lambda: (self._random.choice(actor.tickets),),
            "take": self._tokens,
            "give_back": lambda: self._random.choice(actor.paid),
            "take_over": lambda: (self.boot_ns,),
            "tick": lambda: (self.now_ns,),
            "apply": lambda: (self.now_ns,),
            "round": self._round,
        }
        return Operation(name, asks[name]() if name in asks else ())

    def _number(self) -> int:
        """Return an event by number: rather often one that any threshold lets through."""
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
        return self.now_ns, [self._number() for _ in range(count)], [self._payload() for _ in range(count)], key

    def _query(self) -> tuple[int, int, str]:
        k = self._random.randint(1, LAYOUT.capacity + 2)
        return self._random.randrange(10**6), k, self._random.choice(("any", "wake", "sleep", "current"))

    def _id(self) -> int:
        """Return an id: of the window, on its edges, or beyond."""
        newest = self._chronicle.model.accepted
        return max(0, newest + 2 - self._random.randrange(LAYOUT.capacity + 4))

    def _tokens(self) -> tuple[int, int, int]:
        """Return what to take: rather often from one of the same few accounts, so that they meet."""
        few = ACCOUNTS if self._random.random() < 0.6 else ACCOUNTS[4:8]
        account = ACCOUNTS.index(self._random.choice(few))
        now_ns = self.now_ns if self._random.random() < 0.03 else self.boot_ns
        return now_ns, account, self._random.randint(1, ACCOUNTS[account].burst)

    def _round(self) -> tuple[int, float]:
        self.boot_ns += 10**9  # once a second the machine is sampled
        return self.boot_ns, self._harm.memory_percent

    def _page(self) -> tuple[int, int]:
        newest = self._chronicle.newest
        return max(1, newest + 3 - self._random.randrange(LAYOUT.log_capacity + 6)), self._random.randint(1, 20)

    def _post(self) -> tuple[str, Regime | None, int, int]:
        kind = self._random.choices(COMMANDED, (5, 2, 1, 3))[0]
        after = ANY_TICKET if self._random.random() < 0.7 else self._chronicle.commands
        return kind, self._random.choice(REGIMES) if kind == "configure" else None, self._random.randrange(2), after
