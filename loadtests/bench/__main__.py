"""`python -m loadtests.bench`: measures the rows, prints the table, writes the JSON document, judges the goals.

    python -m loadtests.bench                                     every row, synthetic vectors, within five minutes
    python -m loadtests.bench --rows '/event raw' --seconds 3     rows by name; * matches anything
    python -m loadtests.bench --data vectors.npz --check          given vectors; fail when a goal is not reached

Exit status: 0 measured; 1 a row could not be measured, or with --check a goal is missed; 2 nothing was measured.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtests.bench import contention, goals, peers, report, traffic, vectors, wrk
from loadtests.bench.comparison import Result, ServerPool, measure
from loadtests.bench.processor import Cores, cores
from loadtests.bench.rows import Row, chosen
from loadtests.bench.servers import OPEN, TOKEN, UNLIMITED, VERBOSE, Product, Program, Server
from loadtests.bench.vectors import Vectors
from loadtests.bench.wrk import MeasurementError
from testing.live_server import ROOT

ROUNDS: Final = 3
SECONDS: Final = 1
_UNMETERED: Final = "loadtests.bench.unmetered:app"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description="Measure the server.")
    parser.add_argument("--check", action="store_true", help="fail when a goal is missed")
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="NAME", help="only rows whose name contains one of these"
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=ROUNDS,
        help=f"rounds per row, twice as many where there is a goal (default {ROUNDS})",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=SECONDS, help=f"seconds per side and round (default {SECONDS})"
    )
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "bench.json", help="output document (default: build/bench.json)"
    )
    parser.add_argument("--data", type=Path, help="an .npz with `vec`, embeddings [N, 384]; default: synthetic ones")
    args = parser.parse_args(arguments)
    try:
        wrk.require()
        rows = chosen(args.rows)
        contended = not args.rows or any(word in goals.LOCK for word in args.rows)
        if not rows and not contended:
            raise MeasurementError(f"no row matches {' or '.join(args.rows)}")
        given = vectors.load(args.data) if args.data else vectors.synthetic()
        if given.memories.shape[1] != vectors.DIMENSION:
            raise MeasurementError(f"`vec` has {given.memories.shape[1]} columns; expected {vectors.DIMENSION}")
    except MeasurementError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mlsdm-bench-") as directory:
        return run(Path(directory), given, rows, contended, args)


def run(directory: Path, given: Vectors, rows: list[Row], contended: bool, args: argparse.Namespace) -> int:
    """Measure and print the rows; return the exit status."""
    began = time.monotonic()
    place = cores()
    about = {"machine": report.machine(), "vectors": given.source, "rounds": args.rounds, "seconds": args.seconds}
    print(f"{about['machine']}; {about['vectors']}")
    print(f"{args.rounds} rounds of {args.seconds} s per side, twice as many rounds for rows with a goal")
    print(f"server on core {place.server}, client on core {place.client}")
    if place.shared:
        print("there is only one core: the client takes time from the server, so requests per second mean little")
    sent = traffic.product_traffic(given.memories, given.queries, TOKEN)
    results, failures, notes = _measured(makers(directory, given), sent, place, rows, args)
    others: dict[str, Any] = {}
    judged: dict[str, float] = {}
    if contended:
        try:
            waits = contention.measure(directory, [sent["event raw"], sent["batch"]], place, args.seconds)
            judged[goals.LOCK] = waits.p99_us_max
            others["lock"] = {
                name: getattr(waits, name) for name in ("sections", "waits", "mean_us", "p99_us_max", "windows")
            }
            print(
                f"\n{goals.LOCK}: {waits.p99_us_max:.2f} ({waits.waits:,} of {waits.sections:,} sections waited, "
                f"{waits.mean_us:.1f} µs each in the mean)"
            )
        except MeasurementError as error:
            failures.append(str(error))
    verdict = goals.judge(report.figures(results, judged))
    for title, sentences in (
        ("notes", notes), ("not measured, an error", failures), ("falls short", verdict.short),
        ("no figure", verdict.unmeasured if not args.rows else []),
    ):  # fmt: skip
        for sentence in sentences:
            print(f"{title}: {sentence}")
    took = time.monotonic() - began
    report.write(args.json, results, {**others, "notes": notes, "failures": failures, "seconds_taken": took}, about)
    print(f"took {took:.0f} s; {args.json} has every round")
    return 1 if failures or (args.check and verdict.short) else 0


def _measured(
    made: Mapping[str, Callable[[], Server]],
    sent: Mapping[str, traffic.Traffic],
    place: Cores,
    rows: list[Row],
    args: argparse.Namespace,
) -> tuple[list[Result], list[str], list[str]]:
    """Measure and print row by row; return results, failures and notes."""
    results: list[Result] = []
    failures: list[str] = []
    absent = sorted({name for row in rows for name in row.servers - set(made)})
    notes = [f"{name} is not installed, its rows are left out: make peers" for name in absent]
    rows = [row for row in rows if row.servers <= set(made)]
    if rows:
        print(f"\n{report.HEAD}\n{report.RULE}")
    with ServerPool(made, sent, place) as pool:
        for number, row in enumerate(rows):
            try:
                rounds = args.rounds * (2 if goals.goal_of(row.name) else 1)
                results.append(measure(pool, row, rounds, args.seconds))
                print(report.line(results[-1]), flush=True)
            except MeasurementError as error:
                failures.append(f"{row.name}: {error}")
            pool.keep(frozenset(name for later in rows[number + 1 :] for name in later.servers))
    notes += pool.notes
    failures += pool.failures
    starved = sum(report.starved(result) for result in results)
    if starved:
        notes.append(
            f"in {starved} of {len(results)} rows the server had less than {report.BUSY_MIN:.0%} of its core: others "
            "use it too, so only the shares are reliable"
        )
    return results, failures, notes


def makers(directory: Path, given: Vectors) -> dict[str, Callable[[], Server]]:
    """Return the factories of this run's servers, by name."""
    identical = np.repeat(given.memories[:1], len(given.memories), axis=0)
    memories, same = directory / "memories.npy", directory / "identical.npy"
    np.save(memories, given.memories)
    np.save(same, identical)

    def product(name: str, variant: Mapping[str, str], **more: Any) -> Callable[[], Server]:
        def make() -> Server:
            home = directory / name
            home.mkdir(exist_ok=True)
            return Product(home, variant, **more)

        return make

    def ours(application: str, environ: Mapping[str, str]) -> Callable[[], Server]:
        command = (
            str(Path(sys.executable).with_name("gunicorn")), "-k", "app.httpd.gunicorn_worker.EventedWorker", "-w", "1",
            "-b", "127.0.0.1:{port}", "--no-control-socket", "--worker-tmp-dir", "/dev/shm", application,
        )  # fmt: skip
        return lambda: Program(command, directory / f"{application}.log", environ=environ)

    return {
        "product": product("product", {}),
        "two workers": product("two", {"WORKERS": "2"}),
        "open": product("open", OPEN),
        "unlimited": product("unlimited", UNLIMITED),
        "unmetered": product("unmetered", {}, application=_UNMETERED),
        "bare": product("bare", UNLIMITED, application=_UNMETERED),
        "verbose": product("verbose", VERBOSE),
        "recall": product("recall", {}, fill=given.memories),
        "identical": product("identical", {}, fill=identical),
        "floor": ours("loadtests.bench.floor:app", {}),
        "brute": ours("loadtests.bench.brute:app", {"BENCH_VECTORS": str(memories)}),
        "brute identical": ours("loadtests.bench.brute:app", {"BENCH_VECTORS": str(same)}),
        **peers.makers(directory, memories, given),
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the servers are stopped
    sys.exit(main())
