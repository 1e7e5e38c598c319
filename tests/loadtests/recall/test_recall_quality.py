"""loadtests/recall/recall_quality.py on synthetic data."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.recall.recall_quality import Comparison, Labelled, compare, unit
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer


def synthetic(intents: int = 20, each: int = 30, dimension: int = 32) -> dict[str, Any]:
    """Return clusters on the unit sphere, some of them repeated exactly, and queries near them."""
    random = np.random.default_rng(20251122)
    centres = random.standard_normal((intents, dimension))
    labels = np.repeat(np.arange(intents), each)
    train = centres[labels] + 0.4 * random.standard_normal((len(labels), dimension))
    train[1::9] = train[::9][: len(train[1::9])]  # exact ties
    query_labels = np.arange(3 * intents) % intents
    query = centres[query_labels] + 0.4 * random.standard_normal((len(query_labels), dimension))
    return {
        "train": train.astype(np.float16),
        "train_y": labels,
        "query": query.astype(np.float16),
        "query_y": query_labels,
    }


def run(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as its docstring says."""
    return subprocess.run(
        [sys.executable, "-m", "loadtests.recall.recall_quality", str(path), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Synthetic data in a file."""
    path = tmp_path / "data.npz"
    np.savez(path, **synthetic())
    return path


def test_every_answer_equals_brute_force(data: Path) -> None:
    """All ids are equal, and all labels are right on this easy data."""

    ended = run(data)

    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert lines[0] == "600 memories × 32, 60 queries, top_k 10"
    assert lines[1] == "ids equal brute force, float64 sums 60 of 60 100.0 %"
    assert lines[4] == "top answer has the right label 60 of 60 100.0 %"
    assert lines[5] == "top 10 hold it 60 of 60 100.0 %"


def test_a_server_with_other_content_is_not_measured(data: Path, small_server: LiveServer) -> None:
    """One sentence and status 2, for another dimension or foreign memories."""

    ended = run(data, "--url", f"http://127.0.0.1:{small_server.port}")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "expected an empty one of 32 with room for 600" in ended.stderr


def test_a_file_without_data_is_refused(tmp_path: Path) -> None:
    """Status 2 and a sentence, for a missing file or other content."""
    other = tmp_path / "other.npz"
    np.savez(other, vec=np.ones(3))

    for path in (tmp_path / "none.npz", other):
        ended = run(path)
        assert ended.returncode == 2
        assert "is not an .npz with train, train_y, query and query_y" in ended.stderr


def test_wrong_ids_differ_from_near_ties() -> None:
    """A measurably farther memory is wrong; one within 10⁻⁶ is a near-tie."""
    train = unit(np.array([[1, 0], [1, 1e-4], [1, 2e-4], [0, 1]]))  # cosines 1, 1 − 5·10⁻⁹, 1 − 2·10⁻⁸ and 0
    labels = np.zeros(4)
    data = Labelled(train, labels, train[:1], labels[:1])

    assert compare(data, np.array([[0, 1, 2, 3]]), np.float64) == Comparison(1, 0, 0)
    assert compare(data, np.array([[0, 2, 1, 3]]), np.float64) == Comparison(0, 1, 0)
    assert compare(data, np.array([[0, 1, 3, 2]]), np.float64) == Comparison(0, 0, 1)
