"""Storms of SIGABRT, SIGQUIT and SIGTERM on workers, at random, some several at once.

All three end a worker through its own handlers: SIGABRT is the arbiter's signal for a stalled worker, SIGQUIT means
now, SIGTERM means after all answers. A handler that ran or raised inside the critical section would leave a
half-written state behind a properly released lock, which nothing would repair. The judge finds every such state,
because a replay of the log would differ.
"""

import signal
import time
from collections import Counter
from typing import Final

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failures_by_kind
from loadtests.faults.worker_killed import kill_one

SIGNALS: Final = (signal.SIGABRT, signal.SIGQUIT, signal.SIGTERM)
TIMES: Final = 300
CLIENTS: Final = 8
STORM_MAX: Final = 4  # signals
BETWEEN_SECONDS: Final = (0.05, 0.5)  # storms


def signal_storms(options: FaultOptions) -> Outcome:
    """Send workers at least `TIMES` signals at full scale."""
    chance = options.random()
    sent: Counter[str] = Counter()
    with Trial(options, "app.main:app", CLIENTS) as trial:
        while sent.total() < options.scaled(TIMES):
            time.sleep(chance.uniform(*BETWEEN_SECONDS))
            for _ in range(chance.randint(1, STORM_MAX)):
                number = chance.choice(SIGNALS)
                kill_one(trial, chance.random(), number)
                sent[number.name] += 1
        trial.load.await_all()
        records, verdict = trial.end()
        lock = trial.store.block.region("lock")
        deaths, rollbacks = int(lock.deaths), int(lock.rollbacks)
        traced = trial.server.log.count("Traceback")
        trial.server.stop()
    broken = list(verdict.broken)
    if traced:
        broken.append(f"{traced} workers left with a traceback")
    return Outcome(
        sent.total(),
        {
            **sent,
            "half states": len(verdict.broken),
            "events": verdict.decisions,
            "answers lost": failures_by_kind(records)["lost"],
            "other misses": len(records.failed_attempts) - failures_by_kind(records)["lost"],
            "holders died": deaths,
            "rolled back": rollbacks,
            "longest stall ms": 1e3 * max(seconds for seconds, _ in records.stalls()),
        },
        broken,
    )
