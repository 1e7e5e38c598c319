"""Shared fixtures: servers, and rules for running tests in parallel.

pytest-xdist deals out the tests in order, and idle processes steal work, so that most tests of a file share its
servers. A test may take any time on a busy machine: no example of Hypothesis has a deadline.

Rejected: sharing servers between processes: concurrent tests would see each other's memories. Sharing them between
files: a server costs half a second of CPU, but an idle one costs as much in half a minute.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from testing import keys
from testing.live_server import LiveServer

Serve = Callable[..., LiveServer]

# Small enough to start in a fraction of a second, large enough to evict.
SMALL = {"MLSDM_DIMENSION": "8", "MLSDM_CAPACITY": "1000", "MLSDM_LOG_CAPACITY": "65536"}


# A shell without job control starts what runs in the background deaf to Ctrl-C, and all that this starts inherits it;
# some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: one that began last would keep one process busy alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers of a test's own, with variables as keywords; each must end normally."""
    servers: list[LiveServer] = []

    def start(**environ: str) -> LiveServer:
        server = LiveServer(tmp_path, {**SMALL, **environ})
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests of a file that leave it usable: two workers, 8 dimensions, 1,000 slots, no key."""
    server = LiveServer(tmp_path_factory.mktemp("server"), dict(SMALL)).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def still_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that nothing but requests can move: its rhythm steps with decisions.

    Two workers, 8 dimensions, no key; small enough that both rings, of 100 memories and of 1,024 log entries, come
    round in a test.
    """
    environ = {
        "MLSDM_DIMENSION": "8",
        "MLSDM_CAPACITY": "100",
        "MLSDM_LOG_CAPACITY": "1024",
        "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events",
    }
    server = LiveServer(tmp_path_factory.mktemp("still"), environ).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with an API_KEY and every key of `testing.keys`, which logs all that it ever would; no limits of rate.

    Whoever uses it leaves it admitting events. At its end, its log must not contain any part of any key.
    """
    directory = tmp_path_factory.mktemp("keyed")
    environ = {
        **SMALL,
        "LOG_LEVEL": "DEBUG",
        "API_KEY": keys.API_KEY,
        "MLSDM_SECURITY__KEYS_PATH": str(keys.write(directory / "keys.yaml")),
        "MLSDM_IDEMPOTENCY_CAPACITY": "1024",
    }
    server = LiveServer(directory, environ).start()
    yield server
    server.stop()
    assert keys.leaked(server) == []
