"""Token buckets: exactly as many tokens as the textbook's, whichever process spends, dies, or floods the table.

The model is a level of tokens in rational arithmetic that rises with time up to the burst. The block holds a single
moment instead; that the two agree on every answer is the test, over all rates and bursts that can be configured.
"""

import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm._native import ffi, lib
from shm.block import Block
from shm.bucket import KEYS, PEERS, Bucket
from shm.layout import BUCKET_WAYS, KEY_BUCKETS, PEER_BUCKETS
from testing.block_fixture import Formed, begin, end, exit_of, wait_until
from tests import tracee
from tests.tracee import Stretch, Tracee

SEED: Final = int(os.environ.get("SEED") or random.randrange(2**32))
STRIDE: Final = int(os.environ.get("STRIDE", "4"))  # between the instructions that are tried; 1 for all
CLIENTS: Final = int(os.environ.get("CLIENTS", "1000000"))
SETS: Final = PEER_BUCKETS // BUCKET_WAYS
NS: Final = 1_000_000_000
PLENTY: Final = 10**8  # a burst that takes minutes to come in: never full meanwhile, however slow the machine

INTERVALS = st.one_of(st.sampled_from([1_000, NS // 5, 1000 * NS]), st.integers(1_000, 1000 * NS))
BURSTS = st.one_of(st.sampled_from([1, 2, 10, 1_000_000]), st.integers(1, 1_000_000))
STARTS = st.one_of(st.sampled_from([0, 1, 2**60]), st.integers(0, 2**60))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "one", "all", "pause", "until", "give"]),
        st.floats(0, 1),
        st.integers(-1, 1),
    ),
    max_size=40,
)
SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)


class Quota(NamedTuple):
    """What a bucket says: `wait_ns` is 0 when the tokens were taken, else when they would be there; `full_ns` until the
    bucket is full again; `remaining` whole tokens left.
    """

    wait_ns: int
    full_ns: int
    remaining: int


class Buckets:
    """The buckets of one table."""

    def __init__(self, block: Block, table: int) -> None:
        self._table = block, table

    def spend(self, owner: int, now_ns: int, interval_ns: int, burst: int, count: int) -> int:
        """Take tokens from one of them."""
        return Bucket(*self._table, owner, interval_ns, burst).spend(now_ns, count)

    def refund(self, owner: int, interval_ns: int, count: int) -> None:
        """Return tokens to one of them."""
        Bucket(*self._table, owner, interval_ns, count).refund(count)


def draw(buckets: Buckets, owner: int, now_ns: int, *bucket: int) -> Quota:
    """Spend tokens or none, and return the answer."""
    interval_ns, burst, count = bucket
    full_ns = buckets.spend(owner, now_ns, interval_ns, burst, count)
    wait_ns = max(0, -full_ns)
    if wait_ns:
        full_ns = (burst - count) * interval_ns + wait_ns
    return Quota(wait_ns, full_ns, burst - -(-full_ns // interval_ns))


class Level:
    """The bucket of the textbook: a level of tokens that rises by one in each interval, up to the burst."""

    def __init__(self, now_ns: int, interval_ns: int, burst: int) -> None:
        self.now_ns, self.interval_ns, self.burst = now_ns, interval_ns, burst
        self.tokens = Fraction(burst)

    def pause(self, ns: int) -> None:
        """Let time pass."""
        self.now_ns += ns
        self.tokens = min(Fraction(self.burst), self.tokens + Fraction(ns, self.interval_ns))

    def take(self, count: int) -> Quota:
        """Spend `count` tokens or none."""
        missing = max(Fraction(0), count - self.tokens)
        if not missing:
            self.tokens -= count
        full = (self.burst - self.tokens) * self.interval_ns
        wait = missing * self.interval_ns
        assert (full.denominator, wait.denominator) == (1, 1), "time is whole nanoseconds"
        return Quota(int(wait), int(full), int(self.tokens))

    def give_back(self, count: int) -> None:
        """Refund `count` tokens, up to the burst."""
        self.tokens = min(Fraction(self.burst), self.tokens + count)


def content(formed: Formed, table: int) -> bytes:
    """Return the bytes of a table."""
    offset, size = formed.region_bytes("peers" if table == PEERS else "keys")
    return formed.block.memory[offset : offset + size]


def places(formed: Formed, chosen: int) -> list[tuple[int, int]]:
    """Return (owner, due_ns) of the places of one set of PEERS."""
    size = ffi.sizeof("struct mlsdm_bucket") * BUCKET_WAYS
    return list(struct.iter_unpack("<Qq", content(formed, PEERS)[chosen * size : (chosen + 1) * size]))


def put_back(formed: Formed, chosen: int, content: list[tuple[int, int]]) -> None:
    """Restore a set of PEERS."""
    offset, size = formed.region_bytes("peers")[0], ffi.sizeof("struct mlsdm_bucket") * BUCKET_WAYS
    words = [word for place in content for word in place]
    formed.block.memory[offset + chosen * size : offset + (chosen + 1) * size] = struct.pack("<" + "Qq" * 8, *words)


def owed(formed: Formed, owner: int) -> int | None:
    """Return the moment at which an owner's bucket of PEERS will be full, None when it has none."""
    return dict(places(formed, owner % SETS)).get(owner)


def clear(formed: Formed) -> None:
    """Remove every client."""
    for name in ("keys", "peers"):
        offset, size = formed.region_bytes(name)
        formed.block.memory[offset : offset + size] = bytes(size)


class TestOneBucket:
    @given(interval=INTERVALS, burst=BURSTS, start=STARTS, steps=STEPS, owner=st.integers(1, 2**64 - 1))
    @settings(SHARED, max_examples=int(os.environ.get("BUCKETS", "200")))
    def test_equals_the_textbook_bucket(  # noqa: PLR0917  hypothesis names what it gives
        self, formed: Formed, interval: int, burst: int, start: int, steps: list[tuple[str, float, int]], owner: int
    ) -> None:
        """Whatever is spent, refunded and waited for, each answer is the model's to the nanosecond."""
        clear(formed)
        buckets, model, taken, wait = Buckets(formed.block, KEYS), Level(start, interval, burst), 0, 0
        for step, share, nudge in steps:
            if step in ("take", "one", "all"):
                count = {"take": 1 + int(share * (burst - 1)), "one": 1, "all": burst}[step]
                expected = model.take(count)
                assert draw(buckets, owner, model.now_ns, interval, burst, count) == expected
                taken, wait = taken + count * (not expected.wait_ns), expected.wait_ns
            elif step == "give" and taken:
                count = max(1, int(share * min(taken, burst)))
                taken -= count
                model.give_back(count)
                buckets.refund(owner, interval, count)
            elif step != "give":
                model.pause(max(0, (wait if step == "until" else int(share * 2 * burst * interval)) + nudge))

    @given(
        interval=INTERVALS,
        burst=BURSTS,
        start=st.integers(10**15, 2**60),
        takes=st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 2)), min_size=1, max_size=40),
    )
    @settings(SHARED, max_examples=int(os.environ.get("BUCKETS", "100")))
    def test_late_clock_gains_nothing(
        self, formed: Formed, interval: int, burst: int, start: int, takes: list[tuple[float, float]]
    ) -> None:
        """A caller that has read its clock up to a minute before it spends gains nothing: never more than burst +
        elapsed × rate tokens are spent.
        """
        clear(formed)
        buckets, now, latest, times, taken = Buckets(formed.block, KEYS), start, start, [], 0
        for share, pause in takes:
            now = max(0, latest - 60 * NS, now + int(pause * burst * interval / 4))
            latest = max(latest, now)
            count = 1 + int(share * (burst - 1))
            if not draw(buckets, 7, now, interval, burst, count).wait_ns:
                taken += count
                times.append(now)
                assert taken <= burst + Fraction(max(times) - min(times), interval)

    @pytest.mark.parametrize("table", [KEYS, PEERS])
    def test_refused_request_changes_nothing(self, formed: Formed, table: int) -> None:
        """Not a byte of the table changes."""
        buckets = Buckets(formed.block, table)
        draw(buckets, 5, 1_000, NS, 10, 8)
        before = content(formed, table)

        assert Quota(1 * NS, 8 * NS, 2) == draw(buckets, 5, 1_000, NS, 10, 3)
        assert before == content(formed, table)

    def test_full_at_first_and_after_a_long_time(self, formed: Formed) -> None:
        """A bucket is full just after the boot of the machine, and after 30 years without a request."""
        buckets = Buckets(formed.block, PEERS)
        for owner, now_ns in ((5, 0), (6, 1), (7, NS)):
            assert Quota(0, 10 * NS, 0) == draw(buckets, owner, now_ns, NS, 10, 10)
            assert Quota(NS, 10 * NS, 0) == draw(buckets, owner, now_ns, NS, 10, 1)
            assert Quota(0, 10 * NS, 0) == draw(buckets, owner, now_ns + 10**18, NS, 10, 10)

    def test_longest_possible_debt(self, formed: Formed) -> None:
        """A million tokens at one in a thousand seconds is 32 years, which still fits."""
        buckets = Buckets(formed.block, PEERS)
        room = 10**6 * 1000 * NS

        assert Quota(0, room, 0) == draw(buckets, 5, 2**62, 1000 * NS, 10**6, 10**6)
        assert Quota(room, room, 0) == draw(buckets, 5, 2**62, 1000 * NS, 10**6, 10**6)
        assert Quota(0, room, 0) == draw(buckets, 5, 2**62 + room, 1000 * NS, 10**6, 10**6)

    @pytest.mark.parametrize("bit", range(64))
    def test_flipped_bit_delays_by_a_full_bucket_at_most(self, formed: Formed, bit: int) -> None:
        """A damaged word delays a client by the time that its bucket takes to fill, and a minute, at most."""
        buckets, now_ns = Buckets(formed.block, PEERS), 10**15
        draw(buckets, 5, now_ns, NS, 10, 10)
        set_of_five = places(formed, 5)
        mask = (1 << bit) - (1 << 64 if bit == 63 else 0)
        put_back(formed, 5, [(owner, due_ns ^ mask if owner == 5 else due_ns) for owner, due_ns in set_of_five])
        draw(buckets, 5, now_ns, NS, 10, 10)

        assert Quota(0, 10 * NS, 0) == draw(buckets, 5, now_ns + 70 * NS, NS, 10, 10)

    def test_clock_read_before_another_spent_everything(self, formed: Formed) -> None:
        """A caller that has read the clock before another one spent everything gets no token."""
        buckets = Buckets(formed.block, PEERS)
        draw(buckets, 5, 60 * NS, NS, 10, 10)

        assert buckets.spend(5, 0, NS, 10, 1) == -61 * NS
        assert Quota(0, NS, 9) == draw(buckets, 5, 60 * NS + 10 * NS, NS, 10, 1)

    def test_tables_are_separate(self, formed: Formed) -> None:
        """The same number is one client among the keys and another one among the peers."""
        draw(Buckets(formed.block, KEYS), 5, 0, NS, 10, 10)

        assert Quota(0, 10 * NS, 0) == draw(Buckets(formed.block, PEERS), 5, 0, NS, 10, 10)
        assert tuple(formed.block.map.buckets) == (KEY_BUCKETS, PEER_BUCKETS)


class TestTogether:
    """Several processes and one bucket, by the real clock."""

    @staticmethod
    def now_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @staticmethod
    def shared_counts() -> Any:
        """Return uint64[512] that children share; a count is one store, which a death cannot halve."""
        return ffi.from_buffer("uint64_t[]", mmap.mmap(-1, 4096))

    def hammer(self, formed: Formed, counts: Any, child: int, for_ns: int, owner: int) -> None:
        """Spend one to three tokens as fast as possible, and count them."""
        buckets, rng, taken, until = Buckets(formed.block, KEYS), random.Random(child), 0, self.now_ns() + for_ns
        while (now := self.now_ns()) < until:
            count = rng.randrange(1, 4)
            if not draw(buckets, owner, now, 2_000, PLENTY, count).wait_ns:
                taken += count
                counts[child] = taken

    def test_processes_together_get_the_rate_exactly(self, formed: Formed) -> None:
        """From an empty bucket, what three processes spend and what is left equals what came in, to the token."""
        buckets, counts, start = Buckets(formed.block, KEYS), self.shared_counts(), self.now_ns()
        assert draw(buckets, 9, start, 2_000, PLENTY, PLENTY).wait_ns == 0
        children = [begin(lambda child=child: self.hammer(formed, counts, child, NS // 4, 9)) for child in range(3)]  # type: ignore[misc]  # early binding
        assert [exit_of(child) for child in children] == [0, 0, 0]
        now = self.now_ns()
        left = draw(buckets, 9, now, 2_000, PLENTY, 1)

        taken = list(counts[0:3])
        print(f"{taken} tokens in {(now - start) / 1e9:.3f} s")
        assert all(taken)
        assert (now - start) // 2_000 == sum(taken) + left.remaining + (not left.wait_ns)

    def test_concurrent_first_requests_err_by_one_request_each(self, formed: Formed) -> None:
        """Eight processes spend for a new client at the same moment, many times: it gets one burst, and at most one
        request more for each further process.
        """
        counts, gate = mmap.mmap(-1, 4096), mmap.mmap(-1, 4096)

        def meet(child: int) -> None:
            buckets = Buckets(formed.block, PEERS)
            for client in range(1, 200):
                while gate[0] < client:
                    time.sleep(0)
                for _ in range(12):
                    if not draw(buckets, client, 1_000, NS, 10, 1).wait_ns:
                        counts[child * 256 + client] += 1
                gate[1 + child] = client

        children = [begin(lambda child=child: meet(child)) for child in range(8)]  # type: ignore[misc]  # early binding
        for client in range(1, 200):
            gate[0] = client
            wait_until(lambda client=client: gate[1:9] == bytes([client] * 8))  # type: ignore[misc]  # early binding
        assert [exit_of(child) for child in children] == [0] * 8

        got = [sum(counts[client : 8 * 256 : 256]) for client in range(1, 200)]
        print(f"most of one client: {max(got)} of 10")
        assert min(got) >= 10
        assert max(got) <= 10 + 7
        counts.close()
        gate.close()

    def test_kills_at_random_moments(self, formed: Formed) -> None:
        """A process that is killed while it spends leaves a correct bucket: at most its own uncounted request is
        missing.
        """
        print(f"rerun with SEED={SEED}")
        rng, buckets, counts = random.Random(SEED), Buckets(formed.block, KEYS), self.shared_counts()
        start = self.now_ns()
        assert draw(buckets, 9, start, 2_000, PLENTY, PLENTY).wait_ns == 0
        for child in range(40):
            pid = begin(lambda child=child: self.hammer(formed, counts, child, 60 * NS, 9))  # type: ignore[misc]  # early binding
            wait_until(lambda child=child: counts[child])  # type: ignore[misc]  # early binding
            time.sleep(rng.random() * 0.002)
            end(pid)
        now = self.now_ns()
        left = draw(buckets, 9, now, 2_000, PLENTY, 1)

        came = (now - start) // 2_000
        found = sum(counts[0:40]) + left.remaining + (not left.wait_ns)
        assert came - 40 * 3 <= found <= came


class TestFlood:
    def test_million_invented_clients(self, formed: Formed) -> None:
        """No client with a key is affected. A known peer keeps its bucket if it owes more than the invented ones, or
        loses its debt; none is limited more strictly than before.
        """
        print(f"rerun with SEED={SEED} CLIENTS={CLIENTS}")
        rng = random.Random(SEED)
        keys, peers, now = Buckets(formed.block, KEYS), Buckets(formed.block, PEERS), 10**12
        for key in range(1, 1001):
            draw(keys, key, now, NS // 100, 200, rng.randrange(1, 201))
        debtors = [1 + (rng.getrandbits(44) << 20 | chosen) for chosen in range(500)]
        modest = [1 + (rng.getrandbits(44) << 20 | 4096 + chosen) for chosen in range(500)]
        for debtor, other in zip(debtors, modest, strict=True):
            draw(peers, debtor, now, NS // 5, 10, rng.randrange(4, 11))
            draw(peers, other, now, NS // 5, 10, 1)
        keys_before = content(formed, KEYS)
        owed_before = {peer: owed(formed, peer) for peer in debtors + modest}

        invented = np.random.default_rng(SEED).integers(1, 2**63, CLIENTS).tolist()
        refused = 0
        account = ffi.new("struct mlsdm_account *", (1, NS // 5, 10, PEERS))
        for number, account.owner in enumerate(invented):
            refused += lib.mlsdm_tokens_spend(formed.block.map, account, now + number % 100, 1 + number % 3) < 0

        assert keys_before == content(formed, KEYS)
        assert refused == 0, "newcomers find a full bucket"
        assert [owed_before[peer] for peer in debtors] == [owed(formed, peer) for peer in debtors]
        kept = sum(owed_before[peer] == owed(formed, peer) for peer in modest)
        print(f"{kept} of {len(modest)} modest peers kept their places")
        for peer in modest:
            assert 200_000_000 <= (quota_of := draw(peers, peer, now, NS // 5, 10, 1)).full_ns <= 400_000_000
            assert quota_of.wait_ns == 0

    def test_refund_after_the_bucket_has_a_new_owner(self, formed: Formed) -> None:
        """A late refund changes no bucket; the owner with the smallest debt had lost it."""
        peers = Buckets(formed.block, PEERS)
        owners = [3 + SETS * number for number in range(BUCKET_WAYS + 1)]
        for number, owner in enumerate(owners):
            assert draw(peers, owner, 1_000, NS, 10, number + 1).wait_ns == 0
        before = content(formed, PEERS)
        peers.refund(owners[0], NS, 1)

        assert before == content(formed, PEERS)
        assert None is owed(formed, owners[0])
        assert [owed(formed, owner) for owner in owners[1:]] == [1_000 + (number + 1) * NS for number in range(1, 9)]
        assert Quota(0, NS, 9) == draw(peers, owners[0], 1_000, NS, 10, 1)

    def test_full_bucket_is_replaced_first(self, formed: Formed) -> None:
        """A place whose bucket is full again is given away before one that is in use, and its owner loses nothing."""
        peers = Buckets(formed.block, PEERS)
        owners = [3 + SETS * number for number in range(BUCKET_WAYS + 1)]
        for owner in owners[:-1]:
            draw(peers, owner, 1_000, NS, 10, 2 if owner == owners[4] else 10)
        later = 1_000 + 3 * NS
        draw(peers, owners[-1], later, NS, 10, 10)

        assert None is owed(formed, owners[4])
        assert [owed(formed, owner) for owner in owners[:4] + owners[5:-1]] == [1_000 + 10 * NS] * 7


@pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")
class TestStepped:
    """A newcomer dies, or is put aside, at each instruction of its take."""

    BURST: Final = 100
    OWNERS: Final = tuple(3 + SETS * number for number in range(BUCKET_WAYS))
    NEWCOMER: Final = 3 + SETS * 100
    STRANGER: Final = 3 + SETS * 200

    @pytest.fixture
    def crowded(self, formed: Formed) -> Formed:
        """A set whose places are all in use; the fourth owner has the smallest debt, 41 seconds."""
        peers = Buckets(formed.block, PEERS)
        for number, owner in enumerate(self.OWNERS):
            draw(peers, owner, 1_000, NS, self.BURST, 41 if number == 3 else 50 + number)
        return formed

    def take_of(self, formed: Formed) -> tuple[Callable[[], object], Stretch, list[int]]:
        """Return the new client's call, its stretch and its path; the block is left as it was."""
        before = places(formed, 3)
        function = ffi.addressof(lib, "mlsdm_tokens_spend")
        address = int(ffi.cast("uintptr_t", function))
        stretch = Stretch(address, address)

        account = ffi.new("struct mlsdm_account *", (self.NEWCOMER, NS, self.BURST, PEERS))

        def take() -> object:
            return function(formed.block.map, account, 1_000, 1)

        path = tracee.path_of(take, stretch)
        put_back(formed, 3, before)
        return take, stretch, path

    @staticmethod
    def put_aside(take: Callable[[], object], path: list[int]) -> Iterator[tuple[int, Tracee]]:
        """Yield children that are stopped in the middle of the call, each before another instruction of its path."""
        print(f"rerun with SEED={SEED} STRIDE={STRIDE}")
        for number in range(SEED % STRIDE, len(path), STRIDE):
            child = Tracee(take)
            try:
                child.run_to(path[0])
                if number:
                    child.run_to(path[number], path[:number].count(path[number]))
                yield number, child
            finally:
                child.kill()

    def test_death_at_instructions(self, crowded: Formed) -> None:
        """The tokens are spent or they are not. The place belongs to the client or to nobody, never to the client with
        another one's debt.
        """
        take, stretch, path = self.take_of(crowded)
        before = places(crowded, 3)
        own, seen = (self.NEWCOMER, 1_000 + NS), []
        for number in tracee.killed_along(path, take, STRIDE, SEED, stretch):
            after = places(crowded, 3)
            assert before[:3] + before[4:] == after[:3] + after[4:]
            traces = (before[3], (0, before[3][1]), (0, 1_000), (self.NEWCOMER, 1_000), own)
            assert after[3] in traces, f"after death at instruction {number}"
            seen.append(after[3])
            again = draw(Buckets(crowded.block, PEERS), self.NEWCOMER, 1_000, NS, self.BURST, 1)
            assert (Quota(0, 2 * NS, 98) if after[3] == own else Quota(0, NS, 99)) == again
            put_back(crowded, 3, before)
        print(f"{len(seen)} deaths along {len(path)} instructions, {len(set(seen))} different traces")
        assert [before[3], own] == [seen[0], seen[-1]]

    def test_place_is_lost_at_instructions(self, crowded: Formed) -> None:
        """While the process is stopped, another client gets its place. What it then spends is not charged to that
        client, which may at most find a token that was cancelled and refunded, too.
        """
        take, _, path = self.take_of(crowded)
        before, peers = places(crowded, 3), Buckets(crowded.block, PEERS)
        for number, newcomer in self.put_aside(take, path):
            if owed(crowded, self.NEWCOMER):
                peers.refund(self.NEWCOMER, NS, self.BURST)  # so that it owes least
            assert Quota(0, 60 * NS, 40) == draw(peers, self.STRANGER, 1_000, NS, self.BURST, 60)
            newcomer.let_go()
            owes = owed(crowded, self.STRANGER)
            assert owes in (None, 1_000 + 59 * NS, 1_000 + 60 * NS), f"put aside at instruction {number}"
            put_back(crowded, 3, before)

    def test_second_worker_at_instructions(self, formed: Formed) -> None:
        """While the process is stopped, another worker serves the same client in full. Then the client gets the one
        token of the stopped request, or nothing.
        """
        take, _, path = self.take_of(formed)
        before, peers = places(formed, 3), Buckets(formed.block, PEERS)
        for number, twin in self.put_aside(take, path):
            left = 99 if owed(formed, self.NEWCOMER) == 1_000 + NS else 100
            assert draw(peers, self.NEWCOMER, 1_000, NS, self.BURST, left).wait_ns == 0
            twin.let_go()
            assert draw(peers, self.NEWCOMER, 1_000, NS, self.BURST, 1).wait_ns, f"put aside at instruction {number}"
            put_back(formed, 3, before)
