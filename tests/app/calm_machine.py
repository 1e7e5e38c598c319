"""Servers that a busy machine does not make unready: their sampler reports a CPU that has time to spare.

Readiness fails when the CPU was used up for 30 s, by whichever program. For servers that live that long and whose
readiness a test judges.
"""

import json
from pathlib import Path
from typing import Final

APPLICATION: Final = "tests.app.fake_sampler_app:app"


def calm(directory: Path) -> dict[str, str]:
    """Return the variables of a server of APPLICATION; `directory` gets the file with the sampler's figures."""
    path = directory / "sample.json"
    path.write_text(json.dumps({"cpu_percent_30s": 5.0}), encoding="utf-8")
    return {"SAMPLE": str(path)}
