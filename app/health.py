"""Health: /health/liveness, /health/readiness, /health/detailed.

Liveness says that the worker's loop turns, and touches nothing that is shared: it answers while everything else is
stuck. Readiness says whether this server should get traffic: the store formed and sound, memory and CPU within bounds,
the controller beating. It reads what the controller has sampled and never waits for the lock.
"""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import falcon
import msgspec

from app.context import Context
from app.events import encode
from app.vector import JSON
from core.rhythm import PHASE_NAMES
from shm.status import StoreError

MEMORY_PERCENT_MAX: Final = 95.0
CPU_PERCENT_MAX: Final = 98.0
CONTROLLER_SILENCE_SECONDS: Final = (
    2.0  # a dead one is back in milliseconds, a stuck one is replaced within two seconds
)

VERSION: Final = version("mlsdm")


class Alive(msgspec.Struct):
    """The answer of liveness."""

    status: str = "alive"


class Check(msgspec.Struct, omit_defaults=True):
    """One check of readiness; `reason` says why it fails."""

    healthy: bool
    reason: str | None = None


class Ready(msgspec.Struct):
    """The answer of readiness."""

    ready: bool
    status: str
    checks: dict[str, Check]


_ALIVE: Final = encode(Alive())


class LivenessResource:
    """The loop turns."""

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer 200, always."""
        response.content_type = JSON
        response.data = _ALIVE

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way


class ReadinessResource:
    """Whether traffic is welcome."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer 200 when every check holds, else 503; either way with the reasons."""
        checks = self.checks()
        ready = all(check.healthy for check in checks.values())
        response.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        response.content_type = JSON
        response.data = encode(Ready(ready, "ready" if ready else "not_ready", checks))

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way

    def checks(self) -> dict[str, Check]:
        """Return every check by name."""
        vitals = self.context.store.block.region("vitals")
        silence = (self.context.clock() - vitals.heartbeat_ns) / 1e9
        leaving = self.context.leaving()
        return {
            "server": Check(False, "the server has been told to stop and serves on until the drain period ends")
            if leaving
            else Check(True),
            "memory_manager": self._store(),
            "system_memory": _below(vitals.memory_percent, MEMORY_PERCENT_MAX, "% of memory is used"),
            "system_cpu": _below(vitals.cpu_percent_30s, CPU_PERCENT_MAX, "% of the CPU allowance was used over 30 s"),
            "controller": _below(silence, CONTROLLER_SILENCE_SECONDS, " s since the controller's last beat"),
        }

    def _store(self) -> Check:
        try:
            self.context.store.state()
        except StoreError as error:
            return Check(False, str(error))
        return Check(True)


def _below(value: float, bound: float, what: str) -> Check:
    return Check(True) if value < bound else Check(False, f"{value:.1f}{what}; expected below {bound:g}")


class DetailedResource:
    """Everything at a glance."""

    def __init__(self, context: Context, readiness: ReadinessResource) -> None:
        self.context = context
        self.readiness = readiness

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the state of machine, memory and governor; 200 also when not ready."""
        response.content_type = JSON
        response.data = encode(self.document())

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way

    def document(self) -> dict[str, Any]:
        """Return the document."""
        context = self.context
        vitals = context.store.block.region("vitals")
        limits = context.config.security.rate_limiting
        checks = self.readiness.checks()
        document = {
            "status": "healthy" if all(check.healthy for check in checks.values()) else "unhealthy",
            "timestamp": datetime.now(UTC).isoformat(),
            "uptime_seconds": (context.clock() - context.store.block.created_boot_ns) // 1_000_000 / 1e3,
            "system": {
                "memory_percent": vitals.memory_percent,
                "memory_available_mb": vitals.memory_available_mb,
                "memory_total_mb": vitals.memory_total_mb,
                "cpu_percent": vitals.cpu_percent,
                "cpu_count": int(vitals.cpu_count),
                "disk_percent": vitals.disk_percent,
            },
            "checks": checks,
            "rate_limiting": {
                "enabled": limits.enabled,
                "requests_per_second": limits.requests_per_second,
                "burst_capacity": limits.burst_capacity,
            },
            "version": VERSION,
            "boot_id": context.boot_id,
        }
        if checks["memory_manager"].healthy:
            document |= self._of_state()
        return document

    def _of_state(self) -> dict[str, Any]:
        context = self.context
        state, (l1, l2, l3) = context.store.levels()
        scalars = state.scalars
        return {
            "memory_state": {
                "L1_norm": l1,
                "L2_norm": l2,
                "L3_norm": l3,
                "used": scalars.live,
                "capacity": context.config.capacity,
            },
            "phase": PHASE_NAMES[scalars.phase],
            "statistics": {
                "total_events_processed": scalars.accepted + scalars.rejected,
                "accepted_events_count": scalars.accepted,
                "latent_events_count": scalars.rejected,
                "rejected_events_count": scalars.rejected,
                "moral_filter_threshold": scalars.theta,
                "avg_latency_ms": self._average_latency_ms(),
            },
        }

    def _average_latency_ms(self) -> float:
        block = self.context.store.block
        rows = [block.region("rows", number) for number in range(block.layout.rows)]
        count = sum(row.latency_count for row in rows)
        return sum(row.latency_ns for row in rows) / count / 1e6 if count else 0.0
