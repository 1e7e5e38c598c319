"""NumPy views of the block: what they show, that they cannot write, and how long they live."""

import gc
import subprocess
import sys

import numpy as np
import pytest

from shm._native import ffi
from shm.block import Block
from shm.layout import KINDS, RECORDS, REGIONS, Layout, Record, offsets, size_of
from shm.numpy_views import dtype_of, view
from testing.block_fixture import Formed
from tests.shm.conftest import Form

ODD = Layout(dimension=17, capacity=9, payload_size_max=20, log_capacity=64, rows=2, receipt_capacity=4)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.name))
def test_dtype_has_the_offsets_of_the_table_and_of_the_compiler(record: Record) -> None:
    """A structured dtype has the fields, offsets and size of its record."""
    dtype = dtype_of(record.name)
    assert dtype.itemsize == record.size == ffi.sizeof(f"struct mlsdm_{record.name}")
    assert dtype.fields is not None
    places = [(name, dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names or ()]
    assert places == [(field.name, at, size_of(field.dtype) * field.count) for field, at in offsets(record)]
    compiled = ffi.typeof(f"struct mlsdm_{record.name}").fields
    assert [(name, at) for name, at, _ in places] == [(name, field.offset) for name, field in compiled]


def slot_of(block: Block, memory_id: int) -> int:
    """Return the slot of a memory."""
    (found,) = np.flatnonzero(block.slots["id"] == memory_id)
    return int(found)


def test_views_show_what_was_admitted(form: Form) -> None:
    """Vectors, shadows, slots and log entries are those of the events; the padding is left out."""
    formed = form(ODD)
    ids = [formed.accept(number) for number in range(15)]  # more than the block keeps
    block, slots = formed.block, ODD.slots
    assert (block.vectors.shape, block.vectors.dtype) == ((slots, 17), np.dtype("<f4"))
    assert (block.shadow.shape, block.shadow.dtype) == ((slots, 17), np.dtype("i1"))
    assert (block.slots.shape, block.entries.shape) == ((slots,), (64,))
    for memory_id in ids[-ODD.capacity :]:
        memory, at = formed.store.memory(memory_id), slot_of(block, memory_id)
        slot, vector = block.slots[at], block.vectors[at]
        assert vector.tobytes() == memory.vector
        assert (slot["id"], slot["position"], slot["moral"], slot["norm"]) == (
            memory.id, memory.position, memory.moral, memory.norm,
        )  # fmt: skip
        code = view(block, "codes")[at]
        assert np.allclose(block.shadow[at] * code["scale"] * memory.norm, vector, atol=0.05)
        entry = block.entries[memory.position % 64]
        assert (KINDS[entry["kind"]], entry["after"]["accepted"]) == ("decision", memory_id)


def test_views_of_every_region_have_its_bytes(formed: Formed) -> None:
    """Each region has a view; element 1 begins one stride behind element 0, both inside the region."""
    block = formed.block
    start = np.frombuffer(block.memory, "u1").__array_interface__["data"][0]
    for region in block.layout.regions():
        array = view(block, region.name)
        assert array.__array_interface__["data"][0] - start == region.offset
        assert (len(array), array.strides[0]) == (region.count, region.stride)
        assert array[0].nbytes <= region.stride
    assert len(REGIONS) == len(block.layout.regions())


def test_views_show_later_writes(formed: Formed) -> None:
    """A view is not a copy: it shows an event that is admitted after it was made."""
    vectors, slots = formed.block.vectors, formed.block.slots
    memory_id = formed.accept(3)
    at = slot_of(formed.block, memory_id)
    assert slots[at]["id"] == memory_id
    assert vectors[at].tobytes() == formed.store.memory(memory_id).vector


def test_levels_are_those_of_the_store(formed: Formed) -> None:
    """The level buffer that the state names holds the levels that the store reads."""
    formed.accept(1)
    state, _ = formed.store.levels()
    read = np.frombuffer(formed.store.level_bytes(), np.float32).reshape(3, -1)
    assert view(formed.block, "levels")[state.levels].tobytes() == read[:, : formed.block.layout.dimension].tobytes()


def test_views_cannot_write(formed: Formed) -> None:
    """Neither an assignment nor a changed flag makes a view writable."""
    for array in (formed.block.vectors, formed.block.shadow, formed.block.slots, formed.block.entries):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_view_keeps_the_mapping_alive() -> None:
    """After the block is closed and forgotten its views still show the bytes, and the mapping cannot be closed."""
    formed = Formed()
    memory_id = formed.accept(5)
    memory, vectors, slots = formed.block.memory, formed.block.vectors, formed.block.slots
    at = slot_of(formed.block, memory_id)
    expected = formed.store.memory(memory_id).vector
    with pytest.raises(BufferError):
        memory.close()
    del memory
    formed.close()
    del formed
    gc.collect()
    assert (vectors[at].tobytes(), slots[at]["id"]) == (expected, memory_id)


def test_unknown_region_is_refused(formed: Formed) -> None:
    """The error names what was given and what exists."""
    with pytest.raises(ValueError, match=r"^region is 'vector', expected one of header, .*outbox$"):
        view(formed.block, "vector")


def test_block_without_views_imports_no_numpy() -> None:
    """NumPy is imported by the first view of a process, not with the block."""
    code = (
        "import shm.block, shm.store, sys; assert 'numpy' not in sys.modules and 'shm.numpy_views' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(Block.vectors, property)
