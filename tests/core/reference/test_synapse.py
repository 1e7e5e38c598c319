"""The synaptic cascade, as the specification states it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.reference.synapse import Synapse
from core.reference.vector import norm
from core.regime import Regime
from core.settings.config import Config

DEFAULT = Regime.of(Config()).synapse
OPEN = DEFAULT._replace(theta_l1=0.0, theta_l2=0.0)
CLOSED = DEFAULT._replace(theta_l1=1e6, theta_l2=1e6)


def levels(*values: list[float]) -> Synapse:
    """Return levels of these values."""
    return Synapse(*(np.array(value, np.float32) for value in values))


class TestAfterRun:
    def test_initial_levels_are_zero(self) -> None:
        """Consolidation leaves three levels of zeros as they are."""
        empty = Synapse.initial(5)

        assert [level.tolist() for level in empty.after_run(None, DEFAULT)] == [[0.0] * 5] * 3

    def test_below_the_gate_nothing_moves_up(self) -> None:
        """An event of norm 1 stays in the first level, whose gate is 1.2."""
        after = Synapse.initial(2).after_run(np.array([1, 0], np.float32), DEFAULT)

        assert [level.tolist() for level in after] == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]

    def test_above_the_gate_a_share_moves_up(self) -> None:
        """A second event makes 1.5: 45 % of it moves to the second level, and the sum is preserved."""
        event = np.array([1, 0], np.float32)
        after = Synapse.initial(2).after_run(event, DEFAULT).after_run(event, DEFAULT)

        assert [level[0] for level in after] == pytest.approx([1.5 * 0.55, 1.5 * 0.45, 0.0])

    def test_both_gates_in_one_run(self) -> None:
        """The gate of level 2 sees what level 1 has just passed to it."""
        after = Synapse.initial(1).after_run(np.array([10], np.float32), DEFAULT)

        assert [level[0] for level in after] == pytest.approx([5.5, 4.5 * 0.7, 4.5 * 0.3])

    def test_levels_decay_by_their_lambda(self) -> None:
        """Without an event and with closed gates, the levels keep 50, 90 and 99 %."""
        after = levels([1, 2], [1, 2], [1, 2]).after_run(None, CLOSED)

        assert [level[0] for level in after] == pytest.approx([0.5, 0.9, 0.99])

    def test_the_gate_is_strict(self) -> None:
        """A norm of exactly θ does not open the gate."""
        event = np.array([3, 4], np.float32)
        exactly = DEFAULT._replace(theta_l1=5.0)

        assert not Synapse.initial(2).after_run(event, exactly).l2.any()
        assert Synapse.initial(2).after_run(event * np.float32(1.001), exactly).l2.any()

    def test_the_element_gate_moves_single_elements(self) -> None:
        """Only elements above θ pass, with their sign: −9 is not above 1.2."""
        event = np.array([2, 1, -9], np.float32)
        after = Synapse.initial(3).after_run(event, DEFAULT._replace(by_element=True))

        assert after.l1.tolist() == pytest.approx([2 * 0.55, 1, -9])
        assert after.l2.tolist() == pytest.approx([2 * 0.45, 0, 0])

    def test_a_run_does_not_change_its_input(self) -> None:
        """Levels are values: a run returns new ones."""
        before = levels([1.0], [1.0], [1.0])
        before.after_run(np.array([5], np.float32), OPEN)

        assert [level.tolist() for level in before] == [[1.0]] * 3

    @given(st.integers(0, 2**32 - 1), st.booleans())
    def test_a_transfer_loses_nothing(self, seed: int, by_element: bool) -> None:
        """Without decay, the sum of the levels grows by the event alone, to float32 rounding."""
        rng = np.random.default_rng(seed)
        before = Synapse(*rng.standard_normal((3, 8)).astype(np.float32))
        event = rng.standard_normal(8).astype(np.float32)
        after = before.after_run(event, OPEN._replace(lambda_l1=0, lambda_l2=0, lambda_l3=0, by_element=by_element))

        np.testing.assert_allclose(sum(after), sum(before) + event, atol=1e-5)

    def test_stays_finite(self) -> None:
        """With the longest vectors that are admitted, the slowest decay bounds the sum below float32's limit."""
        event = np.full(1, 1e6, np.float32)
        levels_now = Synapse.initial(1)
        for _ in range(3000):
            levels_now = levels_now.after_run(event, DEFAULT)

        assert all(np.isfinite(level).all() and norm(level) < 1e9 for level in levels_now)
