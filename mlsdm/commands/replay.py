"""`mlsdm replay FILE`: send recorded events to a running server, and say exactly what the server made of them.

It owns the arguments and the parallel senders. The file belongs to `mlsdm.recording`, the wire to `mlsdm.client`, what
was seen, with the report and the comparison, to `mlsdm.ledger`, the bar to `mlsdm.progress`, the picture to
`mlsdm.plot`.

Invariants:
  - An event is sent once. It is sent again only after an answer that means it was not applied (429, 503), and of a
    batch that was interrupted only what was not decided.
  - One client sends in file order, each event after the answer to the one before; several share the file, next batch
    to the next free.
  - The report is printed however the replay ends, and the counters are compared with what was seen, not with what was
    meant.

Exit status: 0 every event was decided and the counters agree (or differ by what other clients wrote meanwhile); 1 a
failure, or counters that disagree; 130 Ctrl-C (128 + SIGINT, as shells report it), so that a script never takes half
a replay for a whole one.

PERF: one event per request costs this client 140 µs of CPU on one connection and 210 µs on four (process time over
4,000 requests; http.client's header parser is the largest part), which bounds it near 5,000 events/s. --batch 100 sent
68,000 events/s on the same two cores, server included.

Rejected: one process per client, or a response parser of our own (--batch does more, and leaves HTTP to those who know
it); a check of the file's dimension before sending (the server says it better, and is the one place that decides it);
payloads (the octet-stream form carries none).
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
    Patience,
    State,
    Stopped,
)
from mlsdm.replaying.ledger import Ledger
from mlsdm.replaying.progress import Progress
from mlsdm.replaying.recording import Recording, RecordingError, Selection, load

CLIENTS_MAX: Final = 256  # each is a thread and a connection; more only queue at the server
FINISH_SECONDS_MAX: Final = (
    1.0  # what requests in flight are given to finish after Ctrl-C, before their connections are cut
)
COMPARE_SECONDS_MAX: Final = 2.0  # patience with GET /state after Ctrl-C
INTERRUPTED: Final = 130


class ReplayError(Exception):
    """One sentence for the operator about the options."""


def run(arguments: argparse.Namespace) -> int:
    """Replay a file as the arguments say; report to stdout, progress and failures to stderr; return the exit status."""
    try:
        return _replay(arguments)
    except (ClientError, RecordingError, ReplayError, ledger.LedgerError, plot.PlotError) as error:
        print(f"mlsdm replay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first event, or a second Ctrl-C that does not want the report
        print("mlsdm replay: interrupted", file=sys.stderr)
        return INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm replay`."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help=".npz with the vectors [N, D] and moral values [N] of N events"
    )
    source = parser.add_argument_group("the events")
    source.add_argument("--vectors", metavar="KEY", default="vec", help="array of the vectors (default: %(default)s)")
    moral = source.add_mutually_exclusive_group()
    moral.add_argument(
        "--moral", metavar="KEY", default="moral", help="array of the moral values (default: %(default)s)"
    )
    moral.add_argument(
        "--moral-value", metavar="M", type=float, help="one moral value for every event instead of an array"
    )
    source.add_argument("--offset", metavar="N", type=_whole(0), default=0, help="skip the first N events")
    source.add_argument("--count", metavar="N", type=_whole(1), help="send at most N events (default: all)")
    source.add_argument(
        "--no-normalise", action="store_true", help="send the vectors as they are (default: scaled to norm 1)"
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--url", default="http://127.0.0.1:8000", help="where it answers (default: %(default)s)")
    server.add_argument(
        "--api-key", metavar="KEY", help="default: the variable API_KEY, which other users cannot see in ps"
    )
    server.add_argument(
        "--clients",
        metavar="N",
        type=_whole(1, CLIENTS_MAX),
        default=4,
        help="parallel connections; 1 keeps file order (default: 4)",
    )
    server.add_argument(
        "--batch",
        metavar="N",
        type=_whole(1, BATCH_COUNT.value),
        default=1,
        help="events per request (default: 1; more use /events)",
    )
    results = parser.add_argument_group("the results")
    results.add_argument(
        "--plot", metavar="FILE.png", type=Path, help="draw threshold, EMA and acceptance (needs matplotlib)"
    )
    results.add_argument("--save", metavar="FILE.npz", type=Path, help="write every decision, in sequence order")


def _replay(arguments: argparse.Namespace) -> int:
    # Everything that can be wrong with the results' files is found before the first event is sent, not after the last.
    for path in (arguments.plot, arguments.save):
        if path is not None and (
            path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK)
        ):
            raise ReplayError(
                f"cannot write {path}: expected the name of a file in a directory that exists, both writable"
            )
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
    lines = ledger.report(replay.ledger, replay.seconds, len(replay.connections), replay.patience)
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
    with contextlib.closing(Connection(url, api_key, Patience(1, threading.Event()), timeout)) as connection:
        return connection.state()


class Replay:
    """One replay: `clients` threads, each with its connection, that take batches from the recording until none is left.

    After `run`: `ledger`, `seconds` of wall time, `failure` the first one that ended the replay, `interrupted` by
    Ctrl-C.
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
        self._spans = self._cut()
        clients = min(clients, -(-len(recording.morals) // batch))  # no connection without a batch to send
        self._sending = clients
        self.patience = Patience(clients, self._stop)
        self.connections = [Connection(url, api_key, self.patience) for _ in range(clients)]

    def run(self, progress: Progress) -> None:
        """Send everything; return when all is answered, at the first failure, or soon after Ctrl-C."""
        # Daemons: one that hangs in a connect or a name look-up, which nothing cuts short, must not keep the process.
        threads = [
            threading.Thread(target=self._send, args=(connection,), daemon=True) for connection in self.connections
        ]
        began = time.perf_counter()
        try:
            for thread in threads:
                thread.start()
            # NOTE: not thread.join: when Ctrl-C interrupts it, Python 3.11 takes the running thread for a finished one.
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

    def _cut(self) -> Iterator[tuple[int, int]]:
        count = len(self.recording.morals)
        for first in range(0, count, self.batch):
            yield first, min(first + self.batch, count)

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._spans, None)

    def _ask(self, connection: Connection, first: int, end: int) -> tuple[list[Decision], float]:
        """Send the events from row `first` up to `end`; return the decisions on the first of them, and the seconds."""
        vectors, morals, _ = self.recording
        if self.batch == 1:
            return connection.decide(float(morals[first]), vectors[first].data)
        return connection.decide_batch(end - first, morals[first:end].data, vectors[first:end].data)

    def _send(self, connection: Connection) -> None:
        """One sender: take the next span of events, send it, enter the decisions; until none is left, or stopped."""
        first = end = 0
        try:
            while (span := self._next()) is not None:
                first, end = span
                # More than one turn only when the server was interrupted in a batch: each decides at least one event.
                while first < end and not self._stop.is_set():
                    decisions, seconds = self._ask(connection, first, end)
                    self.ledger.record(first, decisions, seconds)
                    first += len(decisions)
        except Stopped:
            pass
        except ClientError as error:
            if isinstance(error, OutcomeUnknownError):
                self.ledger.lose(end - first)
            first, last = self.recording.offset + first, self.recording.offset + end - 1
            with self._lock:
                # Connections that are cut after Ctrl-C fail too, and that is no news.
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


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
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
