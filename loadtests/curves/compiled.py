"""The C programs of this directory, built into a temporary directory when a run needs them.

They are not part of the package: whoever measures has a compiler, because the native core needs one too.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

from loadtests.bench.wrk import Unmeasured

HERE: Final = Path(__file__).parent


def compiled(directory: Path, name: str) -> Path:
    """Build `name`.c into `directory`, unless it is there, and return the program. Raises Unmeasured."""
    program = directory / name
    if not program.exists():
        command = [os.environ.get("CC", "cc"), "-O3", "-o", str(program), str(HERE / f"{name}.c")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            raise Unmeasured(f"{name}.c could not be compiled: {said}") from None
    return program
