"""One scrape of a server's metrics: boot id, event count and memory, to compare with a load test's own counts.

Probe one server, because each has its own memories and counters: behind a load balancer two scrapes may be of two
servers; their boot ids differ. The scrape needs no key. Memory is memory_usage_bytes, unless the arbiter's pid is
known: then it is the private memory of its processes from /proc. No other program changes that, while proportional
memory depends on other users of the same libraries.
"""

import urllib.error
import urllib.request
from typing import Final, NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS: Final = 30.0


class ProbeError(Exception):
    """One sentence: why the server could not be asked."""


class ServerMetrics(NamedTuple):
    """The server's boot id, its count of decided events, and its memory in bytes (None when unknown)."""

    boot_id: str
    events: int
    memory_bytes: int | None


def probe(host: str, pid: int | None = None) -> ServerMetrics:
    """Ask the server at this URL; `pid` is its arbiter's, when it runs here. Raises ProbeError."""
    url = f"{host.rstrip('/')}/health/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read().decode()
        memory = None if pid is None else private_bytes(pid)
    except (OSError, ValueError, psutil.Error) as error:
        raise ProbeError(f"{url} was not answered: {error}") from None
    return read(text, memory)


def read(text: str, memory: int | None = None) -> ServerMetrics:
    """Parse an exposition; `memory` overrides its memory_usage_bytes. Raises ProbeError."""
    values: dict[str, float] = {}
    boot_id = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = sample.value
                if sample.name == "mlsdm_build_info":
                    boot_id = sample.labels["boot_id"]
    except (ValueError, KeyError) as error:
        raise ProbeError(f"the metrics cannot be read: {error}") from None
    if boot_id is None or "total_events_processed" not in values:
        raise ProbeError("the metrics are not those of an mlsdm server, or its store cannot be read")
    reported = values.get("memory_usage_bytes")
    return ServerMetrics(
        boot_id, int(values["total_events_processed"]), memory if memory or reported is None else int(reported)
    )


def private_bytes(pid: int) -> int:
    """Return the private memory of a process and its descendants in bytes. Raises psutil.Error."""
    arbiter = psutil.Process(pid)
    return sum(member.memory_full_info().uss for member in [arbiter, *arbiter.children(recursive=True)])
