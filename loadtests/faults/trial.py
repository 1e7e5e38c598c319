"""A trial: one server under load with a judge, while a fault happens to it.

Shared by the faults that keep the server alive: a server with small sizes, clients that never give up (load.py), and
the judge of their answers (judge.py). A fault happens between entering the trial and `end`; leaving cleans up after an
exception.
"""

from collections import Counter
from contextlib import ExitStack
from typing import Final, Self

import psutil

from loadtests.faults.fault import FaultOptions
from loadtests.faults.judge import Judge, Verdict
from loadtests.faults.load import ClientRecords, Events, Load
from shm.store import Store
from testing.eventually import eventually
from testing.live_server import LiveServer

DIMENSION: Final = 8
SIZES: Final = {
    "WORKERS": "2",
    "MLSDM_DIMENSION": str(DIMENSION),
    "MLSDM_CAPACITY": "1000",
    "MLSDM_LOG_CAPACITY": "1048576",  # the lag that the judge may have
    "MLSDM_IDEMPOTENCY_CAPACITY": "65536",
}
CLIENTS: Final = 2
STORE_BUSY: Final = "503 store_busy"


class Trial:
    """A server, its load and its judge. `environ` are further variables of the server."""

    def __init__(
        self, options: FaultOptions, application: str = "app.main:app", clients: int = CLIENTS, /, **environ: str
    ) -> None:
        self.server = LiveServer(options.directory, {**SIZES, **environ}, application=application)
        self._options = options
        self._clients = clients
        self._held = ExitStack()
        self._marked = 0

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.callback(self.server.kill)
            self.server.start()
            self.store: Store = self.server.store()
            events = Events(DIMENSION)
            self._judge = held.enter_context(Judge(self.server, events))
            seed, pause = self._options.seed, self._options.pause_seconds
            self.load = held.enter_context(Load(self.server.port, events, seed, self._clients, pause_seconds=pause))
            eventually(lambda: self.load.answered)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def end(self) -> tuple[ClientRecords, Verdict]:
        """Stop the load, and have it judged. The server goes on."""
        records = self.load.stop()
        return records, self._judge.verdict(records)

    def mark(self) -> None:
        """Note how many events were acknowledged until now."""
        self._marked = self.load.answered

    def served_since_mark(self) -> bool:
        """Return whether events were acknowledged since `mark`."""
        return self.load.answered > self._marked

    def log_since(self, size: int) -> str:
        """Return the server's log from byte `size` on."""
        with self.server.log_path.open("rb") as log:
            log.seek(size)
            return log.read().decode(errors="replace")

    def log_size(self) -> int:
        """Return how long the log is now, in bytes."""
        return self.server.log_path.stat().st_size

    def members(self, arbiter: int | None = None) -> list[psutil.Process]:
        """Return the processes of the server: arbiter, controller, workers."""
        parent = psutil.Process(arbiter or self.server.pid)
        return [parent, *parent.children(recursive=True)]

    def controller(self) -> int:
        """Return the pid of the controller that wrote the vitals last."""
        return self.server.controller(self.store.block)

    def workers(self) -> list[int]:
        """Return the pids that hold rows."""
        return self.server.workers(self.store.block)


def failures_by_kind(records: ClientRecords) -> Counter[str]:
    """Return the number of failed attempts by reason."""
    return Counter(miss.what for miss in records.failed_attempts)


def failure_sentences(failures: Counter[str]) -> list[str]:
    """Return a sentence for the failures of requests that must not fail, and one for those of a busy machine.

    A machine that takes the processor from the holder of the lock makes others answer 503 `store_busy`.
    """
    busy = failures[STORE_BUSY]
    others = {what: count for what, count in failures.items() if what != STORE_BUSY}
    sentences = [f"requests failed: {others}"] if others else []
    if busy:
        sentences.append(f"{busy} requests got a 503, because the lock was held for too long; none is promised")
    return sentences
