"""Servers under measurement: how each is started on its core, filled, queried and stopped.

`Product` is the production server: its gunicorn.conf.py, MLSDM_ENV=production, a keys file, metrics, a store of
20,000, and rate limits of a million requests per second, so that buckets are used but nothing is refused. A variant
overrides variables. `Program` is any other command that listens on a port. Libraries that would start a thread per
core are limited to one.
"""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from core.access.key_file import to_yaml_entry
from core.access.keys import token_digest
from loadtests.bench.processor import family, pinned
from loadtests.bench.traffic import BATCH, RAW, Traffic
from loadtests.bench.vectors import DIMENSION, MEMORIES, Floats
from loadtests.bench.wrk import MeasurementError
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer, free_port

TOKEN: Final = "bench.0123456789012345678901234567890123456789012"  # 43 characters of secret, as `mlsdm key` makes them
START_SECONDS_MAX: Final = HANG_SECONDS  # a server that does not start ends at once, as a rule
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MILLION: Final = "1000000"  # the maximum of a tier
_LIMITS: Final = "MLSDM_SECURITY__RATE_LIMITING__"
PRODUCTION: Final = {
    "MLSDM_ENV": "production",
    "MLSDM_SERVER__HOST": "127.0.0.1",
    "MLSDM_DIMENSION": str(DIMENSION),
    "MLSDM_CAPACITY": str(MEMORIES),
    "MLSDM_RESOURCES__DRAIN_PERIOD": "0",
    f"{_LIMITS}ENABLED": "true",
    f"{_LIMITS}REQUESTS_PER_SECOND": _MILLION,
    f"{_LIMITS}BURST_CAPACITY": _MILLION,
    f"{_LIMITS}TIERS__BULK__REQUESTS_PER_SECOND": _MILLION,
    f"{_LIMITS}TIERS__BULK__BURST_CAPACITY": _MILLION,
    "WORKERS": "1",
}
UNLIMITED: Final = {f"{_LIMITS}ENABLED": "false"}
# Without a key production refuses to start; these are the settings in which development differs from it.
OPEN: Final = {"MLSDM_ENV": "development", "MLSDM_OBSERVABILITY__LOGGING__FORMAT": "json"}
VERBOSE: Final = {"MLSDM_OBSERVABILITY__LOGGING__LEVEL": "DEBUG"}


class Server(Protocol):
    """A server that can be measured."""

    port: int
    traffic: Mapping[str, Traffic]  # its own traffic, in addition to the common traffic
    note: str  # a note for the output

    def start(self, cores: Iterable[int]) -> None:
        """Start on these cores and return when it answers. Raises MeasurementError."""

    def stop(self) -> None:
        """End it and all its processes."""

    def pids(self) -> list[int]:
        """Return its processes."""

    def accepted(self) -> int | None:
        """Return the number of accepted events, or None when unknown."""


@dataclass
class Product:
    """The server of this checkout. `variant` are the variables in which it differs from production; `fill` its memories
    at the start.
    """

    directory: Path
    variant: Mapping[str, str] = field(default_factory=dict)
    fill: Floats | None = None
    application: str = "app.main:app"
    port: int = field(default_factory=free_port)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    note: str = ""

    def start(self, cores: Iterable[int]) -> None:
        """Start and fill it."""
        environ = {**PRODUCTION, **self.variant}
        self.live = LiveServer(self.directory, environ, self.port, application=self.application)
        if environ["MLSDM_ENV"] == "production":
            keys = self.directory / "keys.yaml"
            digest = token_digest(TOKEN).hex()
            keys.write_text(
                "keys:\n" + to_yaml_entry({"id": "bench", "digest": digest, "role": "admin", "tier": "bulk"})
            )
            environ["MLSDM_SECURITY__KEYS_PATH"] = str(keys)
        with pinned(cores):
            try:
                self.live.start()
            except AssertionError as error:
                self.live.kill()
                raise MeasurementError(f"the server did not start:\n{str(error)[-2000:]}") from None
        if self.fill is not None:
            self._remember(self.fill)

    def stop(self) -> None:
        """End it as an operator would; it must leave nothing behind. Raises MeasurementError."""
        try:
            self.live.stop()
        except AssertionError as error:
            raise MeasurementError(f"the server did not end in order:\n{str(error)[-2000:]}") from None

    def pids(self) -> list[int]:
        """Return arbiter, controller and workers."""
        return family(self.live.pid)

    def accepted(self) -> int | None:
        """Return the number of accepted events."""
        return int(self._ask("GET", "/state")["accepted_events_count"])

    def _remember(self, memories: Floats) -> None:
        for first in range(0, len(memories), BATCH):
            batch = memories[first : first + BATCH]
            body = np.ones(len(batch), "<f8").tobytes() + batch.astype("<f4").tobytes()
            accepted = self._ask("POST", "/events", body)["accepted"]
            if accepted != len(batch):
                raise MeasurementError(
                    f"{accepted} of {len(batch)} events were accepted; expected all to fill the store"
                )

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            answer = self.live.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **RAW})
        except (OSError, http.client.HTTPException) as error:
            raise MeasurementError(f"{method} {path} was not answered: {error!r}") from None
        if answer.status != 200:
            raise MeasurementError(f"{method} {path} was answered {answer.status}: {answer.body[:300].decode()}")
        return answer.json


@dataclass
class Program:
    """A command that listens on 127.0.0.1, on the port that stands for {port} in it."""

    command: tuple[str, ...]
    log: Path
    directory: Path = ROOT
    environ: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    note: str = ""

    def start(self, cores: Iterable[int]) -> None:
        """Start it."""
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        with self.log.open("wb") as log, pinned(cores):
            self.process = subprocess.Popen(
                [word.replace("{port}", str(self.port)) for word in self.command],
                cwd=self.directory,
                env={**kept, **_ONE_THREAD, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not listens(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise MeasurementError(f"{self.command[0]} did not start:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it: SIGTERM, then SIGKILL for the rest of its session."""
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def pids(self) -> list[int]:
        """Return the process and its descendants."""
        assert self.process is not None
        return family(self.process.pid)

    def accepted(self) -> int | None:
        """Return None: it counts nothing."""
        return None


def listens(port: int) -> bool:
    """Return whether a port of 127.0.0.1 answers HTTP, with any status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/livez")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
