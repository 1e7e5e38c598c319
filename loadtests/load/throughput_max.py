"""The maximum throughput of this machine: the day's mix in a closed loop, from Locust and from wrk.

    python -m loadtests.load.throughput_max
    python -m loadtests.load.throughput_max --rounds 5 --seconds 5 --events events.npz

The server is that of loadtests/load/sustained.py, with a rate limit of a million requests a second. Server and
generator share the machine, so the table shows what both use. Requests per core of the server carry over to other
machines.

Locust spends as much CPU per request as the server, so its rows describe Locust too. wrk sends the same mix and checks
only the status; it cannot read memories back, because it keeps no ids. Rounds alternate; medians are printed.

Exit status: 0, or 2 when nothing was measured.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psutil

from loadtests.bench import report, wrk
from loadtests.bench.processor import cores
from loadtests.bench.traffic import JSON, NUMBER, RAW, Traffic, encode_requests, request
from loadtests.load import meter, population
from loadtests.load.meter import Meter, Window
from loadtests.load.population import PopulationError
from loadtests.load.request_bodies import RequestBodies
from loadtests.load.sustained import (
    FIXED_USERS,
    TOKEN,
    MeasurementError,
    fill,
    locust_command,
    median_window,
    production_server,
)
from testing.live_server import ROOT, LiveServer

REQUESTS: Final = 2_000
CONNECTIONS: Final = 32
MARGIN_SECONDS: Final = 1  # of load before and after the measured window
STATUS_SHARE_MAX: Final = 0.01
STARTING_SECONDS: Final = 4  # until Locust sends
# name and share as in loadtests/locustfile.py; reads and deletions of a memory are replaced by reads of the state
MIX: Final = (("json", 40), ("base64", 20), ("raw", 15), ("batch", 5), ("recall", 10), ("state", 10))
UNLIMITED: Final = {
    f"MLSDM_SECURITY__RATE_LIMITING__TIERS__BULK__{name}": "1000000"
    for name in ("REQUESTS_PER_SECOND", "BURST_CAPACITY")
}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load.throughput_max", description="Measure the most requests."
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per generator (default 5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds per round (default 5)")
    parser.add_argument("--events", metavar="NPZ", help="events to send (default: generated ones)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.seconds < 1:
        parser.error("expected rounds and seconds of 1 or more")
    with tempfile.TemporaryDirectory(prefix="mlsdm-most-") as name:
        server = production_server(Path(name), **UNLIMITED)
        try:
            wrk.require()
            drawn = population.read(Path(args.events)) if args.events else population.generate(1)
            fill(server.start(), drawn)
            compare(server, drawn, args)
        except (MeasurementError, wrk.MeasurementError, PopulationError, ProcessLookupError, AssertionError) as error:
            print(f"throughput_max: {error}", file=sys.stderr)
            return 2
        finally:
            server.stop()
    return 0


def compare(server: LiveServer, drawn: population.Population, args: argparse.Namespace) -> None:
    """Let both generators have their rounds and print the table."""
    print(f"{report.machine()}; two workers; {drawn.source}\n")
    print(meter.HEAD.format("by") + "\n" + meter.RULE)
    file = server.directory / "mix.requests"
    file.write_bytes(encode_requests(Traffic(tuple(mixed_requests(RequestBodies(drawn))), CONNECTIONS)))
    options = ["--events", args.events] if args.events else []
    rounds: dict[str, list[Window]] = {"wrk": [], "Locust": []}
    sent = 0
    for _ in range(args.rounds):
        window, sent = measure_with_wrk(server, file, args.seconds, sent)
        rounds["wrk"].append(window)
        rounds["Locust"].append(measure_with_locust(server, args.seconds, options))
    for name, windows in rounds.items():
        print(median_window(windows).line(name))


def mixed_requests(bodies: RequestBodies) -> Iterator[bytes]:
    """Yield whole requests in the shares of the mix, in an order that is the same each time."""
    key = {"Authorization": f"Bearer {TOKEN}"}
    names, shares = zip(*MIX, strict=True)
    for name in random.Random(1).choices(names, shares, k=REQUESTS):
        match name:
            case "json":
                yield request("POST", "/event", {**key, **JSON}, next(bodies.json))
            case "base64":
                yield request("POST", "/event", {**key, **JSON, "Idempotency-Key": NUMBER}, next(bodies.base64))
            case "raw":
                moral, body = next(bodies.raw)
                yield request("POST", "/event", {**key, **RAW, "Moral-Value": moral}, body)
            case "batch":
                yield request("POST", "/events", {**key, **RAW}, next(bodies.batch))
            case "recall":
                yield request("POST", "/recall", {**key, **JSON}, next(bodies.query))
            case _:
                yield request("GET", "/state", key)


def measure_with_wrk(server: LiveServer, file: Path, seconds: int, sent: int) -> tuple[Window, int]:
    """Measure a round of wrk, whose first request is number `sent`; returns the number of the next, too."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            wrk.run, server.port, file, CONNECTIONS, seconds + 2 * MARGIN_SECONDS,
            core=cores().client, offset=sent, numbered=True, polling=False,
        )  # fmt: skip
        window = _measure_window(server, seconds)
        sample = run.result()
    # On a saturated machine a wait for the lock may time out, which is answered 503.
    bad = sample.errors.get("status", 0) > STATUS_SHARE_MAX * sample.completed or sample.errors.keys() - {"status"}
    if bad or not sample.completed:
        raise MeasurementError(f"wrk had {sample.completed} answers and the errors {sample.errors}")
    return window, sent + sample.sent + 1  # wrk requests one that it does not send


def measure_with_locust(server: LiveServer, seconds: int, options: list[str]) -> Window:
    """Measure a round of Locust, whose users never wait."""
    users = CONNECTIONS + FIXED_USERS
    pace = ["--pace", "10000", "--p95-ms-max", "inf", "--growth-mb-max", "inf", "--unserved-share-max", "1"]
    command = locust_command(server, seconds + 2 * MARGIN_SECONDS + STARTING_SECONDS, users, users, *pace, *options)
    generator = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(STARTING_SECONDS)
        window = _measure_window(server, seconds)
        _, output = generator.communicate(timeout=seconds + 120)
    except subprocess.TimeoutExpired:
        raise MeasurementError("Locust did not end in time") from None
    finally:
        generator.kill()
        generator.wait()
    if generator.returncode:
        raise MeasurementError(f"Locust ended with {generator.returncode}: {output[-2000:]}")
    return window


def _measure_window(server: LiveServer, seconds: int) -> Window:
    """Measure a window of a load that began just now."""
    gauge = Meter(server, lambda: [child.pid for child in psutil.Process().children() if child.pid != server.pid])
    time.sleep(MARGIN_SECONDS)
    before = gauge.read()
    time.sleep(seconds)
    return meter.between(before, gauge.read())


if __name__ == "__main__":
    sys.exit(main())
