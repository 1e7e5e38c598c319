"""Vector arithmetic in one fixed order, the same as the native core's to the last bit.

Products of two float32 values are exact in float64. They are added into eight lanes (element i to lane i mod 8, in
order of i), and the lanes are added in a fixed order. So a norm or a cosine is one number that does not depend on the
processor or a library. Source of the order: shm/native/vector.c.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
LANES: Final = 8


def dot(x: Vector, y: Vector) -> float:
    """Return the float64 dot product of float32[D] and float32[D]."""
    products = np.zeros(-(-len(x) // LANES) * LANES)
    np.multiply(x, y, out=products[: len(x)], dtype=np.float64)
    lane = products.reshape(-1, LANES)
    total = np.zeros(LANES)
    for row in lane:  # in order: np.sum would add pairwise
        total += row
    a, b, c, d, e, f, g, h = (float(value) for value in total)
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


def norm(x: Vector) -> float:
    """Return the float64 norm of float32[D]."""
    return math.sqrt(dot(x, x))


def cosine(x: Vector, y: Vector) -> float:
    """Return the cosine of two float32[D], from -1 to 1; 0 when either is the zero vector.

    It is clamped: rounding takes the quotient of a vector with itself to 1 + 2^-52.
    """
    lengths = norm(x) * norm(y)
    return max(-1.0, min(1.0, dot(x, y) / lengths)) if lengths > 0 else 0.0
