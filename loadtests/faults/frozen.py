"""The whole server stands still: frozen for five seconds, or limited to a fifth of a processor.

The lock watch counts samples, not time: a holder is stuck when five samples of a running observer show no progress.
When everything stands still, no holder may be killed. A process of ours takes the lock repeatedly and works for some
milliseconds inside, and it is frozen or throttled with the rest, so that each freeze happens with a holder in the
section.

The freeze is SIGSTOP to every process; the holder is stopped last and continued first, because a running observer
would rightly remove it. The quota is a CPU cgroup where one can be created (`loadtests.faults.quota`); otherwise
everything is stopped for 80 ms and continued for 20 (`how` in the figures).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from loadtests.faults import quota
from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failures_by_kind
from shm.block import Block, find_blocks
from testing.eventually import eventually

TIMES: Final = 20
FROZEN_SECONDS: Final = 5.0
THROTTLED_SECONDS: Final = 5.0
BETWEEN_SECONDS: Final = 0.5
SHARE: Final = 0.2
PERIOD_SECONDS: Final = 0.1
CATCH_TIMES_MAX: Final = 2000  # attempts to stop all processes while the holder is in the section

# Holds the lock for 15 ms of CPU time out of every 50, without sleeping: long enough that the watch, which samples
# every 20 ms, has most likely seen it when everything stops.
_HOLD: Final = """
import ctypes, mmap, os, sys, time
from shm.process import die_with_parent
die_with_parent(int(sys.argv[3]))
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
mutex = ctypes.byref(ctypes.c_char.from_buffer(memory, int(sys.argv[2])))
libc = ctypes.CDLL(None)
while True:
    assert libc.pthread_mutex_lock(mutex) == 0
    began = time.thread_time()
    while time.thread_time() - began < 0.015:
        pass
    assert libc.pthread_mutex_unlock(mutex) == 0
    time.sleep(0.035)
"""


def frozen(options: FaultOptions) -> Outcome:
    """Stop everything for `FROZEN_SECONDS`, with a holder in the section."""
    with Trial(options) as trial, _holder(trial) as holder:

        def once() -> float:
            members = [member.pid for member in trial.members()]
            _freeze(trial.store.block, members, holder.pid)
            time.sleep(FROZEN_SECONDS)
            trial.mark()
            _thaw(members, holder.pid)
            began = time.monotonic()
            eventually(trial.served_since_mark)
            return time.monotonic() - began

        return _repeat(trial, holder, options.scaled(TIMES), once, "first answer after it, s")


def throttled(options: FaultOptions) -> Outcome:
    """Give everything together `SHARE` of a processor, for `THROTTLED_SECONDS` at a time."""
    limit = quota.find()
    how = f"cgroup, version {limit.version}" if limit else "stopped and continued"
    with Trial(options) as trial, _holder(trial) as holder:
        members = [*(member.pid for member in trial.members()), holder.pid]

        def once() -> float:
            count, began = trial.load.answered, time.monotonic()
            if limit:
                with limit.on(members, SHARE, PERIOD_SECONDS):
                    time.sleep(THROTTLED_SECONDS)
            else:
                _throttle_by_signals(members)
            return (trial.load.answered - count) / (time.monotonic() - began)

        outcome = _repeat(trial, holder, options.scaled(TIMES), once, "most events/s under the quota")
    return outcome._replace(figures={**outcome.figures, "how": how})


def _repeat(
    trial: Trial, holder: "subprocess.Popen[bytes]", times: int, once: Callable[[], float], figure: str
) -> Outcome:
    broken: list[str] = []
    size, before = trial.log_size(), {member.pid for member in trial.members()}
    measured = []
    for number in range(times):
        measured.append(once())
        time.sleep(BETWEEN_SECONDS)
        if holder.poll() is not None:
            broken.append(f"time {number + 1}: a healthy holder was killed")
            break
    kills = int(trial.store.block.region("vitals").lock_kills)
    if kills:
        broken.append(f"{kills} holders were removed")
    now = {member.pid for member in trial.members()}
    if now != before:
        broken.append(f"the processes {sorted(before)} have become {sorted(now)}")
    logged = trial.log_since(size)
    broken += [
        f"the log says {what!r}"
        for what in ("stuck lock", "is silent", "has not started", "WORKER TIMEOUT")
        if what in logged
    ]
    holder.kill()
    holder.wait()
    records, verdict = trial.end()
    trial.server.stop()
    figures: dict[str, float | int | str] = {
        "events": len(records.decided),
        "killed": kills,
        figure: max(measured),
        **{f"answers {what}": count for what, count in failures_by_kind(records).items()},
    }
    return Outcome(times, figures, broken + verdict.broken)


@contextmanager
def _holder(trial: Trial) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the process that holds the lock every now and then."""
    block = trial.store.block
    [lock] = [region for region in block.layout.regions() if region.name == "lock"]
    [(_, link)] = find_blocks(trial.server.pid)
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(link), str(lock.offset), str(os.getpid())]) as holder:
        try:
            eventually(lambda: block.mutex_owner() == holder.pid or holder.poll() is not None)
            yield holder
        finally:
            holder.kill()


def _freeze(block: Block, members: list[int], holder: int) -> None:
    """Stop everybody at a moment when the holder is in the section."""
    for _ in range(CATCH_TIMES_MAX):
        if block.mutex_owner() != holder:
            time.sleep(0.0005)
            continue
        for pid in (*members, holder):
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(_stopped(pid) for pid in (*members, holder)))
        if block.mutex_owner() == holder:
            return
        _thaw(members, holder)
        time.sleep(0.02)
    raise RuntimeError("the holder was never caught inside the section")


def _thaw(members: list[int], holder: int) -> None:
    for pid in (holder, *members):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _throttle_by_signals(members: list[int]) -> None:
    """Let everybody run for a share of each period only."""
    *service, holder = members
    until = time.monotonic() + THROTTLED_SECONDS
    try:
        while time.monotonic() < until:
            for pid in (*service, holder):
                with suppress(ProcessLookupError):  # replaced meanwhile, which `_repeat` reports
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(PERIOD_SECONDS * (1 - SHARE))
            _thaw(service, holder)
            time.sleep(PERIOD_SECONDS * SHARE)
    finally:
        _thaw(service, holder)
