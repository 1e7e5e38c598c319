"""A thousand requests a second for two minutes against a production server: latency, CPU, memory, counts (`make load`).

    python -m loadtests.load.sustained
    python -m loadtests.load.sustained --rate 1000 --windows 6 --seconds 10 --events events.npz

It runs this checkout with config/production-ready.yaml, two workers and a key of the tier `bulk` (10,000 requests a
second), fills the store, and sends the load of loadtests/locustfile.py: first single events, then the day's mix, each
with probes, scrapes and an operator. It measures window after window.

Exit status: 0 all promises hold; 1 with a sentence for each violation; 2 nothing was measured. Promises, in the median
window: 98 % of the rate; at most 0.16 core for a thousand events a second and 0.32 for the mix, all processes together
and in proportion for higher rates; a p95 below 100 ms for every route; and Locust's other objectives.

Generator and server share the machine, so this is not the maximum; loadtests/load/throughput_max.py measures that.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.access.key_file import to_yaml_entry
from core.access.keys import token_digest
from core.settings.config import Config
from loadtests.bench import report
from loadtests.bench.traffic import RAW
from loadtests.load import meter, population
from loadtests.load.meter import Meter, Window
from loadtests.load.population import PopulationError
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer

TOKEN: Final = "load.0123456789012345678901234567890123456789012"  # 43 characters of secret, as `mlsdm key` makes them
RATE: Final = 1_000.0
RATE_SHARE_MIN: Final = 0.98
# Tags of the locustfile, and the maximum of a core at RATE, in proportion for higher rates. A tenth of the mix are
# recalls: each reads all memories, and together they take half of the processor time.
LOADS: Final[Mapping[str, tuple[tuple[str, ...], float]]] = {
    "events": (("event", "watch"), 0.16),
    "a day's mix": ((), 0.32),
}
P95_MS_MAX: Final = 100.0
OTHERS_SHARE_MAX: Final = 0.1  # of the cores; above it, violations may be caused by other programs
PACE: Final = 10  # requests per second of an application
FIXED_USERS: Final = 3
FILL_BATCH: Final = 200
RAMP_SECONDS: Final = 5
BEGIN_SECONDS_MAX: Final = HANG_SECONDS


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load.sustained", description="Load a production server.")
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests per second (default {RATE:,.0f})")
    parser.add_argument("--windows", type=int, default=6, help="measured windows (default 6)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per window (default 10)")
    parser.add_argument("--events", metavar="NPZ", help="events to send (default: generated ones)")
    args = parser.parse_args(arguments)
    if args.windows < 1 or args.seconds < 1 or args.rate < PACE:
        parser.error(f"expected windows and seconds of 1 or more, and a rate of {PACE} or more")
    with tempfile.TemporaryDirectory(prefix="mlsdm-load-") as name:
        server = production_server(Path(name))
        try:
            drawn = population.read(Path(args.events)) if args.events else population.generate(1)
            fill(server.start(), drawn)
            print(f"{report.machine()}; two workers, config/production-ready.yaml")
            sentences = [sentence for name in LOADS for sentence in run_load(server, args, name)]
        except (MeasurementError, PopulationError, AssertionError) as error:
            print(f"load: {error}", file=sys.stderr)
            return 2
        finally:
            server.stop()
    for sentence in sentences:
        print(sentence)
    return 1 if sentences else 0


class MeasurementError(Exception):
    """One sentence: why nothing was measured."""


def production_server(directory: Path, **environ: str) -> LiveServer:
    """Return a server of this checkout as production has it, with a key in the tier `bulk`."""
    keys = directory / "keys.yaml"
    digest = token_digest(TOKEN).hex()
    keys.write_text("keys:\n" + to_yaml_entry({"id": "load", "digest": digest, "role": "write", "tier": "bulk"}))
    settings = {
        "MLSDM_ENV": "production",
        "CONFIG_PATH": str(ROOT / "config" / "production-ready.yaml"),
        "MLSDM_SECURITY__KEYS_PATH": str(keys),
        "MLSDM_SERVER__HOST": "127.0.0.1",
        "MLSDM_RESOURCES__DRAIN_PERIOD": "0",  # there is no load balancer here
        "WORKERS": "2",
    }
    return LiveServer(directory, {**settings, **environ})


def fill(server: LiveServer, drawn: population.Population) -> None:
    """Have it remember as much as it can: a recall in an empty store costs nothing. Raises MeasurementError."""
    vectors = np.resize(drawn.vectors, (Config().capacity, drawn.vectors.shape[1])).astype("<f4")
    headers = {**RAW, "Authorization": f"Bearer {TOKEN}"}
    for first in range(0, len(vectors), FILL_BATCH):
        batch = vectors[first : first + FILL_BATCH]
        answer = server.request("POST", "/events", np.ones(len(batch), "<f8").tobytes() + batch.tobytes(), headers)
        if answer.status != 200 or answer.json["accepted"] != len(batch):
            raise MeasurementError(f"the store could not be filled: {answer.status} {answer.body[:300].decode()}")


def locust_command(server: LiveServer, seconds: float, users: int, spawn: float, *options: str) -> list[str]:
    """Return the command that loads a server."""
    return [
        str(Path(sys.executable).with_name("locust")), "-f", "loadtests/locustfile.py", "--headless", "--only-summary",
        "-u", str(users), "-r", str(spawn), "-t", f"{math.ceil(seconds)}s", "--host", f"http://127.0.0.1:{server.port}",
        "--api-key", TOKEN, "--server-pid", str(server.pid), "--alone", "--json-file", str(server.directory / "stats"),
        *options,
    ]  # fmt: skip


def run_load(server: LiveServer, args: argparse.Namespace, name: str) -> list[str]:
    """Load a server, print the tables, return the violations. Raises MeasurementError."""
    tags, core_max = LOADS[name]
    print(f"\n{name}, {args.rate:,.0f} requests a second\n")
    users = round(args.rate / PACE) + FIXED_USERS
    seconds = RAMP_SECONDS + 2 + args.windows * args.seconds + 2
    options = [
        "--pace",
        str(PACE),
        "--p95-ms-max",
        str(P95_MS_MAX),
        *(["--events", args.events] if args.events else []),
        *(["--tags", *tags] if tags else []),
    ]
    generator = subprocess.Popen(  # ended by SIGTERM when the windows were measured, however late it began
        locust_command(server, BEGIN_SECONDS_MAX + 2 * seconds, users, users / RAMP_SECONDS, *options),
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        windows = measure_windows(server, generator, args.windows, args.seconds)
        generator.terminate()
        _, output = generator.communicate(timeout=seconds + 120)
    except subprocess.TimeoutExpired:
        raise MeasurementError("Locust did not end in time") from None
    finally:
        generator.kill()
        generator.wait()
    objectives = [line.partition("/mlsdm.load: ")[2] for line in output.splitlines() if "/mlsdm.load: " in line]
    if generator.returncode not in (0, 1):
        raise MeasurementError(f"Locust ended with {generator.returncode}: {output[-2000:]}")
    print(f"\n{latencies(json.loads((server.directory / 'stats.json').read_text()))}\n")
    print("; ".join(objectives[:2]))
    sentences = [f"{name}: {sentence}" for sentence in (*objectives[2:], *violations(windows, args.rate, core_max))]
    others, cores = median_window(windows).others, os.cpu_count() or 1
    if sentences and others > OTHERS_SHARE_MAX * cores:
        sentences.append(f"others had {others:.2f} of {cores} cores meanwhile: run it again when the machine is quiet")
    return sentences


def measure_windows(server: LiveServer, generator: subprocess.Popen[str], count: int, seconds: float) -> list[Window]:
    """Wait until the load arrives, then measure and print the windows. Raises MeasurementError."""
    gauge = Meter(server, lambda: [generator.pid])
    print(meter.HEAD.format("window") + "\n" + meter.RULE)
    idle = gauge.read().requests
    deadline = time.monotonic() + BEGIN_SECONDS_MAX
    try:
        while gauge.read().requests - idle < 100:
            if time.monotonic() > deadline or generator.poll() is not None:
                raise MeasurementError(f"Locust sent nothing: {generator.stderr.read() if generator.stderr else ''}")
            time.sleep(0.1)
        time.sleep(RAMP_SECONDS + 1)
        windows, before = [], gauge.read()
        for number in range(1, count + 1):
            time.sleep(seconds)
            after = gauge.read()
            windows.append(meter.between(before, after))
            print(windows[-1].line(str(number)), flush=True)
            before = after
    except ProcessLookupError:
        raise MeasurementError("a process of the server, or Locust, ended while it was measured") from None
    print(median_window(windows).line("median"))
    return windows


def median_window(windows: list[Window]) -> Window:
    """Return the median of every figure."""
    return Window(*(statistics.median(figures) for figures in zip(*windows, strict=True)))


def latencies(entries: list[dict[str, Any]]) -> str:
    """Return the table of Locust's counts."""
    lines = ["| route | requests | failed | p50 ms | p95 ms | max ms |", "|---|" + "---:|" * 5]
    for found in sorted(entries, key=lambda found: found["name"]):
        p50, p95 = (percentile(found["response_times"], share) for share in (0.5, 0.95))
        counts = f"{found['num_requests']:,} | {found['num_failures']:,}"
        lines.append(f"| {found['name']} | {counts} | {p50:g} | {p95:g} | {found['max_response_time']:.0f} |")
    return "\n".join(lines)


def percentile(counts: dict[str, int], share: float) -> float:
    """Return a percentile of response times in ms, from Locust's counts per rounded time."""
    left = math.ceil(share * sum(counts.values()))
    for taken in sorted(counts, key=float):
        left -= counts[taken]
        if left <= 0:
            return float(taken)
    return float("nan")


def violations(windows: list[Window], rate: float, core_max: float) -> list[str]:
    """Return a sentence for each promise that the median window does not keep."""
    median, allowed = median_window(windows), core_max * max(1.0, rate / RATE)
    sentences = []
    if median.rate < RATE_SHARE_MIN * rate:
        sentences.append(f"{median.rate:,.0f} requests a second were sustained; {rate:,.0f} were asked for")
    if median.server > allowed:
        sentences.append(f"the server took {median.server:.3f} core; at most {allowed:.3f} is promised at this rate")
    return sentences


if __name__ == "__main__":
    sys.exit(main())
