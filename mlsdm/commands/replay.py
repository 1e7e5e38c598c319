"""`mlsdm replay FILE`: sends recorded events to a running server and reports the server's decisions exactly.

Owns: the arguments and the parallel senders; the other parts are in `mlsdm.replaying`.

Invariants:
- An event is sent once, and again only after an answer that means it was not applied (429, 503); of an interrupted
  batch, only the undecided events are sent again.
- One client sends in file order, each request after the previous answer; several clients share the file by batches.
- The report is printed however the replay ends. It compares the counters with the answers received.

Exit status: 0 all decided and the counters agree, allowing for other clients; 1 failure; 130 Ctrl-C.

Rejected: one process per client (--batch does more); sending payloads (the octet-stream form has none).
Perf: 140 µs of client CPU per single event on one connection, so about 5,000 events/s; --batch 100 sent 68,000/s.
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from core.limits import BATCH_COUNT
from mlsdm.replaying import ledger, plot
from mlsdm.replaying.connection import (
    ANSWER_SECONDS_MAX,
    ClientError,
    Connection,
    Decision,
    OutcomeUnknownError,
    RetryBudget,
    State,
    Stopped,
)
from mlsdm.replaying.ledger import Ledger
from mlsdm.replaying.progress import Progress
from mlsdm.replaying.recording import Recording, RecordingError, Selection, load

CLIENTS_MAX: Final = 256  # each is a thread and a connection; more only queue at the server
FINISH_SECONDS_MAX: Final = 1.0  # for requests in flight after Ctrl-C; then their connections are shut down
COMPARE_SECONDS_MAX: Final = 2.0  # timeout of GET /state after Ctrl-C
INTERRUPTED: Final = 130


class ReplayError(Exception):
    """One sentence for the operator about the options."""


def run(arguments: argparse.Namespace) -> int:
    """Replay a file: report to stdout, progress and failures to stderr. Return the exit status."""
    try:
        return _replay(arguments)
    except (ClientError, RecordingError, ReplayError, ledger.LedgerError, plot.PlotError) as error:
        print(f"mlsdm replay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first event; or a second Ctrl-C, which skips the report
        print("mlsdm replay: interrupted", file=sys.stderr)
        return INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm replay`."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help=".npz with the vectors [N, D] and moral values [N] of N events"
    )
    source = parser.add_argument_group("the events")
    source.add_argument("--vectors", metavar="KEY", default="vec", help="array with the vectors (default: %(default)s)")
    moral = source.add_mutually_exclusive_group()
    moral.add_argument(
        "--moral", metavar="KEY", default="moral", help="array with the moral values (default: %(default)s)"
    )
    moral.add_argument(
        "--moral-value", metavar="M", type=float, help="one moral value for every event instead of an array"
    )
    source.add_argument("--offset", metavar="N", type=_integer_argument(0), default=0, help="skip the first N events")
    source.add_argument("--count", metavar="N", type=_integer_argument(1), help="send at most N events (default: all)")
    source.add_argument(
        "--no-normalise", action="store_true", help="send the vectors unchanged (default: scaled to norm 1)"
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server (default: %(default)s)")
    server.add_argument(
        "--api-key", metavar="KEY", help="token (default: the variable API_KEY, which ps does not show to others)"
    )
    server.add_argument(
        "--clients",
        metavar="N",
        type=_integer_argument(1, CLIENTS_MAX),
        default=4,
        help="parallel connections; 1 keeps file order (default: 4)",
    )
    server.add_argument(
        "--batch",
        metavar="N",
        type=_integer_argument(1, BATCH_COUNT.value),
        default=1,
        help="events per request (default: 1; above 1, /events is used)",
    )
    results = parser.add_argument_group("the results")
    results.add_argument(
        "--plot", metavar="FILE.png", type=Path, help="draw threshold, EMA and acceptance (needs matplotlib)"
    )
    results.add_argument("--save", metavar="FILE.npz", type=Path, help="write every decision, in sequence order")


def _replay(arguments: argparse.Namespace) -> int:
    # Check the output files before the first event is sent, not after the last.
    for path in (arguments.plot, arguments.save):
        if path is not None and (
            path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK)
        ):
            raise ReplayError(f"cannot write {path}: expected a writable file in a writable directory that exists")
    if arguments.plot is not None:
        plot.require(arguments.plot)
    moral = arguments.moral if arguments.moral_value is None else arguments.moral_value
    recording = load(
        arguments.file,
        Selection(arguments.vectors, moral, arguments.offset, arguments.count, not arguments.no_normalise),
    )
    api_key = arguments.api_key or os.environ.get("API_KEY") or None
    before = _state(arguments.url, api_key, ANSWER_SECONDS_MAX)

    replay = Replay(recording, arguments.url, api_key, arguments.clients, arguments.batch)
    replay.run(Progress(sys.stderr, len(recording.morals)))

    after: State | ClientError
    try:
        after = _state(arguments.url, api_key, COMPARE_SECONDS_MAX if replay.interrupted else ANSWER_SECONDS_MAX)
    except ClientError as error:
        after = error
    agrees, verdict = ledger.compare(before, after, replay.ledger)
    lines = ledger.report(replay.ledger, replay.seconds, len(replay.connections), replay.retry_budget)
    print("\n".join([*lines, f"server      {verdict}"]))
    if replay.failure is not None:
        print(f"mlsdm replay: {replay.failure}", file=sys.stderr)
    if arguments.save is not None:
        ledger.save(arguments.save, replay.ledger)
    if arguments.plot is not None:
        plot.draw(arguments.plot, replay.ledger.in_sequence())
    if replay.interrupted:
        return INTERRUPTED
    return 0 if agrees and replay.ledger.answered == len(recording.morals) else 1


def _state(url: str, api_key: str | None, timeout: float) -> State:
    with contextlib.closing(Connection(url, api_key, RetryBudget(1, threading.Event()), timeout)) as connection:
        return connection.state()


class Replay:
    """One replay: `clients` threads, each with a connection, that send batches of the recording until none is left.

    After `run`: `ledger`; `seconds` of wall time; `failure`, the first error, which ended the replay; `interrupted`,
    whether by Ctrl-C.
    """

    def __init__(self, recording: Recording, url: str, api_key: str | None, clients: int, batch: int) -> None:
        self.recording = recording
        self.ledger = Ledger(len(recording.morals), recording.offset)
        self.failure: str | None = None
        self.interrupted = False
        self.seconds = 0.0
        self.batch = batch
        self._stop = threading.Event()
        self._finished = threading.Event()  # set by the last sender
        self._lock = threading.Lock()  # guards `_spans`, `_sending` and `failure`
        self._spans = self._spans_to_send()
        clients = min(clients, -(-len(recording.morals) // batch))  # no connection without a batch to send
        self._sending = clients
        self.retry_budget = RetryBudget(clients, self._stop)
        self.connections = [Connection(url, api_key, self.retry_budget) for _ in range(clients)]

    def run(self, progress: Progress) -> None:
        """Send everything; return when all is answered, at the first failure, or soon after Ctrl-C."""
        # Daemons: a thread that hangs in a connect or a name look-up cannot be aborted, and must not keep the process.
        threads = [
            threading.Thread(target=self._run_sender, args=(connection,), daemon=True)
            for connection in self.connections
        ]
        began = time.perf_counter()
        try:
            for thread in threads:
                thread.start()
            # NOTE: not thread.join: when Ctrl-C interrupts it, Python 3.11 considers the running thread finished.
            while not self._finished.wait(Progress.REDRAW_SECONDS):
                progress.show(self.ledger)
        except KeyboardInterrupt:
            self.interrupted = True
            self._stop.set()
            if not self._finished.wait(FINISH_SECONDS_MAX):
                for connection in self.connections:
                    connection.abort()
                self._finished.wait(FINISH_SECONDS_MAX)
        self.seconds = time.perf_counter() - began
        progress.show(self.ledger, last=True)

    def _spans_to_send(self) -> Iterator[tuple[int, int]]:
        count = len(self.recording.morals)
        for first in range(0, count, self.batch):
            yield first, min(first + self.batch, count)

    def _next_span(self) -> tuple[int, int] | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._spans, None)

    def _send_span(self, connection: Connection, first: int, end: int) -> tuple[list[Decision], float]:
        """Send the events of rows `first` to `end` − 1; return the decisions of the first of them, and the seconds."""
        vectors, morals, _ = self.recording
        if self.batch == 1:
            return connection.decide(float(morals[first]), vectors[first].data)
        return connection.decide_batch(end - first, morals[first:end].data, vectors[first:end].data)

    def _run_sender(self, connection: Connection) -> None:
        """One sender: take the next span of events, send it, record the decisions; until none is left, or stopped."""
        first = end = 0
        try:
            while (span := self._next_span()) is not None:
                first, end = span
                # Repeats only after an interrupted batch; each pass decides at least one event.
                while first < end and not self._stop.is_set():
                    decisions, seconds = self._send_span(connection, first, end)
                    self.ledger.record(first, decisions, seconds)
                    first += len(decisions)
        except Stopped:
            pass
        except ClientError as error:
            if isinstance(error, OutcomeUnknownError):
                self.ledger.record_unknown(end - first)
            first, last = self.recording.offset + first, self.recording.offset + end - 1
            with self._lock:
                # Connections that are shut down after Ctrl-C fail too; that is not reported.
                if self.failure is None and not self._stop.is_set():
                    rows = f"row {first}" if first == last else f"rows {first}–{last}"
                    self.failure = f"{error} ({rows} of the file)"
            self._stop.set()
        finally:
            connection.close()
            with self._lock:
                self._sending -= 1
                if self._sending == 0:
                    self._finished.set()


def _integer_argument(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number: int | None = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            limit = f"from {least} to {most:,}" if most is not None else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {limit}")
        return number

    return parse
