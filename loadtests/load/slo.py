"""Service level objectives of a load test: figures, bounds, and a sentence for each violation.

The figures come from Locust and from the server's metrics before and after; this file imports neither Locust nor HTTP.
Latency is judged per route: a mean would hide a slow recall behind quick probes. 429 and 503 are not errors and have
budgets of their own: a rate limit that holds is correct, and a 503 applied nothing.

Events are counted on both sides. Acknowledged events must have been counted by the server, and when nobody else sends
events, exactly those: one more would be an event whose answer was lost.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

JUDGED_MIN: Final = 20  # requests of a route, so that its p95 is not just its maximum


class Bounds(NamedTuple):
    """The bounds. An infinite bound is not judged; `alone`: no other client sends events."""

    p95_ms_max: float = 100.0
    error_share_max: float = 0.001
    refused_share_max: float = 0.0
    unserved_share_max: float = 0.001
    growth_mb_max: float = 16.0
    rate_min: float = 0.0
    alone: bool = False


class Route(NamedTuple):
    """One kind of request: how many, and their 95th percentile."""

    requests: int
    p95_ms: float


class Figures(NamedTuple):
    """What was seen. `errors` are answers and connections that failed, without those of 429, which are `refused`, and
    those of 503, which are `unserved`.

    `acknowledged` events were answered, `moved` is by how much the server's own count went up, None when it is not the
    same server any more; `rate` is in requests per second. `growth_mb` is None when memory could not be measured.
    """

    routes: Mapping[str, Route]
    errors: int
    refused: int
    unserved: int
    acknowledged: int
    moved: int | None
    growth_mb: float | None
    rate: float

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(route.requests for route in self.routes.values())


def summary(figures: Figures) -> str:
    """Return the figures in one line."""
    moved = "?" if figures.moved is None else f"{figures.moved:,}"
    growth = "?" if figures.growth_mb is None else f"{figures.growth_mb:+.1f} MB"
    return (
        f"{figures.requests:,} requests, {figures.rate:,.0f} a second, {figures.errors:,} failed, "
        f"{figures.refused:,} refused, {figures.unserved:,} not served; "
        f"{figures.acknowledged:,} events acknowledged, {moved} counted by the server; its memory {growth}"
    )


def violations(figures: Figures, bounds: Bounds) -> list[str]:
    """Return a sentence for each bound that does not hold."""
    if not figures.requests:
        return ["no request was made, so nothing can be judged"]
    return [*_latency(figures, bounds), *_shares(figures, bounds), *_events(figures, bounds), *_memory(figures, bounds)]


def _latency(figures: Figures, bounds: Bounds) -> list[str]:
    sentences = [
        f"the 95th percentile of {name} is {route.p95_ms:,.0f} ms; at most {bounds.p95_ms_max:g} ms is promised"
        for name, route in figures.routes.items()
        if route.requests >= JUDGED_MIN and route.p95_ms > bounds.p95_ms_max
    ]
    if figures.rate < bounds.rate_min:
        sentences.append(
            f"{figures.rate:,.0f} requests per second were made; at least {bounds.rate_min:,g} were asked for"
        )
    return sentences


def _shares(figures: Figures, bounds: Bounds) -> list[str]:
    return [
        f"{count:,} of {figures.requests:,} requests {what} ({count / figures.requests:.2%}); at most {allowed:.2%} may"
        for count, what, allowed in (
            (figures.errors, "failed", bounds.error_share_max),
            (figures.refused, "were refused because the client had no tokens (429)", bounds.refused_share_max),
            (figures.unserved, "were not served (503)", bounds.unserved_share_max),
        )
        if count > allowed * figures.requests
    ]


def _events(figures: Figures, bounds: Bounds) -> list[str]:
    if figures.moved is None:
        return ["the server is another one than before: it was restarted, or another server answers at its address"]
    if figures.moved < figures.acknowledged:
        return [
            f"{figures.acknowledged:,} events were acknowledged, but the server's count moved by {figures.moved:,} only"
        ]
    if bounds.alone and figures.moved > figures.acknowledged:
        counts = f"the server's count moved by {figures.moved:,}, but {figures.acknowledged:,} events were acknowledged"
        return [f"{counts}: another client sends events, or answers were lost"]
    return []


def _memory(figures: Figures, bounds: Bounds) -> list[str]:
    if math.isinf(bounds.growth_mb_max):
        return []
    if figures.growth_mb is None:
        return ["the server's memory could not be measured: its metrics lack memory_usage_bytes; use --server-pid"]
    if figures.growth_mb > bounds.growth_mb_max:
        return [
            f"the server's memory grew by {figures.growth_mb:,.1f} MB; at most {bounds.growth_mb_max:g} MB is promised"
        ]
    return []
