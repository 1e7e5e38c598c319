"""Compiles the C programs of this directory into a temporary directory.

They are not part of the package. A machine that runs these programs has a compiler, because the native core needs one.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from loadtests.bench.wrk import MeasurementError

HERE: Final = Path(__file__).parent


def build_c_program(directory: Path, name: str) -> Path:
    """Build `name`.c into `directory`, unless it is there, and return the program. Raises MeasurementError."""
    program = directory / name
    if not program.exists():
        command = [os.environ.get("CC", "cc"), "-O3", "-o", str(program), str(HERE / f"{name}.c")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            raise MeasurementError(f"{name}.c could not be compiled: {said}") from None
    return program
