"""Capacity planning: the page's byte tables follow from the layout, and the measuring programs run on a small scale."""

import pytest

from loadtests.cost import capacity, footprint, routes
from loadtests.load import population, sustained, throughput_max
from loadtests.load.meter import Reading, Window, between
from loadtests.load.request_bodies import RequestBodies
from testing.live_server import ROOT
from tests.programs import needs

PAGE = ROOT / "docs" / "capacity.md"
MEDIAN = Window(1_000.0, 0.1, 0.3, 0.05, 0.5)


# -- bytes -------------------------------------------------------------------------------------------------------------
def test_the_tables_of_the_page_are_those_of_the_layout() -> None:
    """`python -m loadtests.cost.capacity` prints every line of the page's tables in order."""
    page = PAGE.read_text(encoding="utf-8")

    assert [name for name, lines in capacity.tables() if "\n".join(lines) not in page] == []


@pytest.mark.parametrize(("dimension", "payload"), [(2, 0), (384, 1_024), (385, 1), (1_023, 1_023), (4_096, 65_536)])
def test_the_pages_formula_of_a_memory_is_right(dimension: int, payload: int) -> None:
    """Slot line, code, link, kinds and words of metadata; int8 and float32 vector and payload, each rounded up."""

    def up(size: int, multiple: int) -> int:
        return -(-size // multiple) * multiple

    expected = 128 + 24 + 24 + 16 + 256 + up(dimension, 16) + up(4 * dimension, 64) + up(payload, 8)
    few, more = (
        capacity.layout(capacity=number, dimension=dimension, payload_size_max=payload).block_size
        for number in (4_096, 8_192)
    )

    assert capacity.slot_bytes(dimension, payload) == expected
    assert more - few == (expected + 8) * 4_096  # of the index: 4 for each of less than two chains


@pytest.mark.parametrize("dimension", capacity.DIMENSIONS)
@pytest.mark.parametrize("payload", capacity.PAYLOADS)
def test_the_stated_capacity_fits_and_a_thousand_more_do_not(dimension: int, payload: int) -> None:
    """It fits the share of the limit that a block may take."""
    sizes = {"dimension": dimension, "payload_size_max": payload}
    memories = capacity.room(capacity.BUDGET, 2, **sizes)
    left = capacity.block_max(capacity.BUDGET, 2)

    assert capacity.layout(capacity=memories, **sizes).block_size <= left
    assert capacity.layout(capacity=memories + 1_001, **sizes).block_size > left


def test_a_block_leaves_room_for_the_processes() -> None:
    """In 1.4 GB a fifth of the free memory suffices for two workers with full buffers; in half of it, it does not."""
    processes = capacity.RESERVE_BASE + 2 * (capacity.RESERVE_WORKER + capacity.BUFFERS_WORKER)

    assert capacity.block_max(1_400_000_000, 2) == 0.8 * (1_400_000_000 - capacity.RESERVE_BASE)
    assert 700_000_000 - processes == capacity.block_max(700_000_000, 2)


def test_nothing_fits_a_budget_that_the_processes_exhaust() -> None:
    """A large budget fits no more than the configurable maximum."""
    sizes = {"dimension": 384, "payload_size_max": 0}

    assert capacity.room(50_000_000, 2, **sizes) == 0
    assert capacity.room(10**12, 2, **sizes) == capacity.CAPACITY_MAX


# -- programs ----------------------------------------------------------------------------------------------------------
def test_a_server_stays_within_the_reserve(capsys: pytest.CaptureFixture[str]) -> None:
    """One worker, after work and with idle connections, stays within the reserve of capacity planning."""

    assert footprint.main(["--workers", "1"]) == 0

    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 |"))
    started, _, _, reserve = (float(cell) for cell in line.strip("| ").split(" | ")[1:])
    assert 0 < started < reserve


@pytest.mark.slow
def test_the_sustained_load_runs_against_production(capsys: pytest.CaptureFixture[str]) -> None:
    """Rate and window are tiny: limits are on, and nothing fails or is refused."""
    status = sustained.main(["--rate", "50", "--windows", "1", "--seconds", "3"])
    out = capsys.readouterr().out

    assert status in (0, 1)
    assert "0 failed, 0 refused" in out
    assert out.count("|  median |") == 2
    assert "| /recall, JSON |" in out


@needs("wrk")
def test_the_price_of_a_route_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """On many connections and on one; the inverse of the price is the rate per core."""

    assert routes.main(["--rounds", "1", "--only", "liveness"]) == 0

    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    full, alone, _rare, *rates = (float(cell.replace(",", "")) for cell in cells[1:])
    assert cells[0] == "/health/liveness"
    assert rates == [pytest.approx(1e6 / full, rel=0.02), pytest.approx(1e6 / alone, rel=0.02)]


@pytest.mark.slow
@needs("wrk")
def test_both_generators_are_measured_at_full_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """Both send the same mix; the table has a line for each."""

    assert throughput_max.main(["--rounds", "1", "--seconds", "1"]) == 0

    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[-2:]] == ["wrk", "Locust"]


def test_the_mix_has_the_declared_shares() -> None:
    """Within three standard deviations of a draw of two thousand."""
    whole = list(throughput_max.mixed_requests(RequestBodies(population.generate(1))))
    recalls = sum(request.startswith(b"POST /recall ") for request in whole) / len(whole)
    keyed = sum(b"Idempotency-Key" in request for request in whole) / len(whole)

    assert len(whole) == throughput_max.REQUESTS
    assert 0.080 < recalls < 0.120
    assert 0.173 < keyed < 0.227
    assert sum(share for _, share in throughput_max.MIX) == 100


# -- arithmetic --------------------------------------------------------------------------------------------------------
def test_a_window_is_the_difference_of_two_readings() -> None:
    """Two seconds, half a core of server, a quarter of generator, a quarter of others."""
    window = between(Reading(1.0, 0, 0, 0, 100), Reading(3.0, 10**9, 5 * 10**8, 2 * 10**9, 2_100))

    assert window[:4] == (1_000.0, 0.5, 0.25, 0.25)
    assert window.cpu_us == 500.0


def test_figures_at_the_promise_are_no_violation() -> None:
    """Bounds are inclusive; the CPU bound grows with the rate from a thousand on."""

    assert sustained.violations([MEDIAN._replace(rate=980.0, server=0.16)], 1_000.0, 0.16) == []
    assert sustained.violations([MEDIAN._replace(rate=2_000.0, server=0.32)], 2_000.0, 0.16) == []
    assert sustained.violations([MEDIAN._replace(rate=500.0, server=0.16)], 500.0, 0.16) == []


def test_each_promise_broken_in_the_median_window_is_a_sentence() -> None:
    """One bad window of three breaks none."""
    bad = MEDIAN._replace(rate=900.0, server=0.2)

    assert sustained.violations([MEDIAN, bad, MEDIAN], 1_000.0, 0.16) == []
    assert sustained.violations([bad, bad, MEDIAN], 1_000.0, 0.16) == [
        "900 requests a second were sustained; 1,000 were asked for",
        "the server took 0.200 core; at most 0.160 is promised at this rate",
    ]


def test_percentiles_are_counted_times() -> None:
    """Nineteen of twenty at 10 ms or less: the p95 is 10, in any order of the text."""
    counts = {"100": 1, "2": 10, "10": 9}

    assert [sustained.percentile(counts, share) for share in (0.5, 0.95, 1.0)] == [2.0, 10.0, 100.0]
