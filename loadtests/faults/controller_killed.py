"""The controller dies, stalls, or resumes after it was replaced, while clients send events.

`controller_killed`: SIGKILL; the arbiter respawns it. The time is that from the signal to the successor's epoch.
`controller_stopped`: SIGSTOP; the arbiter notices the silence, kills and respawns it. `controller_stale`: it is
stopped, the controller of a newer arbiter (a process of ours) takes over, and it is continued: it must write nothing
and exit. Then that arbiter is killed, and the server starts a controller again.

The controller is never on the path of an event, so clients must be answered in each of these gaps.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import numpy as np
import psutil

from core.controller.controller import run
from core.settings.config import Config
from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.judge import Verdict
from loadtests.faults.load import ClientRecords
from loadtests.faults.trial import Trial
from shm import process
from shm.block import Block, find_blocks
from shm.layout import NO_ROW
from shm.records import bytes_of
from testing.eventually import HANG_SECONDS, eventually

TIMES: Final = 100
LIVES_SECONDS: Final = (0.6, 0.8)  # of a controller before the fault
RESPAWN_MS_MAX: Final = 100.0
GAPS_SECONDS_JUDGED: Final = 0.5  # in a shorter time clients of a busy machine may not run at all
CYCLE: Final = "0.05"  # seconds of a rhythm step: a controller that writes often


class Gap(NamedTuple):
    """A time without a controller: its begin and end in seconds of the monotonic clock."""

    began: float
    ended: float


class Run(NamedTuple):
    """What came of a load during which the controller was away several times."""

    gaps: list[Gap]
    records: ClientRecords
    verdict: Verdict

    def outcome(self, figures: Mapping[str, float], broken: list[str]) -> Outcome:
        """Return the outcome with the figures that all three faults share."""
        answers = [self.records.answers_between(gap.began, gap.ended) for gap in self.gaps]
        seconds = sum(gap.ended - gap.began for gap in self.gaps)
        if not sum(answers) and seconds > GAPS_SECONDS_JUDGED:
            broken.append(f"no client was answered in the {seconds:.1f} s without a controller")
        common = {
            "answers in the gaps": sum(answers),
            "fewest in one": min(answers),
            "longest stall ms": 1e3 * max(seconds for seconds, _ in self.records.stalls()),
            "events": self.verdict.decisions,
            "requests without answer": len(self.records.failed_attempts),
        }
        return Outcome(len(self.gaps), {**figures, **common}, self.verdict.broken + broken)

    def successions(self) -> list[str]:
        """Return a sentence unless each gap was ended by exactly one new controller."""
        taken = self.verdict.controllers - 1
        expected = len(self.gaps)
        return [] if taken == expected else [f"{expected} controllers were lost, and {taken} took over"]


def controller_killed(options: FaultOptions) -> Outcome:
    """SIGKILL the controller, `TIMES` times at full scale."""
    respawned_ms: list[float] = []
    gaps_run = _run_gaps(options, lambda trial: respawned_ms.append(1e3 * _end_controller(trial, signal.SIGKILL)))
    broken = gaps_run.successions()
    p50, p99 = (float(p) for p in np.percentile(respawned_ms, (50, 99)))
    if p99 > RESPAWN_MS_MAX:
        broken.append(f"the respawn took {p99:.0f} ms (p99), less than {RESPAWN_MS_MAX:g} ms are promised")
    return gaps_run.outcome({"respawn p50 ms": p50, "p99 ms": p99, "max ms": max(respawned_ms)}, broken)


def controller_stopped(options: FaultOptions) -> Outcome:
    """SIGSTOP the controller, `TIMES` times at full scale, until the arbiter has replaced it."""
    gaps_run = _run_gaps(options, lambda trial: _end_controller(trial, signal.SIGSTOP))
    p50, p100 = np.percentile([gap.ended - gap.began for gap in gaps_run.gaps], (50, 100))
    return gaps_run.outcome({"replaced p50 s": float(p50), "max s": float(p100)}, gaps_run.successions())


def controller_stale(options: FaultOptions) -> Outcome:
    """Continue a controller that was superseded while it was stopped, `TIMES` times at full scale."""
    entries = vitals = removed = 0

    def once(trial: Trial) -> None:
        nonlocal entries, vitals, removed
        epoch, stale = trial.store.block.epoch, process.identify(trial.controller())
        os.kill(stale.pid, signal.SIGSTOP)
        rival = _start_rival(trial)
        eventually(lambda: trial.store.block.epoch > epoch and trial.controller() != stale.pid)
        with _paused(trial.controller()):  # anything that a controller writes now is from the stale one
            position, records = int(trial.store.state().position), _vitals(trial)
            removed += not stale.alive
            with suppress(ProcessLookupError):  # it was stopped inside the section and has been removed
                os.kill(stale.pid, signal.SIGCONT)
            eventually(lambda: not stale.alive)
            entries += _controller_entries(trial, position)
            vitals += _vitals(trial) != records
        os.kill(rival, signal.SIGKILL)
        os.waitpid(rival, 0)
        eventually(lambda: trial.store.block.epoch > epoch + 1)

    gaps_run = _run_gaps(options, once)
    broken = []
    if entries or vitals:
        broken.append(f"stale controllers wrote {entries} log entries and changed the vitals {vitals} times")
    figures = {"entries by stale ones": entries, "vitals by them": vitals, "stopped in the section": removed}
    return gaps_run.outcome(figures, broken)


def _run_gaps(options: FaultOptions, once: Callable[[Trial], object]) -> Run:
    """Do it again and again to a server under load."""
    chance = options.random()
    gaps = []
    with Trial(options, MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS=CYCLE) as trial:
        for _ in range(options.scaled(TIMES)):
            time.sleep(chance.uniform(*LIVES_SECONDS))
            began = time.monotonic()
            once(trial)
            gaps.append(Gap(began, time.monotonic()))
        records, verdict = trial.end()
        trial.server.stop()
    return Run(gaps, records, verdict)


def _end_controller(trial: Trial, number: int) -> float:
    """Send the controller a signal that it does not survive; returns the seconds until its successor has its epoch."""
    epoch, lost = trial.store.block.epoch, trial.controller()
    os.kill(lost, number)
    began = time.monotonic()
    while trial.store.block.epoch == epoch and time.monotonic() < began + HANG_SECONDS:
        time.sleep(0.001)  # the resolution of what is returned
    seconds = time.monotonic() - began
    eventually(lambda: trial.controller() != lost)
    return seconds


@contextmanager
def _paused(pid: int) -> Iterator[None]:
    """Keep a process stopped inside; one that was stopped in the section may be removed meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE})
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _vitals(trial: Trial) -> bytes:
    return bytes_of(trial.store.block.region("vitals"))


def _controller_entries(trial: Trial, after: int) -> int:
    """Return how many log entries behind a position no worker has written."""
    written = 0
    while page := trial.store.entries(after + 1, 1000)[0]:
        written += sum(entry.row == NO_ROW for entry in page)
        after += len(page)
        if len(page) < 1000:
            break
    return written


def _start_rival(trial: Trial) -> int:
    """Start a newer arbiter with a controller on the block of a trial; returns its pid. The controller dies with it."""
    parent = os.getpid()
    _, link = next(iter(find_blocks(trial.server.pid)))
    pid = os.fork()
    if pid:
        return pid
    try:  # must never return into the caller
        process.die_with_parent(parent)
        logging.disable()  # its log is not needed
        arbiter = process.identify_self()
        if os.fork() == 0:
            os._exit(run(Block.open(os.open(link, os.O_RDWR), writable=True), Config(), arbiter))
        while True:
            signal.pause()
    finally:
        os._exit(1)
