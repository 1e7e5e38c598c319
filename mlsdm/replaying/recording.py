"""A recording: the events of an .npz archive, in the form in which they are sent.

Owns: which arrays and rows are read, their checks, and their conversion to little-endian float32 vectors of norm 1 and
float64 moral values. Values (NaN, moral values outside [0, 1], the dimension) are not checked here: the server
decides, and its refusal is printed.

The archive is untrusted: pickled arrays, which run code when they are read, are refused.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class RecordingError(Exception):
    """One sentence for the operator: the file, the array, and its problem."""


class Recording(NamedTuple):
    """The events to send: `vectors` float32[n, D], `morals` float64[n], both little-endian; `offset` of the first."""

    vectors: npt.NDArray[np.float32]
    morals: npt.NDArray[np.float64]
    offset: int


@dataclass(frozen=True)
class Selection:
    """The part of a file to read. `moral` names an array, or is one value for every event; `count` None: the rest."""

    vectors: str = "vec"
    moral: str | float = "moral"
    offset: int = 0
    count: int | None = None
    normalise: bool = True


def load(path: Path, selection: Selection) -> Recording:
    """Read the events of `path` that are selected, at least one. Raises RecordingError."""
    key, moral, offset, count = selection.vectors, selection.moral, selection.offset, selection.count
    if isinstance(moral, str):
        vectors, morals = _read(path, (key, 2), (moral, 1))
    else:
        (vectors,) = _read(path, (key, 2))
        morals = np.full(len(vectors), moral)
    if len(vectors) != len(morals):
        raise RecordingError(
            f"{path} has {len(vectors):,} vectors in {key!r} but {len(morals):,} moral values in {moral!r}"
        )
    if offset >= len(vectors):
        raise RecordingError(f"{path} has {len(vectors):,} events: none is left after --offset {offset}")
    chosen = slice(offset, None if count is None else offset + count)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which the server refuses by name
        chosen_vectors = np.ascontiguousarray(vectors[chosen], dtype="<f4")
    if selection.normalise:
        chosen_vectors = _normalised(chosen_vectors)
    return Recording(chosen_vectors, np.ascontiguousarray(morals[chosen], dtype="<f8"), offset)


def _read(path: Path, *wanted: tuple[str, int]) -> list[npt.NDArray[Any]]:
    """Return arrays of the archive at `path`, each wanted as (name, number of axes)."""
    try:
        archive = np.load(path, allow_pickle=False)  # a pickle would run code from the file
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise RecordingError(f"{path} is a single array: expected an .npz archive of arrays")
        with archive:
            missing = [key for key, _ in wanted if key not in archive]
            if missing:
                raise RecordingError(f"{path} has no array {missing[0]!r}: it has {', '.join(archive) or 'none'}")
            arrays = [archive[key] for key, _ in wanted]
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise RecordingError(f"{path} is not an .npz archive of plain arrays, or it is damaged") from None
    for array, (key, axes) in zip(arrays, wanted, strict=True):
        if array.ndim != axes or array.dtype.kind not in "fiu":
            found = f"{array.dtype} of shape {list(array.shape)}"
            raise RecordingError(
                f"{key!r} of {path} is {found}: expected numbers of shape {'[N, D]' if axes == 2 else '[N]'}"
            )
    return arrays


def _normalised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale each row to norm 1; zero rows stay zero. Norms in float64: the squares may overflow float32."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    norms[norms == 0.0] = 1.0
    with np.errstate(invalid="ignore"):  # inf / inf is NaN, and stays for the server to refuse
        return np.ascontiguousarray(vectors / norms[:, None], dtype="<f4")
