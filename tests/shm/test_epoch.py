"""The epoch is no part of the history: controllers that die leave nothing behind but the next number."""

import os
import random
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from core.regime import Regime
from shm.block import BlockIdentity
from shm.layout import KINDS, NO_ROW, RECORDS, offsets
from shm.records import NO_IDEMPOTENCY_HASH, initial_settings_of, new_idempotency_hash, new_vitals
from testing.block_fixture import REGIME, Formed, begin, exit_of
from tests.shm.conftest import Form

DEATHS = 20
# What tells two blocks apart that hold the same: who they are, and what processes did in them.
IDENTITY = {"boot_id", "log_id", "secret", "created_wall_ns", "created_boot_ns", "checksum"}
PROCESSES = {"lock", "vitals", "rows"}


@pytest.fixture
def twins() -> Iterator[tuple[Formed, Formed]]:
    """Two blocks whose clocks show the same times, and whose index is keyed by the same secret."""
    before, secret = random.getstate(), os.urandom(16)
    made = []
    for _ in range(2):
        random.setstate(before)
        made.append(Formed(identity=BlockIdentity.new()._replace(secret=secret)))
    yield made[0], made[1]
    for formed in made:
        formed.close()


def live(formed: Formed, deaths: int) -> None:
    """Decide, delete, tick and command; `deaths` controllers die meanwhile, evenly spread."""
    for number in range(200):
        if deaths and number % (200 // deaths) == 0:
            assert exit_of(begin(partial(take_over_and_die, formed))) == -signal.SIGKILL
            formed.epoch = formed.block.epoch
        now_ns = formed.now()
        moral, vector = formed.pool.event(number * 7_919 % 1_000 * 1_000)
        key = new_idempotency_hash((number // 2, 0), 0) if number % 3 else NO_IDEMPOTENCY_HASH
        formed.store.admit(now_ns, moral, vector, b"payload"[: number % 8], key)
        if number % 4 == 0:
            formed.store.tick(formed.now(), formed.epoch)
        if number % 50 == 49:
            formed.apply("reset" if number % 100 == 49 else "configure", REGIME)
            formed.store.forget(formed.now(), int(formed.store.state().scalars.accepted))


def take_over_and_die(formed: Formed) -> None:
    """Take the next epoch and write the vitals, as a controller does, then die."""
    epoch = formed.store.begin_epoch(0, REGIME.to_record())
    formed.store.write_vitals(epoch, new_vitals())
    os.kill(os.getpid(), signal.SIGKILL)


def differences(one: Formed, other: Formed) -> Iterator[str]:
    """Yield each header field and each region in which two blocks differ."""
    for field, _ in offsets(next(record for record in RECORDS if record.name == "header")):
        mine, theirs = (getattr(formed.block.region("header"), field.name) for formed in (one, other))
        if (list(mine) != list(theirs)) if field.count > 1 else mine != theirs:
            yield field.name
    for region in one.block.layout.regions()[1:]:
        mine, theirs = (formed.block.memory[region.offset :][: region.size] for formed in (one, other))
        if mine != theirs:
            yield region.name


def test_deaths_of_controllers_leave_no_trace_in_the_history(twins: tuple[Formed, Formed]) -> None:
    """Two blocks that were fed the same calls with the same times are equal byte for byte outside of header's identity,
    lock, vitals and rows, although 20 controllers of one of them died.
    """
    one, other = twins
    live(one, 0)
    live(other, DEATHS)

    assert (one.block.epoch, other.block.epoch) == (1, 1 + DEATHS)
    assert set(differences(one, other)) <= IDENTITY | PROCESSES


def test_the_first_entry_of_a_block_carries_its_settings(form: Form) -> None:
    """Position 1 is the start; a later controller enters nothing."""
    formed = form()
    formed.store.begin_epoch(formed.now(), REGIME.to_record())
    entry = formed.entry(1)

    assert (formed.block.position, KINDS[entry.kind], entry.row) == (1, "start", NO_ROW)
    assert Regime.of_record(initial_settings_of(entry)) == Regime.of_record(REGIME.to_record())
