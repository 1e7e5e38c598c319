"""The table of routes: path → resource. A new route is a new file in this folder and one line here."""

from collections.abc import Callable, Sequence

from prometheus_client.registry import Collector

from app.api.access.audit_log import AuditLog
from app.api.context import Context
from app.api.operation import Resource
from app.lifecycle.report import ModulesCollector, Report
from app.routes.decisions import DecisionsResource
from app.routes.events import BatchResource, EventResource
from app.routes.governor import CommandResource, GovernorResource
from app.routes.health import DetailedResource, LivenessResource, ReadinessResource
from app.routes.memories import MemoryResource
from app.routes.metrics import ChildrenCollector, MetricsResource
from app.routes.modules import ModulesResource
from app.routes.recall import RecallResource
from app.routes.state import StateResource

# Bytes of int8 shadow that a recall may scan on the event loop, about 2 ms; above it runs on the thread pool.
INLINE_SHADOW_SIZE_MAX = 32_000_000


def routes(
    context: Context,
    audit: AuditLog,
    modules: Report,
    is_usable: Callable[[str], bool] = lambda _name: True,
    collectors: Sequence[Collector] = (),
) -> dict[str, Resource]:
    """Return every route of the core: path → resource. The caller adds the routes of modules.

    `collectors` are further ones for the metrics.
    """
    readiness = ReadinessResource(context, modules, is_usable)
    metrics = MetricsResource(
        context, readiness.is_ready, ChildrenCollector(modules.child_states), ModulesCollector(modules), *collectors
    )
    large = context.store.block.layout.shadow_stride * context.config.capacity > INLINE_SHADOW_SIZE_MAX
    table: dict[str, Resource] = {
        "/event": EventResource(context),
        "/events": BatchResource(context),
        "/recall": RecallResource(context, blocks=large),
        "/memories/{memory_id}": MemoryResource(context),
        "/decisions": DecisionsResource(context),
        "/state": StateResource(context),
        "/governor": GovernorResource(context, audit),
        "/governor/reset": CommandResource(context, audit, "reset"),
        "/governor/stop": CommandResource(context, audit, "stop"),
        "/governor/resume": CommandResource(context, audit, "resume"),
        "/modules": ModulesResource(modules),
        "/health/liveness": LivenessResource(),
        "/health/readiness": readiness,
        "/health/detailed": DetailedResource(context, readiness),
        "/health/metrics": metrics,
        "/livez": LivenessResource(),
        "/readyz": readiness,
        "/metrics": metrics,
    }
    return table
