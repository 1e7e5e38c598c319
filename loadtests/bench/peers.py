"""Peers: comparable servers of other projects, each in its own environment.

`make peers` creates the environments under loadtests/peers/; none is a dependency, and a row without its peer is left
out. Each peer gets the same vectors, core and client, with one worker and as few threads as it allows.

Chroma is called over HTTP as its own client does: JSON, its default index (HNSW, approximate). Its directory is in the
run's temporary folder. The share of the exact answer that it finds is measured first and printed.
"""

import http.client
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtests.bench.servers import Program, Server
from loadtests.bench.traffic import EVENTS, JSON, NUMBER, SLOW, TOP_K, Traffic, numbers, request
from loadtests.bench.vectors import Floats, Vectors
from loadtests.bench.wrk import MeasurementError
from testing.live_server import ROOT

PEERS: Final = ROOT / "loadtests" / "peers"
_COLLECTIONS: Final = "/api/v2/tenants/default_tenant/databases/default_database/collections"
_FILL_BATCH: Final = 500
_JUDGED: Final = 200  # queries by which the quality of approximate answers is judged


def installed(peer: str) -> bool:
    """Return whether `make peers` has made the environment of a peer."""
    return (PEERS / peer / ".venv" / "installed").exists()


def makers(directory: Path, memories: Path, vectors: Vectors) -> dict[str, Callable[[], Server]]:
    """Return the factories of the installed peers' servers. `memories` is a .npy of the vectors' memories."""

    def asgi() -> Server:
        words = ("-k", "uvicorn_worker.UvicornWorker", "-w", "1", "-b", "127.0.0.1:{port}", "--no-control-socket")
        return Program((_tool("asgi", "gunicorn"), *words, "program:app"), directory / "asgi.log", PEERS / "asgi")

    def plain() -> Server:
        words = ("--port", "{port}", "--no-access-log", "--loop", "uvloop", "--http", "httptools", "program:app")
        environ = {"BENCH_VECTORS": str(memories)}
        return Program((_tool("plain", "uvicorn"), *words), directory / "plain.log", PEERS / "plain", environ)

    def chroma(fill: Floats) -> Server:
        place = directory / f"chroma-{len(fill)}"
        words = ("run", "--path", str(place), "--host", "127.0.0.1", "--port", "{port}")
        return Chroma(
            (_tool("chroma", "chroma"), *words), directory / f"chroma-{len(fill)}.log", directory,
            {"ANONYMIZED_TELEMETRY": "False"}, vectors=vectors, fill=fill,
        )  # fmt: skip

    found: dict[str, Callable[[], Server]] = {}
    if installed("asgi"):
        found["asgi"] = asgi
    if installed("plain"):
        found["plain"] = plain
    if installed("chroma"):
        found["chroma"] = lambda: chroma(vectors.memories[:1])
        found["chroma recall"] = lambda: chroma(vectors.memories)
    return found


def _tool(peer: str, name: str) -> str:
    return str(PEERS / peer / ".venv" / "bin" / name)


@dataclass(kw_only=True)
class Chroma(Program):
    """Chroma's own HTTP server with one collection. Its traffic names the collection, so it is made after the start."""

    vectors: Vectors
    fill: Floats

    def start(self, cores: Iterable[int]) -> None:
        """Start it, make the collection, fill it, and judge its answers."""
        super().start(cores)
        try:
            args = {"name": "bench", "configuration": {"hnsw": {"space": "cosine"}}}
            self._path = f"{_COLLECTIONS}/{self._ask(_COLLECTIONS, args)['id']}"
            for first in range(0, len(self.fill), _FILL_BATCH):
                batch = self.fill[first : first + _FILL_BATCH].tolist()
                ids = [str(first + place) for place in range(len(batch))]
                self._ask(f"{self._path}/add", {"ids": ids, "embeddings": batch})
            self.traffic = self._traffic()
            if len(self.fill) > 1:
                self.note = f"Chroma finds {self._quality():.1%} of the {TOP_K} nearest ({_JUDGED} queries)"
        except BaseException:
            self.stop()
            raise

    def _traffic(self) -> dict[str, Traffic]:
        def posts(what: str, bodies: Iterable[str]) -> tuple[bytes, ...]:
            return tuple(request("POST", f"{self._path}/{what}", JSON, body.encode()) for body in bodies)

        events, queries = self.vectors.memories[:EVENTS], self.vectors.queries
        adds = (f'{{"ids": ["{NUMBER}"], "embeddings": [{numbers(vector)}]}}' for vector in events)
        asks = (
            f'{{"query_embeddings": [{numbers(vector)}], "n_results": {TOP_K}, "include": ["distances"]}}'
            for vector in queries
        )
        return {"chroma add": Traffic(posts("add", adds), SLOW), "chroma query": Traffic(posts("query", asks), SLOW)}

    def _quality(self) -> float:
        """Return the share of the exact nearest that it finds."""
        queries = self.vectors.queries[:_JUDGED]
        exact = np.argsort(-(queries @ self.fill.T), axis=1)[:, :TOP_K]
        args = {"query_embeddings": queries.tolist(), "n_results": TOP_K, "include": []}
        found = self._ask(f"{self._path}/query", args)["ids"]
        hits = [len({int(name) for name in names} & set(row.tolist())) for names, row in zip(found, exact, strict=True)]
        return sum(hits) / exact.size

    def _ask(self, path: str, document: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(document), JSON)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status not in (200, 201):
            raise MeasurementError(
                f"Chroma answered {response.status} to {path}: {body[:300].decode(errors='replace')}"
            )
        return json.loads(body)
