"""A small run of the benchmark: its arithmetic, and one row of every kind for a second; no assertion about speed."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import falcon.testing
import numpy as np
import pytest

from loadtests.bench import goals, report, traffic, vectors, wrk
from loadtests.bench.__main__ import main
from loadtests.bench.comparison import Result, ServerPool, Slice, check_moved, median
from loadtests.bench.contention import Waits, Window
from loadtests.bench.processor import Cores, pinned, used_ns
from loadtests.bench.rows import ROWS, Row, Side, chosen
from loadtests.bench.servers import PRODUCTION, TOKEN, Product
from loadtests.bench.wrk import MeasurementError, Sample
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT
from tests.programs import needs

LINE = (
    'MEASURED {"completed": 90, "sent": 95, "seconds": 0.5, "connect": 0, "read": 2, "write": 0, "status": 3, '
    '"timeout": 0, "latency_us": [10, 20]}'
)
SIDE = Side("product", "event raw")
needs_wrk = needs("wrk")


@pytest.fixture(scope="module")
def given() -> vectors.Vectors:
    """The synthetic set."""
    return vectors.synthetic()


def sliced(cpu_us: float, items_per_second: float = 1.0) -> Slice:
    """Return a slice with these figures."""
    return Slice(items_per_second, items_per_second, cpu_us, 1.0, 1.0, 2.0)


# -- what the client says ----------------------------------------------------------------------------------------------
def test_the_script_line_is_parsed_among_wrks_output() -> None:
    """Kinds of errors without any are left out."""
    said = f"Running 1s test @ http://127.0.0.1:1\n  1 threads and 2 connections\n{LINE}\nRequests/sec: 180\n"

    assert Sample(90, 95, 0.5, (10.0, 20.0), {"read": 2, "status": 3}) == wrk.parse(said)


def test_output_without_the_script_line_is_an_error() -> None:
    """The error quotes wrk's output."""
    with pytest.raises(MeasurementError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_missing_wrk_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    """The status is 2, and nothing is started."""
    ended = subprocess.run(
        [sys.executable, "-m", "loadtests.bench"],
        cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout, "apt install wrk" in ended.stderr) == (2, "", True)


# -- arithmetic --------------------------------------------------------------------------------------------------------
def test_a_share_is_the_median_ratio_of_cpu_times() -> None:
    """The median of the rounds' ratios, not the ratio of medians."""
    row = Row("a", "b", SIDE, SIDE)
    result = Result(row, [sliced(20), sliced(40), sliced(100)], [sliced(10), sliced(30), sliced(90)])

    assert result.ratios == [0.5, 0.75, 0.9]
    assert result.ratio == 0.75


def test_a_gain_is_in_items_per_second() -> None:
    """A batch of a hundred counts as a hundred."""
    result = Result(Row("a", "b", SIDE, SIDE, "gain"), [sliced(1, 300.0)], [sliced(1, 100.0)])

    assert result.ratio == 3.0


def test_the_median_is_taken_per_figure() -> None:
    """The slice with the median of one figure need not have that of another."""
    found = median([Slice(1, 2, 9, 0.1, 5, 5), Slice(2, 9, 1, 0.2, 4, 6), Slice(3, 1, 2, 0.3, 3, 9)])

    assert Slice(2, 2, 2, 0.2, 4, 6) == found


def test_accepted_events_lie_between_answered_and_sent() -> None:
    """One less or one more makes the row an error: an event was lost or counted twice."""
    sample = wrk.parse(LINE)

    check_moved(900, sample, 10, SIDE)
    check_moved(950, sample, 10, SIDE)
    for moved in (899, 951):
        with pytest.raises(MeasurementError, match=rf"{moved} events were accepted; expected from 900 .* to 950"):
            check_moved(moved, sample, 10, SIDE)


def test_a_mostly_free_lock_has_a_p99_wait_of_zero() -> None:
    """No more than a hundredth of the sections waited, however long."""
    waits = Waits(10_000, [Window(60, 5_000_000), Window(40, 5_000_000)])

    assert (waits.p99_us_max, waits.mean_us) == (0.0, 100.0)


def test_one_long_wait_does_not_raise_the_bound() -> None:
    """Ten waits of 1 ms among two hundred of 2 µs are in windows of their own."""
    short = [Window(10, 20_000)] * 20

    assert pytest.approx(Waits(10_000, short).p99_us_max, rel=0.02) == 4.0  # 400 µs in all, a hundred sections
    assert pytest.approx(Waits(10_000, [*short, *[Window(1, 1_000_000)] * 10]).p99_us_max, rel=0.02) == 5.0


def test_the_bound_is_never_below_the_true_percentile() -> None:
    """It holds for several kinds of waits, even when a read falls between the two steps of counting."""
    random = np.random.default_rng(7)
    for waits_ns in (random.exponential(5_000, 20_000), random.pareto(1.5, 20_000) * 1_000, np.full(20_000, 3_000.0)):
        for free in (0, 0.5, 0.9, 0.985):
            found = np.where(random.random(20_000) < free, 0, waits_ns)
            ends = np.sort(random.integers(1, 20_000, 5_000))
            numbers = np.append(
                np.cumsum(found > 0)[ends], (found > 0).sum()
            )  # the wait at the end is counted already,
            times = np.append(np.cumsum(found)[ends - 1], found.sum())  # its time is not
            moved = zip(np.diff(numbers, prepend=0), np.diff(times, prepend=0), strict=True)
            windows = [Window(*map(int, pair)) for pair in moved]

            assert Waits(20_000, windows).p99_us_max >= np.percentile(found, 99) / 1e3


# -- goals and rows ----------------------------------------------------------------------------------------------------
def test_every_missed_goal_is_named() -> None:
    """A goal that was not measured is neither reached nor missed."""
    verdict = goals.judge({"/event raw": 0.79, "/state": 0.80, goals.LOCK: 51.0})

    assert verdict.short == ["/event raw: 0.79; the goal is ≥ 0.8", f"{goals.LOCK}: 51; the goal is ≤ 50"]
    assert len(goals.GOALS) - 3 == len(verdict.unmeasured)


def test_every_goal_has_its_row() -> None:
    """A renamed row must not lose its goal silently."""

    assert {goal.row for goal in goals.GOALS} <= {row.name for row in ROWS} | {goals.LOCK}
    assert len(ROWS) == len({row.name for row in ROWS})


def test_rows_are_selected_by_name_or_part() -> None:
    """A whole name selects that row alone."""

    assert chosen([]) == list(ROWS)
    assert [row.name for row in chosen(["/event raw"])] == ["/event raw"]
    assert [row.name for row in chosen(["event js", "/event J*", "JSON against"]) if row.name.startswith("/event")] == [
        "/event JSON",
        "/event JSON against FastAPI",
        "/event JSON against Chroma",
    ]
    assert chosen(["no such row"]) == []


# -- vectors and traffic -----------------------------------------------------------------------------------------------
def test_synthetic_vectors_are_reproducible(given: vectors.Vectors) -> None:
    """They have unit norm and neighbours, and no query is a memory."""

    assert np.array_equal(given.memories, vectors.synthetic().memories)
    assert (given.memories.shape, given.queries.shape) == ((20_000, 384), (1_000, 384))
    np.testing.assert_allclose(np.linalg.norm(given.memories, axis=1), 1.0, atol=1e-5)
    nearest = (given.queries[:50] @ given.memories.T).max(axis=1)
    assert 0.5 < nearest.min()
    assert nearest.max() < 0.999


def test_given_vectors_fill_the_store_and_keep_the_queries_apart(tmp_path: Path) -> None:
    """Memories are repeated when there are too few; the last thousand are the queries."""
    found = np.random.default_rng(3).standard_normal((2_500, 8)).astype(np.float16)
    np.savez(tmp_path / "some.npz", vec=found)

    loaded = vectors.load(tmp_path / "some.npz")

    assert (loaded.memories.shape, loaded.queries.shape) == ((20_000, 8), (1_000, 8))
    assert np.array_equal(loaded.memories[:1_500], loaded.memories[1_500:3_000])
    assert np.array_equal(vectors.unit(found[1_500:]), loaded.queries)


@pytest.mark.parametrize("content", [{"other": np.ones((9, 9))}, {"vec": np.ones((9, 9))}, {"vec": np.ones(9_999)}])
def test_a_file_without_vectors_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    """The sentence names the file and the expected content."""
    np.savez(tmp_path / "other.npz", **content)

    with pytest.raises(MeasurementError, match=r"other\.npz.*vec|`vec` of .*other\.npz"):
        vectors.load(tmp_path / "other.npz")


def test_requests_are_complete_and_different(given: vectors.Vectors) -> None:
    """At least a thousand of each kind except batches; Content-Length is right, and the file has them in order."""
    made = traffic.product_traffic(given.memories, given.queries, TOKEN)

    for name, part in made.items():
        assert len(part.requests) == len(set(part.requests))
        assert len(part.requests) >= {"batch": 100, "state": 1, "livez": 1}.get(name, 1_000)
        head, _, body = part.requests[-1].partition(b"\r\n\r\n")
        assert head.startswith(b"GET") or f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
        written = traffic.encode_requests(part._replace(requests=part.requests[:2]))
        assert len(part.requests[0]) == int.from_bytes(written[:4], "little")
        assert written[4:].startswith(part.requests[0])
    _, _, body = made["event JSON"].requests[5].partition(b"\r\n\r\n")
    np.testing.assert_allclose(json.loads(body)["event_vector"], given.memories[5], atol=1e-7)


# -- servers -----------------------------------------------------------------------------------------------------------
def test_cpu_time_is_that_of_the_process() -> None:
    """It counts user and system time in nanoseconds; an ended process is an error, not zero."""
    program = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\ninput()"
    burning = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    eventually(lambda: used_ns([burning.pid]) >= 200_000_000)
    burning.communicate(b"\n", timeout=HANG_SECONDS)

    with pytest.raises(ProcessLookupError):
        used_ns([burning.pid])


def test_processes_started_inside_are_pinned() -> None:
    """The affinity of this process is restored."""
    before = os.sched_getaffinity(0)
    with pinned({min(before)}):
        told = subprocess.check_output(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"], text=True, timeout=HANG_SECONDS
        )

    assert (str(min(before)), before) == (told.strip(), os.sched_getaffinity(0))


def test_brute_force_returns_the_nearest(
    given: vectors.Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns as many as requested, best first."""
    np.save(tmp_path / "memories.npy", given.memories)
    monkeypatch.setenv("BENCH_VECTORS", str(tmp_path / "memories.npy"))
    from loadtests.bench import brute  # noqa: PLC0415 - it reads the variable when it is imported

    environ = falcon.testing.create_environ("/recall", "top_k=7", method="POST", body=given.queries[3].tobytes())
    told = json.loads(b"".join(brute.app(environ, falcon.testing.StartResponseMock())))

    expected = np.argsort(-(given.memories.astype(np.float64) @ given.queries[3]))[:7]
    assert expected.tolist() == [match["memory_id"] for match in told["matches"]]


@pytest.mark.slow
@needs_wrk
def test_rows_are_measured_against_their_floor(tmp_path: Path) -> None:
    """With real servers and a real client every event is counted, and the document equals the table."""
    document = tmp_path / "bench.json"
    words = ["--rows", "/event raw", "/events raw × 100", "lock", "--rounds", "1", "--seconds", "1"]

    # A machine that suspends a holder of the lock for over 40 ms has others answer 503, which is an error: again.
    eventually(lambda: main([*words, "--json", str(document)]) == 0)

    told = json.loads(document.read_text(encoding="utf-8"))
    assert [row["row"] for row in told["rows"]] == ["/event raw", "/events raw × 100"]
    assert told["failures"] == []
    for row in told["rows"]:
        pairs = zip(row["reference"]["slices"], row["subject"]["slices"], strict=True)
        assert row["ratio"] == statistics.median(floor["cpu_us"] / ours["cpu_us"] for floor, ours in pairs)
        assert 0 < row["subject"]["p50_us"] <= row["subject"]["p99_us"]
        assert 0 < row["subject"]["busy"] < 1.5
    assert told["lock"]["sections"] > 0


@needs_wrk
def test_a_row_whose_requests_are_refused_is_an_error(tmp_path: Path, given: vectors.Vectors) -> None:
    """The speed of refusals is not measured."""
    slow = {name: "1" for name in PRODUCTION if "RATE_LIMITING__TIERS" in name}
    sent = traffic.product_traffic(given.memories, given.queries, TOKEN)
    core = min(os.sched_getaffinity(0))
    with (
        ServerPool({"product": lambda: Product(tmp_path, slow)}, sent, Cores(core, core, frozenset({core}))) as pool,
        pytest.raises(MeasurementError, match=r"event raw on product: \d+ answers, errors \{'status': \d+\}"),
    ):
        pool.slice(SIDE, 1)


def test_without_its_histogram_the_product_still_decides(tmp_path: Path, given: vectors.Vectors) -> None:
    """It counts no latency, while the normal one does."""
    counted = {}
    for name, application in (("with", "app.main:app"), ("without", "loadtests.bench.unmetered:app")):
        (tmp_path / name).mkdir()
        server = Product(tmp_path / name, application=application, fill=given.memories[:100])
        server.start(os.sched_getaffinity(0))
        try:
            assert server.accepted() == 100
            counted[name] = "process_event_latency_seconds_count 1.0" in server.live.get("/metrics").body.decode()
        finally:
            server.stop()

    assert counted == {"with": True, "without": False}


def test_a_line_of_the_table_has_a_cell_for_every_column() -> None:
    """It says whether the goal holds."""
    row = next(row for row in ROWS if row.name == "/event raw")
    line = report.line(Result(row, [sliced(40.0, 25_000.0)], [sliced(30.0)]))

    assert report.HEAD.count("|") == line.count("|") == report.RULE.count("|")
    assert "| 0.75 | 0.75–0.75 | ≥ 0.8 ✗ |" in line
