"""Linearizability: concurrent clients of two workers, and one order that explains all their answers.

Every client has a connection to each of two workers and uses them at random: events and batches; keyed events and
batches that are repeated to the other worker or sent to both at once; the state; and after an accepted event a recall
of it on the other worker. A repeated key must get the same bytes and one decision. At the end `history.violations`
judges the rest.

Threading: clients are threads, because they share one clock and mostly wait.
"""

import http.client
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
import numpy as np

from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.history import DecisionAnswer, History, RecallRead, StateAnswer, StateRead, Write, violations
from testing.eventually import eventually
from testing.live_server import Answer, LiveServer, is_lock_held

TIMES: Final = 100_000  # requests of all clients, repeats and recalls not counted
CLIENTS: Final = 8
DIMENSION: Final = 8
CAPACITY: Final = 1000
BATCH_MAX: Final = 8
REPLAYED: Final = "idempotency-replayed"
_RAW: Final = "application/octet-stream"
# The actions of a client, with their share in percent.
_ACTIONS: Final = {"event": 30, "batch": 10, "recall": 20, "state": 15, "again": 10, "at once": 10, "batch again": 5}


class _Batch(msgspec.Struct):
    results: list[DecisionAnswer]


class _Match(msgspec.Struct):
    memory_id: int


class _Found(msgspec.Struct):
    matches: list[_Match]
    as_of: int


_decided = msgspec.json.Decoder(DecisionAnswer).decode
_batch = msgspec.json.Decoder(_Batch).decode
_shown = msgspec.json.Decoder(StateAnswer).decode
_found = msgspec.json.Decoder(_Found).decode


def linearizability(options: FaultOptions) -> Outcome:
    """Have `TIMES` requests, at full scale, answered by two workers, and judge the answers."""
    server = LiveServer(
        options.directory,
        {
            "WORKERS": "2",
            "MLSDM_DIMENSION": str(DIMENSION),
            "MLSDM_CAPACITY": str(CAPACITY),
            "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events",
        },
    )
    try:
        server.start()
        clients = [Client(server, options.seed * CLIENTS + number) for number in range(CLIENTS)]
        began = time.monotonic()
        share = -(-options.scaled(TIMES) // CLIENTS)
        with ThreadPoolExecutor(CLIENTS) as pool:
            for ended in [pool.submit(client.run, share) for client in clients]:
                ended.result()
        seconds = time.monotonic() - began
        clients[0].state()  # must include everything that was acknowledged
        server.stop()
    finally:
        server.kill()
    history = History(
        *([one for client in clients for one in getattr(client.history, kind)] for kind in History._fields)
    )
    actions = sum((client.actions for client in clients), Counter[str]())
    decisions = sum(len(one.decisions) for one in history.written)
    broken = [sentence for client in clients for sentence in client.broken] + violations(history, DIMENSION, CAPACITY)
    return Outcome(
        sum(actions.values()),
        {
            "decisions": decisions,
            "repeats": actions["again"] + actions["at once"] + actions["batch again"],
            "states": len(history.state_reads),
            "recalls of the own write elsewhere": len(history.recalls),
            "asked while another was open, %": 100.0 * overlapping(history),
            "requests/s": actions.total() / seconds,
            "violations": len(broken),
        },
        broken,
    )


def overlapping(history: History) -> float:
    """Return the share of the answered requests that were asked while another was not answered yet."""
    spans = [(one.sent_ns, one.answered_ns) for kind in history for one in kind]
    answered = np.sort(np.array([end for _, end in spans], np.int64))
    sent = np.sort(np.array([start for start, _ in spans], np.int64))
    still_open = np.arange(len(sent)) - np.searchsorted(answered, sent)
    return float((still_open > 0).mean())


class Client:
    """One client, used by one thread. It records every answer, and every contradiction among them."""

    def __init__(self, server: LiveServer, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.history = History([], [], [])
        self.actions = Counter[str]()
        self.broken: list[str] = []
        self._chance = random.Random(seed)
        self._vectors = np.random.default_rng(seed)
        self._workers = list(server.connect_to_both_workers())
        self._keys = 0

    def run(self, times: int) -> None:
        """Perform `times` random actions."""
        kinds, weights = list(_ACTIONS), list(_ACTIONS.values())
        actions: dict[str, Any] = {
            "event": self.event, "batch": self.batch, "recall": self.recall, "state": self.state,
            "again": self.again, "at once": self.at_once, "batch again": self.batch_again,
        }  # fmt: skip
        for kind in self._chance.choices(kinds, weights, k=times):
            self._chance.shuffle(self._workers)
            actions[kind]()
            self.actions[kind] += 1

    # -- turns ---------------------------------------------------------------------------------------------------------

    def event(self, moral: float | None = None) -> Write:
        """Send an event and return its record."""
        path, body, fields, vectors = self._new_request(1, moral)
        return self._send(path, body, fields, vectors)[0]

    def batch(self) -> None:
        """Send a batch."""
        path, body, fields, vectors = self._new_request(self._chance.randint(2, BATCH_MAX))
        self._send(path, body, fields, vectors)

    def recall(self) -> None:
        """Remember something, and recall it on the other worker."""
        written = self.event(0.9 + self._chance.random() / 10)  # from 0.9 an event is accepted at any threshold
        sent_ns = time.monotonic_ns()
        answer = self._checked(self._workers[1], "POST", "/recall?top_k=1", written.vectors[0], {"Content-Type": _RAW})
        answered_ns, found = time.monotonic_ns(), _found(answer.body)
        nearest = found.matches[0].memory_id if found.matches else 0
        own = written.decisions[0].memory_id
        self.history.recalls.append(RecallRead(sent_ns, answered_ns, own, nearest, found.as_of))

    def state(self) -> None:
        """Read the state."""
        sent_ns = time.monotonic_ns()
        answer = self._checked(self._workers[0], "GET", "/state", b"", {})
        self.history.state_reads.append(StateRead(sent_ns, time.monotonic_ns(), _shown(answer.body)))

    def again(self) -> None:
        """Send an event with a key, and once more to the other worker."""
        self._repeat(*self._new_request(1))

    def batch_again(self) -> None:
        """The same with a batch."""
        self._repeat(*self._new_request(self._chance.randint(2, BATCH_MAX)))

    def _repeat(self, path: str, body: bytes, fields: dict[str, str], vectors: list[bytes]) -> None:
        fields |= {"Idempotency-Key": self._new_key()}
        _, first = self._send(path, body, fields, vectors)
        second = self._checked(self._workers[1], "POST", path, body, fields)
        if (first.body, first.headers.get(REPLAYED), second.headers.get(REPLAYED)) != (second.body, None, "true"):
            self.broken.append(f"a repeat was answered {second}; expected {first}, replayed")

    def at_once(self) -> None:
        """Send an event with a key to both workers before either has answered: one decides, both answer alike."""
        path, body, fields, vectors = self._new_request(1)
        fields |= {"Idempotency-Key": self._new_key()}
        sent_ns = time.monotonic_ns()
        for worker in self._workers:
            worker.request("POST", path, body, fields)
        answers = []
        for worker in self._workers:
            answer = _received(worker)
            answers.append(self._checked(worker, "POST", path, body, fields) if is_lock_held(answer) else answer)
            if len(answers) == 1:
                answered_ns = time.monotonic_ns()
        if {answer.status for answer in answers} != {200} or len({answer.body for answer in answers}) != 1:
            self.broken.append(f"sent to both workers at once, it was answered {answers}")
        if sorted(answer.headers.get(REPLAYED, "") for answer in answers) != ["", "true"]:
            self.broken.append(f"sent to both workers at once, it was not decided exactly once: {answers}")
        self.history.written.append(Write(sent_ns, answered_ns, vectors, [_decided(answers[0].body)]))

    # -- the wire ------------------------------------------------------------------------------------------------------

    def _new_request(self, count: int, moral: float | None = None) -> tuple[str, bytes, dict[str, str], list[bytes]]:
        """Return a request of `count` new events: path, body, header fields, and its vectors."""
        morals = [self._chance.random() if moral is None else moral for _ in range(count)]
        vectors = self._vectors.standard_normal((count, DIMENSION)).astype("<f4")
        each = [vector.tobytes() for vector in vectors]
        if count == 1:
            return "/event", each[0], {"Content-Type": _RAW, "Moral-Value": repr(morals[0])}, each
        return "/events", np.array(morals, "<f8").tobytes() + vectors.tobytes(), {"Content-Type": _RAW}, each

    def _send(self, path: str, body: bytes, fields: dict[str, str], vectors: list[bytes]) -> tuple[Write, Answer]:
        sent_ns = time.monotonic_ns()
        answer = self._checked(self._workers[0], "POST", path, body, fields)
        answered_ns = time.monotonic_ns()
        decisions = [_decided(answer.body)] if path == "/event" else _batch(answer.body).results
        written = Write(sent_ns, answered_ns, vectors, decisions)
        self.history.written.append(written)
        return written, answer

    def _checked(
        self, worker: http.client.HTTPConnection, method: str, path: str, body: bytes, fields: dict[str, str]
    ) -> Answer:
        def send() -> Answer | None:
            worker.request(method, path, body or None, fields)
            answer = _received(worker)
            return None if is_lock_held(answer) else answer

        answer = eventually(send)
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} was answered {answer.status}: {answer.body[:300]!r}")
        return answer

    def _new_key(self) -> str:
        self._keys += 1
        return f"{self.seed}-{self._keys}"


def _received(worker: http.client.HTTPConnection) -> Answer:
    response = worker.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
