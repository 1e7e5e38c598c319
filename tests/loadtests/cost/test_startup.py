"""Start-up and scrape programs on a small scale."""

import pytest

from loadtests.cost import scrape, startup
from loadtests.cost.scrape import ScrapeFigures


def test_a_start_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """One start is measured, and the server ends normally; the summary is of that start."""

    assert startup.main(["--starts", "1"]) == 0

    lines = capsys.readouterr().out.splitlines()
    [summary] = [line for line in lines if line.startswith("min ")]
    taken = int(summary.split("median ")[1].split(" ms")[0].replace(",", ""))
    assert 0 < taken
    assert summary == f"min {taken:,} ms, median {taken:,} ms, max {taken:,} ms"


def test_zero_starts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no median of nothing."""
    with pytest.raises(SystemExit):
        startup.main(["--starts", "0"])

    assert "--starts is 0: expected 1 or more" in capsys.readouterr().err


def test_scrapes_are_timed_before_and_after_workers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """Every worker is replaced once, by both signals; the number of files stays within the rows."""

    assert scrape.main(["--recycles", "4"]) == 0

    cells = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 0", "| 4"))]
    assert [line[0] for line in cells] == ["| 0", "| 4"]
    for line in cells:
        assert 0 < int(line[-1].rstrip(" |")) <= 4 * scrape.WORKERS * scrape.FAMILIES


def test_every_bound_of_a_scrape_has_its_sentence() -> None:
    """Slow, grown, and too many files are violations; figures at the bound are not."""
    quick = ScrapeFigures(2.0, 9.0, 5_000, 16)

    assert scrape.verdict(quick, ScrapeFigures(3.0, 9.0, 5_000, 16), rows=8) == []
    assert scrape.verdict(quick, ScrapeFigures(5.0, 9.0, 5_000, 17), rows=8) == [
        "a scrape takes 5.0 ms after workers were replaced; under 5 ms is promised",
        "a scrape takes 2.5 times as long after workers were replaced",
        "there are 17 files; expected at most 2 for each of 8 rows",
    ]
