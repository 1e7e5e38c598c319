"""The product with a sampler whose figures a test sets, and with an emergency cooldown of one second.

    gunicorn -c gunicorn.conf.py tests.app.fake_sampler_app:app

SAMPLE names a file with a JSON object: members of `core.machine.sampler.MachineSample` that replace those measured.
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


class FakeSampler(Sampler):
    """A sampler of the real machine, except for the figures that the file sets."""

    def sample(self) -> MachineSample:
        """Return the state of the machine, with the figures of the file."""
        return structs.replace(super().sample(), **json.loads(Path(os.environ["SAMPLE"]).read_text(encoding="utf-8")))


for name, value in (
    ("Sampler", FakeSampler),
    ("VITALS_SECONDS", 0.05),  # a test need not wait for the next second
    ("EMERGENCY_COOLDOWN_SECONDS", EMERGENCY_COOLDOWN_SECONDS._replace(value=COOLDOWN_SECONDS)),
):
    assert hasattr(controller, name)  # the replaced name exists and is used
    setattr(controller, name, value)
app: Final = main.app
