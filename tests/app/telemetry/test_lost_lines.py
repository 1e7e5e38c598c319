"""The count of lost lines: exact over processes, and readable without changing it."""

import os

import pytest

from app.telemetry.lost_lines import LostLines, lost_lines_of


@pytest.fixture
def lost() -> LostLines:
    return LostLines()


def test_every_process_of_a_server_adds_to_one_count(lost: LostLines) -> None:
    """Forks add at the same time, and some of them are killed; reading changes nothing."""
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(1000):
                lost.add()
            os.kill(os.getpid(), 9)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lost.add()

    assert [lost.count, lost.count] == [4001, 4001]
    assert lost_lines_of(os.getpid(), lost.descriptor) == 4001


def test_a_count_that_cannot_be_read_is_none() -> None:
    """A descriptor of another kind, a closed one, a process that has gone."""
    reading, writing = os.pipe()
    assert lost_lines_of("self", reading) is None
    os.close(reading)
    os.close(writing)

    assert lost_lines_of("self", reading) is None
    assert lost_lines_of(2**22 + 1, 0) is None


def test_counting_raises_nothing(lost: LostLines) -> None:
    """Whatever has become of the descriptor."""
    os.close(lost.descriptor)

    lost.add()

    assert lost.count is None
