"""Cost as work grows: recall by capacity and dimension, events by payload, each beside the memory's limit.

    python -m loadtests.curves.growth
    python -m loadtests.curves.growth --only recall --capacity-max 100000
    python -m loadtests.curves.growth --drawn build/growth.json

The limit is the time that a plain loop needs to read the same bytes (memory_read.py); the same run measures it.
A million memories of 384 dimensions need 5 GB here, because brute force and the loop each have a copy.

With --check the exit status is 1 in three cases: a recall of 5,000 memories or more costs more than brute force; the
cost per memory more than triples between 20,000 memories and the largest store; or the largest payload adds more than
thirty times its read time to an admission.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.bench import report, vectors, wrk
from loadtests.bench.processor import cores, pinned
from loadtests.bench.wrk import MeasurementError
from loadtests.curves import costs, picture
from loadtests.curves.costs import Admission, Search
from loadtests.curves.memory_read import bandwidth
from testing.live_server import ROOT

CAPACITIES: Final = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
DIMENSIONS: Final = (64, 128, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096)
PAYLOADS: Final = (0, 64, 256, 1_024, 4_096, 16_384, 65_536)
CAPACITY: Final = 20_000
DIMENSION: Final = 384
ROUNDS, SECONDS = 3, 1
MEMORY_GROWTH_MAX: Final = 3.0
PAYLOAD_GROWTH_MAX: Final = 30.0
EXACT_WINS: Final = 5_000  # memories; below, both take microseconds
PICTURES: Final = ROOT / "docs" / "pictures"
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Measurements:
    """What a run has measured; `megabytes_per_second` from memory."""

    machine: str
    megabytes_per_second: float
    by_capacity: list[Search]
    by_dimension: list[Search]
    by_payload: list[Admission]


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.curves.growth", description="Measure how cost grows.")
    parser.add_argument("--check", action="store_true", help="fail when a cost grows beyond its bound")
    parser.add_argument("--only", choices=("recall", "event"), help="measure one of the two")
    parser.add_argument("--capacity-max", type=int, default=CAPACITIES[-1], help="largest store (default 1,000,000)")
    parser.add_argument("--dimension-max", type=int, default=DIMENSIONS[-1], help="longest vectors (default 4,096)")
    parser.add_argument("--payload-max", type=int, default=PAYLOADS[-1], help="largest payload (default 65,536)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "growth.json", help="output document (default: build/growth.json)"
    )
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="output directory (default: docs/pictures)")
    parser.add_argument("--drawn", type=Path, metavar="DOCUMENT", help="draw an earlier run instead of measuring")
    args = parser.parse_args(arguments)
    try:
        picture.require()
        if args.drawn:
            draw(read(args.drawn), args.pictures)
            return 0
        if args.only != "recall":
            wrk.require()
        results = measured(args)
        write(results, args.json)
        draw(results, args.pictures)
    except MeasurementError as error:
        print(f"growth: {error}", file=sys.stderr)
        return 2
    violations = verdict(results)
    for sentence in violations:
        print(sentence)
    return 1 if args.check and violations else 0


def measured(args: argparse.Namespace) -> Measurements:
    """Measure the selected costs, printing each row. Raises MeasurementError."""
    place = cores()
    with tempfile.TemporaryDirectory(prefix="mlsdm-growth-") as name:
        directory = Path(name)
        with pinned({place.server}):
            results = Measurements(report.machine(), bandwidth(directory), [], [], [])
        print(f"{results.machine}; memory is read at {results.megabytes_per_second / 1e3:.1f} GB/s")
        if args.only != "event":
            by_capacity = [(size, DIMENSION) for size in CAPACITIES if size <= args.capacity_max]
            by_dimension = [
                (min(CAPACITY, args.capacity_max), size) for size in DIMENSIONS if size <= args.dimension_max
            ]
            for sizes, into in ((by_capacity, results.by_capacity), (by_dimension, results.by_dimension)):
                _table("memories", "dimension", "recall µs", "brute force µs", "reading int8 µs", "reading float32 µs")
                for search in costs.searches(directory, sizes, place.server):
                    into.append(search)
                    _line(search)
        if args.only != "recall":
            wanted = [size for size in PAYLOADS if size <= args.payload_max]
            _table("payload, bytes", "admission µs", "/event, CPU µs", "floor, CPU µs")
            for admission in costs.admissions(
                directory, vectors.synthetic(), wanted, place, rounds=ROUNDS, seconds=SECONDS
            ):
                results.by_payload.append(admission)
                _line(admission)
    return results


def _table(*head: str) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---:|" * len(head))


def _line(figures: Iterable[float]) -> None:
    cells = (
        f"{figure:,}" if isinstance(figure, int) else f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}"
        for figure in figures
    )
    print("| " + " | ".join(cells) + " |", flush=True)


def write(results: Measurements, path: Path) -> None:
    """Write a run as a JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {
        name: [one._asdict() for one in value] if isinstance(value, list) else value
        for name, value in vars(results).items()
    }
    path.write_text(json.dumps(members, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Measurements:
    """Return the run of a document. Raises MeasurementError."""
    try:
        members: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Measurements(
            members["machine"], members["megabytes_per_second"],
            [Search(**one) for one in members["by_capacity"]], [Search(**one) for one in members["by_dimension"]],
            [Admission(**one) for one in members["by_payload"]],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"{path} is not a document of this program: {error}") from None


def verdict(results: Measurements) -> list[str]:
    """Return a sentence for each bound that is broken."""
    violations = [
        f"recall of {one.capacity:,} × {one.dimension} takes {one.recall_us:.0f} µs, brute force {one.brute_us:.0f} µs"
        for one in results.by_capacity + results.by_dimension
        if one.capacity >= EXACT_WINS and one.recall_us > one.brute_us
    ]
    usual = [one for one in results.by_capacity if one.capacity <= CAPACITY][-1:]
    for one in usual:
        largest = results.by_capacity[-1]
        growth = (largest.recall_us / largest.capacity) / (one.recall_us / one.capacity)
        if growth > MEMORY_GROWTH_MAX:
            violations.append(
                f"a memory of {largest.capacity:,} costs {growth:.1f} times what one of {one.capacity:,} does"
            )
    for small, large in zip(results.by_payload[:1], results.by_payload[-1:], strict=True):
        reading_us = large.payload_size / results.megabytes_per_second
        if large.admit_us - small.admit_us > PAYLOAD_GROWTH_MAX * reading_us:
            added = (large.admit_us - small.admit_us) / reading_us
            violations.append(f"{large.payload_size:,} bytes of payload cost {added:.0f} times what reading them does")
    return violations


# -- pictures ----------------------------------------------------------------------------------------------------------
def draw(results: Measurements, directory: Path) -> None:
    """Draw what was measured."""
    for name, label, rows, place in (
        ("recall-capacity", "memories of 384 dimensions", results.by_capacity, 0),
        ("recall-dimension", f"dimensions of {CAPACITY:,} memories", results.by_dimension, 1),
    ):
        if rows:
            _draw_searches(directory / f"{name}.svg", label, rows, place, results.megabytes_per_second)
    if results.by_payload:
        _draw_payloads(directory / "event-payload.svg", results.by_payload, results.megabytes_per_second)


def _draw_searches(path: Path, label: str, rows: list[Search], place: int, megabytes_per_second: float) -> None:
    sizes = [int(row[place]) for row in rows]
    memory = f"the same at memory's {megabytes_per_second / 1e3:.0f} GB/s"
    with picture.drawn(path) as (axes,):
        for values, style, colour, name in (
            ([row.brute_us for row in rows], "s-", picture.OTHER, "NumPy brute force, float32"),
            ([row.recall_us for row in rows], "o-", picture.OURS, "recall, exact"),
            ([row.reading_vectors_us for row in rows], "--", picture.OTHER, "reading the float32 vectors once"),
            ([row.reading_shadow_us for row in rows], "--", picture.OURS, "reading the int8 shadow once"),
            ([row.shadow_size / megabytes_per_second for row in rows], ":", picture.LIMIT, memory),
        ):
            axes.plot(sizes, values, style, color=colour, label=name, linewidth=1.6 if "-" in style[1:] else 1)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="µs, p50")
        axes.set_xticks(sizes, [_short(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.legend(loc="upper left")


def _draw_payloads(path: Path, rows: list[Admission], megabytes_per_second: float) -> None:
    sizes = [row.payload_size for row in rows]
    memory = f"reading the payload at {megabytes_per_second / 1e3:.0f} GB/s"
    with picture.drawn(path) as (axes,):
        axes.plot(
            sizes, [row.http_us for row in rows], "o-", color=picture.OURS, label="/event in JSON, processor time"
        )
        axes.plot(sizes, [row.floor_us for row in rows], "s-", color=picture.OTHER, label="the floor, the same bytes")
        axes.plot(sizes, [row.admit_us for row in rows], "^-", color=picture.PALE, label="admission alone, p50")
        axes.plot(
            sizes[1:], [size / megabytes_per_second for size in sizes[1:]], ":", color=picture.LIMIT, label=memory
        )
        axes.set_xscale("symlog", linthresh=64)  # because 0 is one of the sizes
        axes.set(yscale="log", xlabel="payload, bytes", ylabel="µs")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.minorticks_off()
        axes.set_ylim(top=10 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left")


def _short(size: int) -> str:
    return f"{size // 1_000_000}M" if size >= 1_000_000 else f"{size // 1_000}k" if size % 1_000 == 0 else str(size)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in _ONE_THREAD.items()):  # NumPy reads them at import
        again = [sys.executable, "-m", "loadtests.curves.growth", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **_ONE_THREAD})
    sys.exit(main())
