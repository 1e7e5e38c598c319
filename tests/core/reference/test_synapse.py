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


class TestCascaded:
    def test_starts_empty(self) -> None:
        """Three levels of zeros, which consolidation leaves alone."""
        empty = Synapse.initial(5)

        assert [level.tolist() for level in empty.cascaded(None, DEFAULT)] == [[0.0] * 5] * 3

    def test_below_the_gate_nothing_moves_up(self) -> None:
        """An event of norm 1 stays in the first level, whose gate is 1.2."""
        after = Synapse.initial(2).cascaded(np.array([1, 0], np.float32), DEFAULT)

        assert [level.tolist() for level in after] == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]

    def test_above_the_gate_a_share_moves_up(self) -> None:
        """A second one makes 1.5: 45 % of it goes to the second level, and nothing is lost on the way."""
        event = np.array([1, 0], np.float32)
        after = Synapse.initial(2).cascaded(event, DEFAULT).cascaded(event, DEFAULT)

        assert pytest.approx([1.5 * 0.55, 1.5 * 0.45, 0.0]) == [level[0] for level in after]

    def test_both_gates_in_one_run(self) -> None:
        """What has just arrived at the second level counts for its gate."""
        after = Synapse.initial(1).cascaded(np.array([10], np.float32), DEFAULT)

        assert pytest.approx([5.5, 4.5 * 0.7, 4.5 * 0.3]) == [level[0] for level in after]

    def test_decay(self) -> None:
        """Without an event and with gates shut, each level keeps 50, 90 and 99 %."""
        after = levels([1, 2], [1, 2], [1, 2]).cascaded(None, CLOSED)

        assert pytest.approx([0.5, 0.9, 0.99]) == [level[0] for level in after]

    def test_the_gate_is_strict(self) -> None:
        """A norm of exactly θ does not pass."""
        event = np.array([3, 4], np.float32)
        exactly = DEFAULT._replace(theta_l1=5.0)

        assert not Synapse.initial(2).cascaded(event, exactly).l2.any()
        assert Synapse.initial(2).cascaded(event * np.float32(1.001), exactly).l2.any()

    def test_by_element(self) -> None:
        """Only the elements above θ pass, and the sign counts: −9 is not above 1.2."""
        event = np.array([2, 1, -9], np.float32)
        after = Synapse.initial(3).cascaded(event, DEFAULT._replace(by_element=True))

        assert pytest.approx([2 * 0.55, 1, -9]) == after.l1.tolist()
        assert pytest.approx([2 * 0.45, 0, 0]) == after.l2.tolist()

    def test_the_original_is_left_alone(self) -> None:
        """Levels are values: a run makes new ones."""
        before = levels([1.0], [1.0], [1.0])
        before.cascaded(np.array([5], np.float32), OPEN)

        assert [level.tolist() for level in before] == [[1.0]] * 3

    @given(st.integers(0, 2**32 - 1), st.booleans())
    def test_a_transfer_loses_nothing(self, seed: int, by_element: bool) -> None:
        """Without decay, the sum of the levels grows by the event alone, to float32 rounding."""
        rng = np.random.default_rng(seed)
        before = Synapse(*rng.standard_normal((3, 8)).astype(np.float32))
        event = rng.standard_normal(8).astype(np.float32)
        after = before.cascaded(event, OPEN._replace(lambda_l1=0, lambda_l2=0, lambda_l3=0, by_element=by_element))

        np.testing.assert_allclose(sum(after), sum(before) + event, atol=1e-5)

    def test_stays_finite(self) -> None:
        """The longest vectors that are admitted, for ever: the slowest decay bounds the sum below float32's limit."""
        event = np.full(1, 1e6, np.float32)
        levels_now = Synapse.initial(1)
        for _ in range(3000):
            levels_now = levels_now.cascaded(event, DEFAULT)

        assert all(np.isfinite(level).all() and norm(level) < 1e9 for level in levels_now)
