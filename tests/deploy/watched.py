"""A monitored service: a server, the Prometheus that scrapes it, and traffic that gives every metric a value.

Most labelled series begin with the first thing that they count. All traffic goes over HTTP; nothing is written into
the metrics directly.
"""

from dataclasses import dataclass
from typing import Final

from testing.bodies import EXAMPLE
from testing.eventually import eventually
from testing.live_server import LiveServer
from tests.scraped import Prometheus

EVENTS: Final = 40  # enough for an hour before, which needs 30
PROBES: Final = ("/health/liveness", "/health/readiness", "/health/detailed", "/livez", "/readyz", "/metrics")


@dataclass
class Watched:
    """The server is open to its own machine, so nobody needs a key, not even to stop it."""

    server: LiveServer
    prometheus: Prometheus

    def post(self, path: str, document: object) -> int:
        """POST a JSON document; returns the status."""
        return self.server.post(path, document).status

    def order(self, verb: str) -> int:
        """Stop or resume admissions; returns the status."""
        return self.server.request("POST", f"/governor/{verb}").status

    def event(self, moral: float) -> int:
        """Send an event; returns the status."""
        return self.post("/event", {"event_vector": EXAMPLE, "moral_value": moral})

    def recall(self) -> int:
        """Ask for the nearest memories; returns the status."""
        return self.post("/recall", {"vector": EXAMPLE})

    def generate_traffic_of_every_kind(self) -> None:
        """Everything that is counted by what it was, twice: a rate needs something that came after a scrape."""
        eventually(lambda: self.prometheus.series("total_events_processed"))  # a rate counts from the first scrape on
        assert [self.event(number % 2) for number in range(EVENTS)] == [200] * EVENTS
        assert self.recall() == 200
        assert self.order("stop") == 200
        assert self.event(1.0) == 503
        assert self.order("resume") == 200
        assert self.post("/event", {}) == 422
        for path in PROBES:
            assert self.server.get(path).status == 200
        eventually(lambda: self.event(0.0) == 429)
        eventually(lambda: self.prometheus.series('mlsdm_refusals_total{code="rate_limit_exceeded"} > 0'))
        eventually(lambda: self.event(1.0) == 200)
        eventually(lambda: self.recall() == 200)

    def has_rates(self) -> bool:
        """Return whether Prometheus has seen the second time."""
        return bool(self.prometheus.series("rate(process_event_latency_seconds_count[5m]) > 0"))
