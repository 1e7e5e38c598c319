"""Makes the `ModuleContext` of a module in one process, with its log, metrics and spans."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.api.operation import Resource
from app.lifecycle.contract import Module, ModuleContext
from app.telemetry.series import LATENCY_BUCKETS
from core.settings.config import Config


def make_context(
    module: Module,
    role: str,
    settings: msgspec.Struct,
    config: Config,
    *,
    operations: Callable[[], Mapping[str, Resource]] = dict,
    span: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> ModuleContext:
    """Return the context, for the process that calls this. Its metric files must exist (`measure_into_files_of`).

    `role` is "worker", or the name of the child. The other arguments are members of ModuleContext.
    """
    prefix = f"mlsdm_{module.name}_"

    def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(prefix + name, text, labels, registry=CollectorRegistry())

    def gauge(name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(prefix + name, text, labels, registry=CollectorRegistry(), multiprocess_mode="sum")

    def histogram(name: str, text: str, labels: Sequence[str]) -> Histogram:
        return Histogram(prefix + name, text, labels, registry=CollectorRegistry(), buckets=LATENCY_BUCKETS)

    return ModuleContext(
        module=module.name,
        role=role,
        settings=settings,
        config=config,
        log=logging.getLogger(f"mlsdm.{module.name}"),
        operations=operations,
        counter=counter,
        gauge=gauge,
        histogram=histogram,
        span=span,
    )
