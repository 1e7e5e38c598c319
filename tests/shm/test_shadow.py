"""The shadow: for any vector, the stored error is no less than what the codes leave out."""

from collections.abc import Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shm.layout import Layout
from shm.numpy_views import view
from testing.block_fixture import Formed

DIMENSION = 20  # no multiple of the padding
TINY = float(np.float32(1e-45))

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-65536, max_value=65536)


@pytest.fixture(scope="module")
def formed() -> Iterator[Formed]:
    """A block for these vectors, which nobody else uses."""
    formed = Formed(Layout(DIMENSION, 50, 64, 1024, 4, 16))
    yield formed
    formed.close()


@given(st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION), st.sampled_from([1.0, 1e-20, 1e-38, 1e-44]))
@example([TINY] * DIMENSION, 1.0)
@example([0.0] * (DIMENSION - 1) + [-TINY], 1.0)
@example([65536.0, -65536.0] * (DIMENSION // 2), 1.0)
@example([1.0] + [0.00393700787] * (DIMENSION - 1), 1.0)
@example([0.0] * DIMENSION, 1.0)
def test_error_is_no_less_than_what_the_codes_leave_out(formed: Formed, values: list[float], factor: float) -> None:
    """Exactly: computed with sixty digits from the bytes in the block."""
    vector = (np.asarray(values, "<f4") * np.float32(factor)).astype("<f4")
    memory_id = formed.store.admit(formed.now(), 1.0, vector.tobytes(), b"").memory_id
    slot = memory_id % 51
    layout = formed.block.layout
    shadow, record = formed.block.shadow[slot], view(formed.block, "codes")[slot]
    scale, error = float(record["scale"]), float(record["error"])
    padding = formed.region_bytes("shadow")[0] + slot * layout.shadow_stride + DIMENSION

    assert not any(formed.block.memory[padding : padding + layout.shadow_stride - DIMENSION])
    with localcontext(prec=60):
        exact = [Decimal(float(value)) for value in vector]
        norm = sum((value * value for value in exact), Decimal()).sqrt()
        left = sum(
            ((value / norm if norm else 0) - Decimal(scale) * int(code)) ** 2
            for value, code in zip(exact, shadow, strict=False)
        )
        assert Decimal(left).sqrt() <= Decimal(error)
        assert Decimal(error) <= Decimal(left).sqrt() * Decimal("1.0001") + Decimal("1e-6")
