"""The arbiter is killed under load: all its processes end, nothing is left behind, and a new start serves.

The memory of a server lives as long as its processes; clients recognise a new one by its `boot_id`. Checked: after two
seconds no process of the old server is alive and none maps its memory; its port can be bound again at once; and the
same clients, which never stop asking, are answered by the new server. All servers share a directory for temporary
files, which is empty after the last orderly stop.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

import psutil

from app.telemetry.metric_files import METRICS_PREFIX
from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.load import Events, Load
from loadtests.faults.trial import CLIENTS, DIMENSION, SIZES, failures_by_kind
from shm import process
from shm.block import find_blocks
from testing.live_server import LiveServer

TIMES: Final = 20
LIVES_SECONDS: Final = (0.2, 1.0)  # of load before the next kill
ORPHANS_SECONDS_MAX: Final = 2.0
GIVE_UP_SECONDS: Final = 60.0


def arbiter_killed(options: FaultOptions) -> Outcome:
    """SIGKILL the arbiter, `TIMES` times at full scale, and start the server again each time."""
    chance = options.random()
    temporary = options.directory / "tmp"
    temporary.mkdir()
    server = LiveServer(options.directory, {**SIZES, "TMPDIR": str(temporary)})
    ended, served, boots, broken = [], [], set[str](), list[str]()
    try:
        server.start()
        events = Events(DIMENSION)
        with Load(server.port, events, options.seed, CLIENTS, pause_seconds=options.pause_seconds) as load:
            for _ in range(options.scaled(TIMES)):
                load.await_all()
                time.sleep(chance.uniform(*LIVES_SECONDS))
                boots.add(server.state()["boot_id"])
                seconds, wrong = _kill_arbiter(server)
                ended.append(seconds)
                broken += wrong
                began = time.monotonic()
                server.start()
                load.await_all()
                served.append(time.monotonic() - began)
            boots.add(server.state()["boot_id"])
            records = load.stop()
        server.stop()
    finally:
        server.kill()
    if len(boots) != len(ended) + 1:
        broken.append(f"{len(ended) + 1} servers had {len(boots)} different boot ids")
    left = [path.name for path in temporary.glob(METRICS_PREFIX + "*")]
    if left:
        broken.append(f"{len(left)} directories of metrics were left behind: {left[:3]}")
    return Outcome(
        len(ended),
        {
            "all ended after ms, max": 1e3 * max(ended),
            "serves again after s, max": max(served),
            "answers lost": failures_by_kind(records)["lost"],
            "nobody listened": failures_by_kind(records)["unreachable"],
            "events": len(records.decided),
        },
        broken,
    )


def _kill_arbiter(server: LiveServer) -> tuple[float, list[str]]:
    """Kill the arbiter; return the seconds until all its children ended, and a sentence for each remnant."""
    assert server.process is not None
    members = [process.identify(child.pid) for child in psutil.Process(server.pid).children(recursive=True)]
    _, link = next(iter(find_blocks(server.pid)))
    memory = link.stat().st_ino
    began = time.monotonic()
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    while (alive := [member for member in members if member.alive]) and time.monotonic() - began < GIVE_UP_SECONDS:
        time.sleep(0.001)
    seconds = time.monotonic() - began
    wrong = []
    if alive:
        wrong.append(f"{len(alive)} of {len(members)} children outlived the arbiter by {seconds:.1f} s")
    elif seconds > ORPHANS_SECONDS_MAX:
        wrong.append(
            f"children outlived the arbiter by {seconds:.1f} s, at most {ORPHANS_SECONDS_MAX:g} s are promised"
        )
    if any(_inode(link) == memory for _, link in find_blocks()):
        wrong.append("a process still holds the memory of a server that was killed")
    return seconds, wrong


def _inode(link: Path) -> int:
    try:
        return link.stat().st_ino
    except OSError:  # the process has just ended
        return 0
