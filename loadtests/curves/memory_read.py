"""Time to read a number of bytes: the lower limit that is drawn into the pictures.

A plain loop (memory_read.c) reads an array on the core on which everything else is measured; the fastest pass counts.
The array has the size in question, so that the limit bends where a cache ends, as it does for the server.
`BANDWIDTH_SIZE` is far above any cache and measures memory itself.
"""

import subprocess
from pathlib import Path
from typing import Final

from loadtests.bench.wrk import MeasurementError
from loadtests.curves.c_program import build_c_program

BANDWIDTH_SIZE: Final = 1_000_000_000
_PASSES_NS: Final = 200_000_000  # approximate time of all passes of one size
_PASSES: Final = (5, 2_000)
_SLOW: Final = 10  # bytes per ns, to guess the number of passes


def reading_us(directory: Path, size: int) -> float:
    """Return µs to read `size` bytes, the fastest pass. Raises MeasurementError."""
    least, most = _PASSES
    passes = max(least, min(most, _PASSES_NS * _SLOW // max(1, size)))
    program = build_c_program(directory, "memory_read")
    read = max(256, size)  # the loop takes pieces of 256 bytes
    ended = subprocess.run([program, str(read), str(passes)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise MeasurementError(f"{size / 1e6:.0f} MB of memory could not be read: {ended.stderr.strip()}")
    return min(int(line) for line in ended.stdout.split()) / 1e3 * size / read


def bandwidth(directory: Path) -> float:
    """Return bytes per µs (MB/s) from memory. Raises MeasurementError."""
    return BANDWIDTH_SIZE / reading_us(directory, BANDWIDTH_SIZE)
