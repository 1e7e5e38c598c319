"""The configuration: the tree of settings, and what follows from their values alone.

The types below are the specification. Each leaf is `Annotated` with its range, unit and meaning, and nothing else
spells them: the checks, the refusals, the comments in `config/*.yaml` and `docs/configuration.md` are derived from
here. So are the relations between settings (`contradictions`), which hold wherever values come from: a file at the
start, or an administrator at run time.

Where values come from is not known here: `core.startup` puts them together. Nor are keys part of the tree: a `Config`
can be logged, compared and printed without a thought for secrets.

Rejected: decoding a file into the tree with one msgspec call, which stops at the first problem; and a configuration
library, whose layers this service would have had to take away again (dotenv files, coercion of 1 to true, unknown
keys that pass).
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from core.settings import module_names, proxies
from core.settings.setting import InvalidText, SettingProblem, Value, describe, settings_of

WORKERS_MAX: Final = 64
# An IPv6 address, an IPv4 address, or a name whose last label is no number (RFC 1123 §2.1).
_HOST: Final = (
    r"^(?:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z]+)?"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
    r"|(?:[0-9A-Za-z_][0-9A-Za-z_-]*\.)*[A-Za-z_][0-9A-Za-z_-]*)\Z"
)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where the service listens, and with how many processes."""

    host: Annotated[
        str,
        describe(
            "Address to listen on; 0.0.0.0 or :: for every interface.",
            "address",
            "an IPv4 or IPv6 address or a host name",
            pattern=_HOST,
            max_length=253,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, describe("TCP port; 0 lets the kernel choose.", "port", ge=0, le=65_535)] = 8000
    workers: Annotated[
        int, describe("Worker processes; 0 is one per core of the container.", "processes", ge=0, le=WORKERS_MAX)
    ] = 0
    connections_max: Annotated[
        int, describe("Connections that one worker holds at a time.", "connections", ge=1, le=65_536)
    ] = 1024
    deferred_max: Annotated[
        int, describe("Requests of one worker that may wait for a deferred answer.", "requests", ge=1, le=65_536)
    ] = 4096
    trusted_proxies: Annotated[
        str,
        describe(
            'Proxies whose forwarding headers are believed; "" for none.',
            "networks",
            "addresses and networks such as 10.0.0.0/8, separated by commas",
            proxies.networks,
            max_length=4096,  # a hundred networks in their longest spelling
        ),
    ] = ""


class CognitiveRhythm(msgspec.Struct, frozen=True, kw_only=True):
    """The alternation of wake and sleep, which tags memories and drives consolidation."""

    wake_duration: Annotated[int, describe("Length of the wake phase.", "cycles", ge=1, le=1_000_000)] = 8
    sleep_duration: Annotated[int, describe("Length of the sleep phase.", "cycles", ge=1, le=1_000_000)] = 3
    enable_consolidation: Annotated[bool, describe("Run the synaptic cascade once per cycle of sleep.", "switch")] = (
        True
    )
    clock: Annotated[
        Literal["time", "events"], describe("What a cycle is: an interval of time, or one decision.", "name")
    ] = "time"
    cycle_seconds: Annotated[
        float, describe("Length of a cycle when the clock is time.", "seconds", ge=0.05, le=3600)
    ] = 1.0


class MoralFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The adaptive threshold that decides whether an event is accepted."""

    initial_threshold: Annotated[
        float, describe("Threshold at start; from min_threshold to max_threshold.", "ratio", ge=0, le=1)
    ] = 0.50
    min_threshold: Annotated[
        float, describe("Lowest threshold; a moral value below it is never accepted.", "ratio", ge=0, le=1)
    ] = 0.30
    max_threshold: Annotated[
        float, describe("Highest threshold; a moral value from it on is always accepted.", "ratio", ge=0, le=1)
    ] = 0.90
    dead_band: Annotated[
        float, describe("How far acceptance may be from one half before the threshold moves.", "ratio", ge=0, le=0.5)
    ] = 0.05
    ema_alpha: Annotated[
        float, describe("Weight of the newest decision in the moving average of acceptance.", "ratio", gt=0, le=1)
    ] = 0.1
    adaptation_rate: Annotated[
        float, describe("Step by which the threshold moves; 0 holds it still.", "ratio", ge=0, le=1)
    ] = 0.05


class MultiLevelMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The three synaptic levels (Benna & Fusi 2016, doi:10.1038/nn.4401)."""

    lambda_l1: Annotated[float, describe("Decay of level 1 per event.", "ratio", ge=0, le=1)] = 0.5
    lambda_l2: Annotated[float, describe("Decay of level 2 per event.", "ratio", ge=0, le=1)] = 0.1
    lambda_l3: Annotated[float, describe("Decay of level 3 per event.", "ratio", ge=0, le=1)] = 0.01
    theta_l1: Annotated[float, describe("Level 1 passes on what exceeds this.", "norm", ge=0, le=1_000_000)] = 1.2
    theta_l2: Annotated[float, describe("Level 2 passes on what exceeds this.", "norm", ge=0, le=1_000_000)] = 2.5
    gating12: Annotated[float, describe("Share passed from level 1 to level 2.", "ratio", ge=0, le=1)] = 0.45
    gating23: Annotated[float, describe("Share passed from level 2 to level 3.", "ratio", ge=0, le=1)] = 0.30
    gate: Annotated[
        Literal["norm", "element"], describe("What theta is compared with: the vector's norm, or each element.", "name")
    ] = "norm"


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """The search for the nearest memories."""

    phase_tolerance: Annotated[
        float, describe("Distance from a phase's value that still counts as that phase.", "ratio", ge=0, le=1)
    ] = 0.15


_Rate = Annotated[float, describe("Rate at which a bucket refills.", "requests per second", ge=0.001, le=1_000_000)]
_Burst = Annotated[int, describe("Requests that a full bucket allows at once.", "requests", ge=1, le=1_000_000)]


class HighTier(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of keys whose tier is `high`."""

    requests_per_second: _Rate = 100.0
    burst_capacity: _Burst = 200


class BulkTier(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of keys whose tier is `bulk`: for those who load whole collections, in batches (docs/api.md)."""

    requests_per_second: _Rate = 10_000.0
    burst_capacity: _Burst = 20_000


class Tiers(msgspec.Struct, frozen=True, kw_only=True):
    """The tiers beside `standard`, whose rate and burst stand above."""

    high: HighTier = HighTier()
    bulk: BulkTier = BulkTier()


class RateLimiting(msgspec.Struct, frozen=True, kw_only=True):
    """Token buckets, one per client. The rate and the burst here are those of the tier `standard`."""

    enabled: Annotated[bool, describe("Refuse clients that ask too often.", "switch")] = False
    requests_per_second: _Rate = 5.0
    burst_capacity: _Burst = 10
    tiers: Tiers = Tiers()


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Protection from clients."""

    keys_path: Annotated[
        str, describe('File with the keys of clients; "" for none.', "path", "the path of a YAML file")
    ] = ""
    rate_limiting: RateLimiting = RateLimiting()


class Logging(msgspec.Struct, frozen=True, kw_only=True):
    """The log."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], describe("Least severity that is written.", "name")
    ] = "INFO"
    format: Annotated[Literal["text", "json"], describe("Lines for people, or objects for machines.", "name")] = "text"
    sample_ratio: Annotated[
        float,
        describe(
            "Share of the requests that went well that has a line at DEBUG; failed ones all have.", "ratio", ge=0, le=1
        ),
    ] = 1.0


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """Spans for a collector of OpenTelemetry; needs the extra `otel`. OTEL_* variables say the rest."""

    enabled: Annotated[bool, describe("Record spans and send them.", "switch")] = False
    endpoint: Annotated[
        str,
        describe(
            'Collector (OTLP over HTTP), v1/traces added; "" leaves it to OTEL_EXPORTER_OTLP_*.',
            "URL",
            "an http or https URL without credentials, such as http://127.0.0.1:4318",
            # Credentials belong into OTEL_EXPORTER_OTLP_HEADERS: what stands here is logged.
            pattern=r"^(?:https?://[^\s@?#]+)?\Z",
            max_length=2048,
        ),
    ] = ""
    sample_ratio: Annotated[
        float,
        describe("Share recorded of the traces that begin here; of others the caller decides.", "ratio", ge=0, le=1),
    ] = 1.0


class Observability(msgspec.Struct, frozen=True, kw_only=True):
    """What the service tells about itself."""

    logging: Logging = Logging()
    tracing: Tracing = Tracing()


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the service's life."""

    shutdown_timeout: Annotated[
        int, describe("From SIGTERM to the last answer, drain_period included.", "seconds", ge=1, le=3600)
    ] = 30
    drain_period: Annotated[
        float,
        describe("Accept for so long after SIGTERM, unready; below shutdown_timeout.", "seconds", ge=0, le=60),
    ] = 0.0


def _parse_enabled(text: str) -> None:
    """Raise InvalidText unless `text` lists names that can be modules: a section of the core has its name already."""
    names = module_names.parse(text)
    if taken := [name for name in names if name in Config.__struct_fields__]:
        raise InvalidText(f"has {', '.join(taken)}, which the core uses for settings of its own")


class Modules(msgspec.Struct, frozen=True, kw_only=True):
    """The modules of the platform. A module's own settings are a section with its name."""

    enabled: Annotated[
        str, describe('Modules to load; "" for none.', "names", module_names.EXPECTED, _parse_enabled)
    ] = "openapi"
    required: Annotated[
        str,
        describe(
            'Modules without which the service is not ready; "" for none.',
            "names",
            module_names.EXPECTED,
            module_names.parse,
        ),
    ] = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of the service. `Config()` is the development default."""

    dimension: Annotated[int, describe("Length of an embedding.", "floats", ge=2, le=4096)] = 384
    capacity: Annotated[
        int, describe("Memories kept; the oldest makes room for the newest.", "slots", ge=100, le=1_000_000)
    ] = 20_000
    payload_size_max: Annotated[int, describe("Largest payload of an event.", "bytes", ge=0, le=65_536)] = 1024
    log_capacity: Annotated[
        int, describe("Log entries kept; the newest overwrites the oldest.", "entries", ge=1024, le=16_777_216)
    ] = 65_536
    idempotency_capacity: Annotated[
        int,
        describe("Items with an Idempotency-Key whose first answer is kept.", "items", ge=1024, le=1_048_576),
    ] = 32_768
    server: Server = Server()
    cognitive_rhythm: CognitiveRhythm = CognitiveRhythm()
    moral_filter: MoralFilter = MoralFilter()
    multi_level_memory: MultiLevelMemory = MultiLevelMemory()
    recall: Recall = Recall()
    security: Security = Security()
    observability: Observability = Observability()
    resources: Resources = Resources()
    modules: Modules = Modules()


SETTINGS: Final = {setting.key: setting for setting in settings_of(Config)}


def effective(config: Config) -> dict[str, Any]:
    """Return the tree as nested dicts of plain values, for the log. It holds no secret."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def trusted_proxies(config: Config) -> tuple[proxies.Network, ...]:
    """Return the networks whose members are believed when they say for whom they ask."""
    return proxies.networks(config.server.trusted_proxies)


def values_of(config: Config) -> dict[str, Value]:
    """Return the values by dotted key, in the order of SETTINGS."""
    values: dict[str, Value] = {}
    for key in SETTINGS:
        node: Any = config
        for name in key.split("."):
            node = getattr(node, name)
        values[key] = node
    return values


def build_config(values: Mapping[str, Value]) -> Config:
    """Return the tree that has `values` (complete, by dotted key, each admitted) for leaves."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return msgspec.convert(tree, Config)


class _Order(NamedTuple):
    """Settings that must not descend, or when `strict` must ascend."""

    keys: tuple[str, ...]
    strict: bool = False


_ORDERS: Final = (
    _Order(("moral_filter.min_threshold", "moral_filter.initial_threshold", "moral_filter.max_threshold")),
    _Order(("resources.drain_period", "resources.shutdown_timeout"), strict=True),
)


def contradictions(values: Mapping[str, Any], faulty: Collection[str] = ()) -> list[SettingProblem]:
    """Return what is wrong between the settings of `values` (complete, by dotted key, each within its range).

    A relation with a key in `faulty` is not judged: that setting has been refused, and what stands in for it says
    nothing.
    """
    problems = []
    for keys, strict in _ORDERS:
        if any(key in faulty for key in keys):
            continue
        pairs = [(values[low], values[high]) for low, high in itertools.pairwise(keys)]
        if any(low > high or (strict and low == high) for low, high in pairs):
            given = ", ".join(f"{key} is {values[key]}" for key in keys)
            problems.append(SettingProblem(keys[0], f"{given}: expected {(' < ' if strict else ' ≤ ').join(keys)}"))
    return problems
