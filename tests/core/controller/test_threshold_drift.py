"""Drift of the threshold: what begins an episode, that it is reported once, and what ends it."""

import os
import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from core.controller.threshold_drift import DriftWatch, Episode, Kind

SECOND_NS = 1_000_000_000
START_NS = int(os.environ.get("START_NS") or random.randrange(10**18)) // (10 * SECOND_NS) * 10 * SECOND_NS


class Watched:
    """A watch over a threshold within [0.3, 0.9], observed four times a second from a random moment on."""

    def __init__(self, active: Iterable[Kind] = ()) -> None:
        self.watch = DriftWatch(active)
        print(f"the clock starts at {START_NS}; rerun with START_NS={START_NS} pytest {__file__}")
        self.now_ns = START_NS
        self.said: list[Episode] = []

    def hold(self, threshold: float, seconds: float, minimum: float = 0.3, maximum: float = 0.9) -> list[str]:
        """Hold the threshold for so long; return the kinds of the episodes that begin meanwhile."""
        began = []
        for _ in range(int(seconds * 4)):
            began += self.watch.observe(self.now_ns, threshold, minimum, maximum)
            self.now_ns += SECOND_NS // 4
        self.said += began
        return [episode.kind for episode in began]


class TestBound:
    def test_a_minute_at_a_bound_is_an_episode(self) -> None:
        """Not before 60 s, and once however long it lasts."""
        watched = Watched()

        assert watched.hold(0.9, 60) == []
        assert watched.hold(0.9, 500) == ["at_maximum"]
        assert watched.said == [
            Episode(
                "at_maximum",
                START_NS + 60 * SECOND_NS,
                "the moral threshold has been at its maximum of 0.9 for 60 s",
            )
        ]

    def test_it_ends_when_the_threshold_leaves(self) -> None:
        """One observation away from the bound ends it; another minute begins another."""
        watched = Watched()
        watched.hold(0.3, 61)
        assert list(watched.watch.active) == ["at_minimum"]

        watched.hold(0.35, 0.25)
        assert list(watched.watch.active) == []
        assert watched.hold(0.3, 59) == []
        assert watched.hold(0.3, 2) == ["at_minimum"]

    def test_a_visit_begins_the_minute_anew(self) -> None:
        """Two separate half minutes at a bound do not add up."""
        watched = Watched()

        assert watched.hold(0.9, 40) + watched.hold(0.85, 1) + watched.hold(0.9, 40) == []

    def test_the_other_bound_is_another_episode(self) -> None:
        """From the maximum straight to the minimum."""
        watched = Watched()

        assert watched.hold(0.9, 61) + watched.hold(0.3, 61) == ["at_maximum", "at_minimum"]
        assert list(watched.watch.active) == ["at_minimum"]

    def test_a_bound_that_moves_is_another_bound(self) -> None:
        """After a reload that lowers the maximum to the threshold, the minute is counted from there."""
        watched = Watched()

        assert watched.hold(0.9, 61) + watched.hold(0.8, 59, maximum=0.8) == ["at_maximum"]
        assert watched.hold(0.8, 2, maximum=0.8) == ["at_maximum"]

    def test_a_threshold_held_on_purpose_is_no_drift(self) -> None:
        """With equal bounds there is nowhere to go."""
        assert Watched().hold(0.5, 100, minimum=0.5, maximum=0.5) == []


class TestMean:
    def test_a_move_of_the_ten_minute_mean_is_an_episode(self) -> None:
        """Ten minutes at 0.5, then at 0.65: the means are 0.15 apart when the second ten minutes are over."""
        watched = Watched()

        assert watched.hold(0.5, 600) + watched.hold(0.65, 600) == []
        assert watched.hold(0.65, 1) == ["mean_moved"]
        assert watched.said[0].sentence == "the moral threshold's ten-minute mean has moved from 0.500 to 0.650"

    def test_a_smaller_shift_is_no_drift(self) -> None:
        """Adaptation within 0.15 is the threshold's work."""
        watched = Watched()

        assert watched.hold(0.5, 600) + watched.hold(0.64, 1300) == []

    def test_downwards_too(self) -> None:
        """The direction does not matter."""
        watched = Watched()

        assert watched.hold(0.8, 600) + watched.hold(0.6, 700) == ["mean_moved"]

    def test_swings_that_cancel_are_none(self) -> None:
        """A threshold that swings every minute has a mean that stays."""
        watched = Watched()

        assert [kind for _ in range(15) for kind in watched.hold(0.4, 55) + watched.hold(0.8, 55)] == []

    def test_it_is_said_once_and_ends(self) -> None:
        """After long enough at a new level the means agree again; the next move is a new episode."""
        watched = Watched()

        assert watched.hold(0.4, 1200) + watched.hold(0.7, 900) == ["mean_moved"]
        assert list(watched.watch.active) == ["mean_moved"]
        assert watched.hold(0.7, 600) == []
        assert list(watched.watch.active) == []
        assert watched.hold(0.4, 1200) == ["mean_moved"]

    def test_nothing_is_said_before_twenty_minutes(self) -> None:
        """There is nothing to compare with yet."""
        watched = Watched()

        assert watched.hold(0.4, 300) + watched.hold(0.8, 890) == []

    def test_both_kinds_may_last_at_once(self) -> None:
        """A threshold that went to its bound and stays is both."""
        watched = Watched()

        assert sorted(watched.hold(0.5, 1200) + watched.hold(0.9, 600)) == ["at_maximum", "mean_moved"]


class TestSuccession:
    def test_what_was_said_is_not_said_again(self) -> None:
        """A watch that starts with a reported episode keeps it while it lasts, and reports the next one."""
        watched = Watched(["at_maximum", "mean_moved"])

        assert watched.hold(0.9, 200) == []
        assert sorted(watched.watch.active) == ["at_maximum", "mean_moved"]
        assert watched.hold(0.8, 1) + watched.hold(0.9, 62) == ["at_maximum"]

    def test_what_ended_meanwhile_is_over(self) -> None:
        """At the other bound, or at none, when the new watch looks for the first time."""
        watched, other = Watched(["at_maximum"]), Watched(["at_maximum"])
        watched.hold(0.5, 1)
        other.hold(0.3, 1)

        assert (watched.watch.active, other.watch.active) == (set(), set())
        assert other.hold(0.3, 62) == ["at_minimum"]

    def test_a_mean_that_has_moved_is_judged_when_there_are_means(self) -> None:
        """After twenty minutes at one level."""
        watched = Watched(["mean_moved"])
        watched.hold(0.5, 1190)
        assert watched.watch.active == {"mean_moved"}
        watched.hold(0.5, 30)

        assert watched.watch.active == set()


class TestGaps:
    def test_the_threshold_stands_where_it_was_last_seen(self) -> None:
        """A controller that was frozen for ten minutes compares as if it had seen the same value all along."""
        watched = Watched()
        watched.hold(0.5, 600)
        watched.hold(0.7, 1)
        watched.now_ns += 599 * SECOND_NS

        assert watched.hold(0.7, 15) == ["mean_moved"]

    @settings(max_examples=60, deadline=None)
    @given(steps=st.lists(st.tuples(st.integers(0, 10**15), st.floats(0.3, 0.9)), max_size=200))
    def test_memory_is_bounded(self, steps: list[tuple[int, float]]) -> None:
        """Whatever the intervals, at most 120 means are kept and no kind is said twice without an end."""
        watch, now_ns = DriftWatch(), 0
        for elapsed_ns, threshold in steps:
            now_ns += elapsed_ns
            before = set(watch.active)
            began = watch.observe(now_ns, threshold, 0.3, 0.9)

            assert len(watch._means) <= 120
            assert {episode.kind for episode in began}.isdisjoint(before)
