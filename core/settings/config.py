"""The configuration of the core: every setting with its type, range, unit, default and meaning.

Each leaf is annotated by `describe`, and nothing else repeats it: validation, refusals, the comments in
`config/*.yaml` and `docs/configuration.md` are derived from it. Relations between settings are `contradictions` of
their section; they apply to files, to variables and to changes at run time.

Invariants: the tree holds no secret (keys are in a `Keyring`), so a `Config` can be logged, compared and printed.
Rejected: decoding a file into the tree with one msgspec call (it stops at the first problem); a configuration library
(dotenv files, coercion of 1 to true and ignored unknown keys would have to be switched off again).
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec

from core.settings import module_names, origins, proxies
from core.settings.setting import InvalidText, describe
from core.settings.tree import settings_of

WORKERS_MAX: Final = 64
_BLOCK: Final = "it lays out the shared block"  # a larger block would be a new, empty one
_SOCKET: Final = "the socket is already open"
# An IPv6 address, an IPv4 address, or a name whose last label is not a number (RFC 1123 §2.1).
_HOST: Final = (
    r"^(?:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z]+)?"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
    r"|(?:[0-9A-Za-z_][0-9A-Za-z_-]*\.)*[A-Za-z_][0-9A-Za-z_-]*)\Z"
)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Address, number of processes, and limits of each."""

    host: Annotated[
        str,
        describe(
            "Address to listen on; 0.0.0.0 or :: for every interface.",
            "address",
            "an IPv4 or IPv6 address or a host name",
            pattern=_HOST,
            max_length=253,
            restart=_SOCKET,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, describe("TCP port; 0 lets the kernel choose.", "port", ge=0, le=65_535, restart=_SOCKET)] = (
        8000
    )
    workers: Annotated[
        int, describe("Worker processes; 0 starts one per core of the container.", "processes", ge=0, le=WORKERS_MAX)
    ] = 0
    connections_max: Annotated[
        int,
        describe(
            "Maximum number of open connections per worker, fewer if RLIMIT_NOFILE is too low. Above it, only probes "
            "and metrics are answered.",
            "connections",
            ge=1,
            le=65_536,
        ),
    ] = 1024
    deferred_max: Annotated[
        int,
        describe("Maximum number of requests per worker that wait for a deferred answer.", "requests", ge=1, le=65_536),
    ] = 4096
    trusted_proxies: Annotated[
        str,
        describe(
            'Proxies whose X-Forwarded-For is trusted; "" for none. Forwarded (RFC 7239) is not read.',
            "networks",
            "addresses, networks such as 10.0.0.0/8, and unix for Unix sockets, separated by commas",
            proxies.networks,
            max_length=4096,  # a hundred networks in their longest spelling
        ),
    ] = ""
    cors_origins: Annotated[
        str,
        describe(
            'Origins of web pages that may read the answers (CORS); "" for none.',
            "origins",
            "origins such as https://app.example, separated by commas",
            origins.origins,
            max_length=4096,
        ),
    ] = ""


class CognitiveRhythm(msgspec.Struct, frozen=True, kw_only=True):
    """The alternation of wake and sleep. It tags memories and drives consolidation."""

    wake_duration: Annotated[int, describe("Length of the wake phase.", "cycles", ge=1, le=1_000_000)] = 8
    sleep_duration: Annotated[int, describe("Length of the sleep phase.", "cycles", ge=1, le=1_000_000)] = 3
    enable_consolidation: Annotated[bool, describe("Run the synaptic cascade once per sleep cycle.", "switch")] = True
    clock: Annotated[
        Literal["time", "events"], describe("What ends a cycle: an interval of time, or one decision.", "name")
    ] = "time"
    cycle_seconds: Annotated[
        float, describe("Length of a cycle when the clock is time.", "seconds", ge=0.05, le=3600)
    ] = 1.0


class MoralFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The adaptive threshold that decides whether an event is accepted."""

    initial_threshold: Annotated[
        float,
        describe("Threshold at start, between min_threshold and max_threshold.", "ratio", ge=0, le=1),
    ] = 0.50
    min_threshold: Annotated[
        float, describe("Lowest threshold; an event with a lower moral value is always rejected.", "ratio", ge=0, le=1)
    ] = 0.30
    max_threshold: Annotated[
        float,
        describe("Highest threshold; an event with at least this moral value is always accepted.", "ratio", ge=0, le=1),
    ] = 0.90
    dead_band: Annotated[
        float,
        describe(
            "Deviation of the acceptance rate from 0.5 that leaves the threshold as it is.", "ratio", ge=0, le=0.5
        ),
    ] = 0.05
    ema_alpha: Annotated[
        float,
        describe("Weight of the newest decision in the moving average of the acceptance rate.", "ratio", gt=0, le=1),
    ] = 0.1
    adaptation_rate: Annotated[
        float, describe("Step size of the threshold; 0 keeps the threshold constant.", "ratio", ge=0, le=1)
    ] = 0.05

    def contradictions(self) -> Iterator[str]:
        """Yield the required order of the three thresholds if they are in another."""
        if not self.min_threshold <= self.initial_threshold <= self.max_threshold:
            yield "{min_threshold} ≤ {initial_threshold} ≤ {max_threshold}"


class MultiLevelMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The three synaptic levels (Benna & Fusi 2016, doi:10.1038/nn.4401)."""

    lambda_l1: Annotated[float, describe("Share that level 1 loses per event.", "ratio", ge=0, le=1)] = 0.5
    lambda_l2: Annotated[float, describe("Share that level 2 loses per event.", "ratio", ge=0, le=1)] = 0.1
    lambda_l3: Annotated[float, describe("Share that level 3 loses per event.", "ratio", ge=0, le=1)] = 0.01
    theta_l1: Annotated[
        float, describe("Gate from level 1 to level 2; it opens above this value.", "norm", ge=0, le=1_000_000)
    ] = 1.2
    theta_l2: Annotated[
        float, describe("Gate from level 2 to level 3; it opens above this value.", "norm", ge=0, le=1_000_000)
    ] = 2.5
    gating12: Annotated[
        float, describe("Share of level 1 that moves to level 2 through an open gate.", "ratio", ge=0, le=1)
    ] = 0.45
    gating23: Annotated[
        float, describe("Share of level 2 that moves to level 3 through an open gate.", "ratio", ge=0, le=1)
    ] = 0.30
    gate: Annotated[
        Literal["norm", "element"],
        describe("What is compared with theta: the norm of the level, or each of its elements.", "name"),
    ] = "norm"


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """The search for the nearest memories."""

    phase_tolerance: Annotated[
        float, describe("Maximum distance between two phase values that count as the same phase.", "ratio", ge=0, le=1)
    ] = 0.15


TierName = Literal["standard", "high", "bulk"]
_Rate = Annotated[float, describe("Refill rate of a bucket.", "requests per second", ge=0.001, le=1_000_000)]
_Burst = Annotated[
    int, describe("Size of a bucket: the requests that a full one allows at once.", "requests", ge=1, le=1_000_000)
]


class HighTier(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of keys whose tier is `high`."""

    requests_per_second: _Rate = 100.0
    burst_capacity: _Burst = 200


class BulkTier(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of keys whose tier is `bulk`, meant for loading whole collections in batches (docs/api.md)."""

    requests_per_second: _Rate = 10_000.0
    burst_capacity: _Burst = 20_000


class Tiers(msgspec.Struct, frozen=True, kw_only=True):
    """The tiers other than `standard`, whose rate and burst are those of `rate_limiting` itself."""

    high: HighTier = HighTier()
    bulk: BulkTier = BulkTier()


class RateLimiting(msgspec.Struct, frozen=True, kw_only=True):
    """Token buckets, one per client. This rate and this burst are those of the tier `standard`."""

    enabled: Annotated[bool, describe("Refuse the requests of a client whose bucket is empty.", "switch")] = False
    requests_per_second: _Rate = 5.0
    burst_capacity: _Burst = 10
    tiers: Tiers = Tiers()


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """API keys and rate limits."""

    keys_path: Annotated[
        str, describe('File that holds the API keys; "" for none.', "path", "the path of a YAML file")
    ] = ""
    api_key_tier: Annotated[
        TierName, describe("Tier of `API_KEY`, which has the role write; keys of the file name their own.", "name")
    ] = "bulk"
    docs_open: Annotated[
        bool,
        describe("Whether `/docs` and `/openapi.json` need no key; they describe the API and hold no data.", "switch"),
    ] = True
    rate_limiting: RateLimiting = RateLimiting()


class Logging(msgspec.Struct, frozen=True, kw_only=True):
    """The log."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], describe("Lowest severity that is logged.", "name")
    ] = "INFO"
    format: Annotated[
        Literal["text", "json"], describe("Form of a record: a line of text, or a JSON object.", "name")
    ] = "text"
    sample_ratio: Annotated[
        float,
        describe(
            "Share of the successful requests that are logged at DEBUG; failed requests all are.", "ratio", ge=0, le=1
        ),
    ] = 1.0


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """OpenTelemetry spans; needs the extra `otel`. The OTEL_* variables configure the rest."""

    enabled: Annotated[bool, describe("Record spans and export them.", "switch")] = False
    endpoint: Annotated[
        str,
        describe(
            'Collector (OTLP over HTTP), without v1/traces; "" leaves it to OTEL_EXPORTER_OTLP_*.',
            "URL",
            "an http or https URL without credentials, such as http://127.0.0.1:4318",
            # The configuration is logged: credentials belong in OTEL_EXPORTER_OTLP_HEADERS.
            pattern=r"^(?:https?://[^\s@?#]+)?\Z",
            max_length=2048,
        ),
    ] = ""
    sample_ratio: Annotated[
        float,
        describe(
            "Share of the traces begun here that are recorded; the caller decides for its own.", "ratio", ge=0, le=1
        ),
    ] = 1.0


class Observability(msgspec.Struct, frozen=True, kw_only=True):
    """Log and traces."""

    logging: Logging = Logging()
    tracing: Tracing = Tracing()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What readiness follows from."""

    cpu_gates_readiness: Annotated[
        bool,
        describe(
            "Whether the check system_cpu makes the server unready. A busy machine may serve well; the checks of its "
            "workers and its controller show when it does not.",
            "switch",
        ),
    ] = False


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Shutdown."""

    shutdown_timeout: Annotated[
        int, describe("Time from SIGTERM until the last answer, drain_period included.", "seconds", ge=1, le=3600)
    ] = 30
    drain_period: Annotated[
        float,
        describe(
            "Time after SIGTERM in which new connections are accepted, while readiness fails.", "seconds", ge=0, le=60
        ),
    ] = 0.0

    def contradictions(self) -> Iterator[str]:
        """Yield the required order of the two times if answers have no time left after draining."""
        if not self.drain_period < self.shutdown_timeout:
            yield "{drain_period} < {shutdown_timeout}"


def _check_enabled(text: str) -> None:
    """Raise InvalidText unless `text` lists names that are free: a section of the core has its name already."""
    if taken := [name for name in module_names.parse(text) if name in Config.__struct_fields__]:
        raise InvalidText(f"has {', '.join(taken)}, which the core uses for settings of its own")


class Modules(msgspec.Struct, frozen=True, kw_only=True):
    """The modules of the platform. A module's own settings are a section with its name."""

    enabled: Annotated[
        str,
        describe(
            'Modules to load; "" for none.',
            "names",
            module_names.EXPECTED,
            _check_enabled,
        ),
    ] = "openapi"
    required: Annotated[
        str,
        describe(
            'Enabled modules without which the server is not ready; "" for none.',
            "names",
            module_names.EXPECTED,
            module_names.parse,
        ),
    ] = ""

    def contradictions(self) -> Iterator[str]:
        """Yield the required relation of the two lists if a required module is not enabled."""
        if not set(module_names.parse(self.required)) <= set(module_names.parse(self.enabled)):
            yield "all names in {required} among those in {enabled}"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of the core. `Config()` is the development default."""

    dimension: Annotated[int, describe("Length of an embedding.", "floats", ge=2, le=4096, restart=_BLOCK)] = 384
    capacity: Annotated[
        int,
        describe(
            "Number of memories kept; a new one replaces the oldest.", "slots", ge=100, le=1_000_000, restart=_BLOCK
        ),
    ] = 20_000
    payload_size_max: Annotated[
        int, describe("Maximum size of an event's payload, as compact JSON.", "bytes", ge=0, le=65_536, restart=_BLOCK)
    ] = 1024
    log_capacity: Annotated[
        int,
        describe(
            "Number of log entries kept; a new one overwrites the oldest.",
            "entries",
            ge=1024,
            le=16_777_216,
            restart=_BLOCK,
        ),
    ] = 65_536
    idempotency_capacity: Annotated[
        int,
        describe(
            "Number of items with an Idempotency-Key whose first answer is kept.",
            "items",
            ge=1024,
            le=1_048_576,
            restart=_BLOCK,
        ),
    ] = 32_768
    server: Server = Server()
    cognitive_rhythm: CognitiveRhythm = CognitiveRhythm()
    moral_filter: MoralFilter = MoralFilter()
    multi_level_memory: MultiLevelMemory = MultiLevelMemory()
    recall: Recall = Recall()
    security: Security = Security()
    observability: Observability = Observability()
    health: Health = Health()
    resources: Resources = Resources()
    modules: Modules = Modules()


SETTINGS: Final = {setting.key: setting for setting in settings_of(Config)}


def effective(config: Config) -> dict[str, Any]:
    """Return the tree as nested dicts of plain values, for the log."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def trusted_proxies(config: Config) -> tuple[proxies.Proxy, ...]:
    """Return the networks of the proxies whose forwarding headers are trusted; `unix`: those on Unix sockets."""
    return proxies.networks(config.server.trusted_proxies)


def cors_origins(config: Config) -> frozenset[str]:
    """Return the origins whose pages may read the answers, as browsers send them."""
    return origins.origins(config.server.cors_origins)
