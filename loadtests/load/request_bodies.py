"""Request bodies of a load, serialised once and then cycled.

Serialising 384 numbers as JSON takes a Python client longer than the server's decision, so a load that serialised each
request would measure its own generator. The server caches nothing by body, so two thousand different bodies are as
good as new ones.
"""

import base64
import json
from itertools import cycle
from typing import Final

import numpy as np

from loadtests.bench.traffic import TOP_K, numbers
from loadtests.load.population import Population

COUNT: Final = 2_000  # of each kind
BATCH: Final = 10  # events in a batch
_TEXT: Final = "what somebody said, and what it was about; " * 5  # a short message and its circumstances, 250 bytes


class RequestBodies:
    """Endless iterators: `json`, `base64` (with a payload), `query`, `batch` of bodies; `raw` of (moral, body)."""

    def __init__(self, population: Population) -> None:
        """Use the first COUNT events, repeated when there are fewer."""
        chosen = np.arange(COUNT) % len(population.vectors)
        vectors = population.vectors[chosen]
        morals = [round(float(moral), 6) for moral in population.morals[chosen]]
        written = [numbers(vector) for vector in vectors]
        singles = [vector.astype("<f4").tobytes() for vector in vectors]
        pairs = list(zip(morals, singles, strict=True))
        self.json = cycle([event(text, moral) for text, moral in zip(written, morals, strict=True)])
        self.query = cycle([f'{{"vector": {text}, "top_k": {TOP_K}}}'.encode() for text in reversed(written)])
        self.base64 = cycle([with_payload(number, moral, single) for number, (moral, single) in enumerate(pairs)])
        self.raw = cycle([(str(moral), single) for moral, single in pairs])
        self.batch = cycle([batch(pairs[first : first + BATCH]) for first in range(0, COUNT, BATCH)])


def event(written: str, moral: float) -> bytes:
    """Return an event whose vector is written as a JSON array."""
    return f'{{"event_vector": {written}, "moral_value": {moral}}}'.encode()


def with_payload(number: int, moral: float, single: bytes) -> bytes:
    """Return an event with a base64 vector and something to give back."""
    payload = {"text": _TEXT, "source": f"conversation {number}"}
    document = {"event_vector": base64.b64encode(single).decode(), "moral_value": moral, "payload": payload}
    return json.dumps(document).encode()


def batch(pairs: list[tuple[float, bytes]]) -> bytes:
    """Return a raw batch: the moral values, then the vectors."""
    return np.array([moral for moral, _ in pairs], "<f8").tobytes() + b"".join(single for _, single in pairs)


assert COUNT % BATCH == 0, "the last batch would be a short one"
