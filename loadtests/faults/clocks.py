"""Clocks jump under a running server: the wall clock in both directions, the boot clock forwards.

A preloaded library adds to each clock of the server what this program writes into a mapped file, so a jump reaches
every process between two instructions; the machine's clocks stay. The wall clock jumps by an hour or a month: nothing
that waits, limits or ticks may change. The boot clock jumps ahead, as after a suspend: buckets refill, memories age,
and missed steps of the rhythm are skipped.

After each jump: the rhythm keeps its pace; a client without tokens is still refused (after a boot-clock jump it is
not); a request whose head arrived in two parts around the jump is answered; the controller is healthy and no process
was replaced; unfinished requests end at their deadline. The load is judged throughout. Tokens are spent on a second
server, because the load itself must not be limited.
"""

import math
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.trial import Trial, failure_sentences, failures_by_kind
from testing.eventually import eventually
from testing.live_server import LiveServer

JUMPS: Final = 40  # of each clock
WALL, BOOT = 0, 1
JUMP_SECONDS: Final = (60, 3600, 86_400, 30 * 86_400)
CYCLE_SECONDS: Final = 0.05
STEPS: Final = 6  # waited for after a jump
STEPS_MORE: Final = 3  # more steps than the elapsed time allows: the due one, and the edges
HEAD_SECONDS: Final = (4.0, 15.0)  # window in which an unfinished head is refused; the deadline is 5 s
SOCKET_SECONDS: Final = 60.0  # of a socket: far above every deadline, on any machine
STOPPING_SECONDS: Final = 0.5  # before and after the jump during a stop
# Two tokens, one more every fifty seconds: longer than a check after a jump, shorter than any jump.
TOKENS: Final = 2
LIMITS: Final = {
    "WORKERS": "1",
    "MLSDM_DIMENSION": "8",
    "MLSDM_CAPACITY": "1000",
    "MLSDM_SERVER__TRUSTED_PROXIES": "127.0.0.1",
    "MLSDM_SECURITY__RATE_LIMITING__ENABLED": "true",
    "MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND": "0.02",
    "MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY": str(TOKENS),
}
VARIABLE: Final = "CLOCKS_MAPPED"
_SHIM: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead_ns; /* of the wall clock, of the boot clock */
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int fd = open(getenv("CLOCKS_MAPPED"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) abort();
    ahead_ns = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real) begin();
    int status = real(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_BOOTTIME)) {
        int64_t ns = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + ahead_ns[clock == CLOCK_BOOTTIME];
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return status;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}
"""


class Clocks:
    """The clocks of the processes that were started with `environ`."""

    def __init__(self, directory: Path) -> None:
        source, library, mapped = directory / "clocks.c", directory / "clocks.so", directory / "clocks"
        source.write_text(_SHIM)
        compiler = os.environ.get("CC") or shutil.which("cc") or "cc"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        mapped.write_bytes(bytes(16))
        with mapped.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), 16)
        self.environ = {"LD_PRELOAD": str(library), VARIABLE: str(mapped)}

    def wall(self) -> float:
        """Return the wall clock in seconds."""
        return time.time() + float(struct.unpack_from("<q", self._ahead)[0]) / 1e9

    def jump(self, clock: int, seconds: float) -> None:
        """Move the wall clock (0) or the boot clock (1)."""
        (ahead,) = struct.unpack_from("<q", self._ahead, 8 * clock)
        struct.pack_into("<q", self._ahead, 8 * clock, ahead + round(seconds * 1e9))


def jumps(options: FaultOptions) -> Outcome:
    """Move both clocks, `JUMPS` times each at full scale."""
    clocks = Clocks(options.directory)
    cycle = {"MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS": str(CYCLE_SECONDS)}
    limited = LiveServer(options.directory, {**LIMITS, **clocks.environ})
    try:
        limited.start()
        with Trial(options, **clocks.environ, **cycle) as trial:
            outcome = _jumps(options, trial, clocks, limited)
            outcome.broken.extend(_jump_while_stopping(trial, clocks))
        limited.stop()
        return outcome
    finally:
        limited.kill()


def _jumps(options: FaultOptions, trial: Trial, clocks: Clocks, limited: LiveServer) -> Outcome:
    chance = options.random()
    before = {member.pid for member in trial.members()}
    broken: list[str] = []
    watching = ThreadPoolExecutor(2 * options.scaled(JUMPS))
    unfinished: list[Future[float]] = []
    times = options.scaled(JUMPS)
    for number in range(2 * times):
        clock = (BOOT, WALL)[number % 2]
        seconds = chance.choice(JUMP_SECONDS) * (-1 if clock == WALL and number % 4 == 1 else 1)
        client = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        spent = [_send_limited_event(limited, client) for _ in range(TOKENS + 1)]
        half = _half_head(trial)
        unfinished.append(watching.submit(_seconds_until_closed, _half_head(trial)))
        problems = _move_clock(trial, clocks, clock, seconds)
        spent.append(_send_limited_event(limited, client))
        expected = [*[200] * TOKENS, 429, 429 if clock == WALL else 200]
        if spent != expected:
            problems.append(f"a client's events were answered {spent}, expected {expected}")
        answer = _finish_head(half)
        if not answer.startswith(b"HTTP/1.1 200 "):
            problems.append(f"a request whose head came before and after it was answered {answer[:60]!r}")
        broken += [f"{('wall', 'boot')[clock]} clock {seconds:+,} s: {sentence}" for sentence in problems]
    ends = [one.result() for one in unfinished]
    watching.shutdown()
    earliest, latest = HEAD_SECONDS
    broken += [f"an unfinished head ended after {end:.1f} s" for end in ends if not earliest < end < math.inf]
    if latest < max(ends) < math.inf:
        broken.append(f"an unfinished head ended after {max(ends):.1f} s, less than {latest:g} s are promised")
    now = {member.pid for member in trial.members()}
    if now != before:
        broken.append(f"the processes {sorted(before)} have become {sorted(now)}: {trial.server.log[-2000:]}")
    records, verdict = trial.end()
    broken += failure_sentences(failures_by_kind(records))
    figures = {
        "events": len(records.decided),
        "failed requests": len(records.failed_attempts),
        "unfinished heads ended after at least, s": min(ends),
        "at most, s": max(ends),
        "longest stall, s": max(stall for stall, _ in records.stalls()),
    }
    return Outcome(2 * times, figures, broken + verdict.broken)


def _jump_while_stopping(trial: Trial, clocks: Clocks) -> list[str]:
    """Stop the server and move the wall clock while it waits for a request; return the problems."""
    server = trial.server
    assert server.process is not None
    with socket.create_connection(("127.0.0.1", server.port), timeout=SOCKET_SECONDS) as sock:
        sock.sendall(
            b"POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nMoral-Value: 0.5\r\n"
            b"Content-Length: 32\r\n\r\n" + bytes(16)
        )
        eventually(lambda: server.get("/livez").status == 200)  # so the first part of the request was read, too
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in server.log)
        time.sleep(STOPPING_SECONDS)
        clocks.jump(WALL, 86_400)
        time.sleep(STOPPING_SECONDS)
        try:
            sock.sendall(bytes(16))
            answer = sock.recv(4096)
        except OSError as error:
            answer = repr(error).encode()
    server.stop()
    if answer.startswith(b"HTTP/1.1 200 "):
        return []
    return [f"the wall clock jumped while the server stopped, and a request in progress was answered {answer[:60]!r}"]


def _move_clock(trial: Trial, clocks: Clocks, clock: int, seconds: float) -> list[str]:
    """Move a clock and check rhythm and controller; return the problems."""
    began, step = time.monotonic(), int(trial.store.state().scalars.step)
    clocks.jump(clock, seconds)
    eventually(lambda: trial.store.state().scalars.step >= step + STEPS)
    stepped = int(trial.store.state().scalars.step) - step
    due = (time.monotonic() - began) / CYCLE_SECONDS
    if clock == WALL:  # the answers' dates show that the server sees it
        eventually(lambda: abs(clocks.wall() - _date(trial)) < 2)
    problems = [] if stepped <= due + STEPS_MORE else [f"{stepped} steps of the rhythm where {due:.1f} were due"]
    eventually(lambda: trial.server.get("/health/detailed").json["checks"]["controller"]["healthy"])
    return problems


def _date(trial: Trial) -> float:
    return parsedate_to_datetime(trial.server.get("/livez").headers["date"]).timestamp()


def _send_limited_event(limited: LiveServer, client: str) -> int:
    """Send an event for a client of the limited server; returns the status."""
    headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.5", "X-Forwarded-For": client}
    return limited.request("POST", "/event", bytes(32), headers).status


def _half_head(trial: Trial) -> socket.socket:
    """Begin a request and leave it there."""
    sock = socket.create_connection(("127.0.0.1", trial.server.port), timeout=SOCKET_SECONDS)
    sock.sendall(b"GET /livez HTTP/1.1\r\nHost: loc")
    return sock


def _finish_head(sock: socket.socket) -> bytes:
    """Send the rest of a request; returns the beginning of the answer."""
    with sock:
        sock.sendall(b"alhost\r\nConnection: close\r\n\r\n")
        return sock.recv(4096)


def _seconds_until_closed(sock: socket.socket) -> float:
    """Return after how many seconds the server ends a request that is not finished: many when it does not."""
    began = time.monotonic()
    with sock:
        try:
            sock.recv(4096)
        except TimeoutError:
            return math.inf
    return time.monotonic() - began
