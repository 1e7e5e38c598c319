"""The memory of a worker: what it keeps of served requests, and how it answers when it has none left."""

import json
import resource
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from app.httpd.heap_trim import TRIM_INTERVAL_SECONDS, HeapTrim
from loadtests.cost.process_memory import written_mb
from testing.eventually import eventually
from testing.live_server import LiveServer

Serve = Callable[..., LiveServer]

RAW = {"Content-Type": "application/octet-stream"}
LARGE = 900  # events of 4,096 numbers: a body of 14.8 MB
TIMES = 6  # far fewer than bring the collector


def body_of(number: float = 1.0) -> bytes:
    """Return a batch whose last vector ends with `number`."""
    vectors = np.ones((LARGE, 4096), "<f4")
    vectors[-1, -1] = number
    return np.full(LARGE, 0.95).astype("<f8").tobytes() + vectors.tobytes()


def test_refused_bodies_are_not_kept(serve: Serve) -> None:
    """Nothing of a large body is kept once its request was refused, whatever the code; no collector is needed."""
    server = serve(WORKERS="1", MLSDM_DIMENSION="4096", MLSDM_CAPACITY="1000")
    connection = server.connect()

    def refused(code: str, body: bytes, **headers: str) -> None:
        before = written_mb(server.pid)
        for _ in range(TIMES):
            answer = server.request("POST", "/events", body, {**RAW, **headers}, connection)
            assert code == answer.json["code"]
        eventually(lambda: written_mb(server.pid) < before + 2 * len(body) / 1e6)  # the next beats trim the heap

    key = {"Idempotency-Key": "of-one-batch"}
    assert server.request("POST", "/events", body_of(), {**RAW, **key}, connection).status == 200
    refused("idempotency_key_reused", body_of(2.0), **key)
    refused("not_finite", body_of(np.nan))
    refused("dimension_mismatch", body_of() + b"x")
    refused("unsupported_media_type", body_of(), **{"Content-Type": "text/plain"})
    assert server.request("POST", "/governor/stop", b"", {}, connection).status == 200
    refused("stopped", body_of())
    connection.close()


def test_freed_memory_is_returned(serve: Serve) -> None:
    """After the largest batches a worker returns their memory to the kernel."""
    server = serve(WORKERS="1", MLSDM_DIMENSION="384", MLSDM_CAPACITY="1000")
    vectors = np.ones((1000, 384), "<f4")
    events = np.full(1000, 0.95).astype("<f8").tobytes() + vectors.tobytes()
    small = json.dumps([{"event_vector": vectors[0].tolist(), "moral_value": 0.95}])
    for _ in range(50):  # so that its own memory has grown
        assert server.request("POST", "/events", small.encode(), {"Content-Type": "application/json"}).status == 200
    before = written_mb(server.pid)
    for _ in range(10):
        assert server.request("POST", "/events", events, RAW).status == 200

    eventually(lambda: written_mb(server.pid) < before + 2.5)


def test_request_without_memory_gets_503(serve: Serve) -> None:
    """A request without enough memory gets 503 with Retry-After and is served later; others are served meanwhile."""
    server = serve(WORKERS="1")
    events = [{"event_vector": [0.5] * 8, "moral_value": 0.95, "payload": "x" * 100} for _ in range(1000)]
    body, headers = json.dumps(events).encode() + b" " * 2_000_000, {"Content-Type": "application/json"}
    small = json.dumps(events[:1]).encode()
    (worker,) = eventually(lambda: server.workers(server.block()))
    soft, hard = resource.prlimit(worker, resource.RLIMIT_AS)
    connection = server.connect()
    resource.prlimit(worker, resource.RLIMIT_AS, (psutil.Process(worker).memory_info().vms + 3_000_000, hard))
    lacking = server.request("POST", "/events", body, headers)
    meanwhile = server.request("POST", "/events", small, headers, connection)
    resource.prlimit(worker, resource.RLIMIT_AS, (soft, hard))
    enough = server.request("POST", "/events", body, headers, connection)
    connection.close()

    assert (lacking.status, lacking.json["code"], lacking.headers.get("retry-after")) == (503, "out_of_memory", "1")
    assert "is not known" in lacking.json["detail"]
    assert (meanwhile.status, enough.status) == (200, 200)
    assert "MemoryError" in server.log


class TestHeapTrim:
    def test_once_a_second(self) -> None:
        """The heap is trimmed once in TRIM_INTERVAL_SECONDS, however often the beat asks."""
        trims: list[int] = []
        heap = HeapTrim(trims.append)
        for quarter in range(41):
            heap.trim_if_due(quarter * 0.25)

        assert trims == [0] * round(1 + 10 / TRIM_INTERVAL_SECONDS)

    def test_other_c_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without malloc_trim in the C library nothing happens."""
        monkeypatch.setattr("ctypes.CDLL", lambda _name: object())

        HeapTrim().trim_if_due(1.0)
