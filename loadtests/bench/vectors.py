"""The vectors of a run: memories that fill stores and events, and distinct queries.

Given vectors come from an .npz with `vec`, a matrix of embeddings: the last QUERIES are the queries, the others the
memories, repeated if there are too few. Otherwise a seed generates clusters on the unit sphere. Vectors without
neighbours (independent Gaussian ones) would favour approximate search and burden the bounds of exact search;
embeddings do neither.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.bench.wrk import MeasurementError

DIMENSION: Final = 384
MEMORIES: Final = 20_000
QUERIES: Final = 1_000
SEED: Final = 20_000_384
CLUSTERS: Final = 400
SPREAD: Final = 1.0  # norm of what is added to a centre of norm 1: neighbours have cosines about 0.5

Floats = NDArray[np.float32]


class Vectors(NamedTuple):
    """float32[MEMORIES, D] and float32[QUERIES, D], of unit norm, and a phrase that names the source."""

    memories: Floats
    queries: Floats
    source: str


def load(path: Path) -> Vectors:
    """Return the vectors of an .npz. Raises MeasurementError when it holds none, or too few."""
    try:
        with np.load(path) as arrays:
            given = arrays["vec"]
    except (OSError, ValueError, KeyError) as error:
        raise MeasurementError(f"{path} is not an .npz with `vec`, a matrix of embeddings: {error}") from None
    if given.ndim != 2 or len(given) < 2 * QUERIES:
        raise MeasurementError(f"`vec` of {path} has the shape {given.shape}: expected [N, D] with N ≥ {2 * QUERIES}")
    vectors = unit(given)
    memories = np.resize(vectors[:-QUERIES], (MEMORIES, vectors.shape[1]))
    return Vectors(memories, vectors[-QUERIES:], f"{len(vectors):,} vectors of {path.name}")


def synthetic() -> Vectors:
    """Return a clustered set, the same in every run."""
    random = np.random.default_rng(SEED)
    centres = unit(random.standard_normal((CLUSTERS, DIMENSION)))
    around = SPREAD / np.sqrt(DIMENSION) * random.standard_normal((MEMORIES + QUERIES, DIMENSION))
    vectors = unit(centres[random.integers(CLUSTERS, size=MEMORIES + QUERIES)] + around)
    return Vectors(vectors[:MEMORIES], vectors[MEMORIES:], f"synthetic vectors, {CLUSTERS} clusters, seed {SEED}")


def unit(vectors: NDArray[Any]) -> Floats:
    """Return float32 vectors of unit norm."""
    singles = vectors.astype(np.float32)
    normed: Floats = singles / np.linalg.norm(singles, axis=1, keepdims=True)
    return normed
