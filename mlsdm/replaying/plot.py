"""The picture of a replay: the moral threshold above, the share of accepted events below.

The horizontal axis is the decision's sequence number, the one order on which all clients agree. The client's clock
would shuffle decisions that were made within one round trip.

matplotlib is an extra of the package. It is imported when a picture is drawn, and without pyplot, which keeps global
state and looks for a display.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

WINDOW_MAX: Final = 200  # events; shorter replays use a tenth of themselves


class PlotError(Exception):
    """One sentence for the operator: why there is no picture."""


def draw(path: Path, decided: npt.NDArray[Any]) -> None:
    """Write the picture of `decided` to `path`; the format is that of the suffix.

    `decided` is a structured array in sequence order with the fields sequence, accepted, threshold_after and ema; it
    may be empty. Raises PlotError when the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 — an optional extra

    sequence = decided["sequence"]
    window = max(1, min(WINDOW_MAX, len(decided) // 10))
    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(sequence, decided["threshold_after"], color="tab:red", linewidth=1.0, drawstyle="steps-post")
    above.set_ylabel("moral threshold θ")
    above.set_title(f"{len(decided):,} events, {int(decided['accepted'].sum()):,} accepted")
    below.plot(sequence, decided["ema"], color="tab:gray", linewidth=0.6, alpha=0.7, label="EMA of the server")
    below.plot(
        sequence,
        rolling_share(decided["accepted"], window),
        color="tab:blue",
        linewidth=1.0,
        label=f"last {window} events",
    )
    below.set_ylabel("accepted")
    below.set_ylim(-0.02, 1.02)
    below.set_xlabel("decision (sequence number)")
    below.legend(loc="upper right")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise PlotError(f"cannot write {path}: {error.strerror or error}") from None


def require(path: Path) -> None:
    """Raise PlotError unless a picture can be drawn in the format that `path` names."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("--plot needs matplotlib, which is not installed: pip install '.[plot]' in a clone of mlsdm")
    from matplotlib.figure import Figure  # noqa: PLC0415 — an optional extra

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in formats:
        raise PlotError(f"cannot draw {path}: expected a name that ends in one of .{', .'.join(sorted(formats))}")


def rolling_share(accepted: npt.NDArray[np.bool_], window: int) -> npt.NDArray[np.float64]:
    """Return float64[n]: per event, the share of accepted among it and up to `window` − 1 events before it."""
    sums = np.concatenate(([0], np.cumsum(accepted, dtype=np.int64)))
    end = np.arange(1, len(accepted) + 1)
    start = np.maximum(0, end - window)
    return np.asarray((sums[end] - sums[start]) / (end - start), dtype=np.float64)
