"""Workers are killed at random while a million events pass.

One worker at a time gets SIGKILL, sometimes before the last victim has a successor. Most die between requests, many
with a half-read request or half-written answer, a few inside the critical section (`holders died`, counted by the
block).

Clients resend with the same key. In the end every event was decided once, every client was told what the log has, and
a replay of the log gives the live state.
"""

import os
import signal
import time
from contextlib import suppress
from typing import Final

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failures_by_kind

KILLS: Final = 500
EVENTS: Final = 1_000_000
CLIENTS: Final = 8  # so that some are on the worker that dies
GAP_SECONDS: Final = (0.02, 0.35)  # between two kills; a successor serves after a tenth of a second
STALL_SECONDS_MAX: Final = 1.0


def worker_killed(options: FaultOptions) -> Outcome:
    """Kill workers at random."""
    kills, events = options.scaled(KILLS), options.scaled(EVENTS)
    chance = options.random()
    with Trial(options, "app.main:app", CLIENTS) as trial:
        for _ in range(kills):
            time.sleep(chance.uniform(*GAP_SECONDS))
            kill_one(trial, chance.random())
        while trial.load.answered < events:
            time.sleep(0.05)
        records, verdict = trial.end()
        lock = trial.store.block.region("lock")
        deaths, rollbacks = int(lock.deaths), int(lock.rollbacks)
        trial.server.stop()
    stalls = sorted((seconds for seconds, _ in records.stalls()), reverse=True)
    failed_attempts = failures_by_kind(records)
    broken = list(verdict.broken)
    if stalls[0] > STALL_SECONDS_MAX:
        broken.append(f"a client had no answer for {stalls[0]:.2f} s, at most {STALL_SECONDS_MAX:g} s are promised")
    return Outcome(
        kills,
        {
            "events": verdict.decisions,
            "acknowledged": len(records.decided),
            "answers lost": failed_attempts["lost"],
            "nobody listened": failed_attempts["unreachable"],
            "other misses": failed_attempts.total() - failed_attempts["lost"] - failed_attempts["unreachable"],
            "holders died": deaths,
            "rolled back": rollbacks,
            "longest stall ms": 1e3 * stalls[0],
        },
        broken,
    )


def kill_one(trial: Trial, chosen: float, number: int = signal.SIGKILL) -> int:
    """Send a signal to one of the workers that hold rows, by 0 ≤ `chosen` < 1; returns its pid.

    Waits for one when there is none at the moment.
    """
    while not (workers := trial.workers()):
        time.sleep(0.005)
    victim = workers[int(chosen * len(workers))]
    with suppress(ProcessLookupError):  # it died a moment ago, and its row has no new owner yet
        os.kill(victim, number)
    return victim
