"""GET /health/metrics and /metrics: one scrape of all workers and of the block.

What workers measure goes through prometheus_client's multiprocess files, keyed by worker row instead of pid: a
successor continues its predecessor's files, so they neither pile up nor lose counts. What the block knows is exact
already and is read at scrape time by a collector.

The names without the mlsdm_ prefix are those that operators' dashboards already use, exactly; counters among them whose
names break the naming rules are exposed untyped.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import falcon
from prometheus_client import CollectorRegistry, exposition, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from app.api.context import Context
from app.api.operation import Operation
from app.api.problem_codes import CODES
from app.routes.health import ReadinessResource, all_hold
from app.telemetry.latency_histogram import fix_histogram_totals
from app.telemetry.series import REFUSALS
from core.clock import elapsed_seconds
from core.controller.emergency import REASONS
from core.controller.threshold_drift import BITS
from core.heartbeat import row_is_served
from core.phases import SLEEP
from core.version import VERSION
from shm.errors import StoreError
from shm.layout import FLAG_STOPPED
from shm.records import State


class WorkersCollector(Collector):
    """What the workers have measured, all of them together; and `error_count`, which follows from it."""

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the workers' files; none where a cleaner of /tmp has taken them away, or does so now:
        what the block knows is exposed all the same.
        """
        try:
            files = multiprocess.MultiProcessCollector(None)  # type: ignore[no-untyped-call] # theirs
        except ValueError:  # there is no such directory
            return
        try:
            families = list(files.collect())  # type: ignore[no-untyped-call] # theirs
        except FileNotFoundError:
            return
        for family in families:
            yield fix_histogram_totals(family)
            if family.name == REFUSALS:
                errors = sum(sample.value for sample in family.samples if _is_ours(sample.labels["code"]))
                yield UntypedMetricFamily(
                    "error_count", "Requests that this server could not serve: answers of 500 and 503.", errors
                )


def _is_ours(code: str) -> bool:
    """Return whether a refusal is this server's fault, or its operator's, and not the client's.

    501 and 505 are the client's: it asks for a method, a coding or a version that is not spoken here. Limits that close
    a connection without a word have no status.
    """
    return code in CODES and CODES[code].status in (500, 503)


class BlockCollector(Collector):
    """The block's own figures, read when scraped."""

    def __init__(self, context: Context, readiness: ReadinessResource) -> None:
        self.context = context
        self.readiness = readiness

    def collect(self) -> Iterator[Metric]:
        """Yield every family; those of the committed state only while it can be read, because alerts need the rest."""
        yield from self._of_block()
        try:
            state, norms = self.context.store.levels()
        except StoreError:
            yield GaugeMetricFamily("mlsdm_store_sound", "1 while the committed state can be read.", 0)
            return
        yield GaugeMetricFamily("mlsdm_store_sound", "1 while the committed state can be read.", 1)
        yield from self._of_state(state, norms)

    def _of_state(self, state: State, norms: tuple[float, ...]) -> Iterator[Metric]:
        scalars = state.scalars
        accepted, rejected = scalars.accepted, scalars.rejected
        for name, text, count in (
            ("total_events_processed", "Events decided.", accepted + rejected),
            ("accepted_events_count", "Events accepted.", accepted),
            ("rejected_events_count", "Events rejected by the moral filter.", rejected),
        ):
            yield UntypedMetricFamily(name, text, count)
        decisions = CounterMetricFamily("mlsdm_decisions", "Events decided.", labels=["outcome"])
        decisions.add_metric(["accepted"], accepted)
        decisions.add_metric(["rejected"], rejected)
        yield decisions
        for name, text, value in (
            ("moral_filter_threshold", "Moral threshold.", scalars.theta),
            ("mlsdm_ema", "Exponential mean of accept = 1, reject = 0.", scalars.ema),
            ("mlsdm_asleep", "1 while the rhythm is asleep.", scalars.phase == SLEEP),
            ("mlsdm_memories", "Live memories.", scalars.live),
            ("mlsdm_stopped", "1 while an operator has stopped admissions.", scalars.flags & FLAG_STOPPED),
            ("mlsdm_threshold_min", "Lower bound of the threshold, in force.", state.settings.min_threshold),
            ("mlsdm_threshold_max", "Upper bound of the threshold, in force.", state.settings.max_threshold),
        ):
            yield GaugeMetricFamily(name, text, value)
        levels = GaugeMetricFamily("mlsdm_level_norm", "Norm of a synaptic level.", labels=["level"])
        for number, norm in enumerate(norms, 1):
            levels.add_metric([str(number)], norm)
        yield levels
        for name, text, value in (
            ("mlsdm_log_entries", "Log position: changes of the committed state.", state.position),
            ("mlsdm_rhythm_steps", "Steps of the rhythm.", scalars.step),
            ("mlsdm_receipts", "Receipts given to events with an idempotency key.", state.receipts),
            ("mlsdm_controller_epochs", "Controllers that have taken over.", state.epoch),
        ):
            yield CounterMetricFamily(name, text, value)

    def _of_block(self) -> Iterator[Metric]:
        block = self.context.store.block
        vitals, lock = block.region("vitals"), block.region("lock")
        rows = [block.region("rows", number) for number in range(block.layout.rows)]
        now_ns = self.context.clock()
        for name, text, value in (
            ("memory_usage_bytes", "Memory of all processes, shared pages once.", vitals.service_bytes),
            ("cpu_usage_percent", "CPU used, of the container's allowance.", vitals.cpu_percent),
            ("mlsdm_memory_percent", "Memory used, of the container's limit.", vitals.memory_percent),
            ("mlsdm_ready", "1 while readiness is answered with 200.", all_hold(self.readiness.checks())),
            ("mlsdm_workers", "Workers that serve.", sum(row_is_served(row, now_ns) for row in rows)),
            ("mlsdm_workers_configured", "Workers that should serve.", self.context.workers),
            (
                "mlsdm_controller_silence_seconds",
                "Time since the controller's last beat.",
                elapsed_seconds(vitals.heartbeat_ns, now_ns),
            ),
            ("mlsdm_process_start_time_seconds", "Unix time at which the memory began.", block.created_wall_ns / 1e9),
            ("mlsdm_memories_max", "Capacity of the store.", self.context.config.capacity),
            ("mlsdm_block_bytes", "Size of the shared block.", block.layout.block_size),
        ):
            yield GaugeMetricFamily(name, text, value)
        emergency = GaugeMetricFamily(
            "mlsdm_emergency", "1 while events are refused for this reason, and during its cooldown.", labels=["reason"]
        )
        for reason, called in REASONS.items():
            emergency.add_metric([called], int(bool(vitals.emergency & reason)))
        yield emergency
        drift = GaugeMetricFamily("mlsdm_drift", "1 while the threshold's drift of this kind lasts.", labels=["kind"])
        for kind, bit in BITS.items():
            drift.add_metric([kind], int(bool(vitals.drift & bit)))
        yield drift
        for name, text, value in (
            ("mlsdm_rhythm_steps_skipped", "Steps of the rhythm skipped because they were late.", vitals.late_steps),
            ("mlsdm_lock_acquisitions", "Critical sections entered.", lock.acquisitions),
            ("mlsdm_lock_deaths", "Holders that died inside the section and were survived.", lock.deaths),
            ("mlsdm_lock_rollbacks", "Unpublished transitions taken back.", lock.rollbacks),
            ("mlsdm_lock_kills", "Stuck holders removed.", vitals.lock_kills),
            ("mlsdm_lock_waits", "Sections that found the lock taken.", sum(row.lock_waits for row in rows)),
            ("mlsdm_lock_wait_seconds", "Time spent waiting for it.", sum(row.lock_wait_ns for row in rows) / 1e9),
            ("mlsdm_lock_holds_sampled", "Sections whose length was measured.", sum(row.lock_holds for row in rows)),
            ("mlsdm_lock_hold_seconds", "Length of those, together.", sum(row.lock_hold_ns for row in rows) / 1e9),
            ("mlsdm_slots_mended", "Damaged marks, headers and heads of chains that were put right.", vitals.mended),
            ("mlsdm_slots_torn", "Memories found corrupt and forgotten.", vitals.torn),
            ("mlsdm_slots_scrubbed", "Slots checked against their checksums.", vitals.scrubbed),
            ("mlsdm_drift_episodes", "Times the threshold drifted.", vitals.drift_episodes),
            ("mlsdm_emergency_episodes", "Times a reason for an emergency came into force.", vitals.emergency_episodes),
        ):
            yield CounterMetricFamily(name, text, value)
        yield InfoMetricFamily("mlsdm_build", "Version and memory.", {"version": VERSION, "boot_id": block.boot_id})


class MetricsResource:
    """The scrape."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Metrics for Prometheus.", None, exposition.CONTENT_TYPE_LATEST)
    }

    def __init__(self, context: Context, readiness: ReadinessResource) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(WorkersCollector())
        self.registry.register(BlockCollector(context, readiness))

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the exposition."""
        response.content_type = exposition.CONTENT_TYPE_LATEST
        response.data = exposition.generate_latest(self.registry)

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way
