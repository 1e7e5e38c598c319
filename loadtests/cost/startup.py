"""Start-up time: from the command to the first 200 of /readyz, at default size.

    python -m loadtests.cost.startup
    python -m loadtests.cost.startup --starts 3 --check

A production server with two workers is started repeatedly, each time with new processes and a new block. A thread
polls /readyz every 2 ms on new connections. From the second start on, Python's files are in the page cache; the first
start has a line of its own.

With --check the exit status is 1 when the median is two seconds or more.
"""

import argparse
import http.client
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from loadtests.bench import report
from loadtests.bench.servers import Product
from loadtests.bench.wrk import MeasurementError
from testing.eventually import HANG_SECONDS

STARTS: Final = 10
READY_SECONDS_MAX: Final = 2.0
_READY_SECONDS_MAX: Final = HANG_SECONDS
_PROBE_SECONDS: Final = 0.002


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.cost.startup", description="Measure starts.")
    parser.add_argument("--starts", type=int, default=STARTS, help=f"number of starts (default {STARTS})")
    parser.add_argument("--check", action="store_true", help="fail when the median takes two seconds or more")
    args = parser.parse_args(arguments)
    if args.starts < 1:
        parser.error(f"--starts is {args.starts}: expected 1 or more")
    print(f"{report.machine()}; two workers\n\n| start | ready after, ms |\n|---:|---:|")
    taken = []
    try:
        for number in range(1, args.starts + 1):
            taken.append(ready_seconds())
            print(f"| {number} | {1e3 * taken[-1]:,.0f} |", flush=True)
    except MeasurementError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 2
    median = statistics.median(taken)
    print(f"\nmin {1e3 * min(taken):,.0f} ms, median {1e3 * median:,.0f} ms, max {1e3 * max(taken):,.0f} ms")
    if median < READY_SECONDS_MAX:
        return 0
    print(f"the median is {median:.2f} s; under {READY_SECONDS_MAX:g} s is promised")
    return 1 if args.check else 0


def ready_seconds() -> float:
    """Start a server, end it, and return how long it took to be ready. Raises MeasurementError."""
    with tempfile.TemporaryDirectory(prefix="mlsdm-startup-") as name:
        server = Product(Path(name), {"WORKERS": "2"})
        ready: list[float] = []
        probe = threading.Thread(target=_probe, args=(server.port, ready))
        began = time.perf_counter()
        probe.start()
        try:
            server.start(os.sched_getaffinity(0))
            probe.join()
        finally:
            server.stop()
        if not ready:
            raise MeasurementError(f"/readyz was not answered 200 within {_READY_SECONDS_MAX:g} s")
        return ready[0] - began


def _probe(port: int, ready: list[float]) -> None:
    """Ask until the answer is 200, and note when it came."""
    end = time.perf_counter() + _READY_SECONDS_MAX
    while time.perf_counter() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                ready.append(time.perf_counter())
                return
        except (OSError, http.client.HTTPException):
            pass  # the server does not listen yet
        finally:
            connection.close()
        time.sleep(_PROBE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
