"""loadtests/curves on a small scale: arithmetic, the client against real servers, and one tiny run of each program.

No assertion is about speed.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.bench.traffic import Traffic, request
from loadtests.bench.vectors import unit
from loadtests.bench.wrk import MeasurementError
from loadtests.curves import growth, latency, open_loop, picture
from loadtests.curves.costs import Admission, Search, searches
from loadtests.curves.memory_read import reading_us
from loadtests.curves.native_store import NativeStore, clustered
from testing.eventually import HANG_SECONDS, eventually
from tests.programs import needs

CORE = min(os.sched_getaffinity(0))
LATER = max(os.sched_getaffinity(0))
PAUSE = 0.01
needs_wrk = needs("wrk")


def posts(count: int = 3) -> Traffic:
    """Return requests of one size, all different."""
    return Traffic(tuple(request("POST", "/", {}, b"%08d" % number) for number in range(count)), 4)


@contextmanager
def answering(answer: bytes, seen: list[bytes], pieces: int = 1) -> Iterator[int]:
    """Answer every request of one connection after the other with the same bytes, in `pieces` that are PAUSE seconds
    apart; keep the bodies that came, eight bytes each.
    """
    size = -(-len(answer) // pieces)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # pieces are not put together again
                stream = connection.makefile("rb")
                while line := stream.readline():
                    if line == b"\r\n":
                        seen.append(stream.read(8))
                        for first in range(0, len(answer), size):
                            time.sleep(PAUSE if first else 0)
                            connection.sendall(answer[first : first + size])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(HANG_SECONDS)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the compiled programs: each is compiled once."""
    return tmp_path_factory.mktemp("programs")


# -- the schedule ------------------------------------------------------------------------------------------------------
def test_a_schedule_is_reproducible_and_has_the_requested_rate() -> None:
    """Moments ascend, and gaps vary as much as their mean, as those of independent clients."""
    moments = open_loop.poisson_schedule(1_000, 20)
    gaps = np.diff(moments.astype(np.float64))

    assert len(moments) == 20_000
    assert pytest.approx(float(moments[-1]), rel=0.05) == 20e9
    assert pytest.approx(gaps.std() / gaps.mean(), abs=0.05) == 1.0
    assert np.array_equal(moments, open_loop.poisson_schedule(1_000, 20))
    assert 0 <= gaps.min()


def test_the_queue_formula_equals_a_simulation() -> None:
    """The closed form is compared with the definition."""
    moments = open_loop.poisson_schedule(900, 2)
    free, expected = 0.0, []
    for moment in moments.astype(np.float64) / 1e3:
        free = max(free, moment) + 1_000.0
        expected.append(free - moment)

    np.testing.assert_allclose(open_loop.queue_latencies(moments, 1_000.0), expected, atol=1e-3)


def test_percentiles_are_measured_latencies() -> None:
    """The largest is the slowest answer; none is interpolated."""

    assert open_loop.percentiles(np.arange(1.0, 101.0)) == [51.0, 91.0, 100.0, 100.0, 100.0, 100.0]


# -- the client --------------------------------------------------------------------------------------------------------
def test_every_request_is_sent_in_turn_and_timed(programs: Path) -> None:
    """Against a server that answers at once, nothing is sent or answered before it was due."""
    part = posts()
    moments = open_loop.poisson_schedule(2_000, 0.2)

    with open_loop.instant_server(programs, len(part.requests[0]), 100, CORE) as port:
        run = open_loop.run(programs, port, part, moments, core=LATER)

    assert (len(run.latency_us), len(run.late_us)) == (400, 400)
    assert run.late_us.min() >= 0
    assert (run.latency_us > run.late_us).all()


def test_requests_are_sent_in_a_cycle(programs: Path) -> None:
    """On one connection they arrive in the order of the schedule."""
    seen: list[bytes] = []

    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", seen) as port:
        open_loop.run(programs, port, posts(3), np.zeros(7, np.uint64), core=LATER, connections=1)

    assert seen == [b"%08d" % (number % 3) for number in range(7)]


def test_waiting_for_a_connection_counts_as_latency(programs: Path) -> None:
    """Ten are due at once and one is under way at a time: each latency includes those before it."""

    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", []) as port:
        run = open_loop.run(programs, port, posts(), np.zeros(10, np.uint64), core=LATER, connections=1)

    assert (np.diff(run.latency_us) > 0).all()
    assert (run.late_us[1:] >= run.latency_us[:-1]).all()


def test_an_answer_ends_with_its_last_byte(programs: Path) -> None:
    """It arrives in pieces that split the head."""

    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nin pieces", [], pieces=5) as port:
        run = open_loop.run(programs, port, posts(), np.zeros(3, np.uint64), core=LATER, connections=1)

    assert run.latency_us.min() >= 4 * PAUSE * 1e6


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", r"was not 200: HTTP/1\.1 503"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "more came than was asked for"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", "longer than the client's buffer"),
    ],
)
def test_a_run_with_an_error_has_no_percentiles(programs: Path, answer: bytes, sentence: str) -> None:
    """The client names the error."""

    with answering(answer, []) as port, pytest.raises(MeasurementError, match=sentence):
        open_loop.run(programs, port, posts(), np.zeros(1, np.uint64), core=LATER, connections=1)


def test_a_refused_connection_is_one_sentence_of_the_client(programs: Path) -> None:
    """It is not a run of zeros."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))

        with pytest.raises(MeasurementError, match="connect: Connection refused"):
            open_loop.run(programs, held.getsockname()[1], posts(), np.zeros(1, np.uint64), core=LATER)


# -- costs -------------------------------------------------------------------------------------------------------------
def test_reading_more_takes_longer(programs: Path) -> None:
    """Sixty-four times as many bytes take longer: the loop really reads."""

    assert reading_us(programs, 1 << 20) < reading_us(programs, 1 << 26)


def test_clustered_vectors_are_reproducible() -> None:
    """They have unit norm, and no query is a memory."""
    memories, queries = clustered(2_500, 64, 10)

    assert (memories.shape, queries.shape) == ((2_500, 64), (10, 64))
    np.testing.assert_allclose(np.linalg.norm(memories, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(memories, clustered(2_500, 64, 10)[0])
    assert 0.3 < (queries @ memories.T).max(axis=1).min() < 0.999


def test_the_native_store_recalls_its_memories() -> None:
    """Ids begin at 1, best first."""
    memories = unit(np.eye(8) + 0.01)
    inside = NativeStore(8, 100)
    try:
        inside.fill(memories)

        assert inside.nearest(memories[3] + 0.1 * memories[0], 2) == [4, 1]
    finally:
        inside.close()


def test_searches_are_measured_size_by_size(programs: Path) -> None:
    """Every figure is present, and the store's bytes follow from its layout."""
    (found,) = searches(programs, [(500, 20)], CORE)

    assert (found.capacity, found.dimension, found.shadow_size) == (500, 20, 500 * (32 + 16))
    assert min(found) > 0


# -- what the programs say ---------------------------------------------------------------------------------------------
def grown(**changed: Any) -> growth.Measurements:
    """Return a run that breaks no bound, but for what is changed."""
    found = growth.Measurements(
        "a machine", 10_000.0,
        [Search(1_000, 384, 40.0, 30.0, 1.0, 2.0), Search(20_000, 384, 300.0, 3_000.0, 80.0, 600.0),
         Search(1_000_000, 384, 20_000.0, 150_000.0, 15_000.0, 60_000.0)],
        [Search(20_000, 64, 100.0, 200.0, 10.0, 50.0)],
        [Admission(0, 2.0, 35.0, 25.0), Admission(65_536, 12.0, 260.0, 40.0)],
    )  # fmt: skip
    for name, value in changed.items():
        setattr(found, name, value)
    return found


def test_normal_growth_breaks_no_bound() -> None:
    """Small stores may cost more than brute force."""

    assert growth.verdict(grown()) == []


def test_every_bound_of_growth_has_its_sentence() -> None:
    """Above brute force, above the cost per memory, above the cost per byte."""
    slow = Search(1_000_000, 384, 200_000.0, 150_000.0, 1.0, 1.0)
    heavy = [Admission(0, 2.0, 1.0, 1.0), Admission(65_536, 300.0, 1.0, 1.0)]

    sentences = growth.verdict(grown(by_capacity=[grown().by_capacity[1], slow], by_payload=heavy))

    assert sentences == [
        "recall of 1,000,000 × 384 takes 200000 µs, brute force 150000 µs",
        "a memory of 1,000,000 costs 13.3 times what one of 20,000 does",
        "65,536 bytes of payload cost 45 times what reading them does",
    ]


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Pictures can be drawn again from it."""
    path = tmp_path / "build" / "growth.json"
    growth.write(grown(), path)

    assert grown() == growth.read(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(MeasurementError, match=r"growth\.json is not a document of this program"):
        growth.read(path)


def test_a_picture_changes_only_where_the_figures_do(tmp_path: Path) -> None:
    """Two drawings are equal bytes; another figure changes them. Text is text, and there is no date."""
    pytest.importorskip("matplotlib")
    for name, found in (("a", grown()), ("b", grown()), ("c", grown(by_capacity=grown().by_capacity[1:]))):
        growth.draw(found, tmp_path / name)

    assert sorted(os.listdir(tmp_path / "a")) == ["event-payload.svg", "recall-capacity.svg", "recall-dimension.svg"]
    drawn = (tmp_path / "a" / "recall-capacity.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "b" / "recall-capacity.svg").read_text(encoding="utf-8")
    assert drawn != (tmp_path / "c" / "recall-capacity.svg").read_text(encoding="utf-8")
    assert ">recall, exact</text>" in drawn
    assert "<dc:date>" not in drawn


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """It includes the system's reason."""
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()

    with (
        pytest.raises(MeasurementError, match=r"cannot write .*: (File exists|Not a directory)"),
        picture.drawn(tmp_path / "file" / "x.svg"),
    ):
        pass


def latencies(half: float, full: float, others: float = 0.1) -> list[dict[str, Any]]:
    """Return runs whose figures that are judged are these, and a client that adds ten µs."""
    loads = [
        {"path": "recall", "load": load, "capacity": 1_000.0, "others": others, "latency_us": {"p50": p50}}
        for load, p50 in ((0.5, half), (0.8, full))
    ]
    return [*loads, {"path": latency.AT_ONCE, "load": 0, "capacity": 1.0, "latency_us": {"p50": 10.0}}]


def test_latency_bounds_are_in_service_times() -> None:
    """p50 within four at half of capacity, within twenty at 80 %."""

    assert latency.verdict(latencies(4_010.0, 20_010.0)) == ([], [])
    assert latency.verdict(latencies(4_011.0, 20_011.0)) == (
        [
            "recall at 50%: p50 is 4,011 µs; at most 4,010 µs is promised",
            "recall at 80%: p50 is 20,011 µs; at most 20,010 µs is promised",
        ],
        [],
    )


def test_a_run_beside_others_is_not_judged() -> None:
    """The effect of other programs cannot be separated from the server's."""

    assert latency.verdict(latencies(4_011.0, 20_011.0, 0.11)) == (
        [],
        [f"recall at {load}: not judged, others had 11% of the two cores meanwhile" for load in ("50%", "80%")],
    )


@pytest.mark.slow
@needs_wrk
def test_a_small_latency_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real servers and clients: both routes at both loads, and the client alone; the picture can be drawn again.

    On a busy machine an answer may be 503, because the lock was held for too long: then nothing is measured.
    """
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(latency, "CAPACITY_ROUNDS", 1)
    monkeypatch.setattr(latency, "ROUNDS", 2)
    document, drawn = tmp_path / "latency.json", tmp_path / "latency.svg"
    words = ["--seconds", "0.2", "--json", str(document), "--picture", str(drawn)]

    eventually(lambda: latency.main(words) == 0)

    runs = json.loads(document.read_text(encoding="utf-8"))["runs"]
    assert [(run["path"], run["load"]) for run in runs] == [
        ("recall", 0.5),
        ("recall", 0.8),
        ("event raw", 0.5),
        ("event raw", 0.8),
        (latency.AT_ONCE, 0),
    ]
    for run in runs:
        values = list(run["latency_us"].values())
        assert values == sorted(values)
        assert len(run["curve"]) == len(run.get("queue", run["curve"]))
    first = drawn.read_bytes()
    assert latency.main(["--drawn", str(document), "--picture", str(drawn)]) == 0
    assert first == drawn.read_bytes()


@needs_wrk
def test_a_small_growth_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of each kind, over HTTP as well."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(growth, "ROUNDS", 1)
    words = ["--capacity-max", "1000", "--dimension-max", "64", "--payload-max", "0"]

    eventually(lambda: growth.main([*words, "--json", str(tmp_path / "growth.json"), "--pictures", str(tmp_path)]) == 0)

    found = growth.read(tmp_path / "growth.json")
    assert [(one.capacity, one.dimension) for one in found.by_capacity] == [(1_000, 384)]
    assert [(one.capacity, one.dimension) for one in found.by_dimension] == [(1_000, 64)]
    assert 0 < found.by_payload[0].admit_us
