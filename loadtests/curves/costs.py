"""The cost of a recall and of an event at one size, measured for growth.py, which prints and draws it.

Recall and admission are timed in this process on a real block without a server, so that only what grows is measured.
The HTTP figures are processor time per request of the production server and of the floor (loadtests/bench): the
steadiest figure there is.

Each side runs in a separate loop after some warm-up calls. Rejected: alternating the two. Brute force would evict the
memories from the cache in which the next recall finds them on a server.
"""

import base64
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from core.clock import boot_clock
from loadtests.bench import traffic
from loadtests.bench.__main__ import makers
from loadtests.bench.comparison import ServerPool
from loadtests.bench.processor import Cores, pinned
from loadtests.bench.rows import Side
from loadtests.bench.servers import TOKEN, Product
from loadtests.bench.traffic import Traffic
from loadtests.bench.vectors import DIMENSION, Floats, Vectors
from loadtests.curves.memory_read import reading_us
from loadtests.curves.native_store import ACCEPTED, NativeStore, clustered
from shm.layout import Layout

TOP_K: Final = 10
QUERIES: Final = 40
WARM: Final = 5
PAYLOAD_SIZE_MAX: Final = 65_536
_ANY: Final = (1, 0, 1_024, 1, 16)  # the other fields of a layout: the shadow does not depend on them
_CODE_SIZE: Final = 16  # bytes per memory that the scan reads besides the int8 vector
_EVENTS: Final = 100  # different events per size
_ADMISSIONS: Final = 2_000


class Search(NamedTuple):
    """One size of store: medians in µs of native recall and NumPy's brute force, and the time to read the bytes
    costs that each of them must look at.
    """

    capacity: int
    dimension: int
    recall_us: float
    brute_us: float
    reading_shadow_us: float
    reading_vectors_us: float

    @property
    def shadow_size(self) -> int:
        """Bytes of the int8 shadow and its codes, which the scan reads once."""
        return self.capacity * (Layout(self.dimension, *_ANY).shadow_stride + _CODE_SIZE)


class Admission(NamedTuple):
    """One size of payload: the median of an admission in this process, µs; processor time of an event over HTTP and of
    the floor with the same bytes.
    """

    payload_size: int
    admit_us: float
    http_us: float
    floor_us: float


def searches(directory: Path, sizes: Iterable[tuple[int, int]], core: int) -> Iterator[Search]:
    """Yield the cost of recall for (capacity, dimension), one after the other. Raises MeasurementError."""
    with pinned({core}):
        for capacity, dimension in sizes:
            yield _search(directory, capacity, dimension)


def _search(directory: Path, capacity: int, dimension: int) -> Search:
    memories, queries = clustered(capacity, dimension, QUERIES + WARM)
    inside = NativeStore(dimension, capacity)
    try:
        inside.fill(memories)
        assert inside.nearest(queries[0], TOP_K)[0] == 1 + _brute(memories, queries[0])[0]  # ids begin at 1
        recall = _median_us(lambda query: inside.nearest(query, TOP_K), queries)
        brute = _median_us(lambda query: _brute(memories, query), queries)
    finally:
        inside.close()
    found = Search(capacity, dimension, recall, brute, 0.0, reading_us(directory, memories.nbytes))
    return found._replace(reading_shadow_us=reading_us(directory, found.shadow_size))


def _brute(memories: Floats, query: Floats) -> list[int]:
    """Return the places of the nearest memories: one float32 matrix-vector product, as one would write it."""
    scores = memories @ query
    best = np.argpartition(scores, -TOP_K)[-TOP_K:]
    return [int(place) for place in best[np.argsort(-scores[best])]]


def _median_us(ask: Callable[[Floats], object], queries: Floats) -> float:
    """Return the median time of `ask`, each query once; the first WARM count for nothing."""
    taken = []
    for query in queries:
        began = time.perf_counter_ns()
        ask(query)
        taken.append(time.perf_counter_ns() - began)
    return statistics.median(taken[WARM:]) / 1e3


def admissions(
    directory: Path, given: Vectors, sizes: Iterable[int], place: Cores, *, rounds: int, seconds: int
) -> Iterator[Admission]:
    """Yield the cost of an event for payloads of these bytes, one after the other. Raises MeasurementError."""
    wanted = list(sizes)
    home = directory / "payloads"
    home.mkdir(exist_ok=True)
    variant = {"MLSDM_PAYLOAD_SIZE_MAX": str(PAYLOAD_SIZE_MAX), "MLSDM_CAPACITY": "1000"}
    servers = {"floor": makers(directory, given)["floor"], "product": lambda: Product(home, variant)}
    sent = {str(size): Traffic(_events(given.memories, size), traffic.FAST, events=True) for size in wanted}
    with ServerPool(servers, sent, place) as pool:
        for size in wanted:
            with pinned({place.server}):
                admit = _admit_us(given.memories, size)
            slices = [
                [pool.slice(Side(name, str(size)), seconds).cpu_us for name in ("floor", "product")]
                for _ in range(rounds)
            ]
            floor, http = (statistics.median(side) for side in zip(*slices, strict=True))
            yield Admission(size, admit, http, floor)


def _events(memories: Floats, size: int) -> tuple[bytes, ...]:
    """Return events in JSON whose payload has `size` bytes as JSON; none with 0."""
    headers = {**traffic.JSON, "Authorization": f"Bearer {TOKEN}"}
    made = []
    for vector in memories[:_EVENTS]:
        event = {"event_vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(), "moral_value": ACCEPTED}
        made.append(traffic.request("POST", "/event", headers, json.dumps(event | _payload(size)).encode()))
    return tuple(made)


def _payload(size: int) -> dict[str, str]:
    assert size == 0 or size >= 2
    return {"payload": "x" * (size - 2)} if size else {}  # the quotes count


def _admit_us(memories: Floats, size: int) -> float:
    """Return the median time of an admission, µs."""
    inside = NativeStore(DIMENSION, 1_000, PAYLOAD_SIZE_MAX)
    vectors, payload = [vector.tobytes() for vector in memories[:_EVENTS]], b"x" * size
    taken = []
    try:
        for number in range(_ADMISSIONS):
            began = time.perf_counter_ns()
            inside.store.admit(inside.block.log_time(boot_clock()), ACCEPTED, vectors[number % _EVENTS], payload)
            taken.append(time.perf_counter_ns() - began)
    finally:
        inside.close()
    return statistics.median(taken) / 1e3
