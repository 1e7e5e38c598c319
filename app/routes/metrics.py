"""GET /health/metrics and /metrics: one scrape of all workers and of the shared block.

Series that workers measure (app/telemetry/series.py) are added up from prometheus_client's multiprocess files. Figures
of the block are exact, and are read from it at scrape time.

Invariants: metric names without the prefix mlsdm_ are those of the runbook and of existing dashboards. Counters among
them whose names break Prometheus's naming rules are exposed untyped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import ClassVar, Final

import falcon
from prometheus_client import CollectorRegistry, exposition, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from app.api.context import Context
from app.api.operation import Operation
from app.api.problem_codes import CODES
from app.processes.arbiter_record import ArbiterState, ReloadResult
from app.processes.child_table import ChildState, Reason
from app.telemetry.latency_histogram import fix_histogram_totals
from app.telemetry.series import REFUSALS
from core.clock import elapsed_seconds
from core.controller.emergency import REASONS
from core.controller.threshold_drift import BITS
from core.heartbeat import row_is_served
from core.phases import SLEEP
from core.version import VERSION
from shm.errors import Corrupt, StoreError
from shm.layout import FLAG_STOPPED
from shm.records import State

FINISHED: Final = Reason.FINISHED.name.lower()
SUCCEEDED: Final = ReloadResult.SUCCEEDED.name.lower()
NEVER_ENDED: Final = Reason.NONE.name.lower()


class WorkersCollector(Collector):
    """The series that workers measure, summed over all workers; and `error_count`, which follows from them."""

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the workers' files.

        Yields none if the files are removed from the temporary directory, even during the scrape. The figures of the
        block are exposed nevertheless.
        """
        try:
            files = multiprocess.MultiProcessCollector(None)  # type: ignore[no-untyped-call] # untyped
        except ValueError:  # there is no such directory
            return
        try:
            families = list(files.collect())  # type: ignore[no-untyped-call] # untyped
        except FileNotFoundError:
            return
        for family in families:
            yield fix_histogram_totals(family)
            if family.name == REFUSALS:
                errors = sum(sample.value for sample in family.samples if _is_ours(sample.labels["code"]))
                yield UntypedMetricFamily(
                    "error_count", "Requests that this server could not serve (status 500 or 503).", errors
                )


def _is_ours(code: str) -> bool:
    """Return whether the server or its operator caused a refusal, and not the client.

    501 and 505 are caused by the client: it used an unknown method, coding or version. Limits that close a connection
    without a response have no status.
    """
    return code in CODES and CODES[code].status in (500, 503)


class BlockCollector(Collector):
    """Figures of the shared block, read at scrape time."""

    def __init__(self, context: Context, is_ready: Callable[[], bool]) -> None:
        self.context = context
        self.is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        """Yield every family; families of the committed state only while it can be read. Alerts need the others."""
        yield from self._of_block()
        try:
            state, norms = self.context.store.levels()
        except StoreError:
            yield GaugeMetricFamily("mlsdm_store_sound", "1 while the committed state can be read, else 0.", 0)
            return
        yield GaugeMetricFamily("mlsdm_store_sound", "1 while the committed state can be read, else 0.", 1)
        yield from self._of_state(state, norms)

    def _of_state(self, state: State, norms: tuple[float, ...]) -> Iterator[Metric]:
        scalars = state.scalars
        accepted, rejected = scalars.accepted, scalars.rejected
        for name, text, count in (
            ("total_events_processed", "Events decided (accepted and rejected).", accepted + rejected),
            ("accepted_events_count", "Events accepted.", accepted),
            ("rejected_events_count", "Events rejected by the moral filter.", rejected),
        ):
            yield UntypedMetricFamily(name, text, count)
        decisions = CounterMetricFamily("mlsdm_decisions", "Events decided, by outcome.", labels=["outcome"])
        decisions.add_metric(["accepted"], accepted)
        decisions.add_metric(["rejected"], rejected)
        yield decisions
        for name, text, value in (
            ("moral_filter_threshold", "Moral threshold for the next event.", scalars.theta),
            ("mlsdm_ema", "Moving average of accepted = 1, rejected = 0.", scalars.ema),
            ("mlsdm_asleep", "1 during the sleep phase, else 0.", scalars.phase == SLEEP),
            ("mlsdm_memories", "Live memories.", scalars.live),
            ("mlsdm_stopped", "1 while an operator has stopped admissions, else 0.", scalars.flags & FLAG_STOPPED),
            ("mlsdm_threshold_min", "Lower bound of the threshold in force.", state.settings.min_threshold),
            ("mlsdm_threshold_max", "Upper bound of the threshold in force.", state.settings.max_threshold),
        ):
            yield GaugeMetricFamily(name, text, value)
        levels = GaugeMetricFamily("mlsdm_level_norm", "Euclidean norm of a synaptic level.", labels=["level"])
        for number, norm in enumerate(norms, 1):
            levels.add_metric([str(number)], norm)
        yield levels
        for name, text, value in (
            ("mlsdm_log_entries", "Log entries written (changes of the committed state).", state.position),
            ("mlsdm_rhythm_steps", "Steps of the wake/sleep rhythm.", scalars.step),
            ("mlsdm_receipts", "Receipts of events with an idempotency key.", state.receipts),
        ):
            yield CounterMetricFamily(name, text, value)

    def _of_block(self) -> Iterator[Metric]:
        block = self.context.store.block
        vitals, lock = block.region("vitals"), block.region("lock")
        rows = [block.region("rows", number) for number in range(block.layout.rows)]
        now_ns = self.context.clock()
        for name, text, value in (
            ("memory_usage_bytes", "Memory of all processes, shared pages once.", vitals.service_bytes),
            ("cpu_usage_percent", "CPU in use, percent of the container's limit.", vitals.cpu_percent),
            ("mlsdm_memory_percent", "Memory in use, percent of the container's limit.", vitals.memory_percent),
            ("mlsdm_ready", "1 while readiness answers 200, else 0.", self.is_ready()),
            ("mlsdm_workers", "Workers that are alive.", sum(row_is_served(row, now_ns) for row in rows)),
            ("mlsdm_workers_configured", "Configured number of workers.", self.context.workers),
            (
                "mlsdm_controller_silence_seconds",
                "Seconds since the controller's last heartbeat.",
                elapsed_seconds(vitals.heartbeat_ns, now_ns),
            ),
            (
                "mlsdm_process_start_time_seconds",
                "Unix time at which the store was created.",
                block.created_ns / 1e9,
            ),
            ("mlsdm_memories_max", "Capacity of the store, in memories.", self.context.config.capacity),
            ("mlsdm_block_bytes", "Size of the shared block, in bytes.", block.layout.block_size),
        ):
            yield GaugeMetricFamily(name, text, value)
        emergency = GaugeMetricFamily(
            "mlsdm_emergency", "1 during an emergency for this reason and its cooldown.", labels=["reason"]
        )
        for reason, called in REASONS.items():
            emergency.add_metric([called], int(bool(vitals.emergency & reason)))
        yield emergency
        drift = GaugeMetricFamily("mlsdm_drift", "1 while the threshold drifts in this way.", labels=["kind"])
        for kind, bit in BITS.items():
            drift.add_metric([kind], int(bool(vitals.drift & bit)))
        yield drift
        for name, text, value in (
            ("mlsdm_rhythm_steps_skipped", "Late steps of the rhythm that were skipped.", vitals.late_steps),
            ("mlsdm_lock_acquisitions", "Critical sections entered.", lock.acquisitions),
            ("mlsdm_lock_deaths", "Processes that died in the critical section.", lock.deaths),
            ("mlsdm_lock_rollbacks", "Unpublished transitions rolled back.", lock.rollbacks),
            ("mlsdm_index_rebuilds", "Times the index of memories was built again from the slots.", lock.rebuilds),
            ("mlsdm_lock_kills", "Stuck lock holders that were killed.", vitals.lock_kills),
            ("mlsdm_lock_waits", "Critical sections that waited for the lock.", sum(row.lock_waits for row in rows)),
            (
                "mlsdm_lock_wait_seconds",
                "Seconds spent waiting for the lock.",
                sum(row.lock_wait_ns for row in rows) / 1e9,
            ),
            (
                "mlsdm_lock_holds_sampled",
                "Critical sections whose duration was measured.",
                sum(row.lock_holds for row in rows),
            ),
            (
                "mlsdm_lock_hold_seconds",
                "Duration of the measured sections, in seconds.",
                sum(row.lock_hold_ns for row in rows) / 1e9,
            ),
            ("mlsdm_slots_mended", "Damaged marks, headers and chain heads repaired.", vitals.mended),
            ("mlsdm_slots_torn", "Memories found corrupt, which are lost.", vitals.torn),
            ("mlsdm_slots_scrubbed", "Slots whose checksums were verified.", vitals.scrubbed),
            ("mlsdm_drift_episodes", "Number of drifts of the threshold.", vitals.drift_episodes),
            (
                "mlsdm_emergency_episodes",
                "Times that a reason for an emergency came into force.",
                vitals.emergency_episodes,
            ),
        ):
            yield CounterMetricFamily(name, text, value)
        with suppress(Corrupt):  # alerts need the other families
            epoch = block.epoch
            yield CounterMetricFamily(
                "mlsdm_controller_epochs", "Controllers that have taken charge, the first included.", epoch
            )
        yield InfoMetricFamily(
            "mlsdm_build",
            "Version of the server, boot_id and log_id of the store.",
            {"version": VERSION, "boot_id": block.boot_id, "log_id": block.log_id},
        )


class ChildrenCollector(Collector):
    """The supervised children, the controller among them. `states()` returns them by name."""

    def __init__(self, states: Callable[[], Mapping[str, ChildState]]) -> None:
        self.states = states

    def collect(self) -> Iterator[Metric]:
        """Yield whether each child runs, how often it was started, and why it last ended."""
        up = GaugeMetricFamily(
            "mlsdm_child_up",
            "1 while a supervised child runs, else 0. Absent once a child that runs once has finished.",
            labels=["child"],
        )
        starts = CounterMetricFamily("mlsdm_child_starts", "Times that a supervised child started.", labels=["child"])
        ends = GaugeMetricFamily(
            "mlsdm_child_last_end", "1 for the reason why a supervised child last ended.", labels=["child", "reason"]
        )
        for name, state in self.states().items():
            if state.pid or state.reason != FINISHED:
                up.add_metric([name], int(state.pid != 0))
            starts.add_metric([name], state.starts)
            if state.reason != NEVER_ENDED:
                ends.add_metric([name, state.reason], 1)
        yield from (up, starts, ends)


class ArbiterCollector(Collector):
    """What the arbiter has recorded, and the lost lines of the log. `lost_lines()` returns None when it cannot tell."""

    def __init__(self, state: Callable[[], ArbiterState], lost_lines: Callable[[], int | None]) -> None:
        self.state = state
        self.lost_lines = lost_lines

    def collect(self) -> Iterator[Metric]:
        """Yield the last reload, the counts of reloads and of killed workers, and the lost lines."""
        state = self.state()
        yield GaugeMetricFamily(
            "mlsdm_config_last_reload_successful",
            "1 if the configuration that was read last, at the start or at a reload, is in force as a whole, else 0.",
            state.last_result == SUCCEEDED,
        )
        yield GaugeMetricFamily(
            "mlsdm_config_last_reload_timestamp_seconds",
            "Unix time of the start or of the last reload, whatever its result.",
            state.loaded_at,
        )
        reloads = CounterMetricFamily("mlsdm_reloads", "Reloads of the configuration, by result.", labels=["result"])
        for result, count in state.reloads.items():
            reloads.add_metric([result], count)
        killed = CounterMetricFamily(
            "mlsdm_workers_killed", "Workers that were killed because they did not answer.", labels=["reason"]
        )
        for reason, count in state.workers_killed.items():
            killed.add_metric([reason], count)
        yield from (reloads, killed)
        if (lost := self.lost_lines()) is not None:
            yield CounterMetricFamily(
                "mlsdm_log_lines_lost", "Lines of standard error that could not be written and are lost.", lost
            )


class MetricsResource:
    """GET /health/metrics and /metrics."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Return metrics for Prometheus.", None, exposition.CONTENT_TYPE_LATEST,
            probe=True, compressed=True, in_turn=True,
        )
    }  # fmt: skip

    def __init__(self, context: Context, is_ready: Callable[[], bool], *collectors: Collector) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(WorkersCollector())
        self.registry.register(BlockCollector(context, is_ready))
        for collector in collectors:
            self.registry.register(collector)

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the exposition."""
        response.content_type = exposition.CONTENT_TYPE_LATEST
        response.data = exposition.generate_latest(self.registry)

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body
