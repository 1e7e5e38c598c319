"""The store of the reference model, rule by rule."""

from hypothesis import given
from hypothesis import strategies as st

from core.reference.memory import Content, NamespaceId
from core.reference.settings import Settings, Sizes
from core.reference.store import Event, Store
from core.regime import Regime
from core.settings.config import Config

SETTINGS = Settings(Regime.of(Config()))
DEFAULT = NamespaceId(0, 1)
CONTENT = Content(bytes(8))


class TestRing:
    @given(st.integers(1, 5), st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=30))
    def test_without_limits_pins_deletions_and_expiry_the_slots_are_a_ring(
        self, capacity: int, morals: list[float]
    ) -> None:
        """Memory n lies in slot n mod (C + 1), and the C newest ones live."""
        store = Store(Sizes(2, capacity, 0, 8, 1, 0))
        store.start(0, SETTINGS)
        for now, moral in enumerate(morals):
            store.decide(now, Event(DEFAULT, CONTENT, moral))

            newest = store.accepted
            oldest = max(1, newest - capacity + 1)
            expected = {memory_id % (capacity + 1): memory_id for memory_id in range(oldest, newest + 1)}
            assert expected == {slot: memory.memory_id for slot, memory in store.allocation.memories()}
