"""Recall on labelled data: exactness against brute force, and the quality of the answers.

    python -m loadtests.recall.recall_quality banking.npz
    python -m loadtests.recall.recall_quality banking.npz --url http://127.0.0.1:8000

The .npz has `train` [N, D] and `query` [Q, D] with labels `train_y` [N] and `query_y` [Q]. All of `train` is posted
with moral value 1.0; each query is recalled. Without --url the program runs a server of its own; a server at --url
must be empty.

Ids are compared with two orders, ties newer first. float64 sums are the definition of recall; other summation orders
differ by about 1e-15, so only exact ties could differ. float32 sums are NumPy's `train @ query`, good to about 1e-7: a
query whose differing places score within NEAR of the right ones counts as a near-tie, otherwise as wrong.

Exit status: 0 all ids equal brute force; 1 some do not; 2 nothing was measured.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testing.live_server import LiveServer

BATCH: Final = 1000
NEAR: Final = 1e-6  # of a cosine: ten times the rounding of a float32 sum over some hundred elements

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Labelled(NamedTuple):
    """float32[N, D] of unit norm with labels [N], and queries float32[Q, D] with labels [Q]."""

    train: Floats
    train_y: NDArray[Any]
    query: Floats
    query_y: NDArray[Any]


class Comparison(NamedTuple):
    """Queries by how their ids compare with brute force: the same, another order among near-ties, or wrong."""

    same: int
    near: int
    wrong: int


class MeasurementError(Exception):
    """One sentence: why nothing was measured."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Compare recall with brute force on labelled data.")
    parser.add_argument("path", type=Path, help="an .npz with train, train_y, query and query_y")
    parser.add_argument("--url", help="URL of an empty running server (default: start one)")
    parser.add_argument("--api-key", default=os.environ.get("API_KEY"), help="token (default: the variable API_KEY)")
    parser.add_argument("--top-k", type=int, default=10, help="matches per query, 1 to 100 (default 10)")
    args = parser.parse_args(arguments)
    try:
        data = load(args.path)
        if not 1 <= args.top_k <= min(100, len(data.train)):
            raise MeasurementError(f"--top-k is {args.top_k}: expected 1 to 100, and no more than there are memories")
        if args.url:
            return measure(data, Client(args.url, args.api_key), args.top_k)
        with server(*data.train.shape) as url:
            return measure(data, Client(url, None), args.top_k)
    except MeasurementError as error:
        print(f"recall_quality: {error}", file=sys.stderr)
        return 2


def measure(data: Labelled, client: "Client", k: int) -> int:
    """Fill the server, ask every query, print the table; returns the exit status."""
    began = time.perf_counter()
    ids = client.fill(data.train)
    filled = time.perf_counter() - began
    began = time.perf_counter()
    found = np.array([client.recall(query, k) for query in data.query])
    queried = time.perf_counter() - began
    if not np.isin(found, ids).all():
        print("an answer has an id that no event was given")
        return 1
    places = np.searchsorted(ids, found)  # ids ascend
    doubles, singles = compare(data, places, np.float64), compare(data, places, np.float32)
    right = data.train_y[places] == data.query_y[:, np.newaxis]
    count = len(data.query)
    print(f"{len(ids)} memories × {data.train.shape[1]}, {count} queries, top_k {k}")
    for what, number in (
        ("ids equal brute force, float64 sums", doubles.same),
        ("ids equal brute force, float32 sums", singles.same),
        ("  … equal but for near-ties", singles.same + singles.near),
        ("top answer has the right label", int(right[:, 0].sum())),
        (f"top {k} hold it", int(right.any(axis=1).sum())),
    ):
        print(f"{what:<38}{number:>7} of {count}{100 * number / count:>8.1f} %")
    print(f"{'events per second, batches of ' + str(BATCH):<38}{len(ids) / filled:>7.0f}")
    print(f"{'queries per second, one connection':<38}{count / queried:>7.0f}")
    return 0 if doubles.same == count and singles.wrong == 0 else 1


def compare(data: Labelled, places: Ids, kind: type[np.floating[Any]]) -> Comparison:
    """Compare rows of `train`, best first for each query, with brute force in sums of `kind`."""
    k = places.shape[1]
    exact = data.train.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    summed = exact if kind is np.float64 else data.train
    same = near = 0
    for query, row in zip(data.query, places, strict=True):
        scores = (summed @ query.astype(kind)) / lengths.astype(kind)
        best = np.lexsort((-np.arange(len(scores)), -scores))[:k]
        if np.array_equal(best, row):
            same += 1
            continue
        true = (exact @ query.astype(np.float64)) / lengths
        near += bool(np.all(np.abs(true[best] - true[row]) <= NEAR))
    return Comparison(same, near, len(places) - same - near)


def load(path: Path) -> Labelled:
    """Return the data of an .npz. Raises MeasurementError."""
    try:
        with np.load(path) as arrays:
            train, train_y, query, query_y = (arrays[name] for name in Labelled._fields)
    except (OSError, ValueError, KeyError) as error:
        raise MeasurementError(f"{path} is not an .npz with train, train_y, query and query_y: {error}") from None
    if (
        train.ndim != 2
        or query.shape[1:] != train.shape[1:]
        or (len(train_y), len(query_y)) != (len(train), len(query))
    ):
        raise MeasurementError(f"{path}: expected train [N, D], train_y [N], query [Q, D] and query_y [Q]")
    return Labelled(unit(train), train_y, unit(query), query_y)


def unit(vectors: NDArray[Any]) -> Floats:
    """Return float32 vectors of unit norm."""
    singles = vectors.astype(np.float32)
    normed: Floats = singles / np.linalg.norm(singles, axis=1, keepdims=True)
    return normed


class Client:
    """One keep-alive connection to a server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MeasurementError(f"{url!r} is not the URL of a server: expected http://HOST:PORT")
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = connection(parts.hostname, parts.port, timeout=60)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/octet-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def fill(self, vectors: Floats) -> Ids:
        """Send all vectors with moral value 1.0; return their memory ids, ascending. Raises MeasurementError."""
        state = self._ask("GET", "/state")
        if state["memory_used"] or state["dimension"] != vectors.shape[1] or state["capacity"] < len(vectors):
            raise MeasurementError(
                f"the server holds {state['memory_used']} memories of {state['dimension']} dimensions with room for "
                f"{state['capacity']}; expected an empty one of {vectors.shape[1]} with room for {len(vectors)}"
            )
        results: list[dict[str, Any]] = []
        for first in range(0, len(vectors), BATCH):
            batch = vectors[first : first + BATCH]
            body = np.ones(len(batch), "<f8").tobytes() + batch.astype("<f4").tobytes()
            results += self._ask("POST", "/events", body)["results"]
        if not all(result["accepted"] for result in results):
            raise MeasurementError("the server rejects events of moral value 1.0")
        return np.array([result["memory_id"] for result in results])

    def recall(self, query: Floats, k: int) -> list[int]:
        """Return the ids of the k nearest memories, best first. Raises MeasurementError."""
        answer = self._ask("POST", f"/recall?top_k={k}", query.astype("<f4").tobytes())
        return [match["memory_id"] for match in answer["matches"]]

    def _open(self) -> None:
        self._http.connect()
        opened: socket.socket | None = self._http.sock
        assert opened is not None
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            if self._http.sock is None:
                self._open()
            self._http.request(method, self._prefix + path, body, self._headers)
            response = self._http.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise MeasurementError(f"{method} {path} failed: {error}") from None
        if response.status != 200:
            raise MeasurementError(
                f"{method} {path} was answered {response.status}: {content[:300].decode(errors='replace')}"
            )
        document: dict[str, Any] = json.loads(content)
        return document


@contextmanager
def server(count: int, dimension: int) -> Iterator[str]:
    """Run a server of this checkout with room for `count` memories; yields its URL. Raises MeasurementError."""
    sizes = {"MLSDM_DIMENSION": str(dimension), "MLSDM_CAPACITY": str(max(20_000, count))}
    with tempfile.TemporaryDirectory() as directory:
        started = LiveServer(Path(directory), sizes)
        try:
            yield f"http://127.0.0.1:{started.start().port}"
        except AssertionError as error:
            raise MeasurementError(f"the server did not start:\n{str(error)[-2000:]}") from None
        finally:
            started.stop()


if __name__ == "__main__":
    sys.exit(main())
