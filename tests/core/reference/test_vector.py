"""Vector arithmetic: the same number everywhere, to the last bit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.reference.vector import cosine, dot, norm
from shm._native import ffi, lib
from testing.block_fixture import Formed

vectors = st.integers(1, 70).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=size, max_size=size)] * 2)
)


class TestDot:
    def test_is_the_dot_product(self) -> None:
        """Equal to values by hand, and to NumPy's within rounding."""
        rng = np.random.default_rng(1)
        x, y = rng.standard_normal((2, 1000)).astype(np.float32)

        assert dot(np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)) == 32.0
        assert dot(x, y) == pytest.approx(float(x.astype(np.float64) @ y.astype(np.float64)), rel=1e-12)

    @given(vectors)
    def test_order_of_the_lanes(self, pair: tuple[list[float], list[float]]) -> None:
        """Element i is added to lane i mod 8; the lanes are added in the order that the module states."""
        x, y = (np.array(values, np.float32) for values in pair)
        lane = [0.0] * 8
        for i in range(len(x)):
            lane[i % 8] += float(x[i]) * float(y[i])
        folded = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))

        assert folded == dot(x, y)

    @given(vectors)
    def test_padding_changes_nothing(self, pair: tuple[list[float], list[float]]) -> None:
        """Zeros after a vector change no bit of the result."""
        x, y = (np.array(values, np.float32) for values in pair)
        padded = [np.concatenate([one, np.zeros(16, np.float32)]) for one in (x, y)]

        assert dot(x, y) == dot(*padded)


class TestNorm:
    @pytest.mark.parametrize("dimension", [2, 7, 16, 384])
    def test_equals_the_native_core(self, dimension: int) -> None:
        """The native core computes these norms for levels and stored memories, at any scale."""
        formed = Formed()
        rng = np.random.default_rng(dimension)
        for scale in (1e-38, 1e-20, 1.0, 1e15):
            padded = np.zeros((3, -(-dimension // 16) * 16), np.float32)
            padded[:, :dimension] = rng.standard_normal((3, dimension)) * scale
            norms = ffi.new("double[]", 3)
            formed.block.map.padded = padded.shape[1]
            lib.mlsdm_levels_norms(formed.block.map, ffi.from_buffer("float[]", padded), norms)

            assert [norm(level[:dimension]) for level in padded] == list(norms)
        formed.close()

    def test_no_overflow(self) -> None:
        """The squares of the largest float32 values fit a double."""
        largest = np.full(4096, np.finfo(np.float32).max, np.float32)

        assert math.isfinite(norm(largest))


class TestCosine:
    def test_zero_vectors_score_zero(self) -> None:
        """The cosine with a zero vector is 0."""
        zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)

        assert (cosine(zero, one), cosine(one, zero), cosine(zero, zero)) == (0.0, 0.0, 0.0)

    @given(vectors)
    def test_is_between_minus_one_and_one(self, pair: tuple[list[float], list[float]]) -> None:
        """Of any two vectors."""
        assert abs(cosine(*(np.array(values, np.float32) for values in pair))) <= 1

    def test_of_a_vector_with_itself_is_at_most_one(self) -> None:
        """The quotient exceeds 1 for about a quarter of all vectors, and is below -1 for their opposites."""
        vectors = np.random.default_rng(3).standard_normal((400, 8)).astype(np.float32)

        same = [cosine(vector, vector) for vector in vectors]
        opposite = [cosine(vector, -vector) for vector in vectors]

        assert sum(dot(vector, vector) / norm(vector) ** 2 > 1 for vector in vectors) > 50
        assert (max(same), min(opposite)) == (1.0, -1.0)
