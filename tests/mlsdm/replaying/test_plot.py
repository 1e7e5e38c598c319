"""The picture of a replay, drawn by the real matplotlib."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlsdm.replaying import plot
from mlsdm.replaying.ledger import DECISION_ROW


def decided(count: int) -> Any:
    rows = np.zeros(count, DECISION_ROW)
    rows["sequence"] = np.arange(1, count + 1)
    rows["accepted"] = np.arange(count) % 3 == 0
    rows["threshold_after"] = 0.5
    rows["ema"] = 1 / 3
    return rows


@pytest.mark.parametrize("count", [0, 1, 5_000])
def test_a_picture_of_any_number_of_decisions_is_a_png(tmp_path: Path, count: int) -> None:
    """With no decision, one, and many."""
    path = tmp_path / "replay.png"

    plot.draw(path, decided(count))

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_rolling_share_has_a_shorter_window_at_the_start() -> None:
    """The first events have fewer predecessors."""
    accepted = np.array([True, False, True, True, False])

    assert plot.rolling_share(accepted, 3).tolist() == [1.0, 1 / 2, 2 / 3, 2 / 3, 2 / 3]


def test_a_missing_matplotlib_is_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(plot.PlotError, match=r"not installed: pip install '\.\[plot\]'"):
        plot.require(tmp_path / "replay.png")


def test_an_unknown_picture_format_is_one_sentence_with_the_known_ones(tmp_path: Path) -> None:
    """The suffix selects the format."""
    with pytest.raises(plot.PlotError, match=r"expected a name that ends in one of .*\.png, .*\.svg"):
        plot.require(tmp_path / "replay.xyz")


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """It includes the system's reason."""
    with pytest.raises(plot.PlotError, match=r"absent/replay\.png: No such file or directory"):
        plot.draw(tmp_path / "absent" / "replay.png", decided(3))
