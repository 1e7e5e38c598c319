"""An open-loop client: requests leave on a schedule, and latency counts from the scheduled moment.

A closed loop sends the next request after an answer. It asks nothing of a server that stalls for a second, and sees
the stall once per connection. An open loop keeps its schedule: a request that leaves late because of the server counts
the delay as latency.

Moments follow a Poisson process with a fixed seed, as independent clients do. `queue_latencies` computes what the queue
alone would cost with a constant service time; the rest is the server's and the machine's.

Rejected: an even schedule. Two requests never meet, and a server at 80 % of its capacity seems to have no queue.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.bench.processor import pinned
from loadtests.bench.traffic import Traffic, encode_requests
from loadtests.bench.wrk import MeasurementError
from loadtests.curves.c_program import build_c_program

SEED: Final = 1909  # the year of Erlang's first paper on waiting
CONNECTIONS: Final = 64
GRACE_SECONDS: Final = 30
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)

Moments = NDArray[np.uint64]  # ns after the start
Floats = NDArray[np.float64]


class Run(NamedTuple):
    """float64[n] each, µs, in the order of the schedule: latency from the moment it was due, and how late the client
    sent it.
    """

    latency_us: Floats
    late_us: Floats


def poisson_schedule(rate: float, seconds: float, seed: int = SEED) -> Moments:
    """Return the moments at which `rate` requests per second are due: at random, equally many each time."""
    count = max(1, round(rate * seconds))
    gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return np.cumsum(gaps).astype(np.uint64)


def queue_latencies(moments: Moments, service_us: float) -> Floats:
    """Return float64[n], µs: the latencies if one server took `service_us` for each, first come, first served.

    The n-th is done at max(done before it, its moment) + service, so at n · service + the largest of all (moment −
    number · service) up to it.
    """
    due = moments.astype(np.float64) / 1e3
    work = service_us * np.arange(len(due))
    return np.asarray(np.maximum.accumulate(due - work) + work + service_us - due)


def percentiles(values: Floats) -> list[float]:
    """Return the PERCENTILES of a run. Each is a latency that was measured, and no mean of two."""
    return [float(value) for value in np.percentile(values, PERCENTILES, method="higher")]


def run(
    directory: Path, port: int, traffic: Traffic, moments: Moments, *, core: int, connections: int = CONNECTIONS
) -> Run:
    """Send the traffic's requests in turn at these moments. Raises MeasurementError unless every answer is a 200."""
    program = build_c_program(directory, "open_loop")
    requests, schedule, results = (directory / f"open_loop.{part}" for part in ("requests", "schedule", "results"))
    requests.write_bytes(encode_requests(traffic))
    schedule.write_bytes(moments.astype("<u8").tobytes())
    command = [program, port, connections, requests, schedule, results, GRACE_SECONDS]
    with pinned({core}):
        client = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    try:
        _, said = client.communicate(timeout=float(moments[-1]) / 1e9 + 2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        client.kill()
        client.communicate()
        raise MeasurementError("the client did not end in time") from None
    if client.returncode:
        raise MeasurementError(f"the client gave up: {said.strip()}")
    times = np.frombuffer(results.read_bytes(), "<u8").reshape(-1, 2).astype(np.int64)
    due = moments.astype(np.int64)
    return Run((times[:, 1] - due) / 1e3, (times[:, 0] - due) / 1e3)


@contextmanager
def instant_server(directory: Path, request_size: int, answer_size: int, core: int) -> Iterator[int]:
    """Run the server that answers at once on a core; yields its port. Raises MeasurementError."""
    program = build_c_program(directory, "instant_server")
    with pinned({core}):
        server = subprocess.Popen([program, str(request_size), str(answer_size)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline()
        if not port:
            raise MeasurementError("the server that answers at once did not start")
        yield int(port)
    finally:
        server.kill()
        server.communicate()


assert sys.byteorder == "little", "requests, schedule and results are little-endian"
