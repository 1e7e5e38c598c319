"""The log line of a request, and which requests have one."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.httpd.request import RECEIVED_NS, REQUEST_ID
from app.httpd.request_log import RequestLog
from testing.live_server import LiveServer

LOG = logging.getLogger("test.access")


def environ(path: str = "/state") -> dict[str, Any]:
    """Return the environ of a request."""
    return {
        "REMOTE_ADDR": "192.0.2.1", "REQUEST_METHOD": "GET", "PATH_INFO": path, REQUEST_ID: "r-1",
        RECEIVED_NS: time.monotonic_ns(),
    }  # fmt: skip


def test_successful_requests_are_sampled(caplog: pytest.LogCaptureFixture) -> None:
    """Successful requests are logged by chance; failed ones always."""
    caplog.set_level(logging.DEBUG, LOG.name)
    chances = iter([0.0, 0.29, 0.3, 0.99])
    access = RequestLog(LOG, 0.3, chance=lambda: next(chances))

    for size in (1, 2, 3, 4):
        access.write(environ(), 200, size)
    for status in (400, 404, 429, 500, 503):
        access.write(environ(), status, 0)

    assert [(vars(record)["status"], vars(record)["bytes"]) for record in caplog.records] == [
        (200, 1),
        (200, 2),
        (400, 0),
        (404, 0),
        (429, 0),
        (500, 0),
        (503, 0),
    ]


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 50), (0.0, 0)])
def test_ratios_of_one_and_zero_are_exact(caplog: pytest.LogCaptureFixture, ratio: float, count: int) -> None:
    """A ratio of 1 logs every successful request, a ratio of 0 none."""
    caplog.set_level(logging.DEBUG, LOG.name)
    access = RequestLog(LOG, ratio)

    for _ in range(50):
        access.write(environ(), 200, 1)

    assert len(caplog.records) == count


def test_sample_ratio_setting_reaches_the_worker(serve: Callable[..., LiveServer]) -> None:
    """With sample_ratio 0 a server logs the failed requests only."""
    server = serve(LOG_LEVEL="DEBUG", MLSDM_OBSERVABILITY__LOGGING__SAMPLE_RATIO="0", WORKERS="1")

    for _ in range(20):
        assert server.get("/state").status == 200
        assert server.get("/nowhere").status == 404

    lines = [line for line in server.log.splitlines() if " Request " in line]
    assert len(lines) == 20
    assert all("status=404" in line for line in lines)
