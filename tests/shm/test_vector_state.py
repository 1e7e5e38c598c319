"""The state of the vector registers after a native call: the wide halves are zero.

On Intel processors an instruction of 128 bits waits for the wide half of its register, and the clock stays at the lower
frequency of wide vectors, until `vzeroupper` has run. The interpreter has only instructions of 128 bits.
"""

import ctypes
import mmap
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from shm._native import ffi, lib
from testing.block_fixture import Formed

AVX_HALVES: Final = 1 << 2 | 1 << 6  # XCR0: the wide halves of ymm0-15 and of zmm0-15
# `unsigned after(function, a, b, c, d)`: call function(a, b, c, d), then return the state components in use.
AFTER: Final = bytes.fromhex(
    "4883ec08"  # sub rsp, 8
    "4889f8 4889f7 4889d6 4889ca 4c89c1"  # rax, rdi, rsi, rdx, rcx = rdi, rsi, rdx, rcx, r8
    "ffd0"  # call rax
    "b901000000 0f01d0"  # ecx = 1; xgetbv: XCR0 & XINUSE
    "4883c408 c3"  # add rsp, 8; ret
)
DIRTY: Final = bytes.fromhex("c5f576c9 c3")  # vpcmpeqd ymm1, ymm1, ymm1; ret

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not {"xgetbv1", "avx2"} <= set(Path("/proc/cpuinfo").read_text().split()),
    reason="only x86-64 has these halves, and this processor has to tell whether they are in use",
)


@pytest.fixture
def halves_after() -> Iterator[Callable[..., int]]:
    """Return a function that calls one at an address, and returns which wide halves are then in use."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code[: len(AFTER)] = AFTER
    code[64 : 64 + len(DIRTY)] = DIRTY
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    after = ctypes.CFUNCTYPE(ctypes.c_uint, *[ctypes.c_void_p] * 5)(place)

    def call(function: Any, *arguments: Any) -> int:
        address = place + 64 if function is None else int(ffi.cast("uintptr_t", function))
        values = [int(ffi.cast("uintptr_t", argument)) for argument in arguments]
        return int(after(address, *values, *[0] * (4 - len(values)))) & AVX_HALVES

    yield call
    code.close()


def test_wide_halves_in_use_are_seen(halves_after: Callable[..., int]) -> None:
    """A function that leaves a wide half in use is found."""
    assert halves_after(None) == 1 << 2


def test_vector_arithmetic_leaves_no_wide_half_in_use(formed: Formed, halves_after: Callable[..., int]) -> None:
    """Validation, the norms of the levels and a recall run `vzeroupper` before they return."""
    block = formed.block
    for number in range(20):
        formed.accept(number)
    dimension, padded = block.layout.dimension, block.map.padded
    vector = ffi.new("float[]", [1.0] * dimension)
    count, norms = ffi.new("uint32_t *"), ffi.new("double[]", 3)
    query = ffi.new("struct mlsdm_query *")
    bounds = ffi.new("float[]", block.layout.capacity + 1)
    namespace = ffi.new("struct mlsdm_namespace_id *", (0, 1))
    query.vector, query.k, query.phase_masks, query.bounds = vector, 5, (3, 3), bounds
    query.namespaces, query.namespace_count = namespace, 1
    matches, result = ffi.new("struct mlsdm_match[]", 100), ffi.new("struct mlsdm_recall_result *")

    assert halves_after(ffi.addressof(lib, "mlsdm_vectors_check"), block.map, vector, 1, count) == 0
    assert halves_after(ffi.addressof(lib, "mlsdm_levels_norms"), block.map, ffi.new("float[]", 3 * padded), norms) == 0
    assert halves_after(ffi.addressof(lib, "mlsdm_recall"), block.map, query, matches, result) == 0
    assert result.count == 5
