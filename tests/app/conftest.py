"""The server that the tests of the HTTP API share."""

from collections.abc import Iterator

import pytest

from loadtests.live import LiveServer


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
