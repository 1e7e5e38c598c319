"""A worker is stopped while it holds the lock; it must be removed, and clients must be told meanwhile.

SIGSTOP reaches a worker anywhere, so it is repeated until the mutex belongs to the stopped worker; otherwise the
worker is continued at once. A worker under load spends some hundredths of its time inside, so a hit takes some tens of
attempts.

After a hit the other worker must answer 503 `store_busy` instead of waiting, and the controller or the other worker
must remove the holder. Its unfinished change is rolled back or completed; the judge checks which. The time to removal
counts from the moment at which the worker was seen stopped.
"""

import os
import random
import signal
import time
from contextlib import suppress
from typing import Final

import numpy as np

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial
from shm import process

TIMES: Final = 50
WORKERS: Final = 2
CLIENTS: Final = 8  # so that some are on the other worker
ATTEMPTS_MAX: Final = 20_000  # per holder
BETWEEN_SECONDS: Final = (0.0002, 0.001)  # between two attempts
SETTLE_SECONDS: Final = 0.3  # of load between two hits
REFUSED_MS_MAX: Final = 100.0
REMOVED_MS_MAX: Final = 500.0


def holder_stopped(options: FaultOptions) -> Outcome:
    """Stop a holder inside the section, `TIMES` times at full scale."""
    chance = options.random()
    stopped: list[tuple[float, float]] = []  # begin and end of each stop, monotonic seconds
    attempts = 0
    with Trial(options, "app.main:app", CLIENTS) as trial:
        for _ in range(options.scaled(TIMES)):
            time.sleep(SETTLE_SECONDS)
            holder, tried = stop_holder(trial, chance)
            attempts += tried
            began = time.monotonic()
            while holder.alive:
                time.sleep(0.001)
            stopped.append((began, time.monotonic()))
            while holder.pid in trial.workers() or len(trial.workers()) < WORKERS:
                time.sleep(0.001)
        records, verdict = trial.end()
        lock = trial.store.block.region("lock")
        deaths, rollbacks = int(lock.deaths), int(lock.rollbacks)
        logged = trial.server.log.count("removed stuck lock holder")
        trial.server.stop()
    refused = [miss for miss in records.failed_attempts if miss.what == "503 store_busy"]
    refused_ms = [1e3 * (miss.ended - miss.began) for miss in refused] or [0.0]
    removed_ms = [1e3 * (ended - began) for began, ended in stopped]
    refused_meanwhile = sum(
        any(began < miss.ended and miss.began < ended for miss in refused) for began, ended in stopped
    )
    broken = list(verdict.broken)
    if not refused_meanwhile:
        broken.append(f"while {len(stopped)} holders were stopped, no client got a 503")
    if max(refused_ms) > REFUSED_MS_MAX:
        broken.append(f"a 503 took {max(refused_ms):.0f} ms, less than {REFUSED_MS_MAX:g} ms are promised")
    if max(removed_ms) > REMOVED_MS_MAX:
        broken.append(
            f"a stopped holder stayed for {max(removed_ms):.0f} ms, less than {REMOVED_MS_MAX:g} ms are promised"
        )
    return Outcome(
        len(stopped),
        {
            "attempts": attempts,
            "removed p50 ms": float(np.median(removed_ms)),
            "max ms": max(removed_ms),
            "answered 503 meanwhile": f"{refused_meanwhile} of {len(stopped)} times",
            "503 p50 ms": float(np.median(refused_ms)),
            "503 max ms": max(refused_ms),
            "holders died": deaths,
            "rolled back": rollbacks,
            "said in the log": logged,
            "longest stall ms": 1e3 * max(seconds for seconds, _ in records.stalls()),
            "events": verdict.decisions,
        },
        broken,
    )


def stop_holder(trial: Trial, chance: random.Random) -> tuple[process.Identity, int]:
    """Stop a worker inside the section; returns it, and how many attempts that took.

    Raises AssertionError when none of `ATTEMPTS_MAX` was a hit.
    """
    block = trial.store.block
    for attempt in range(1, ATTEMPTS_MAX):
        time.sleep(chance.uniform(*BETWEEN_SECONDS))
        worker = process.identify(chance.choice(trial.workers()))
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGSTOP)
            while worker.alive and worker.runnable:
                pass  # a signal takes effect when its target next runs
            if worker.alive and process.process_of_thread(block.mutex_owner()) == worker.pid:
                return worker, attempt
            os.kill(worker.pid, signal.SIGCONT)
    raise AssertionError(f"none of {ATTEMPTS_MAX} attempts stopped a worker inside the section")
