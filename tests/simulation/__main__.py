"""Runs the simulation until a promise is broken or a number of steps is done.

    python -m tests.simulation                       20,000 steps from a random seed
    python -m tests.simulation --seed 7 --steps 500

Exit status 1 when a promise is broken; the last steps and the command that repeats them are printed. On machines with
the same processor, C library and Python a run depends only on its seed: the program restarts itself without randomised
addresses, hash seeds and environment variables.
"""

import argparse
import ctypes
import os
import random
import sys
import time
from typing import Final

from tests import tracee
from tests.simulation.world import FailedError, World

ADDR_NO_RANDOMIZE: Final = 0x0040000  # personality(2)
BARE: Final = {"PYTHONHASHSEED": "0", "PYTHONCOERCECLOCALE": "0"}  # without the latter Python adds a variable


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate, and judge.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args(arguments)
    if os.environ != BARE:
        ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)  # if that is refused, a seed stops at other instructions
        command = [sys.executable, "-m", "tests.simulation", f"--seed={asked.seed}", f"--steps={asked.steps}"]
        os.execve(sys.executable, command, BARE)
    if not tracee.possible():
        print("needs ptrace on x86-64", file=sys.stderr)
        return 2
    began = time.monotonic()
    with World(asked.seed) as world:
        try:
            world.run(asked.steps)
        except FailedError as error:
            print(error, file=sys.stderr)
            return 1
        print("".join(f"{count:9,} {name}\n" for name, count in sorted(world.counts.items())), end="")
        seconds = time.monotonic() - began
        print(
            f"seed {asked.seed}: {asked.steps:,} steps in {seconds:.1f} s, position {world.history.newest:,}, "
            f"digest {world.digest}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
