"""Latency below saturation: an open loop at half and at 80 % of capacity.

    python -m loadtests.curves.latency
    python -m loadtests.curves.latency --data vectors.npz --seconds 20 --check
    python -m loadtests.curves.latency --drawn build/latency.json

The server runs as in production on one core (loadtests/bench/servers.py) with 20,000 memories; the client runs on
another core. A closed loop measures the capacity first. Each load then runs for several rounds in an open loop
(open_loop.py). Rounds are kept or dropped by what other programs used of the two cores, never by what the server did:
a program that runs for 5 ms on the server's core adds 5 ms of latency.

With --check the exit status is 1 when p50 exceeds 4 service times at half of capacity, or 20 at 80 %, plus the
client's own p50. The tail is printed and not judged. Nothing is judged when others used over a tenth of the cores.
"""

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil

from loadtests.bench import report, traffic, vectors, wrk
from loadtests.bench.processor import Cores, cores, used_ns
from loadtests.bench.servers import TOKEN, Product, listens
from loadtests.bench.traffic import Traffic, encode_requests
from loadtests.bench.vectors import Vectors
from loadtests.bench.wrk import MeasurementError
from loadtests.curves import open_loop, picture
from loadtests.curves.open_loop import Floats
from testing.live_server import ROOT

LOADS: Final = (0.5, 0.8)
PATHS: Final = ("recall", "event raw")  # recalls first: events replace the memories
SECONDS: Final = 3
ROUNDS: Final = 5
CAPACITY_ROUNDS: Final = 3
HALF_MAX: Final = 4.0  # bound of p50 at half of capacity, in service times
FULL_MAX: Final = 20.0  # bound of p50 at 80 % of capacity
OTHERS_MAX: Final = 0.1  # of both cores
OTHERS_KEPT: Final = 0.02
AT_ONCE: Final = "a server that answers at once"
NAMES: Final = ("p50", "p90", "p99", "p99.9", "p99.99", "max")
PICTURE: Final = ROOT / "docs" / "pictures" / "latency.svg"
_ANSWER_SIZE: Final = 250  # about the size of a decision
_CURVE: Final = 100 * (1 - np.logspace(0, -4.3, 60))  # percentiles of the picture


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.curves.latency", description="Measure latencies.")
    parser.add_argument("--check", action="store_true", help="fail when a median latency exceeds its bound")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"seconds per round; each load has {ROUNDS} (default {SECONDS})"
    )
    parser.add_argument("--data", type=Path, help="an .npz with `vec`, embeddings [N, 384]; default: synthetic ones")
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "build" / "latency.json",
        help="output document (default: build/latency.json)",
    )
    parser.add_argument(
        "--picture", type=Path, default=PICTURE, help="output picture (default: docs/pictures/latency.svg)"
    )
    parser.add_argument("--drawn", type=Path, metavar="DOCUMENT", help="draw an earlier run instead of measuring")
    args = parser.parse_args(arguments)
    try:
        picture.require()
        if args.drawn:
            draw(json.loads(args.drawn.read_text(encoding="utf-8")), args.picture)
            return 0
        wrk.require()
        given = vectors.load(args.data) if args.data else vectors.synthetic()
        found = measured(given, args.seconds)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw(found, args.picture)
    except MeasurementError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    violations, unjudged = verdict(found["runs"])
    for sentence in violations + unjudged:
        print(sentence)
    return 1 if args.check and violations else 0


class Round(NamedTuple):
    """One round of one load: its schedule and what the client saw; the share of its core that the server used, and of
    both cores that others did.
    """

    moments: open_loop.Moments
    got: open_loop.Run
    core: float
    others: float


def measured(given: Vectors, seconds: float) -> dict[str, Any]:
    """Measure everything, printing the table as it comes. Raises MeasurementError."""
    place = cores()
    about = {"machine": report.machine(), "vectors": given.source, "seconds": seconds}
    found: dict[str, Any] = {**about, "runs": []}
    print(f"{found['machine']}; {given.source}; {ROUNDS} rounds of {seconds:g} s each")
    head = (
        "path",
        "load",
        "requests/s",
        "core",
        "others",
        "requests",
        *(f"{name} µs" for name in NAMES),
        "sent late, p99.9 µs",
    )
    print("\n| " + " | ".join(head) + " |\n|---|---|" + "---:|" * (len(head) - 2))
    sent = traffic.product_traffic(given.memories, given.queries, TOKEN)
    with tempfile.TemporaryDirectory(prefix="mlsdm-latency-") as name:
        directory = Path(name)
        server = Product(directory, fill=given.memories)
        server.start({place.server})
        try:
            for path in PATHS:
                load_path = PathUnderLoad(directory, server, path, sent[path], place)
                capacity = load_path.capacity()
                found["runs"] += [load_path.loaded(capacity, load, seconds) for load in LOADS]
        finally:
            server.stop()
        rate = found["runs"][-1]["rate"]  # the highest rate of the run
        schedules = [open_loop.poisson_schedule(rate, seconds, open_loop.SEED + number) for number in range(ROUNDS)]
        rounds = [_client_alone(directory, sent["event raw"], moments, place) for moments in schedules]
        found["runs"].append(_summarise(AT_ONCE, 0.0, rate, rounds))
    return found


def _client_alone(directory: Path, part: Traffic, moments: open_loop.Moments, place: Cores) -> Round:
    """Hold the client against the server that answers at once."""
    busy, ours = _busy_seconds(place), _ours_seconds([])
    with open_loop.instant_server(directory, len(part.requests[0]), _ANSWER_SIZE, place.server) as port:
        got = open_loop.run(directory, port, part, moments, core=place.client)
    others = (_busy_seconds(place) - busy - (_ours_seconds([]) - ours)) / 2 / float(moments[-1]) * 1e9
    return Round(moments, got, 1.0, max(0.0, others))


def _busy_seconds(place: Cores) -> float:
    """Return the processor time that both cores have spent on anything, theft by other machines included."""
    times = psutil.cpu_times(percpu=True)
    return sum(sum(times[core][:3]) + sum(times[core][5:8]) for core in (place.server, place.client))


def _ours_seconds(pids: list[int]) -> float:
    """Return the processor time of these processes and of all children of this one that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used_ns(pids) / 1e9 + ended.ru_utime + ended.ru_stime


class PathUnderLoad(NamedTuple):
    """One route under load: the server, the route's name and its traffic."""

    directory: Path
    server: Product
    path: str
    traffic: Traffic
    place: Cores

    def capacity(self) -> float:
        """Return requests per second in a closed loop: the best of some rounds of a second."""
        requests = self.directory / "capacity.requests"
        requests.write_bytes(encode_requests(self.traffic))
        rates = []
        for _ in range(CAPACITY_ROUNDS):
            sample = wrk.run(self.server.port, requests, self.traffic.connections, 1, core=self.place.client)
            if sample.errors or not sample.completed:
                raise MeasurementError(
                    f"{self.path}: {sample.completed} answers in a closed loop, errors {sample.errors}"
                )
            rates.append(sample.completed / sample.seconds)
        listens(self.server.port)  # answered last, so the work of the closed loop is done
        return max(rates)  # every disturbance lowers a round

    def loaded(self, capacity: float, load: float, seconds: float) -> dict[str, Any]:
        """Measure one load; returns its run for the document."""
        rounds = [self._round(load * capacity, seconds, open_loop.SEED + number) for number in range(ROUNDS)]
        return _summarise(self.path, load, capacity, rounds)

    def _round(self, rate: float, seconds: float, seed: int) -> Round:
        moments = open_loop.poisson_schedule(rate, seconds, seed)
        accepted, pids = self.server.accepted() or 0, self.server.pids()
        used, busy, ours = used_ns(pids), _busy_seconds(self.place), _ours_seconds(pids)
        got = open_loop.run(self.directory, self.server.port, self.traffic, moments, core=self.place.client)
        core = (used_ns(pids) - used) / float(moments[-1])
        others = (_busy_seconds(self.place) - busy - (_ours_seconds(pids) - ours)) / 2 / float(moments[-1]) * 1e9
        moved = (self.server.accepted() or 0) - accepted
        if moved != len(moments) * self.traffic.events:
            raise MeasurementError(f"{self.path}: {moved} events were accepted of {len(moments)} requests")
        return Round(moments, got, core, max(0.0, others))


def _summarise(path: str, load: float, capacity: float, rounds: list[Round]) -> dict[str, Any]:
    """Print a line of the table and return the run for the document; µs throughout."""
    kept = quiet_rounds(rounds)
    rate = (load or 1.0) * capacity
    took = np.concatenate([one.got.latency_us for one in kept])
    late = float(np.percentile(np.concatenate([one.got.late_us for one in kept]), 99.9))
    core, others = (float(np.mean([getattr(one, name) for one in kept])) for name in ("core", "others"))
    queue = np.concatenate([open_loop.queue_latencies(one.moments, 1e6 / capacity) for one in kept])
    latency = open_loop.percentiles(took)
    cells = [path, f"{load:.0%}" if load else "–", f"{rate:,.0f}", f"{core:.0%}" if load else "–", f"{others:.0%}"]
    cells += [f"{len(took):,}", *(f"{value:,.0f}" for value in latency), f"{late:,.0f}"]
    print("| " + " | ".join(cells) + " |", flush=True)
    return {
        "path": path, "load": load, "rate": rate, "capacity": capacity, "core": core, "others": others,
        "rounds": len(kept), "requests": len(took), "latency_us": dict(zip(NAMES, latency, strict=True)),
        "late_p999_us": late, "curve": _curve(took), "queue": _curve(queue),
    }  # fmt: skip


def quiet_rounds(rounds: list[Round]) -> list[Round]:
    """Return the rounds in which others had next to nothing of the cores, or else the one in which they had least."""
    least = min(one.others for one in rounds)
    return [one for one in rounds if one.others <= max(least, OTHERS_KEPT)]


def _curve(values: Floats) -> list[float]:
    """Return the percentiles of the picture, as far as at least one value lies above."""
    return [
        round(float(value), 2) for value in np.percentile(values, _visible_percentiles(len(values)), method="higher")
    ]


def _visible_percentiles(count: int) -> Floats:
    return _CURVE[(1 - _CURVE / 100) * count >= 1]


def verdict(runs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return a sentence for each bound that a run breaks, and one for each run that cannot be judged."""
    violations, unjudged = [], []
    machine = next(run for run in runs if run["path"] == AT_ONCE)["latency_us"]["p50"]
    for run in (run for run in runs if run["path"] != AT_ONCE):
        times = HALF_MAX if run["load"] <= 0.5 else FULL_MAX
        which = f"{run['path']} at {run['load']:.0%}"
        bound = times * 1e6 / run["capacity"] + machine
        if run["others"] > OTHERS_MAX:
            unjudged.append(f"{which}: not judged, others had {run['others']:.0%} of the two cores meanwhile")
        elif run["latency_us"]["p50"] > bound:
            violations.append(
                f"{which}: p50 is {run['latency_us']['p50']:,.0f} µs; at most {bound:,.0f} µs is promised"
            )
    return violations, unjudged


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the percentile curves of a document."""
    client = next(run for run in found["runs"] if run["path"] == AT_ONCE)
    with picture.drawn(path, len(PATHS), 4.6, 3.8) as axes:
        for one, name in zip(axes, PATHS, strict=True):
            for run in (run for run in found["runs"] if run["path"] == name):
                colour = picture.OURS if run["load"] <= 0.5 else picture.OTHER
                label = f"{run['load']:.0%} of {run['capacity']:,.0f} requests/s"
                one.plot(_nines(run), run["curve"], color=colour, label=label)
                one.plot(_nines(run), run["queue"], ":", color=colour, linewidth=1, label="the queue alone")
            one.plot(_nines(client), client["curve"], color=picture.PALE, linewidth=1, label=AT_ONCE)
            one.set_yscale("log")
            one.set_xticks(range(5), ["0", "90 %", "99 %", "99.9 %", "99.99 %"])
            one.set_xlabel("share of answers that came sooner")
            one.set_ylabel("latency from the intended moment, µs")
            one.set_title("/recall, 10 of 20,000 × 384" if name == "recall" else "/event, raw")
            one.legend(loc="lower right")
        highest = max(one.get_ylim()[1] for one in axes)
        for one in axes:
            one.set_ylim(1, highest)  # leaves room for the legend below the curves


def _nines(run: dict[str, Any]) -> Floats:
    """Return the places of a curve's percentiles: 1 is 90 %, 2 is 99 %."""
    return np.asarray(-np.log10(1 - _visible_percentiles(run["requests"]) / 100))


if __name__ == "__main__":
    sys.exit(main())
