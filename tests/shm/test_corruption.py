"""A block whose bytes changed behind its back: nothing is built on them, and whoever asks is told."""

import os
import random
from collections.abc import Callable, Iterator

import pytest

from shm._native import ffi
from shm.block import Block, BlockError
from shm.layout import RECORDS
from shm.status import Corrupt
from tests.formed import Formed
from tests.shm.conftest import Form

SIZES = {record.name: record.size for record in RECORDS}


@pytest.fixture
def used(formed: Formed) -> Formed:
    """A store that has decided, deleted and ticked."""
    for number in range(70):
        formed.accept(number)
        formed.admit(1)
    formed.store.forget(formed.now(), 60)
    formed.store.tick(formed.now(), formed.epoch)
    return formed


def flipped(formed: Formed, offset: int, size: int) -> Iterator[int]:
    """Flip one bit of each byte in turn; yields while it is flipped."""
    memory = formed.block.memory
    for byte in range(size):
        before = memory[offset + byte]
        memory[offset + byte] ^= 1 << random.randrange(8)
        yield byte
        memory[offset + byte] = before


class TestState:
    def test_every_byte(self, used: Formed) -> None:
        """With any byte of the committed state changed, no event is admitted, no memory deleted, no step taken, no
        command carried out, and no state given out; with the byte put back, all goes on.
        """
        position = int(used.store.state().position)
        used.store.post_command("reset")
        offset = used.region_bytes("states")[0] + (position & 1) * SIZES["state"]
        calls: tuple[Callable[[], object], ...] = (
            used.store.state,
            used.store.levels,
            used.accept,
            lambda: used.admit(1),
            lambda: used.store.epoch(used.now(), used.regime.to_record()),
            lambda: used.store.tick(used.now(), used.epoch),
        )
        for _ in flipped(used, offset, SIZES["state"]):
            for call in calls:
                with pytest.raises(Corrupt):
                    call()

        assert position == used.store.state().position
        assert 71 == used.accept()

    @pytest.mark.parametrize("name", ["memory", "forget"])
    def test_no_memory_is_denied_because_of_it(self, used: Formed, name: str) -> None:
        """A memory that lives is not called Unknown or Gone when the counters that say so are not to be trusted."""
        position = int(used.store.state().position)
        offset = used.region_bytes("states")[0] + (position & 1) * SIZES["state"]
        scalars = next(member.offset for field, member in ffi.typeof("struct mlsdm_state").fields if field == "scalars")
        accepted = next(
            member.offset for field, member in ffi.typeof("struct mlsdm_scalars").fields if field == "accepted"
        )
        for _ in flipped(used, offset + scalars + accepted, 8):
            with pytest.raises(Corrupt):
                used.store.memory(50) if name == "memory" else used.store.forget(used.now(), 50)

    def test_a_controller_is_not_superseded_by_it(self, used: Formed) -> None:
        """A changed epoch in the state is corruption and not a newer controller."""
        position = int(used.store.state().position)
        vitals = ffi.new("struct mlsdm_vitals *")
        used.block.region("states", position & 1).epoch += 1

        with pytest.raises(Corrupt):
            used.store.write_vitals(used.epoch, vitals)

    def test_the_other_buffer_does_not_matter(self, used: Formed) -> None:
        """What is not committed may hold anything."""
        position = int(used.store.state().position)
        offset = used.region_bytes("states")[0] + ((position + 1) & 1) * SIZES["state"]
        for _ in flipped(used, offset, SIZES["state"]):
            assert position == used.store.state().position
        assert 71 == used.accept()

    def test_a_wrong_commit_word(self, used: Formed) -> None:
        """A position that published nothing is refused."""
        commit = used.block.region("commit")
        before = int(commit.position)
        for wrong in (before - 2, before + 1, before + 2, 2**63, 7):
            commit.position = wrong
            with pytest.raises(Corrupt):
                used.store.state()
            with pytest.raises(Corrupt):
                used.accept()
        commit.position = before

        assert 71 == used.accept()


class TestLevels:
    def test_every_byte(self, used: Formed) -> None:
        """With any byte of the committed levels changed, an event that would run the cascade is not admitted, and the
        levels are not given out. What does not need them goes on.
        """
        state = used.store.state()
        position, stride = int(state.position), 3 * 64
        offset = used.region_bytes("levels")[0] + int(state.levels) * stride
        for _ in flipped(used, offset, stride):
            with pytest.raises(Corrupt):
                used.store.levels()
            with pytest.raises(Corrupt):
                used.accept()
        assert position == used.store.state().position

        used.block.memory[offset] ^= 1
        assert position + 1 == used.admit(1).position
        assert position + 2 == used.apply("reset").position  # which makes new levels
        assert used.store.levels()[1] == (0.0, 0.0, 0.0)
        assert 71 == used.accept()


class TestLog:
    def test_every_byte(self, used: Formed) -> None:
        """A changed entry is not given out."""
        offset = used.region_bytes("log")[0] + 20 * SIZES["entry"]
        for _ in flipped(used, offset, SIZES["entry"]):
            with pytest.raises(Corrupt):
                used.store.entries(15, 10)
        assert 10 == len(used.store.entries(15, 10)[0])


class TestMemory:
    @pytest.mark.parametrize("part", ["slots", "codes", "shadow", "vectors", "payloads"])
    def test_is_not_given_out(self, used: Formed, part: str) -> None:
        """A memory with a changed byte in its line, code, shadow, vector or payload is Corrupt and not an answer."""
        memory_id = used.accept(0, b"z" * 64)
        stride = {"slots": 56, "codes": 12, "shadow": 16, "vectors": 64, "payloads": 64}[part]
        whole = {"slots": 64, "codes": 16}.get(part, stride)
        offset = used.region_bytes(part)[0] + memory_id % 51 * whole
        mark = next(member.offset for name, member in ffi.typeof("struct mlsdm_slot").fields if name == "deleted_at")
        for byte in flipped(used, offset, min(stride, mark) if part == "slots" else stride):
            with pytest.raises(Corrupt):
                used.store.memory(memory_id)
            assert byte < stride
        assert b"z" * 64 == used.store.memory(memory_id).payload


class TestHeader:
    def test_every_byte(self, form: Form) -> None:
        """A block with a changed header is not opened."""
        formed = form()
        fields = {name: member.offset for name, member in ffi.typeof("struct mlsdm_header").fields}
        for _ in flipped(formed, 0, fields["reserved"]):
            with pytest.raises(BlockError):
                Block.open(formed.block.fd, writable=True)
        fd = os.dup(formed.block.fd)
        block = Block.open(fd, writable=True)

        assert formed.block.boot_id == block.boot_id
        block.close()
