"""The monitored service for the tests of rules and dashboard: a real server after traffic of every kind, and a real
Prometheus that has scraped it often enough for rates.
"""

from collections.abc import Iterator

import pytest

from testing.eventually import eventually
from testing.live_server import LiveServer
from tests.app.calm_machine import APPLICATION, calm
from tests.conftest import SMALL
from tests.deploy.watched import Watched
from tests.scraped import scraped


@pytest.fixture(scope="module")  # PERF: a Prometheus that scrapes and judges every second takes a tenth of a core
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Events accepted and rejected, recalls, a wrong request, probes, and a client above its rate."""
    directory = tmp_path_factory.mktemp("watched")
    limits = "MLSDM_SECURITY__RATE_LIMITING__"
    environ = {**SMALL, f"{limits}ENABLED": "true", f"{limits}BURST_CAPACITY": "60", **calm(directory)}
    server = LiveServer(directory, environ, application=APPLICATION).start()
    try:
        with scraped(server, directory) as prometheus:
            service = Watched(server, prometheus)
            service.generate_traffic_of_every_kind()
            eventually(service.has_rates)
            yield service
    finally:
        server.stop()
