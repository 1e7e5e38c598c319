"""Health: GET /health/liveness, /health/readiness and /health/detailed.

Liveness: the worker's event loop runs. It reads nothing shared, so it answers while everything else is stuck.
Readiness: this server should receive traffic, because the store and its lock are sound, memory is within its bound, and
the controller and the loop of every worker are alive. It reads what the controller has sampled, and never waits for the
lock. CPU is checked and shown; readiness depends on it only if health.cpu_gates_readiness says so, because a busy
machine may serve well, and if it does not, the loops of its workers show it. During an emergency
(core/controller/emergency.py) the check of the affected part fails until the cooldown is over.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal
from wsgiref.types import WSGIEnvironment

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.context import Context
from app.api.fields import (
    MILLISECOND_NS,
    Accepted,
    BootId,
    Capacity,
    Live,
    LogId,
    Norm,
    Phase,
    Rejected,
    Threshold,
    Total,
    age_seconds,
    component,
)
from app.api.operation import Operation
from app.lifecycle.report import NO_MODULES, Report
from core.clock import elapsed_seconds
from core.controller.emergency import REMEDIES, SENTENCES, ReasonName, reason_names
from core.heartbeat import SILENCE_SECONDS
from core.limits import CPU_PERCENT, EMERGENCY_COOLDOWN_SECONDS, MEMORY_PERCENT
from core.phases import PHASE_NAMES
from core.settings.tiers import tiers
from core.version import VERSION
from shm.errors import StoreError
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY, FLAG_STOPPED
from shm.records import VitalsPointer

Share = Annotated[float, Meta(ge=0, examples=[12.5])]


@component("Alive")
class LivenessView(msgspec.Struct):
    """The response of the liveness probe."""

    status: Literal["alive"] = "alive"


class Check(msgspec.Struct, omit_defaults=True):
    """One check of readiness. `reason` is present if it fails, `gates` if readiness does not depend on it."""

    healthy: bool
    reason: str | None = None
    gates: Annotated[bool, Meta(description="False: readiness does not depend on it.", examples=[False])] | None = None


Checks = Annotated[
    dict[str, Check], Meta(description="The checks, by name.", examples=[{"memory_manager": {"healthy": True}}])
]


@component("Ready")
class ReadinessView(msgspec.Struct):
    """The response of the readiness probe."""

    ready: bool
    status: Annotated[Literal["ready", "not_ready"], Meta(examples=["ready"])]
    checks: Checks


@component("System")
class SystemView(msgspec.Struct):
    """The machine, or the container if its cgroup has limits. Percentages are of the limit."""

    memory_percent: Share
    memory_available_mb: Annotated[float, Meta(ge=0, examples=[1234.5])]
    memory_total_mb: Annotated[float, Meta(ge=0, examples=[2048.0])]
    cpu_percent: Share
    cpu_count: Annotated[int, Meta(ge=0, examples=[2])]
    disk_percent: Share


class Bucket(msgspec.Struct):
    """The token bucket of a tier: `rate` in tokens per second, `burst` in tokens."""

    rate: Annotated[float, Meta(examples=[5.0])]
    burst: Annotated[int, Meta(examples=[10])]


class RateLimits(msgspec.Struct):
    """The rate limits in force. `requests_per_second` and `burst_capacity` are those of the tier `standard`."""

    enabled: bool
    requests_per_second: Annotated[float, Meta(examples=[5.0])]
    burst_capacity: Annotated[int, Meta(examples=[10])]
    tiers: Annotated[dict[str, Bucket], Meta(examples=[{"standard": {"rate": 5.0, "burst": 10}}])]


class EmergencyState(msgspec.Struct, omit_defaults=True):
    """Whether and why events are refused without an operator's order. `since_seconds`: age of the oldest reason."""

    active: Annotated[bool, Meta(examples=[False])]
    reasons: Annotated[list[ReasonName], Meta(examples=[[]])]
    episodes: Annotated[int, Meta(description="Number of times that a reason came into force.", ge=0, examples=[0])]
    since_seconds: Annotated[float, Meta(ge=0, examples=[12.0])] | None = None


class MemoryState(msgspec.Struct):
    """The store and the synaptic levels."""

    L1_norm: Norm
    L2_norm: Norm
    L3_norm: Norm
    used: Live
    capacity: Capacity


class Statistics(msgspec.Struct):
    """Counts since the start of the store. `latent_events_count` is an older name of `rejected_events_count`."""

    total_events_processed: Total
    accepted_events_count: Accepted
    latent_events_count: Rejected
    rejected_events_count: Rejected
    moral_filter_threshold: Threshold
    avg_latency_ms: Annotated[
        float, Meta(description="Mean time from the complete event request to its response.", ge=0, examples=[0.04])
    ]


@component("Detailed")
class DetailedView(msgspec.Struct, omit_defaults=True):
    """Everything at a glance; without `memory_state`, `phase` and `statistics` while the store cannot be read."""

    status: Literal["healthy", "unhealthy"]
    timestamp: Annotated[str, Meta(description="RFC 3339.", examples=["2026-01-31T12:00:00.000000+00:00"])]
    uptime_seconds: Annotated[float, Meta(ge=0, examples=[86400.0])]
    system: SystemView
    checks: Checks
    emergency: EmergencyState
    rate_limiting: RateLimits
    version: Annotated[str, Meta(examples=[VERSION])]
    boot_id: BootId
    log_id: LogId
    memory_state: MemoryState | None = None
    phase: Phase | None = None
    statistics: Statistics | None = None


_ALIVE: Final = encode(LivenessView())


class LivenessResource:
    """GET /health/liveness."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Report that the process is alive.", None, LivenessView, probe=True)
    }

    def __init__(self) -> None:
        self.fast_responders = {"GET": self.answer}

    @staticmethod
    def answer(_environ: WSGIEnvironment) -> bytes:
        """Return the response; always the same."""
        return _ALIVE

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer 200."""
        response.content_type = JSON
        response.data = _ALIVE

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body


class ReadinessResource:
    """GET /health/readiness."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Report whether the server should receive traffic; 503 with the same document if not.",
            None,
            ReadinessView,
            other_responses={503: ReadinessView},
            probe=True,
        )
    }

    def __init__(
        self, context: Context, modules: Report = NO_MODULES, is_usable: Callable[[str], bool] = lambda _name: True
    ) -> None:
        """`is_usable(name)` returns whether a module of this worker can be used."""
        self.context = context
        self.modules = modules
        self.is_usable = is_usable

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer 200 if every check holds, else 503, with the checks in both cases."""
        checks = self.checks()
        ready = all_hold(checks)
        response.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        response.content_type = JSON
        response.data = encode(ReadinessView(ready, "ready" if ready else "not_ready", checks))

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body

    def is_ready(self) -> bool:
        """Return whether every check holds."""
        return all_hold(self.checks())

    def checks(self) -> dict[str, Check]:
        """Return every check by name."""
        vitals = self.context.store.block.region("vitals")
        silence = elapsed_seconds(vitals.heartbeat_ns, self.context.clock())
        is_stopping = self.context.is_stopping()
        return {
            "server": Check(False, "the server is stopping; it serves requests until the drain period ends")
            if is_stopping
            else Check(True),
            **self._store_checks(int(vitals.emergency)),
            "system_memory": _memory_check(vitals),
            "system_cpu": self._cpu_check(vitals),
            "workers": self._workers_check(),
            "controller": _check_below(silence, SILENCE_SECONDS, " s since the controller's last beat"),
            **self._module_checks(),
        }

    def _cpu_check(self, vitals: VitalsPointer) -> Check:
        check = _check_below(vitals.cpu_percent_30s, CPU_PERCENT, "% of the CPU allowance was used over 30 s")
        if not self.context.config.health.cpu_gates_readiness:
            check.gates = False
        return check

    def _workers_check(self) -> Check:
        """Return the check that the loop of every worker runs: a client may be connected to any of them."""
        block, now_ns = self.context.store.block, self.context.clock()
        for number in range(block.layout.rows):
            row = block.region("rows", number)
            pid, seconds = int(row.pid), elapsed_seconds(row.heartbeat_ns, now_ns)
            if pid and seconds >= SILENCE_SECONDS and block.row_owner(number).alive:  # dead workers leave rows behind
                return Check(False, f"worker pid={pid} has been silent for {seconds:.1f} s")
        return Check(True)

    def _module_checks(self) -> dict[str, Check]:
        """Return the check of the required modules by its name; {} if no module is required."""
        if not self.modules.required:
            return {}
        missing = [name for name in self.modules.required if not self.is_usable(name)]
        return {"modules": Check(False, f"not usable in this worker: {', '.join(missing)}") if missing else Check(True)}

    def _store_checks(self, emergency: int) -> dict[str, Check]:
        lock = {"lock": _emergency_check(emergency, EMERGENCY_LOST)}
        try:
            state, _ = self.context.store.levels()
            stopped = state.scalars.flags & FLAG_STOPPED
        except StoreError as error:
            return {"memory_manager": Check(False, str(error)), **lock}
        admissions = (
            Check(False, "an operator has stopped admissions: POST /governor/resume") if stopped else Check(True)
        )
        return {"memory_manager": _emergency_check(emergency, EMERGENCY_CORRUPT), **lock, "admissions": admissions}


def all_hold(checks: Checks) -> bool:
    """Return whether every check holds that readiness depends on."""
    return all(check.healthy or check.gates is False for check in checks.values())


def _emergency_check(emergency: int, reason: int) -> Check:
    """Return the check that fails while `emergency` (bits) has the bit `reason`."""
    if not emergency & reason:
        return Check(True)
    ends = f"the emergency ends {EMERGENCY_COOLDOWN_SECONDS.value} s after its cause"
    return Check(False, f"emergency: {SENTENCES[reason]}; {REMEDIES[reason]}; {ends}")


def _memory_check(vitals: VitalsPointer) -> Check:
    """Return the check of memory.

    It holds if an operator has overruled the emergency, or if memory is below its bound and no cooldown is in progress.
    """
    if vitals.emergency_overruled & EMERGENCY_MEMORY:
        return Check(True)
    sampled = _check_below(vitals.memory_percent, float(MEMORY_PERCENT.value), "% of memory is used")
    return _emergency_check(int(vitals.emergency), EMERGENCY_MEMORY) if sampled.healthy else sampled


def _check_below(value: float, bound: float, what: str) -> Check:
    """Return the check that `value` is below `bound`; `what` follows the value in its reason."""
    return Check(True) if value < bound else Check(False, f"{value:.1f}{what}; expected below {bound:g}")


class DetailedResource:
    """GET /health/detailed."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Show machine, memory and governor at a glance.", None, DetailedView, probe=True, in_turn=True)
    }

    def __init__(self, context: Context, readiness: ReadinessResource) -> None:
        self.context = context
        self.readiness = readiness

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the state of machine, memory and governor; 200 even if the server is not ready."""
        response.content_type = JSON
        response.data = encode(self.document())

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body

    def document(self) -> DetailedView:
        """Return the document."""
        context = self.context
        vitals = context.store.block.region("vitals")
        limits = context.config.security.rate_limiting
        checks = self.readiness.checks()
        document = DetailedView(
            "healthy" if all_hold(checks) else "unhealthy",
            datetime.now(UTC).isoformat(),
            age_seconds(context.store.block.created_ns, context.log_time(), MILLISECOND_NS),
            SystemView(
                memory_percent=vitals.memory_percent,
                memory_available_mb=vitals.memory_available_mb,
                memory_total_mb=vitals.memory_total_mb,
                cpu_percent=vitals.cpu_percent,
                cpu_count=int(vitals.cpu_count),
                disk_percent=vitals.disk_percent,
            ),
            checks,
            self._emergency(),
            RateLimits(
                limits.enabled,
                limits.requests_per_second,
                limits.burst_capacity,
                {name: Bucket(tier.rate, tier.burst) for name, tier in tiers(context.config).items()},
            ),
            VERSION,
            context.boot_id,
            context.log_id,
        )
        with suppress(StoreError):  # a check reports it, and the rest is still useful
            self._add_state(document)
        return document

    def _emergency(self) -> EmergencyState:
        vitals = self.context.store.block.region("vitals")
        reasons, since_ns = list(reason_names(int(vitals.emergency))), int(vitals.emergency_since_ns)
        since = age_seconds(since_ns, self.context.log_time(), MILLISECOND_NS) if reasons else None
        return EmergencyState(bool(reasons), reasons, int(vitals.emergency_episodes), since)

    def _add_state(self, document: DetailedView) -> None:
        context = self.context
        state, norms = context.store.levels()
        scalars = state.scalars
        document.memory_state = MemoryState(*norms, scalars.live, context.config.capacity)
        document.phase = PHASE_NAMES[scalars.phase]
        document.statistics = Statistics(
            total_events_processed=scalars.accepted + scalars.rejected,
            accepted_events_count=scalars.accepted,
            latent_events_count=scalars.rejected,
            rejected_events_count=scalars.rejected,
            moral_filter_threshold=scalars.theta,
            avg_latency_ms=1e3 * context.latency.mean_seconds(),
        )
