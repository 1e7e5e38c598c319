"""Processor time per request of each route: `python -m loadtests.cost.routes`.

    python -m loadtests.cost.routes --rounds 5
    python -m loadtests.cost.routes --data vectors.npz

One worker with production settings runs on one core with 20,000 memories; the client runs on another. Three prices are
measured: *full*, on many connections, so that a turn of the loop serves several requests; *alone*, on one connection;
and *rare*, with a pause before each request, so that the processor sleeps and its caches are cold. A price is the
processor time of all server processes per request; *rare* excludes what an idle server uses. A million over the price
is the number of requests per second and core. Readiness is left out: it answers 503 under full CPU load.

The three alternate, and medians are printed. Exit status: 0, or 2 when nothing was measured.
"""

import argparse
import http.client
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from loadtests.bench import report, traffic, vectors, wrk
from loadtests.bench.processor import Cores, cores, pinned, used_ns
from loadtests.bench.servers import TOKEN, Product, listens
from loadtests.bench.traffic import SLOW, Traffic, encode_requests, request
from loadtests.bench.wrk import MeasurementError

READS: Final = {
    "/memories/{id}": "/memories/{number}",
    "/decisions, 10": "/decisions?limit=10",
    "/governor": "/governor",
    "/health/detailed": "/health/detailed",
    "/health/metrics": "/health/metrics",
}
MEMORIES: Final = 1_000  # read back, in turn
RARE: Final = 200  # requests
PAUSE_SECONDS: Final = 0.005


class Price(NamedTuple):
    """Processor time of the server for a request, µs: on many connections, on one, and on one with pauses."""

    full_us: float
    alone_us: float
    rare_us: float


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cost.routes", description="Measure the price of each route."
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a second per price (default 5)")
    parser.add_argument("--data", type=Path, metavar="NPZ", help="`vec`, a matrix of embeddings (default: synthetic)")
    parser.add_argument("--only", default="", help="only routes whose name contains this")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("expected --rounds of 1 or more")
    place = cores()
    with tempfile.TemporaryDirectory(prefix="mlsdm-routes-") as name:
        try:
            wrk.require()
            given = vectors.load(args.data) if args.data else vectors.synthetic()
            server = Product(Path(name), fill=given.memories)
            print(f"{report.machine()}; {given.source}; load average {os.getloadavg()[0]:.1f}\n")
            server.start({place.server})
            try:
                chosen = {route: sent for route, sent in route_traffic(given).items() if args.only in route}
                print_table(measure_prices(server, place, chosen, args.rounds))
            finally:
                server.stop()
        except MeasurementError as error:
            print(f"routes: {error}", file=sys.stderr)
            return 2
    return 0


def route_traffic(given: vectors.Vectors) -> dict[str, Traffic]:
    """Return the traffic of every route; events last, because they replace the memories."""
    made = traffic.product_traffic(given.memories, given.queries, TOKEN)
    key = {"Authorization": f"Bearer {TOKEN}"}
    reads = {
        name: Traffic(
            tuple(request("GET", path.format(number=number + 1), key) for number in range(MEMORIES)), SLOW
        )
        for name, path in READS.items()
    }  # fmt: skip
    named = {"livez": "/health/liveness", "state": "/state", "recall": "/recall, raw", "recall JSON": "/recall, JSON"}
    first = {route: made[name] for name, route in named.items()}
    events = {f"/event, {kind}": made[f"event {kind}"] for kind in ("raw", "base64", "msgpack", "JSON")}
    return {**first, **reads, **events, "/events, raw × 100": made["batch"]}


def measure_prices(server: Product, place: Cores, routes: Mapping[str, Traffic], rounds: int) -> dict[str, Price]:
    """Measure route after route: once there were events, the first memories are gone. Raises MeasurementError."""
    found = {}
    for name, sent in routes.items():
        prices = [
            (
                price(server, place, sent, sent.connections),
                price(server, place, sent, 1),
                price_after_pause(server, place, sent, round_ * RARE),
            )
            for round_ in range(rounds)
        ]
        found[name] = Price(*(statistics.median(one) for one in zip(*prices, strict=True)))
    return found


def price(server: Product, place: Cores, sent: Traffic, connections: int) -> float:
    """Return the processor time of a request, in µs, over a second of them. Raises MeasurementError."""
    file = server.directory / "route.requests"
    file.write_bytes(encode_requests(sent))
    pids = server.pids()
    before = used_ns(pids)
    sample = wrk.run(server.port, file, connections, 1, core=place.client)
    listens(server.port)  # answered last, so all earlier requests are done
    spent = used_ns(pids) - before
    if sample.errors or not sample.completed:
        raise MeasurementError(f"{sent.requests[0][:60]!r}: {sample.completed} answers, errors {sample.errors}")
    return spent / 1e3 / sample.sent


def price_after_pause(server: Product, place: Cores, sent: Traffic, first: int) -> float:
    """Return the processor time of a request that comes after a pause, in µs, over `RARE` of them."""
    pids = server.pids()
    with pinned({place.client}), socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = used_ns(pids)
        time.sleep(RARE * PAUSE_SECONDS)
        idle = used_ns(pids) - before
        before = used_ns(pids)
        for number in range(first, first + RARE):
            time.sleep(PAUSE_SECONDS)
            client.sendall(sent.requests[number % len(sent.requests)])
            answer = http.client.HTTPResponse(client)
            answer.begin()
            answer.read()
            if answer.status != 200:
                raise MeasurementError(f"{sent.requests[0][:60]!r}: answered {answer.status}")
        return max(0, used_ns(pids) - before - idle) / 1e3 / RARE


def print_table(found: Mapping[str, Price]) -> None:
    """Print the table."""
    print("| route | CPU µs, full | alone | rare | requests/s for a core, full | alone |\n|---|" + "---:|" * 5)
    for name, one in found.items():
        prices = " | ".join(f"{us:,.1f}" for us in one)
        print(f"| {name} | {prices} | {1e6 / one.full_us:,.0f} | {1e6 / one.alone_us:,.0f} |")


if __name__ == "__main__":
    sys.exit(main())
