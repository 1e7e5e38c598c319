"""Short runs of the simulation: with a fixed seed, with a random seed, and with failures that it must report.

MLSDM_SIMULATION_STEPS (default 500) sets the length of each; `make soak` runs longer.
"""

import os
import random
import re
import subprocess
import sys

import pytest

from shm.layout import EMERGENCY_MEMORY
from shm.store import Bucket
from testing.live_server import ROOT
from tests import tracee
from tests.simulation.accounts import ACCOUNTS
from tests.simulation.chronicle import WrongError
from tests.simulation.player import Operation, Outcome
from tests.simulation.world import FailedError, World

STEPS = int(os.environ.get("MLSDM_SIMULATION_STEPS", "500"))
pytestmark = pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")


def simulate(seed: int, steps: int) -> str:
    """Run the program; returns what it says."""
    command = [sys.executable, "-m", "tests.simulation", f"--seed={seed}", f"--steps={steps}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("seed", [20251122, random.SystemRandom().randrange(2**32)], ids=["fixed", "random"])
def test_nothing_is_found(seed: int) -> None:
    """Whatever workers, controllers and the clock do, stand in and die of, the block follows the reference model."""
    told = simulate(seed, STEPS)

    assert f"seed {seed}: {STEPS:,} steps" in told
    assert {"admit ok", "tick ok", "recall ok", "claim ok"} <= set(re.findall(r"\d (\w+ \w+)$", told, re.MULTILINE))


def test_a_seed_is_a_run() -> None:
    """The same seed leads through the same steps to the same answers."""
    first, second = (re.search(r"digest (\w+)", simulate(7, 150)) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first[1] == second[1]


class TestSaysWhatIsWrong:
    def failure(self, world: World) -> str:
        with pytest.raises(FailedError) as failed:
            world.run(500)
        return str(failed.value)

    def test_a_changed_byte(self) -> None:
        """A memory that changes behind everybody's back is found in the next step, and how to see it again is said."""
        with World(3) as world:
            world.run(100)
            slot = world.chronicle.now.live[-1] % (world.formed.block.layout.capacity + 1)
            offset, _ = world.formed.region_bytes("vectors")
            world.formed.block.memory[offset + slot * world.formed.block.layout.vector_stride] ^= 1

            failure = self.failure(world)

        assert "sound slots: expected" in failure
        assert f"again: python -m tests.simulation --seed 3 --steps {world.steps}" in failure

    def test_an_emergency_that_nobody_declared(self) -> None:
        """The word is a controller's to write."""
        with World(5) as world:
            world.run(100)
            worker = next(actor for actor in world.actors if actor.row >= 0)
            course = world.course(Operation("look"))
            world.alarm.begin_step(course, held=False, contended=False)
            world.formed.block.region("vitals").emergency ^= EMERGENCY_MEMORY

            with pytest.raises(WrongError, match="who writes Words"):
                world.alarm.look(worker, course)

    def test_a_token_too_many(self) -> None:
        """What is taken from a bucket is what somebody took."""
        with World(6) as world:
            world.run(100)
            account = ACCOUNTS[0]
            bucket = Bucket(world.formed.block, account.table, account.owner, account.interval_ns, account.burst)
            bucket.spend(world.errands.boot_ns, 1)
            bucket.refund(1)

            with pytest.raises(WrongError, match="which has no business with the places"):
                world.buckets.look("worker-0", "worker-0's look()")

    def test_a_lost_decision(self) -> None:
        """A decision that somebody was told, and that the log does not hold, is found when it is judged."""
        with World(4) as world:
            world.run(100)
            worker = next(actor for actor in world.actors if actor.row >= 0)
            asked = Operation("admit", (world.errands.now_ns, 990_000, b"", None))
            course = world.course(asked)
            told = Outcome("ok", world.chronicle.now.decision)

            with pytest.raises(Exception, match="which is in the log"):
                world.judge.judge(worker, told, course)
