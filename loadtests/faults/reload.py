"""Reload and upgrade under load: HUP and USR2, repeatedly, while clients send events.

Each reload changes a governor setting, so that the log shows when it took effect. An upgrade is complete: a new
arbiter on the same block, its workers beside the old ones, and the old arbiter stopped.

No request may fail. A draining worker announces the close with its last answer. It may close an idle connection
without notice; a client that writes at that moment sees a lost connection and sends again. Every memory stays, there
is one controller afterwards, and the log over all generations is one.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import psutil

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.load import ClientRecords, FailedAttempt
from loadtests.faults.trial import STORE_BUSY, Trial, failure_sentences
from testing.eventually import eventually

RELOADS: Final = 25
UPGRADES: Final = 25
IDLE_SECONDS: Final = 0.9  # a draining worker closes connections that were idle for a second
SETTLE_SECONDS: Final = 0.2  # of load between two repetitions
CONTROLLER_SECONDS_MAX: Final = 60.0  # until a superseded controller has ended, on any machine


def reload(options: FaultOptions) -> Outcome:
    """HUP with another valid configuration, `RELOADS` times at full scale."""
    path = options.directory / "mlsdm.yaml"
    path.write_text("moral_filter: {ema_alpha: 0.1}\n")
    with Trial(options, CONFIG_PATH=str(path)) as trial:

        def once(number: int) -> None:
            alpha = 0.1 + 0.01 * (1 + number % 5)
            before = trial.workers()
            path.write_text(f"moral_filter: {{ema_alpha: {alpha!r}}}\n")
            os.kill(trial.server.pid, signal.SIGHUP)
            eventually(lambda: trial.store.state().settings.ema_alpha == alpha)
            eventually(lambda: len(trial.workers()) == 2 and not set(before) & set(trial.workers()))

        outcome = _repeat(trial, options.scaled(RELOADS), once, lambda: trial.server.pid)
        kinds = outcome.figures.get("configure entries", 0)
        if kinds != outcome.count:
            outcome.broken.append(f"{outcome.count} reloads were configured {kinds} times in the log")
        trial.server.stop()
    return outcome


def upgrade(options: FaultOptions) -> Outcome:
    """USR2, then SIGTERM to the old arbiter, `UPGRADES` times at full scale."""
    with Trial(options) as trial:
        arbiter = trial.server.pid

        def once(number: int) -> None:
            nonlocal arbiter
            old, controller, before = arbiter, trial.controller(), trial.workers()
            os.kill(old, signal.SIGUSR2)
            eventually(lambda: trial.controller() != controller)
            arbiter = int(trial.store.block.region("vitals").arbiter_pid)
            eventually(lambda: len(set(trial.workers()) - set(before)) == 2)
            os.kill(old, signal.SIGTERM)
            eventually(lambda: _ended(trial, old))
            eventually(lambda: not set(before) & set(trial.workers()))
            # The new arbiter refuses USR2 until it notices, within a second, that its parent has ended.
            eventually(lambda: trial.server.log.count("Master has been promoted") == number + 1)

        outcome = _repeat(trial, options.scaled(UPGRADES), once, lambda: arbiter)
        os.kill(arbiter, signal.SIGTERM)
        eventually(lambda: _ended(trial, arbiter))
    return outcome


def _ended(trial: Trial, arbiter: int) -> bool:
    """Return whether an arbiter is gone; the first one is our child and has to be reaped."""
    if trial.server.process is not None and trial.server.process.pid == arbiter:
        return trial.server.process.poll() is not None
    try:
        return psutil.Process(arbiter).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _repeat(trial: Trial, times: int, once: Callable[[int], None], arbiter: Callable[[], int]) -> Outcome:
    broken: list[str] = []
    seconds = []
    boot_id = trial.server.state()["boot_id"]
    for number in range(times):
        began = time.monotonic()
        once(number)
        seconds.append(time.monotonic() - began)
        broken += _other_controllers(trial, arbiter(), number)
        time.sleep(SETTLE_SECONDS)
    if trial.server.state()["boot_id"] != boot_id:
        broken.append("the boot id changed: the memory was lost")
    records, verdict = trial.end()
    failed = [miss for miss in records.failed_attempts if not (miss.what == "lost" and _was_idle(records, miss))]
    broken += failure_sentences(Counter(miss.what for miss in failed))
    figures: dict[str, float | int | str] = {
        "events": len(records.decided),
        "failed requests": sum(miss.what != STORE_BUSY for miss in failed),
        "closed idle connections": len(records.failed_attempts) - len(failed),
        "longest stall, s": max(stall for stall, _ in records.stalls()),
        "configure entries": verdict.kinds.get("configure", 0),
        "longest, s": max(seconds),
    }
    return Outcome(times, figures, broken + verdict.broken)


def _was_idle(records: ClientRecords, miss: FailedAttempt) -> bool:
    """Return whether the connection of a lost request may have been silent for long enough to be closed."""
    for requests in records.requests:
        at = int(np.searchsorted(requests["began"], miss.began, side="right")) - 1  # the request of this attempt
        if at > 0 and requests["began"][at] - requests["ended"][at - 1] >= IDLE_SECONDS:
            return True
    return False


def _other_controllers(trial: Trial, arbiter: int, number: int) -> list[str]:
    """Return a sentence unless there is one controller, whose parent is the serving arbiter."""
    others: list[int] = []

    def alone() -> bool:
        rows = set(trial.workers())
        others[:] = [member.pid for member in trial.members(arbiter)[1:] if member.pid not in rows]
        return others == [trial.controller()]

    try:
        eventually(alone, CONTROLLER_SECONDS_MAX)  # a superseded controller exits in its next round
    except AssertionError:
        return [f"after {number + 1} times there are the controllers {others}, {trial.controller()} writes"]
    return []
