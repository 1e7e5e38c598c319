"""Reloads, scarcity, freezes and clock jumps: each fault a few times."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.faults import clocks, frozen, quota, reload, reload_refused, scarcity, soak
from loadtests.faults.fault import FaultOptions, Outcome
from testing.eventually import eventually
from tests.loadtests.faults.judged import broken_promises, options_of

SMALL = 0.05  # once for what a full run does twenty times


@pytest.mark.parametrize("run", [reload.reload, reload.upgrade])
def test_no_request_fails_while_the_server_is_replaced(run: Callable[[FaultOptions], Outcome], tmp_path: Path) -> None:
    """HUP and USR2 under load: every memory is kept, the log is one, and there is one controller."""
    outcome = run(options_of(tmp_path, SMALL))

    assert broken_promises(outcome) == []
    assert outcome.figures["failed requests"] == 0


@pytest.mark.parametrize("run", [reload_refused.refused, reload_refused.unbootable, reload_refused.no_descriptors])
def test_a_reload_that_cannot_succeed_changes_nothing(run: Callable[[FaultOptions], Outcome], tmp_path: Path) -> None:
    """The log names the problems, settings and memories stay, and a valid reload works afterwards."""
    assert broken_promises(run(options_of(tmp_path, SMALL))) == []


@pytest.mark.parametrize("by_signals", [False, True], ids=["as this machine can", "by signals"])
def test_no_holder_is_killed_while_all_are_throttled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_signals: bool
) -> None:
    """A throttled holder of the lock is not stuck."""
    monkeypatch.setattr(frozen, "THROTTLED_SECONDS", 1.5)
    if by_signals:
        monkeypatch.setattr(quota, "find", lambda: None)

    def undisturbed() -> Outcome | None:
        """On a machine with no time to spare, the arbiter is right to replace what was silent for too long: again."""
        outcome = frozen.throttled(options_of(tmp_path, 0))
        assert outcome.figures["killed"] == 0
        replaced = [sentence for sentence in outcome.broken if "have become" in sentence or "is silent" in sentence]
        assert outcome.broken == replaced
        return None if replaced else outcome

    outcome = eventually(undisturbed)

    assert not by_signals or outcome.figures["how"] == "stopped and continued"


def test_no_holder_is_killed_after_a_freeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that was frozen inside the section with all others continues."""
    monkeypatch.setattr(frozen, "FROZEN_SECONDS", 1.5)

    outcome = frozen.frozen(options_of(tmp_path, SMALL))

    assert outcome.broken == []
    assert outcome.figures["killed"] == 0


@pytest.mark.parametrize("run", [scarcity.no_descriptors, scarcity.no_memory, scarcity.full_log])
def test_scarcity_passes_without_loss(run: Callable[[FaultOptions], Outcome], tmp_path: Path) -> None:
    """Without descriptors, memory or log space, with and without a dying worker."""
    assert broken_promises(run(options_of(tmp_path, 0.1))) == []


@pytest.mark.slow
def test_clock_jumps_are_harmless(tmp_path: Path) -> None:
    """Rhythm, limits and deadlines ignore the wall clock; missed steps after a suspend are skipped."""
    outcome = clocks.jumps(options_of(tmp_path, SMALL))

    assert broken_promises(outcome) == []
    assert outcome.count == 4


def test_a_short_soak_is_flat(tmp_path: Path) -> None:
    """The soak works; real growth shows only in an hour on an idle machine."""
    outcome = soak.soak(options_of(tmp_path, 0))

    assert outcome.count == soak.SAMPLES_MIN
    assert outcome.figures["events"]
    assert "descriptors" in outcome.figures


def test_a_growing_soak_is_reported() -> None:
    """Descriptors, memory, slower scrapes and a client without answers are each reported."""
    looks = [soak.Sample(10.0 * n, 100 + 0.1 * n, 60 + n, 2, 1 + 0.1 * n, 1000 * n) for n in range(1, 101)]

    outcome = soak.outcome_of(looks, [0.1, 7.0], Counter(lost=3))

    assert outcome.broken == [
        "memory has grown by 6.7 MB",
        "67 more descriptors are open",
        "a scrape takes 3.48 times as long",
        "a client went 7.0 s without an answer",
    ]


def test_a_soak_on_a_busy_machine_is_flat() -> None:
    """Everything takes three times as long in the second half, with outliers, and nothing counts as growth."""
    looks = [
        soak.Sample(
            10.0 * n, 150 - 20 * (n % 5 == 0), 60 + 9 * (n % 5 == 1), 6 if n > 50 else 2, 2 + 5 * (n % 5 == 2), 1000 * n
        )
        for n in range(1, 101)
    ]

    assert soak.outcome_of(looks, [0.9], Counter()).broken == []
