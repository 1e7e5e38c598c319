"""What reading so many bytes costs at least: the limit that is drawn into the pictures.

A plain loop over an array (reading.c), the fastest of some passes, on the core on which everything else is measured.
Arrays that fit a cache are read from it, as those of the server are: so the loop gets an array of just the size in
question, and the limit bends where the cache ends. `BANDWIDTH_SIZE` is far above any cache: memory itself.
"""

import subprocess
from pathlib import Path
from typing import Final

from loadtests.bench.wrk import Unmeasured
from loadtests.curves.compiled import compiled

BANDWIDTH_SIZE: Final = 1_000_000_000
_PASSES_NS: Final = 200_000_000  # about how long the passes of one size take together
_PASSES: Final = (5, 2_000)
_SLOW: Final = 10  # bytes per ns, to guess the number of passes


def reading_us(directory: Path, size: int) -> float:
    """Return µs to read `size` bytes, the fastest pass. Raises Unmeasured."""
    least, most = _PASSES
    passes = max(least, min(most, _PASSES_NS * _SLOW // max(1, size)))
    program = compiled(directory, "reading")
    read = max(256, size)  # the loop takes pieces of 256 bytes
    ended = subprocess.run([program, str(read), str(passes)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Unmeasured(f"{size / 1e6:.0f} MB of memory could not be read: {ended.stderr.strip()}")
    return min(int(line) for line in ended.stdout.split()) / 1e3 * size / read


def bandwidth(directory: Path) -> float:
    """Return bytes per µs (MB/s) from memory. Raises Unmeasured."""
    return BANDWIDTH_SIZE / reading_us(directory, BANDWIDTH_SIZE)
