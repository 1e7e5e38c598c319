"""The governor, as the specification states it."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.reference.governor import Governor
from core.regime import GovernorSettings, Regime
from core.settings.config import Config

DEFAULT = Regime.of(Config()).governor


def after(morals: list[float], settings: GovernorSettings = DEFAULT) -> Governor:
    """Return the state after some events."""
    governor = Governor.initial(settings)
    for moral in morals:
        _, governor = governor.decide(moral, settings)
    return governor


class TestDecide:
    def test_initial_state(self) -> None:
        """θ is 0.50 and the mean 0.5."""
        assert Governor.initial(DEFAULT) == Governor(0.5, 0.5)

    @pytest.mark.parametrize(
        ("moral", "theta", "accepted"),
        [
            (0.5, 0.5, True),  # inclusive
            (math.nextafter(0.5, 0), 0.5, False),
            (0.9, 0.9, True),
            (math.nextafter(0.9, 0), 0.9, False),
            (0.3, 0.3, True),
            (math.nextafter(0.3, 0), 0.3, False),
            (0.9, 2.0, True),  # from the maximum on whatever θ says
            (0.2999, 0.0, False),  # below the minimum whatever θ says
            (0.0, 0.5, False),
            (1.0, 0.9, True),
        ],
    )
    def test_bounds(self, moral: float, theta: float, accepted: bool) -> None:
        """Accepted iff m ≥ 0.90, or m ≥ 0.30 and m ≥ θ."""
        assert accepted == Governor(theta).decide(moral, DEFAULT)[0]

    @pytest.mark.parametrize("moral", [0.3, 0.5, 0.8, 0.89])
    def test_half_of_equal_values_between_the_bounds_is_rejected(self, moral: float) -> None:
        """That is what the threshold aims at, and what the documents say of 0.8."""
        governor, verdicts = Governor.initial(DEFAULT), []
        for _ in range(1000):
            accepted, governor = governor.decide(moral, DEFAULT)
            verdicts.append(accepted)

        assert 0.4 <= sum(verdicts) / len(verdicts) <= 0.6

    @given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
    def test_one_is_accepted_under_all_settings(self, one: float, other: float, third: float) -> None:
        """So a client that just wants a memory sends 1.0."""
        minimum, initial, maximum = sorted((one, other, third))
        settings = DEFAULT._replace(min_threshold=minimum, initial_threshold=initial, max_threshold=maximum)

        assert Governor.initial(settings).decide(1.0, settings)[0]

    def test_first_events(self) -> None:
        """Computed by hand. 0.55 − 0.5 is 0.05000000000000004 in IEEE doubles, so the first acceptance moves θ."""
        assert after([1.0]) == Governor(0.55, 0.55)
        assert after([1.0] * 2) == pytest.approx(Governor(0.6, 0.595), rel=1e-12)
        assert after([1.0] * 2 + [0.0]) == pytest.approx(Governor(0.6, 0.5355), rel=1e-12)
        assert after([1.0] * 2 + [0.0] * 2) == pytest.approx(Governor(0.6, 0.48195), rel=1e-12)
        assert after([1.0] * 2 + [0.0] * 3) == pytest.approx(Governor(0.55, 0.433755), rel=1e-12)

    def test_the_band_is_strict(self) -> None:
        """A deviation exactly equal to the dead band leaves θ as it is."""
        settings = DEFAULT._replace(dead_band=0.25, ema_alpha=0.5)

        assert after([1.0], settings).theta == 0.5  # ema 0.75
        assert after([0.0], settings).theta == 0.5  # ema 0.25
        assert after([1.0, 1.0], settings).theta == 0.55  # ema 0.875

    def test_no_rounding_noise_accumulates(self) -> None:
        """From 0.3 to 0.9 and back, θ takes the exact decimal values."""
        governor, thetas = Governor.initial(DEFAULT), []
        for moral in [1.0] * 20 + [0.0] * 40:
            _, governor = governor.decide(moral, DEFAULT)
            thetas.append(governor.theta)

        assert set(thetas) == {round(0.05 * step, 2) for step in range(6, 19)}

    def test_a_steady_stream_is_halved(self) -> None:
        """About half of many equal events in the middle of the range is accepted."""
        governor, accepted = Governor.initial(DEFAULT), 0
        for _ in range(2000):
            verdict, governor = governor.decide(0.6, DEFAULT)
            accepted += verdict

        assert 800 <= accepted <= 1200

    @given(
        st.lists(st.floats(0, 1), max_size=60),
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(sorted),
        st.floats(0, 1),
        st.floats(0, 1),
    )
    @example([1.0], [0.5, 0.5, 0.7777777777777], 0.5, 0.1)  # to twelve decimals this bound is greater
    def test_stays_within_its_bounds(self, morals: list[float], bounds: list[float], step: float, alpha: float) -> None:
        """For any events θ is within its bounds, whatever their decimals, and the mean within [0, 1]."""
        low, start, high = bounds
        settings = DEFAULT._replace(
            initial_threshold=start, min_threshold=low, max_threshold=high, adaptation_rate=step, ema_alpha=alpha
        )
        governor = after(morals, settings)

        assert low <= governor.theta <= high
        assert 0 <= governor.ema <= 1

    @given(st.floats(0, 1), st.integers(0, 300))
    def test_the_mean_never_leaves_its_range(self, alpha: float, count: int) -> None:
        """Rounding does not take a mean of ones above 1, whatever its weight."""
        governor = after([1.0] * count, DEFAULT._replace(ema_alpha=alpha))

        assert 0 <= governor.ema <= 1

    @given(st.floats(0, 1), st.floats(0.3, 0.9), st.floats(0, 1))
    def test_acceptance_is_monotonic(self, moral: float, theta: float, more: float) -> None:
        """If m is accepted, so is any greater m."""
        accepted, _ = Governor(theta).decide(moral, DEFAULT)

        assert not accepted or Governor(theta).decide(max(moral, more), DEFAULT)[0]


class TestWithSettings:
    def test_new_bounds_clamp_the_threshold(self) -> None:
        """θ moves only as far as needed, and the mean does not change."""
        tight = DEFAULT._replace(min_threshold=0.6, max_threshold=0.7)

        assert Governor(0.5, 0.42).with_settings(tight) == Governor(0.6, 0.42)
        assert Governor(0.9, 0.42).with_settings(tight) == Governor(0.7, 0.42)
        assert Governor(0.65, 0.42).with_settings(tight) == Governor(0.65, 0.42)
