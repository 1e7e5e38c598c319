"""The product with senses that a test can tell what they feel, and with a cooldown of a second.

    gunicorn -c gunicorn.conf.py tests.app.fake_sampler_app:app

FELT names a file with a JSON object: members of `core.machine.sampler.MachineSample` that replace those of the machine.
"""

import json
import os
from pathlib import Path
from typing import Final

from msgspec import structs

from app import main
from core.controller import controller
from core.limits import EMERGENCY_COOLDOWN_SECONDS
from core.machine.sampler import MachineSample, Sampler

COOLDOWN_SECONDS: Final = 1


class Told(Sampler):
    """A sampler of the real machine, but for what is told."""

    def sample(self) -> MachineSample:
        """Return the state of things now, as told."""
        return structs.replace(super().sample(), **json.loads(Path(os.environ["FELT"]).read_text(encoding="utf-8")))


for name, value in (
    ("Sampler", Told),
    ("VITALS_SECONDS", 0.05),  # a test need not wait for the next second
    ("EMERGENCY_COOLDOWN_SECONDS", EMERGENCY_COOLDOWN_SECONDS._replace(value=COOLDOWN_SECONDS)),
):
    assert hasattr(controller, name)  # what is replaced is what would be used
    setattr(controller, name, value)
app: Final = main.app
