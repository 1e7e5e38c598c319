"""The servers that the tests of the HTTP API share."""

from collections.abc import Iterator

import pytest

from loadtests.live import LiveServer
from tests.app import ring
from tests.conftest import SMALL


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with an API_KEY and every key of `ring`, which logs all that it ever would; no limits of rate.

    Whoever uses it leaves it admitting events. At its end nothing of any key is found in all that it has logged.
    """
    directory = tmp_path_factory.mktemp("keyed")
    environ = {
        **SMALL,
        "LOG_LEVEL": "DEBUG",
        "API_KEY": ring.API_KEY,
        "MLSDM_SECURITY__KEYS_PATH": str(ring.write(directory / "keys.yaml")),
        "MLSDM_IDEMPOTENCY_CAPACITY": "1024",
    }
    server = LiveServer(directory, environ).start()
    yield server
    server.stop()
    assert [] == ring.leaked(server)
