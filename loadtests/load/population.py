"""A population of events to draw a load from: embeddings and their moral values.

It is read from an .npz (`vec`, float16 or float32[N, D]; `moral`, float32[N] in [0, 1]) in the order of the events, or
generated from a seed. Generated vectors resemble embeddings of short messages: unit norm, 384 floats, a shared
direction, a few frequent topics, and messages nearer to or farther from their topic. Against 6,000 embeddings of real
messages: mean cosine 0.23 (real 0.22); nearest among 5,000 from 0.45 to 0.65 in nine of ten (real 0.42 to 0.68). Moral
values resemble a classifier's: mostly near 1, some near 0, some between, so that the governor moves as it does in
production.

Rejected: independent Gaussian vectors, which burden an exact search as no real query does; putting this into the
locustfile, because importing Locust patches the whole process for gevent.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.bench.vectors import Floats, unit

DIMENSION: Final = 384
SIZE: Final = 4_000
TOPICS: Final = 400
COMMON: Final = 0.95  # norm of the shared direction, relative to a topic of norm 1
SPREADS: Final = (1.1, 1.9)  # norms of the noise added to a topic, minimum and maximum
# (share, α, β) of Beta distributions: harmless, offensive, unsure.
MORALS: Final = ((0.70, 9.0, 1.0), (0.20, 0.4, 3.0), (0.10, 1.0, 1.0))


class PopulationError(Exception):
    """One sentence: why a file holds no population."""


class Population(NamedTuple):
    """float32[N, D] of unit norm, float64[N] in [0, 1], and a phrase that names the source."""

    vectors: Floats
    morals: NDArray[np.float64]
    source: str


def generate(seed: int, size: int = SIZE, dimension: int = DIMENSION) -> Population:
    """Return a population that is the same for the same seed."""
    random = np.random.default_rng(seed)
    common, topics = unit(random.standard_normal((1, dimension))), unit(random.standard_normal((TOPICS, dimension)))
    frequencies = 1 / np.arange(1, TOPICS + 1)  # Zipf's law
    topic = random.choice(TOPICS, size, p=frequencies / frequencies.sum())
    spread = random.uniform(*SPREADS, (size, 1)) / np.sqrt(dimension)
    vectors = unit(COMMON * common + topics[topic] + spread * random.standard_normal((size, dimension)))
    shares, *shapes = np.array(MORALS).T
    alpha, beta = np.array(shapes)[:, random.choice(len(MORALS), size, p=shares)]
    return Population(vectors, random.beta(alpha, beta), f"{size:,} made events, seed {seed}")


def read(path: Path) -> Population:
    """Return the events of an .npz, in order. Raises PopulationError."""
    try:
        with np.load(path) as arrays:
            given, morals = arrays["vec"], arrays["moral"]
    except (OSError, ValueError, KeyError) as error:
        raise PopulationError(f"{path} is not an .npz with `vec` and `moral`: {error}") from None
    if given.ndim != 2 or morals.shape != given.shape[:1] or not len(given):
        raise PopulationError(
            f"`vec` and `moral` of {path} have the shapes {given.shape} and {morals.shape}: expected [N, D], [N]"
        )
    if not ((morals >= 0) & (morals <= 1)).all():
        raise PopulationError(f"`moral` of {path} goes from {morals.min():g} to {morals.max():g}: expected 0 to 1")
    with np.errstate(all="ignore"):
        vectors = unit(given)
    if not np.isfinite(vectors).all():
        raise PopulationError(f"`vec` of {path} has vectors without a direction: expected finite, non-zero ones")
    return Population(vectors, morals.astype(np.float64), f"{len(vectors):,} events of {path.name}")
