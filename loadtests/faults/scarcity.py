"""Scarcity under load: no descriptors, no memory, no room for the log, each for a while.

The processes' own limits (prlimit) are lowered to what they use and raised again, so the rest of the machine is not
affected. In half of the episodes a worker is killed as well, because its replacement needs the scarce resource.

Meanwhile existing connections are served or refused properly, and the log names what is missing where it has room.
Afterwards all workers serve, new clients are answered, and no acknowledged event is missing.
"""

import http.client
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failures_by_kind
from testing.eventually import eventually

TIMES: Final = 20
SCARCE_SECONDS: Final = 1.0
SERVED_SECONDS_MAX: Final = 60.0  # until a client is served meanwhile, on any machine
SETTLE_SECONDS: Final = 0.3
NEWCOMERS: Final = 20  # clients that connect while there are no descriptors
DESCRIPTORS: Final = 3  # fewer than any process has open
ROOMS: Final = (0, 2 << 20)  # bytes of address space more than in use
LARGE: Final = b"[" + b"0.0123456789," * (240 << 10) + b"0]"  # 3 MB
LARGE_TIMES: Final = 5
NOT_AN_EVENT: Final = 422  # its status when there is memory to read it


def no_descriptors(options: FaultOptions) -> Outcome:
    """Let no process of the server open anything."""

    def once(trial: Trial, kill: bool) -> list[str]:
        size = trial.log_size()
        members = [member.pid for member in trial.members()]
        newcomers = []
        with _lowered_limit(members, resource.RLIMIT_NOFILE, lambda _: DESCRIPTORS):
            for _ in range(NEWCOMERS):
                newcomers.append(socket.create_connection(("127.0.0.1", trial.server.port), timeout=SERVED_SECONDS_MAX))
                newcomers[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            problems = _wait_and_check_load(trial, kill)
        answers = [_answer(newcomer) for newcomer in newcomers]
        if any(answer != b"HTTP/1.1 200" for answer in answers):
            problems.append(f"clients that came meanwhile were answered {set(answers)}")
        if "Too many open files" not in trial.log_since(size) and "descriptors" not in trial.log_since(size):
            problems.append("the log does not say what is missing")
        return problems

    with Trial(options) as trial:
        outcome = _repeat(trial, options.scaled(TIMES), once)
    if outcome.figures["controllers"] != 1:
        outcome.broken.append(f"{outcome.figures['controllers']} controllers in succession; expected one")
    return outcome


def no_memory(options: FaultOptions) -> Outcome:
    """Limit the address space of every process to slightly above its use, and send large requests."""
    chance = options.random()
    answered: Counter[int] = Counter()

    def once(trial: Trial, kill: bool) -> list[str]:
        room = chance.choice(ROOMS)
        members = [member.pid for member in trial.members()]
        with _lowered_limit(members, resource.RLIMIT_AS, lambda pid: psutil.Process(pid).memory_info().vms + room):
            meanwhile = [_send_large_request(trial) for _ in range(LARGE_TIMES)]
            problems = _wait_and_check_load(trial, kill)
        answered.update(meanwhile)
        afterwards = _send_large_request(trial)
        if afterwards != NOT_AN_EVENT:
            problems.append(f"a large request was answered {afterwards} when there was memory again")
        # Lost connections are reported, not judged: other processes may use up the memory that a refusal needs.
        if 200 in meanwhile:
            problems.append(f"large requests were answered {meanwhile} with {room:,} bytes")
        return problems

    with Trial(options) as trial:
        outcome = _repeat(trial, options.scaled(TIMES), once)
    unanswered = answered.pop(0, 0)
    return outcome._replace(
        figures={**outcome.figures, "large requests refused": answered.total(), "cut off": unanswered}
    )


def _send_large_request(trial: Trial) -> int:
    """Send a request that needs megabytes; returns its status, 0 when the connection ended instead."""
    try:
        return trial.server.request("POST", "/events", LARGE, {"Content-Type": "application/json"}).status
    except (OSError, http.client.HTTPException):
        return 0


def full_log(options: FaultOptions) -> Outcome:
    """Limit file sizes to the log's current size: nothing more can be logged, as on a full disk."""

    def once(trial: Trial, kill: bool) -> list[str]:
        size = trial.log_size()
        members = [member.pid for member in trial.members()]
        with _lowered_limit(members, resource.RLIMIT_FSIZE, lambda _: size):
            os.kill(trial.server.pid, signal.SIGUSR1)  # which is logged
            problems = _wait_and_check_load(trial, kill)
            if trial.log_size() > size:
                problems.append("the log could still be written")
            if kill:
                eventually(lambda: len(trial.workers()) == 2 and all(psutil.pid_exists(pid) for pid in trial.workers()))
        os.kill(trial.server.pid, signal.SIGUSR1)
        eventually(lambda: "Handling signal: usr1" in trial.log_since(size))
        return problems

    with Trial(options) as trial:
        return _repeat(trial, options.scaled(TIMES), once)


def _answer(newcomer: socket.socket) -> bytes:
    with newcomer:
        try:
            return newcomer.recv(4096)[:12]
        except OSError as error:
            return repr(error).encode()


def _wait_and_check_load(trial: Trial, kill: bool) -> list[str]:
    """Wait during the scarcity, on a busy machine until a client was served; return the problems of the load."""
    if kill:
        os.kill(trial.workers()[0], signal.SIGKILL)
    trial.mark()
    time.sleep(SCARCE_SECONDS)
    if not kill:
        try:
            eventually(trial.served_since_mark, SERVED_SECONDS_MAX)
        except AssertionError:
            return ["no client was served meanwhile"]
    return []


@contextmanager
def _lowered_limit(members: list[int], which: int, limit: Callable[[int], int]) -> Iterator[None]:
    """Lower a soft limit of processes for a while; those that they start meanwhile get the first one's back, too."""
    arbiter = members[0]
    soft, hard = resource.prlimit(arbiter, which)
    try:
        for pid in members:
            resource.prlimit(pid, which, (limit(pid), hard))
        yield
    finally:
        for member in (psutil.Process(arbiter), *psutil.Process(arbiter).children(recursive=True)):
            with suppress(ProcessLookupError):
                resource.prlimit(member.pid, which, (soft, hard))


def _repeat(trial: Trial, times: int, once: Callable[[Trial, bool], list[str]]) -> Outcome:
    broken: list[str] = []
    for number in range(times):
        broken += [f"time {number + 1}: {sentence}" for sentence in once(trial, number % 2 == 1)]
        if trial.server.process is None or trial.server.process.poll() is not None:
            raise RuntimeError(f"the server ended: {trial.server.log[-3000:]}")
        eventually(lambda: len(trial.workers()) == 2 and all(psutil.pid_exists(pid) for pid in trial.workers()))
        eventually(lambda: trial.server.get("/health/detailed").json["checks"]["controller"]["healthy"])
        time.sleep(SETTLE_SECONDS)
        trial.mark()
        eventually(trial.served_since_mark)
    records, verdict = trial.end()
    trial.server.stop()
    figures: dict[str, float | int | str] = {
        "events": len(records.decided),
        "longest stall, s": max(stall for stall, _ in records.stalls()),
        "controllers": verdict.controllers,
        **{f"answers {what}": count for what, count in failures_by_kind(records).items()},
    }
    return Outcome(times, figures, broken + verdict.broken)
