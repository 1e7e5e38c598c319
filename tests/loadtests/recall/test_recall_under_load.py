"""loadtests/recall/recall_under_load.py: its check of exactness, and one tiny run; no assertion about speed."""

import msgspec
import numpy as np
import pytest

from core.reference.vector import cosine
from loadtests.bench.traffic import TOP_K
from loadtests.bench.vectors import MEMORIES, Floats
from loadtests.recall import recall_under_load
from loadtests.recall.recall_under_load import VECTORS, TimedRecall, inexact

Ranked = list[tuple[float, int]]


@pytest.fixture(scope="module")
def memories() -> Floats:
    """Different vectors, as many as a run has."""
    return np.random.default_rng(7).standard_normal((VECTORS, 8)).astype(np.float32)


def ranked(memories: Floats, query: Floats, newest: int) -> Ranked:
    """Return (score, id) of the best when memory `newest` was the last one accepted: by definition."""
    window = range(newest - MEMORIES + 1, newest + 1)
    lengths = np.linalg.norm(memories, axis=1)
    near = sorted(window, key=lambda i: -float(memories[(i - 1) % VECTORS] @ query) / lengths[(i - 1) % VECTORS])[:50]
    scored = [(cosine(query, memories[(i - 1) % VECTORS]), i) for i in near]
    return sorted(scored, key=lambda pair: (-pair[0], -pair[1]))[:TOP_K]


def args(matches: Ranked, as_of: int) -> TimedRecall:
    """Return an answer with these matches at a position."""
    found = {"matches": [{"score": score, "memory_id": number} for score, number in matches], "as_of": as_of}
    return TimedRecall(0, msgspec.json.encode(found), 1.0)


def test_an_answer_is_compared_at_its_position(memories: Floats) -> None:
    """An answer that is right at one position is wrong after a nearer memory came or went, with ticks between."""
    query = memories[MEMORIES + 5]  # the sixth event: memory MEMORIES + 6
    positions = np.arange(50, 70, 2)  # memory MEMORIES + 1 at 50, MEMORIES + 6 at 60
    before, after = (ranked(memories, query, MEMORIES + count) for count in (5, 6))
    right = [args(before, 58), args(before, 59), args(after, 60), args(after, 61)]

    assert inexact(right, positions, memories, query[np.newaxis]) == []
    for wrong in (args(before, 60), args(after, 59), args(after[1:] + after[:1], 60), args(after[:-1], 60)):
        assert len(inexact([wrong], positions, memories, query[np.newaxis])) == 1


def test_a_score_that_is_off_by_a_bit_is_not_exact(memories: Floats) -> None:
    """A score is one number, not a range."""
    matches = ranked(memories, memories[0], MEMORIES)
    score, first = matches[0]
    none = np.zeros(0, np.int64)

    assert inexact([args(matches, 9)], none, memories, memories[:1]) == []
    assert (
        len(inexact([args([(float(np.nextafter(score, 0)), first), *matches[1:]], 9)], none, memories, memories[:1]))
        == 1
    )


@pytest.mark.slow
def test_a_small_recall_under_load_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Memories arrive while recalls are answered, and every answer is checked. A busy machine needs more time."""

    def written(seconds: float) -> int:
        assert recall_under_load.main(["--rounds", "1", "--seconds", str(seconds)]) == 0
        lines = capsys.readouterr().out.splitlines()
        quiet, loaded = (line.split(" | ") for line in lines if line.startswith(("| quiet", "| loaded")))
        asked_in_all = sum(int(line[1].replace(",", "")) for line in (quiet, loaded))
        assert quiet[-1] == "0 |"
        assert f"{asked_in_all:,} of {asked_in_all:,} answers are exact at their position" in lines
        return int(loaded[-1].rstrip(" |").replace(",", ""))

    assert any(written(seconds) for seconds in (0.3, 3.0, 30.0))
