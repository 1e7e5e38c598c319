"""Apply: a block to which every entry of another one is applied equals it; an entry that does not follow is refused."""

import contextlib
import os
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.namespaces import Namespaces, Policy, Terms
from core.regime import MODES
from shm._native import ffi, lib
from shm.errors import (
    Closing,
    Corrupt,
    Diverged,
    Exists,
    Gap,
    Gone,
    Invalid,
    NamespacesFull,
    NotEmpty,
    NotFinite,
    Promised,
    Stopped,
    Unformed,
)
from shm.event import DuplicatePolicy, Event
from shm.layout import DETAILS, DTYPES, KINDS, NO_ROW, Layout, Place, place_in, size_of
from shm.metadata import MetadataEncoder, hash_of
from shm.records import NO_IDEMPOTENCY_HASH, EntryPointer, decided_of, new_idempotency_hash
from shm.store import Content
from testing.block_fixture import REGIME, Formed, copied
from testing.second_block import SecondBlock, content_of, same_bytes, same_history
from tests import tracee
from tests.shm.conftest import Form

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
STRIDE = int(os.environ.get("STRIDE", "32"))
ASLEEP = REGIME._replace(rhythm=REGIME.rhythm._replace(wake_duration=1, sleep_duration=50))
LAYOUT = Layout(16, 10, 512, 4096, 4, 16, namespaces=4)
OTHER = REGIME._replace(rhythm=REGIME.rhythm._replace(wake_duration=3, sleep_duration=2, by_events=True))


@pytest.fixture
def pair(form: Form) -> Iterator[tuple[Formed, SecondBlock]]:
    """A formed block, and a second one that follows its history."""
    formed = form(LAYOUT)
    second = SecondBlock(formed)
    yield formed, second
    second.close()


def flip(formed: Formed, memory_id: int) -> None:
    """Damage the vector of a memory."""
    offset, _ = formed.region_bytes("vectors")
    formed.block.memory[offset + formed.slot_of(memory_id) * formed.block.layout.vector_stride] ^= 1


def act(formed: Formed, what: str, number: int) -> None:
    """Do one thing with a block; `number` determines what it is about."""
    formed.be(number % formed.block.layout.rows)
    live = formed.live_ids()
    memory_id = live[number % len(live)] if live else 0
    if what == "event":
        formed.decide(number, b"x" * (number % 65))
    elif what == "keyed":
        formed.decide(number, b"k" * (number % 65), new_idempotency_hash((number // 7, number % 3), 7))
    elif what == "rich":
        formed.store.admit_event(formed.now(), rich_event(formed, number))
    elif what == "duplicate":
        moral, vector = formed.pool.event(number)
        policies: tuple[DuplicatePolicy, ...] = ("keep", "skip", "supersede")
        formed.store.admit_event(formed.now(), Event(moral, vector, dedupe=(policies[number % 3], -1.0)))
    elif what == "accept":
        formed.decide(950_000 + number % 50_000, b"y" * (number % 65))
    elif what == "tick":
        formed.store.tick(formed.now(), formed.epoch)
    elif what in ("reset", "stop", "resume"):
        formed.apply(what)
    elif what == "configure":
        formed.apply(what, (REGIME, OTHER)[number % 2])
    elif what in TENANT_STEPS:
        act_on_namespace(formed, what, number)
    elif not memory_id:
        return
    elif what == "supersede":
        moral, vector = formed.pool.event(number)
        formed.store.supersede(formed.now(), memory_id, moral, vector, b"z" * (number % 65))
    elif what == "update":
        formed.store.update(formed.now(), memory_id, (None, b"", b"update")[number % 3])
    elif what == "delete":
        formed.store.forget(formed.now(), memory_id)
    else:
        assert what == "lost"
        flip(formed, memory_id)
        assert formed.store.lose(formed.now(), memory_id)


def act_on_namespace(formed: Formed, what: str, number: int) -> None:
    """Do one thing with a namespace, if it can be done; `number` determines with which."""
    policy = Policy(REGIME.governor, MODES[number // 3 % 3]) if number % 3 else None
    terms = Terms(reserved=number % 2, ttl_ns=number % 5 * 10**15, policy=policy)
    used = [namespace.id for namespace in Namespaces(formed.block, formed.store).all()]
    namespace = used[number % len(used)]
    moral, vector = formed.pool.event(number)
    store, now_ns = formed.store, formed.now()
    with contextlib.suppress(Exists, NamespacesFull, Promised, Closing, Invalid, NotEmpty):
        if what == "create":
            store.create_namespace(now_ns, terms.to_record(f"name{number % 4}"))
        elif what == "change":
            store.change_namespace(now_ns, namespace, terms.to_record())
        elif what == "close":
            store.close_namespace(now_ns, namespace)
        elif what == "free":
            store.free_namespace(now_ns, namespace)
        elif what == "own reset":
            store.reset_namespace(now_ns, namespace)
        else:
            store.admit_event(now_ns, Event(moral, vector, namespace=namespace))


def prepare(formed: Formed, what: str) -> None:
    """Make a namespace of its own governor, in row 1, if a step needs one."""
    if what in TENANT_STEPS and what != "create":
        act_on_namespace(formed, "create", 1)
    if what == "free":
        act_on_namespace(formed, "close", 1)


def number_of(what: str) -> int:
    """Return the number with which `act` does something: for an event, a rejected one."""
    return {"event": 1, **dict.fromkeys(TENANT_STEPS, 1), "tenant": 960_001}.get(what, 960_001)


TENANT_STEPS = ("create", "change", "close", "free", "own reset", "tenant")


def rich_event(formed: Formed, number: int) -> Event:
    """Return an event with most of what an event may have; `number` determines what."""
    moral, vector = formed.pool.event(number)
    metadata = {f"name{member}": (member, "text", True, 0.5)[member % 4] for member in range(number % 17)}
    if number % 5 == 0:
        metadata = {}
    encoder = MetadataEncoder(hash_of(formed.block.secret))
    return Event(
        moral,
        vector,
        b"r" * (number % 9),
        metadata=encoder.encode(metadata),
        own_id=b"id" * (number % 2),
        own_id_hash=(number % 2, 7 * (number % 2)),
        ttl_ns=10**15 if number % 3 == 1 else None,
        expires_ns=2 * 10**18 if number % 3 == 2 else None,
        created_ns=number if number % 2 else None,
        moral_defaulted=number % 7 == 0,
        scorer=number % 4,
        key_id=number % 6,
        key=new_idempotency_hash((number, 3), 5) if number % 4 == 0 else NO_IDEMPOTENCY_HASH,
    )


STEPS = (
    "event", "keyed", "rich", "duplicate", "accept", "tick", "reset", "configure", "supersede", "update", "delete",
    "lost", *TENANT_STEPS,
)  # fmt: skip


class TestHistories:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1_000_000)), max_size=120), st.integers(0, 3))
    def test_random_histories(self, steps: list[tuple[str, int]], slack: int) -> None:
        """Whatever happens in one block, the second one that applies its entries is equal in every byte."""
        formed = Formed(LAYOUT._replace(slack=slack))
        second = SecondBlock(formed)
        try:
            for what, number in steps:
                act(formed, what, number)
                second.follow(formed)
                same_history(formed.block, second.block)
            for _ in range(2):  # over what a repeated event has left in the buffers of the next state
                formed.accept()
                second.follow(formed)
            same_bytes(formed.block, second.block)
            assert formed.store.tallies() == second.store.tallies()
            assert not second.store.repair_links(0, formed.block.layout.slots)
        finally:
            formed.close()
            second.close()

    def test_stopped_events_leave_no_trace(self, pair: tuple[Formed, SecondBlock]) -> None:
        """Events that were refused while admissions were stopped have no entries, and the histories stay equal."""
        formed, second = pair
        formed.accept()
        formed.apply("stop")
        with pytest.raises(Stopped):
            formed.accept()
        formed.apply("resume")
        formed.accept()
        second.follow(formed)
        same_history(formed.block, second.block)

    def test_emergency_does_not_refuse_entries(self, pair: tuple[Formed, SecondBlock]) -> None:
        """An entry has been decided: that the memory of this machine is full refuses events, and no entries."""
        formed, second = pair
        formed.accept()
        second.block.region("vitals").emergency = 4
        second.follow(formed)
        same_bytes(formed.block, second.block)

    def test_rows_that_this_block_has_not(self, pair: tuple[Formed, SecondBlock]) -> None:
        """Decisions of a row that this block does not have count for row 0, so that the tallies add up."""
        formed, second = pair
        formed.be(NO_ROW)
        formed.decide(950_000)
        second.follow(formed)
        assert second.store.tallies() == (1, 0, 2)
        same_bytes(formed.block, second.block)


class TestOrder:
    def test_entries_are_consecutive(self, pair: tuple[Formed, SecondBlock]) -> None:
        """An entry that is not the next one is refused, and the message names the one that is."""
        formed, second = pair
        formed.accept()
        formed.accept()
        first, _, third = (formed.entry(position) for position in (1, 2, 3))
        with pytest.raises(Gap, match="position 3 is not the next one, which is 1"):
            second.apply(third, content_of(formed.store, third))
        assert second.apply(first, None)
        with pytest.raises(Gap, match="position 3 is not the next one, which is 2"):
            second.apply(third, content_of(formed.store, third))
        second.follow(formed)
        same_bytes(formed.block, second.block)

    def test_repeated_entry_changes_nothing(self, pair: tuple[Formed, SecondBlock]) -> None:
        """An entry that was applied before is ignored, with or without its content."""
        formed, second = pair
        formed.accept()
        second.follow(formed)
        for position in (1, 2):
            assert second.apply(formed.entry(position), None) is False
        same_bytes(formed.block, second.block)

    def test_repeated_entry_that_differs(self, pair: tuple[Formed, SecondBlock]) -> None:
        """A position that holds another entry than the given one is a divergence, while the log holds it."""
        formed, second = pair
        formed.accept()
        second.follow(formed)
        other = copied(formed.entry(2))
        other.after.theta += 1
        sealed(other)
        with pytest.raises(Diverged, match=r"position 2: after\.theta is 1\.\d+, this block has 0\.\d+"):
            second.apply(other, None)

    def test_position_that_the_log_does_not_hold(self, form: Form) -> None:
        """A repeated position is not compared once it has left the log."""
        formed = form(LAYOUT._replace(log_capacity=16))
        second = SecondBlock(formed)
        start = formed.entry(1)
        for _ in range(20):
            formed.accept()
            second.follow(formed)
        assert second.apply(start, None) is False
        second.close()

    def test_another_history(self, pair: tuple[Formed, SecondBlock], form: Form) -> None:
        """Entries of another history are refused before anything is looked at."""
        formed, second = pair
        other = form(LAYOUT)
        with pytest.raises(Diverged, match=f"log_id is {other.block.log_id}, this block has {formed.block.log_id}"):
            second.store.apply(other.block.log_id, formed.entry(1), None)

    def test_first_entry_is_a_start(self, pair: tuple[Formed, SecondBlock]) -> None:
        """Only a start forms the first state, and nothing else does."""
        formed, second = pair
        formed.accept()
        other = copied(formed.entry(2))
        other.position = 1
        with pytest.raises(Diverged, match="position 1: kind is 1, this block has 0"):
            second.apply(sealed(other), None)
        with pytest.raises(Unformed):
            second.store.state()
        second.follow(formed)
        again = copied(formed.entry(1))
        again.position = 3
        with pytest.raises(Diverged, match="position 3: kind is 8, this block has 0"):
            second.apply(sealed(again), None)

    def test_content_is_needed(self, pair: tuple[Formed, SecondBlock]) -> None:
        """An entry that wrote a memory cannot be applied without its content."""
        formed, second = pair
        second.follow(formed)
        formed.accept()
        entry = formed.entry(2)
        with pytest.raises(Gone):
            second.apply(entry, None)
        nan = np.full(16, np.nan, np.float32).tobytes()
        with pytest.raises(NotFinite):
            second.apply(entry, Content(nan, b""))
        second.follow(formed)
        same_history(formed.block, second.block)

    @pytest.mark.parametrize("what", ["accept", "update"])
    def test_other_content(self, pair: tuple[Formed, SecondBlock], what: str) -> None:
        """Content with another vector than the entry names is a divergence."""
        formed, second = pair
        formed.accept()
        second.follow(formed)
        act(formed, what, 1)
        entry = formed.entry(3)
        content = content_of(formed.store, entry)
        assert content
        wrong = content._replace(vector=bytes(64))
        with pytest.raises(Diverged, match=r"position 3: vector_checksum is \d+, this block has \d+"):
            second.apply(entry, wrong)
        second.follow(formed)
        same_history(formed.block, second.block)

    def test_damaged_block(self, pair: tuple[Formed, SecondBlock]) -> None:
        """A block whose own state is damaged applies nothing."""
        formed, second = pair
        formed.accept()
        second.follow(formed)
        formed.accept()
        second.block.region("states", second.block.position & 1).scalars.theta += 1
        entry = formed.entry(3)
        with pytest.raises(Corrupt):
            second.apply(entry, content_of(formed.store, entry))
        assert second.block.position == 2


def sealed(entry: EntryPointer) -> EntryPointer:
    """Give an entry the checksum of its bytes, and return it."""
    found = ffi.new("uint64_t *")
    assert lib.mlsdm_checksum(16, ffi.cast("uint64_t *", entry), size_of("entry") - 8, 2, found)
    entry.checksum = found[0]
    return entry


def scalars_of(detail: str) -> Iterator[Place]:
    """Yield every scalar of an entry whose detail is a record, but for its checksum."""
    at = 0
    while at < size_of("entry") - 8:
        yield (place := place_in("entry", at, detail))
        at = place.offset + DTYPES[place.dtype][0]


# What was asked for: another value of it may show in any field.
ASKED = re.compile(
    r"position|kind|time_ns|memory_id|victim_id|cause|vector_checksum|settings\..*|moral|created_ns|expires_ns|own_id.*|scorer|"
    r"flags|namespace|generation|receipt|step|terms\..*|duplicate_.*"
)
# What an entry says that no block can compute. Some of it becomes a part of the state, and then the next entry, which
# has the checksum of the state before it, does not follow. The rest has no guard but the entry's own checksum.
KEPT = re.compile(r"time_ns|ticket|settings\..*|flags|receipt")
TOLD = re.compile(r"row|key_id|key\[.\]|body|receipt|duplicate_.*")
NOT_STORED = re.compile(r"moral|created_ns|expires_ns|own_id\[.\]|scorer|flags|vector_checksum")


class TestMutations:
    """One bit of one field of an entry is another one, and the entry's checksum fits."""

    @pytest.fixture(params=["start", *STEPS, "stop", "resume"])
    def case(self, request: pytest.FixtureRequest, pair: tuple[Formed, SecondBlock]) -> tuple[EntryPointer, ...]:
        """The next entry of the second block, of each kind, and the entry behind it."""
        formed, second = pair
        for number in range(12 if request.param != "start" else 0):
            formed.decide(950_000 + number)
            formed.admit(1)
            second.follow(formed)
        if request.param != "start":
            prepare(formed, request.param)
            second.follow(formed)
            act(formed, request.param, number_of(request.param))
        self.content = content_of(formed.store, formed.entry(second.block.position + 1))
        if request.param == "stop":
            formed.apply("resume")
        else:
            formed.accept()
        return formed.entry(second.block.position + 1), formed.entry(second.block.position + 2)

    def test_every_field(self, pair: tuple[Formed, SecondBlock], case: tuple[EntryPointer, EntryPointer]) -> None:
        """The field is named with both values; what the block cannot know is found by the next entry, or is kept."""
        formed, second = pair
        entry, following = case
        kind, image = KINDS[entry.kind], second.block.memory[:]
        stored = kind != "decision" or bool(decided_of(entry).slot)
        kept, never = [], []
        for place in scalars_of(DETAILS.get(kind, "")):
            mutated = copied(entry)
            ffi.buffer(mutated)[place.offset : place.offset + 1] = bytes([ffi.buffer(mutated)[place.offset][0] ^ 1])
            assert ": checksum is " in refusal(second, mutated, self.content)
            found = refusal(second, sealed(mutated), self.content)
            if found:
                assert f": {place.name} is " in found or ASKED.fullmatch(place.name) or not (stored or self.content)
                assert second.block.position == entry.position - 1
                assert refusal(second, entry, self.content) == ""
            elif "state is" in refusal(second, following, content_of(formed.store, following)):
                kept.append(place.name)
            else:
                never.append(place.name)
            second.block.memory[:] = image
        assert [name for name in kept if not KEPT.fullmatch(name)] == []
        told = [name for name in never if not TOLD.fullmatch(name)]
        if kind == "lost" or not stored:
            told = [name for name in told if not NOT_STORED.fullmatch(name)]
        assert told == []


def refusal(second: SecondBlock, entry: EntryPointer, content: Content | None) -> str:
    """Apply an entry; return the message of the refusal, empty if it was applied."""
    try:
        assert second.apply(entry, content)
    except (Diverged, Gap, Gone) as error:
        return str(error)
    return ""


@pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")
class TestStepped:
    """Death before each instruction of the section in which an entry is applied; `STRIDE` as in test_crash.py."""

    @pytest.mark.parametrize("what", ["start", *STEPS, "stop", "resume"])
    def test_death_at_instructions(self, form: Form, what: str) -> None:
        """The entry is applied or it is not. The successor applies it again, and with it what follows; then both blocks
        are equal.
        """
        formed = form(LAYOUT._replace(dimension=2, capacity=8), ASLEEP)
        second = SecondBlock(formed)
        if what != "start":
            for number in range(20):
                formed.decide(950_000 + number, b"x" * 9)
                formed.admit(1)
                second.follow(formed)
            prepare(formed, what)
            second.follow(formed)
            act(formed, what, number_of(what))
        entry = formed.entry(second.block.position + 1)
        content = content_of(formed.store, entry)
        following = [formed.apply("resume"), formed.admit(960_001), formed.admit(960_002)]
        contents = [content_of(formed.store, later) for later in following]
        image, committed = second.block.memory[:], []
        path = tracee.path_of(lambda: second.apply(entry, content))
        for number in range(random.Random(SEED).randrange(STRIDE), len(path), STRIDE):
            second.block.memory[:] = image
            tracee.kill_at(path, lambda: second.apply(entry, content), number)
            committed.append(second.block.position == entry.position)
            assert committed[-1] or second.block.position == entry.position - 1
            assert second.apply(entry, content) is not committed[-1]
            if what in ("supersede", "update", "delete", "lost"):
                assert not second.block.vectors[decided_of(entry).victim_slot - 1].any(), "the bytes are erased"
            for later, its_content in zip(following, contents, strict=True):
                assert second.apply(later, its_content)
            same_history(formed.block, second.block)
            assert formed.store.tallies() == second.store.tallies()
            assert not second.store.repair_links(0, formed.block.layout.slots)
        print(f"{what}: {len(committed)} deaths along {len(path)} instructions; SEED={SEED}")
        assert committed == sorted(committed), "once it is committed, it stays committed"
        assert not committed[0]
        assert committed[-1] or STRIDE > 70  # the instructions behind the commit are about so many
        second.close()
