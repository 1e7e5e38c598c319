"""The limit of open files, raised in subprocesses."""

import subprocess
import sys

from app.processes.file_limits import _OTHERS_COUNT
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT

PROGRAM = """
import logging, resource, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from app.processes import file_limits
file_limits.raise_limit(wanted)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits_after(soft: int, hard: int, connections_max: int) -> list[str]:
    """Return what the program printed: warnings, then soft and hard limit."""
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(connections_max)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return ended.stdout.splitlines()


def test_the_soft_limit_is_raised_to_what_is_needed() -> None:
    """No further, and the hard limit stays."""
    assert limits_after(150, 900, 200) == [f"{200 + _OTHERS_COUNT} 900"]


def test_a_sufficient_limit_stays() -> None:
    """Nothing is lowered."""
    assert limits_after(700, 900, 200) == ["700 900"]


def test_a_hard_limit_that_is_too_low_is_logged_once() -> None:
    """The warning names the limit and what would be needed; the soft limit becomes the hard one."""
    warning, limits = limits_after(150, 300, 1_000)

    assert limits == "300 300"
    assert "a worker may open 300 files" in warning
    assert f"would need {1_000 + _OTHERS_COUNT} for server.connections_max = 1000" in warning
