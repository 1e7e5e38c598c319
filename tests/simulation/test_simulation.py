"""Short runs of the simulation: with a fixed seed, with a random seed, and with failures that it must report.

MLSDM_SIMULATION_STEPS (default 500) sets the length of each; `make soak` runs longer.
"""

import os
import random
import re
import subprocess
import sys

import pytest

from shm.bucket import Bucket
from shm.layout import EMERGENCY_MEMORY
from testing.live_server import ROOT
from tests import tracee
from tests.simulation.accounts import ACCOUNTS
from tests.simulation.history import WrongError
from tests.simulation.player import Operation, Outcome
from tests.simulation.world import FailedError, World

STEPS = int(os.environ.get("MLSDM_SIMULATION_STEPS", "500"))
pytestmark = pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")


def simulate(seed: int, steps: int) -> str:
    """Run the program; returns its output."""
    command = [sys.executable, "-m", "tests.simulation", f"--seed={seed}", f"--steps={steps}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("seed", [20251122, random.SystemRandom().randrange(2**32)], ids=["fixed", "random"])
def test_random_runs_break_no_promise(seed: int) -> None:
    """The block follows the reference model, wherever workers and controllers stop and die."""
    told = simulate(seed, STEPS)

    assert f"seed {seed}: {STEPS:,} steps" in told
    assert {"admit ok", "tick ok", "recall ok", "claim ok"} <= set(re.findall(r"\d (\w+ \w+)$", told, re.MULTILINE))


def test_the_same_seed_repeats_a_run() -> None:
    """The same seed leads through the same steps to the same answers."""
    first, second = (re.search(r"digest (\w+)", simulate(7, 150)) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first[1] == second[1]


class TestReportsFailures:
    def failure(self, world: World) -> str:
        with pytest.raises(FailedError) as failed:
            world.run(500)
        return str(failed.value)

    def test_a_changed_byte(self) -> None:
        """A memory that changes without an operation is found in the next step; the report says how to repeat it."""
        with World(3) as world:
            world.run(100)
            slot = world.formed.slot_of(world.history.now.live[-1])
            offset, _ = world.formed.region_bytes("vectors")
            world.formed.block.memory[offset + slot * world.formed.block.layout.vector_stride] ^= 1

            failure = self.failure(world)

        assert "sound slots: expected" in failure
        assert f"again: python -m tests.simulation --seed 3 --steps {world.steps}" in failure

    def test_an_emergency_that_nobody_declared(self) -> None:
        """Only a controller may write the emergency fields."""
        with World(5) as world:
            world.run(100)
            worker = next(actor for actor in world.actors if actor.row >= 0)
            trace = world.trace(Operation("read_state"))
            world.emergencies.begin_step(trace, held=False, contended=False)
            world.formed.block.region("vitals").emergency ^= EMERGENCY_MEMORY

            with pytest.raises(WrongError, match="who writes Words"):
                world.emergencies.look(worker, trace)

    def test_a_token_too_many(self) -> None:
        """A bucket changes only by the operation of the actor that moved."""
        with World(6) as world:
            world.run(100)
            account = ACCOUNTS[0]
            bucket = Bucket(world.formed.block, account.table, account.owner, account.interval_ns, account.burst)
            bucket.spend(world.workload.boot_ns, 1)
            bucket.refund(1)

            with pytest.raises(WrongError, match="which has no business with the places"):
                world.buckets.look("worker-0", "worker-0's look()")

    def test_a_lost_decision(self) -> None:
        """A decision in an answer that the log does not have is found when the answer is judged."""
        with World(4) as world:
            world.run(100)
            worker = next(actor for actor in world.actors if actor.row >= 0)
            asked = Operation("admit", (world.workload.time_ns, 990_000, b"", None))
            trace = world.trace(asked)
            told = Outcome("ok", world.history.now.decision)

            with pytest.raises(Exception, match="which is in the log"):
                world.judge.judge(worker, told, trace)
