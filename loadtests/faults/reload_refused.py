"""Reloads that cannot succeed, under load: the server keeps its settings, reports the problem, and goes on.

Three ways: a configuration with random problems, all of which the log must name; new workers that cannot boot; and an
arbiter without a free descriptor. After each the old settings and the old workers are in force; at the end a valid
reload works.
"""

import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failure_sentences, failures_by_kind
from loadtests.faults.unbootable import PREVENTED
from testing.eventually import eventually

TIMES: Final = 20
SETTLE_SECONDS: Final = 0.2  # of load between two repetitions
DESCRIPTORS: Final = 3  # fewer than the arbiter has open: it can open none
GOOD: Final = "moral_filter: {ema_alpha: 0.25}\n"
# Lines of a configuration file, one per section, with the name that the log must contain.
PROBLEMS: Final = (
    ("capacity: -1", "capacity"),
    ("server: {connections_max: many}", "server.connections_max"),
    ("moral_filter: {ema_alpha: 7}", "moral_filter.ema_alpha"),
    ("cognitive_rhythm: {wake_duration: no}", "cognitive_rhythm.wake_duration"),
    ("multi_level_memory: {gate: nothing}", "multi_level_memory.gate"),
    ("security: {keys_path: /nowhere/keys.yaml}", "/nowhere/keys.yaml"),
    ("observability: {logging: {level: LOUD}}", "observability.logging.level"),
    ("resources: {drain_period: -3}", "resources.drain_period"),
    ("unknown: 1", "unknown"),
)
# Valid at a start, but not at a reload.
FIXED: Final = (
    ("payload_size_max: 2048", "payload_size_max cannot change"),
    ("server: {host: 127.0.0.2}", "server.host cannot change"),
)


def refused(options: FaultOptions) -> Outcome:
    """HUP with a configuration that has problems."""
    chance, turns = options.random(), itertools.count()
    path = options.directory / "mlsdm.yaml"
    path.write_text("{}\n")

    def once(trial: Trial) -> list[str]:
        size = trial.log_size()
        problems = PROBLEMS if next(turns) % 4 == 0 else FIXED + PROBLEMS[2:]  # each section once
        chosen = chance.sample(problems, chance.randint(1, len(problems)))
        path.write_text("\n".join(line for line, _ in chosen) + "\n")
        before = trial.workers()
        os.kill(trial.server.pid, signal.SIGHUP)
        eventually(lambda: "the old one stays" in trial.log_since(size))
        logged = trial.log_since(size)
        path.write_text("{}\n")  # a worker that is replaced must find a valid file
        unnamed = [f"the log does not name {name}" for _, name in chosen if name not in logged]
        return unnamed + _replaced(trial, before)

    with Trial(options, CONFIG_PATH=str(path)) as trial:
        return _repeat(trial, options.scaled(TIMES), once, lambda: path.write_text(GOOD))


def unbootable(options: FaultOptions) -> Outcome:
    """HUP while no worker can boot."""
    path, prevented = options.directory / "mlsdm.yaml", options.directory / "prevented"
    path.write_text("{}\n")

    def once(trial: Trial) -> list[str]:
        size, before = trial.log_size(), trial.workers()
        prevented.touch()
        try:
            os.kill(trial.server.pid, signal.SIGHUP)
            eventually(lambda: "new workers did not start" in trial.log_since(size))
        finally:
            prevented.unlink()
        told = "prevented from booting" in trial.log_since(size)
        return ([] if told else ["the log does not say why"]) + _replaced(trial, before)

    with Trial(
        options, "loadtests.faults.unbootable:app", CONFIG_PATH=str(path), **{PREVENTED: str(prevented)}
    ) as trial:
        return _repeat(trial, options.scaled(TIMES), once, lambda: path.write_text(GOOD))


def no_descriptors(options: FaultOptions) -> Outcome:
    """HUP with another, valid configuration while the arbiter can open nothing."""
    path = options.directory / "mlsdm.yaml"
    path.write_text("{}\n")

    def once(trial: Trial) -> list[str]:
        size, before = trial.log_size(), trial.workers()
        path.write_text("moral_filter: {ema_alpha: 0.5}\n")
        soft, hard = resource.prlimit(trial.server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(trial.server.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        try:
            os.kill(trial.server.pid, signal.SIGHUP)
            eventually(lambda: "not reloaded, the old one stays" in trial.log_since(size) or _server_ended(trial))
        finally:
            path.write_text("{}\n")
            if not _server_ended(trial):
                resource.prlimit(trial.server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        if _server_ended(trial):
            raise RuntimeError(f"the server ended: {trial.log_since(size)}")
        told = "Too many open files" in trial.log_since(size)
        return ([] if told else ["the log does not say what is missing"]) + _replaced(trial, before)

    with Trial(options, CONFIG_PATH=str(path)) as trial:
        return _repeat(trial, options.scaled(TIMES), once, lambda: path.write_text(GOOD))


def _replaced(trial: Trial, before: Sequence[int]) -> list[str]:
    """Return a sentence when other workers than `before` serve once those that could not boot have ended."""
    with suppress(AssertionError):
        eventually(lambda: set(trial.workers()) == set(before))
        return []
    return [f"workers {trial.workers()} serve instead of {before}"]


def _server_ended(trial: Trial) -> bool:
    return trial.server.process is None or trial.server.process.poll() is not None


def _repeat(trial: Trial, times: int, once: Callable[[Trial], list[str]], restore: Callable[[], Any]) -> Outcome:
    broken: list[str] = []
    settings = trial.store.state().configured
    for number in range(times):
        broken += [f"time {number + 1}: {sentence}" for sentence in once(trial)]
        if trial.store.state().configured != settings:
            broken.append(f"time {number + 1}: the settings in force are not the old ones")
        time.sleep(SETTLE_SECONDS)
        trial.mark()
        eventually(trial.served_since_mark)
    restore()
    os.kill(trial.server.pid, signal.SIGHUP)
    eventually(lambda: trial.store.state().settings.ema_alpha == 0.25)
    records, verdict = trial.end()
    trial.server.stop()
    what = failures_by_kind(records)
    lost = what.pop("lost", 0)
    broken += failure_sentences(what)
    figures: dict[str, float | int | str] = {
        "events": len(records.decided),
        "failed requests": sum(what.values()),
        "closed idle connections": lost,
        "longest stall, s": max(stall for stall, _ in records.stalls()),
    }
    return Outcome(times, figures, broken + verdict.broken)
