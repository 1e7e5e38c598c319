"""SVG pictures whose bytes change only with the figures: fixed ids, named fonts, no date, short numbers.

Text stays text (`svg.fonttype: none`): a picture is some kilobytes, and a diff is readable. matplotlib is the package's
extra `plot`. It is imported when a picture is drawn, and without pyplot, which keeps global state.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from loadtests.bench.wrk import MeasurementError

_STYLE: Final[Any] = {  # Any: matplotlib's stubs expect a dictionary of literals
    "svg.fonttype": "none",
    "svg.hashsalt": "mlsdm",  # ids are derived from their content, not random
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # part of matplotlib: text has the same size on every machine
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
OURS, OTHER, LIMIT, PALE = "#1f5fa8", "#c8641e", "#333333", "#8a8a8a"
_LONG: Final = re.compile(r"(?<![#\w])(-?\d+\.\d{2})\d+")


def require() -> None:
    """Raise MeasurementError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MeasurementError(
            "pictures need matplotlib, which is not installed: pip install '.[plot]' in a clone of mlsdm"
        )


@contextmanager
def drawn(path: Path, count: int = 1, width: float = 6.4, height: float = 4.0) -> Iterator[list[Any]]:
    """Yield `count` axes side by side, each `width` × `height` inches, and write the figure to `path` as SVG.

    Raises MeasurementError when it cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an optional extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        yield list(figure.subplots(1, count, squeeze=False)[0])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
            short = _LONG.sub(r"\1", path.read_text(encoding="utf-8"))  # two decimals of a point are enough
            path.write_text("\n".join(line.rstrip() for line in short.splitlines()) + "\n", encoding="utf-8")
        except OSError as error:
            raise MeasurementError(f"cannot write {path}: {error.strerror or error}") from None
