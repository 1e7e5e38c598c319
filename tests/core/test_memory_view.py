"""The read-only view of the store."""

from core.memory_view import MemoryView
from testing.block_fixture import Formed


def test_it_shows_the_committed_state() -> None:
    """At its position, in types that need no native code."""
    formed = Formed()
    formed.accept()
    formed.apply("stop")

    view = MemoryView(formed.block)

    state = view.state()
    assert (state.position, view.position) == (3, 3)
    assert (state.accepted, state.rejected, state.memories) == (1, 0, 1)
    assert (state.phase, state.stopped) == ("wake", True)
    assert state.threshold == formed.store.state().scalars.theta
    assert (view.dimension, view.capacity) == (16, 50)
    assert (view.boot_id, view.log_id) == (formed.block.boot_id, formed.block.log_id)
    formed.close()
