"""Fixtures that every package's tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests.live import LiveServer

Serve = Callable[..., LiveServer]

# Small enough to start in a fraction of a second, large enough to evict.
SMALL = {"MLSDM_DIMENSION": "8", "MLSDM_CAPACITY": "1000", "MLSDM_LOG_CAPACITY": "65536"}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers of a test's own, with variables as keywords; each must end in order."""
    servers: list[LiveServer] = []

    def start(**environ: str) -> LiveServer:
        server = LiveServer(tmp_path, {**SMALL, **environ})
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests that leave it usable: two workers, 8 dimensions, 1,000 slots, no key."""
    server = LiveServer(tmp_path_factory.mktemp("server"), dict(SMALL)).start()
    yield server
    server.stop()
