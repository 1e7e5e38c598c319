"""A day's load for Locust: applications that post and recall events, probes, scrapes, and an operator.

    locust -f loadtests/locustfile.py --headless -u 103 -r 50 -t 30s --host http://127.0.0.1:8000
    locust -f loadtests/locustfile.py --headless -u 103 -r 50 -t 5m --host … --api-key … --events a.npz --processes 2

Run it from the top of the repository against one server. One user is a kubelet, one is Prometheus, one is an operator;
all others are applications that send --pace requests per second each, so 103 users make about 1,000. The requests of
an application follow a Poisson process; a late request is sent at once, so a slow server gets the same load. `--tags
event watch` limits applications to single events.

At the end the objectives of loadtests/load/slo.py are judged. Exit status: 0 all hold; 1 violations, each with a
sentence; 2 nothing could be measured. Requests under way at the end are awaited, so that counts of events can be
compared.

Locust measures the latencies in one Python thread: near a full core they are its own queue (docs/capacity.md).
"""

import itertools
import logging
import math
import random
import sys
import time
import uuid
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import gevent  # type: ignore[import-untyped]  # Locust brings it along, without stubs
import msgspec
from locust import FastHttpUser, constant_pacing, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from prometheus_client.parser import text_string_to_metric_families

from loadtests.bench.traffic import JSON, RAW
from loadtests.load import metrics_probe, population, slo
from loadtests.load.metrics_probe import ProbeError, ServerMetrics
from loadtests.load.population import PopulationError
from loadtests.load.request_bodies import BATCH, RequestBodies

TIMEOUT_SECONDS: Final = 30  # of a request, and of the wait at the end of a run
UNSERVED: Final = ", 503"  # suffix of the name of a request that was answered 503
REFUSED: Final = "429: refused because the client had no tokens"
BROKEN: Final = 1
UNMEASURED: Final = 2
# Names in Locust's statistics, and the events per request.
EVENTS: Final[Mapping[str, int]] = {
    "/event, JSON": 1,
    "/event, base64, payload, key": 1,
    "/event, raw": 1,
    "/events, raw × 10": BATCH,
}
_log: Final = logging.getLogger("mlsdm.load")


def add_options(parser: LocustArgumentParser) -> None:
    """Declare the options of this file."""
    bounds = slo.Bounds()
    add = parser.add_argument
    add("--api-key", env_var="API_KEY", default="", help="token of the server (also: API_KEY)", is_secret=True)
    add("--events", metavar="NPZ", help="events to send: `vec` [N, D], `moral` [N] (default: generated)")
    add("--seed", type=int, default=1, help="seed of generated events (default 1)")
    add("--pace", type=_positive, default=10.0, help="requests per second of an application (default 10)")
    add("--p95-ms-max", type=_bound, default=bounds.p95_ms_max, help="p95 of any route; inf for none (default 100)")
    add(
        "--error-share-max",
        type=_bound,
        default=bounds.error_share_max,
        help="share of failed requests (default 0.001)",
    )
    add("--refused-share-max", type=_bound, default=bounds.refused_share_max, help="share of 429s (default 0)")
    add("--unserved-share-max", type=_bound, default=bounds.unserved_share_max, help="share of 503s (default 0.001)")
    add(
        "--growth-mb-max",
        type=_bound,
        default=bounds.growth_mb_max,
        help="growth of server memory; inf for none (default 16)",
    )
    add("--rate-min", type=_bound, default=bounds.rate_min, help="requests per second, ramp included (default 0)")
    add(
        "--alone",
        action="store_true",
        help="no other client sends events: the server's count must equal the answers",
    )
    add("--requests", type=int, default=0, help="end the load after so many (default 0: with its time)")
    add("--server-pid", type=int, help="pid of the arbiter on this machine: read memory from /proc")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a pace: expected a number above 0")
    return value


def _bound(text: str) -> float:
    value = float(text)
    if math.isnan(value):  # comparisons with NaN are always false
        raise ArgumentTypeError(f"{text} is not a bound: expected a number, or inf")
    return value


def _options(environment: Environment) -> Any:
    return environment.parsed_options


# -- users -------------------------------------------------------------------------------------------------------------
class ApiUser(FastHttpUser):
    """The base of all users: the key, and the check of answers."""

    abstract = True
    network_timeout = connection_timeout = float(TIMEOUT_SECONDS)

    def on_start(self) -> None:
        """Prepare the headers with the key."""
        token = _options(self.environment).api_key
        self.key = {"Authorization": f"Bearer {token}"} if token else {}

    def send(
        self, method: str, path: str, name: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send a request; return the document of a 200, otherwise count the failure and return None."""
        with self.client.request(
            method, path, name, data=body, headers={**self.key, **(headers or {})}, catch_response=True
        ) as answer:
            return _document_of(answer)


def _document_of(answer: Any) -> Any:
    """Return the document of a good answer, or its text; mark any other."""
    if answer.status_code == 200:
        if not answer.headers["content-type"].startswith("application/json"):
            return answer.text
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            answer.failure(f"200 with a body that is no JSON: {error}")
    elif answer.status_code == 429:
        answer.failure(REFUSED)
    elif answer.status_code == 503:  # nothing was applied: it has an objective of its own
        answer.request_meta["name"] += UNSERVED
        answer.success()
    elif answer.status_code == 410:
        answer.success()  # the memory was overwritten meanwhile, which is normal
    elif answer.status_code:
        answer.failure(f"{answer.status_code}: {answer.text[:200]}")
    else:
        answer.failure(f"no answer: {answer.error!r}")
    return None


class Application(ApiUser):
    """A program that remembers and recalls, at random moments."""

    bodies: ClassVar[RequestBodies]
    newest: int | None = None  # the newest own memory

    def on_start(self) -> None:
        """Start the schedule of requests."""
        super().on_start()
        self.due = time.monotonic()

    def wait_time(self) -> float:
        """Return the seconds until the next request is due: a Poisson process, which does not wait for the server."""
        self.due += random.expovariate(_options(self.environment).pace)
        return max(0.0, self.due - time.monotonic())

    def event(self, name: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post an event, and keep its memory id when it is accepted."""
        decision = self.send("POST", "/event", name, body, headers)
        if decision and decision["accepted"]:
            self.newest = decision["memory_id"]

    @tag("event")
    @task(40)
    def event_json(self) -> None:
        """Post an event as 384 JSON numbers."""
        self.event("/event, JSON", next(self.bodies.json), JSON)

    @tag("event")
    @task(20)
    def event_base64(self) -> None:
        """Post an event in base64 with a payload and an idempotency key."""
        headers = {**JSON, "Idempotency-Key": uuid.uuid4().hex}
        self.event("/event, base64, payload, key", next(self.bodies.base64), headers)

    @tag("event")
    @task(15)
    def event_raw(self) -> None:
        """Post an event as raw bytes."""
        moral, body = next(self.bodies.raw)
        self.event("/event, raw", body, {**RAW, "Moral-Value": moral})

    @task(5)
    def batch(self) -> None:
        """Post a batch of ten events."""
        self.send("POST", "/events", "/events, raw × 10", next(self.bodies.batch), RAW)

    @task(10)
    def recall(self) -> None:
        """Recall the nearest memories."""
        self.send("POST", "/recall", "/recall, JSON", next(self.bodies.query), JSON)

    @task(5)
    def memory(self) -> None:
        """Read the newest own memory; without one, the state."""
        if self.newest is None:
            self.state()
        else:
            self.send("GET", f"/memories/{self.newest}", "/memories/{id}")

    @task(1)
    def forget(self) -> None:
        """Delete the newest own memory; without one, read the state."""
        if self.newest is None:
            self.state()
        else:
            self.send("DELETE", f"/memories/{self.newest}", "/memories/{id}, DELETE")
            self.newest = None

    @task(4)
    def state(self) -> None:
        """Read the state."""
        self.send("GET", "/state", "/state")


class Kubelet(ApiUser):
    """The probes of a pod, once a second."""

    fixed_count = 1
    wait_time = constant_pacing(1)

    @tag("watch")
    @task
    def probe(self) -> None:
        """Probe liveness and readiness."""
        self.send("GET", "/health/liveness", "/health/liveness")
        self.send("GET", "/health/readiness", "/health/readiness")


class Prometheus(ApiUser):
    """The scrape."""

    fixed_count = 1
    wait_time = constant_pacing(5)

    @tag("watch")
    @task
    def scrape(self) -> None:
        """Scrape the metrics, and parse them as Prometheus would."""
        text = self.send("GET", "/health/metrics", "/health/metrics")
        if text is not None:
            list(text_string_to_metric_families(text))


class Operator(ApiUser):
    """An operator who watches a console."""

    fixed_count = 1
    wait_time = constant_pacing(2)

    @tag("watch")
    @task
    def look(self) -> None:
        """Read detailed health and the newest decisions."""
        self.send("GET", "/health/detailed", "/health/detailed")
        self.send("GET", "/decisions?limit=10", "/decisions")


# -- the run -----------------------------------------------------------------------------------------------------------
class Run:
    """The run of this process: the server's metrics before it."""

    before: ServerMetrics | None = None


def prepare(environment: Environment, **_more: object) -> None:
    """Load the events and probe the server; on failure end Locust with status 2 and a sentence."""
    options = _options(environment)
    environment.stop_timeout = max(environment.stop_timeout or 0, TIMEOUT_SECONDS)
    try:
        drawn = population.read(Path(options.events)) if options.events else population.generate(options.seed)
        if environment.host and not isinstance(environment.runner, WorkerRunner):
            metrics_probe.probe(environment.host, options.server_pid)
    except (PopulationError, ProbeError) as error:
        _log.error("%s", error)
        sys.exit(UNMEASURED)
    Application.bodies = RequestBodies(drawn)
    _log.info("%s", drawn.source)
    if options.requests:
        end_after(options.requests, environment)


def end_after(count: int, environment: Environment) -> None:
    """End the load with its request number `count`, however long that takes."""
    left = itertools.count(count - 1, -1)

    def counted(**_request: object) -> None:
        if next(left) == 0 and environment.runner is not None:
            gevent.spawn(environment.runner.quit)  # not here: that would end this very user

    environment.events.request.add_listener(counted)  # type: ignore[no-untyped-call]


def begin(environment: Environment, **_more: object) -> None:
    """Probe the server before the load."""
    if not isinstance(environment.runner, WorkerRunner):
        Run.before = _probe(environment)


def judge(environment: Environment, **_more: object) -> None:
    """Probe the server again and log the violations. In a distributed run, the master does this."""
    runner, options = environment.runner, _options(environment)
    if runner is None or isinstance(runner, WorkerRunner):
        return
    runner.stop()  # after Ctrl-C the users are still running
    after = _probe(environment)
    if Run.before is None or after is None:
        environment.process_exit_code = UNMEASURED
        return
    bounds = slo.Bounds(**{name: getattr(options, name) for name in slo.Bounds._fields})
    run_figures = figures(environment, Run.before, after)
    _log.info("%s", slo.summary(run_figures))
    sentences = slo.violations(run_figures, bounds)
    for sentence in sentences:
        _log.error("%s", sentence)
    environment.process_exit_code = BROKEN if sentences or runner.exceptions else 0


def _probe(environment: Environment) -> ServerMetrics | None:
    try:
        return metrics_probe.probe(environment.host or "", _options(environment).server_pid)
    except ProbeError as error:
        _log.error("%s", error)
        return None


def figures(environment: Environment, before: ServerMetrics, after: ServerMetrics) -> slo.Figures:
    """Return the figures between two probes of the server."""
    stats = environment.stats
    failed = {True: 0, False: 0}
    for error in stats.errors.values():
        failed[REFUSED in str(error.error)] += error.occurrences
    good = {entry.name: entry.num_requests - entry.num_failures for entry in stats.entries.values()}
    same = before.boot_id == after.boot_id
    known = same and before.memory_bytes is not None and after.memory_bytes is not None
    return slo.Figures(
        routes={
            entry.name: slo.Route(entry.num_requests, entry.get_response_time_percentile(0.95))
            for entry in stats.entries.values()
        },
        errors=failed[False],
        refused=failed[True],
        unserved=sum(count for name, count in good.items() if name.endswith(UNSERVED)),
        acknowledged=sum(events_each * good.get(name, 0) for name, events_each in EVENTS.items()),
        moved=after.events - before.events if same else None,
        growth_mb=((after.memory_bytes or 0) - (before.memory_bytes or 0)) / 1e6 if known else None,
        rate=stats.total.total_rps,
    )


_hooks: Final[Any] = events  # Locust does not type these
_hooks.init_command_line_parser.add_listener(add_options)
_hooks.init.add_listener(prepare)
_hooks.test_start.add_listener(begin)
_hooks.quitting.add_listener(judge)
