"""`mlsdm replay` against a real HTTP server on the loopback that decides by the reference arithmetic.

The server below is small, but it is a server: sockets, keep-alive, threads, problem documents. Its few knobs make it
fail in the ways that a client has to survive; none of them reaches into the client.
"""

import argparse
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlsdm.commands.replay import INTERRUPTED, add_arguments, run
from mlsdm.replaying.connection import ClientError, Connection, OutcomeUnknownError, RefusedError, RetryBudget
from testing.eventually import HANG_SECONDS, eventually

DIMENSION = 8


class Server(ThreadingHTTPServer):
    """The server's side of the wire, with the governor's arithmetic under one lock."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.theta, self.ema = 0.5, 0.5
        self.total = self.accepted = 0
        self.received: list[tuple[float, bytes]] = []
        self.receipts: dict[str, list[dict[str, Any]]] = {}  # by idempotency key
        self.batches: list[int] = []
        self.connections = self.closed = 0
        self.boot_id = "boot-1"
        # Knobs.
        self.api_key: str | None = None
        self.refusals: list[tuple[int, str | None]] = []  # status and Retry-After of the next answers to events
        self.refuse_always: tuple[int, str | None] | None = None
        self.close_after_each = ""  # "said": with Connection: close; "silent": without
        self.interrupt_after: list[int] = []  # events after which the next batches end
        self.lose_answers_to: dict[int, int] = {}  # sequence number → how often its answer is not sent
        self.strangers_at: set[int] = set()  # totals at which another client slips an event in
        self.uncounted_from: int | None = None  # total from which GET /state leaves one event out
        self.restart_at: int | None = None  # total at which the boot changes
        self.seconds_per_event = 0.0

    def decide(self, moral_value: float, vector: bytes) -> dict[str, Any]:
        """Evaluate one event: accept, move the EMA, step the threshold outside the dead band."""
        before = self.theta
        accepted = moral_value >= 0.9 or (moral_value >= 0.3 and moral_value >= before)
        self.ema = 0.1 * accepted + (1.0 - 0.1) * self.ema
        step = 0.05 * ((self.ema - 0.5 > 0.05) - (self.ema - 0.5 < -0.05))
        self.theta = float(np.rint(min(0.9, max(0.3, before + step)) * 1e12) / 1e12)
        self.total += 1
        self.accepted += accepted
        self.received.append((moral_value, vector))
        return {
            "accepted": accepted,
            "reason": "accepted" if accepted else "moral",
            "sequence": self.total,
            **({"memory_id": self.accepted} if accepted else {}),
            "moral_value": moral_value,
            "threshold_before": before,
            "moral_filter_threshold": self.theta,
            "ema": self.ema,
            "current_phase": "wake",
        }

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        with self.lock:
            self.closed += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that vanish are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    """One connection. Speaks HTTP/1.1, answers in one write."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65_536
    server: Server

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        server = self.server
        if self.path != "/state":
            self.problem(404, "not_found", f"there is no {self.path} here")
        elif self.authorised():
            with server.lock:
                if server.restart_at is not None and server.total >= server.restart_at:
                    server.boot_id = "boot-2"
                lost = server.uncounted_from is not None and server.total >= server.uncounted_from
                self.answer(
                    200,
                    {
                        "total_events_processed": server.total - lost,
                        "accepted_events_count": server.accepted,
                        "latent_events_count": server.total - server.accepted - lost,
                        "moral_filter_threshold": server.theta,
                        "ema": server.ema,
                        "dimension": DIMENSION,
                        "boot_id": server.boot_id,
                    },
                )

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            refusal = server.refuse_always or (server.refusals.pop(0) if server.refusals else None)
        if refusal is not None:
            self.problem(refusal[0], "too_busy", "come back later", retry_after=refusal[1])
            return
        if not self.authorised():
            return
        time.sleep(server.seconds_per_event)
        count = int(self.headers["Event-Count"]) if self.path == "/events" else 1
        morals = np.frombuffer(body[: 8 * count], "<f8") if self.path == "/events" else [self.headers["Moral-Value"]]
        floats = body[8 * count :] if self.path == "/events" else body
        if len(floats) != count * DIMENSION * 4:
            self.problem(
                422, "dimension_mismatch", f"the vector has {len(floats) // count // 4} values, expected {DIMENSION}"
            )
            return
        size = DIMENSION * 4
        with server.lock:
            results = server.receipts.setdefault(self.headers["Idempotency-Key"], [])
            for i in range(len(results), count):
                if server.total in server.strangers_at:
                    server.decide(1.0, b"")
                if server.interrupt_after and i == server.interrupt_after[0]:
                    break
                results.append(server.decide(float(morals[i]), floats[i * size : (i + 1) * size]))
            newest = results[-1]["sequence"] if results else 0
            if server.lose_answers_to.get(newest):
                server.lose_answers_to[newest] -= 1
                self.close_connection = True
                return
        if self.path == "/event":
            self.answer(200, results[0])
            return
        server.batches.append(count)
        if server.interrupt_after:
            del server.interrupt_after[0]
            self.problem(503, "batch_interrupted", "the rest was not decided", results=results)
        else:
            accepted = sum(result["accepted"] for result in results)
            self.answer(200, {"results": results, "accepted": accepted, "rejected": count - accepted})

    def authorised(self) -> bool:
        if self.server.api_key and self.headers["Authorization"] != f"Bearer {self.server.api_key}":
            self.problem(401, "unauthorised", "the key is missing or wrong")
            return False
        return True

    def problem(self, status: int, code: str, detail: str, retry_after: str | None = None, **members: object) -> None:
        document = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, **members}
        self.answer(status, document, "application/problem+json", retry_after)

    def answer(
        self, status: int, document: object, media: str = "application/json", retry_after: str | None = None
    ) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(content)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        if self.server.close_after_each == "said":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.close_connection or bool(self.server.close_after_each)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("API_KEY", raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """An archive of 60 events with moral values from 1e-7 (which repr writes with an exponent) to 0.99."""
    random = np.random.default_rng(7)
    path = tmp_path / "events.npz"
    moral = random.uniform(0.0, 0.99, 60).astype(np.float32)
    moral[5] = 1e-7
    np.savez(path, vec=random.normal(size=(60, DIMENSION)).astype(np.float16), moral=moral)
    return path


def replay(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_one_client_replays_the_file_in_order_and_its_decisions_equal_the_reference(
    server: Server, recording: Path, tmp_path: Path
) -> None:
    """Vectors arrive as normalised float32, moral values exactly, and each saved decision equals the reference's."""
    events, saved = np.load(recording), tmp_path / "decisions"

    status = replay(recording, "--url", server.url, "--clients", 1, "--save", saved)

    exact = events["vec"].astype(np.float64)
    sent = np.array([np.frombuffer(vector, "<f4") for _, vector in server.received])
    with Server() as reference:  # its arithmetic only: it serves nobody
        expected = [reference.decide(float(moral), b"") for moral in events["moral"]]
    decided = np.load(saved)
    assert status == 0
    assert [float(moral) for moral in events["moral"]] == [moral for moral, _ in server.received]
    np.testing.assert_allclose(sent, exact / np.linalg.norm(exact, axis=1)[:, None], rtol=1e-6)
    assert decided["event"].tolist() == list(range(60))
    for name, key in (
        ("sequence", "sequence"),
        ("accepted", "accepted"),
        ("threshold_before", "threshold_before"),
        ("threshold_after", "moral_filter_threshold"),
        ("ema", "ema"),
    ):
        assert [decision[key] for decision in expected] == decided[name].tolist()
    assert [decision.get("memory_id", -1) for decision in expected] == decided["memory_id"].tolist()


@pytest.mark.parametrize("batch", [1, 7])
def test_parallel_clients_send_every_event_once_over_keep_alive_connections(
    server: Server, recording: Path, tmp_path: Path, batch: int
) -> None:
    """Saved decisions are in sequence order without a gap, and each names its event."""
    saved = tmp_path / "decisions.npz"

    status = replay(recording, "--url", server.url, "--clients", 3, "--batch", batch, "--save", saved)

    decided, events = np.load(saved), np.load(recording)
    assert status == 0
    assert decided["sequence"].tolist() == list(range(1, 61))
    assert sorted(decided["event"]) == list(range(60))
    assert [moral for moral, _ in server.received] == events["moral"][decided["event"]].tolist()
    assert server.connections <= 3 + 2  # and one for the state before, one for the state after


def test_the_last_batch_has_the_remaining_events(server: Server, recording: Path) -> None:
    """60 events in batches of 25 are requests of 25, 25 and 10."""
    status = replay(recording, "--url", server.url, "--clients", 1, "--batch", 25)

    assert status == 0
    assert server.batches == [25, 25, 10]
    assert np.load(recording)["moral"].tolist() == [moral for moral, _ in server.received]


def test_offset_count_keys_and_moral_value_select_the_events(server: Server, tmp_path: Path) -> None:
    """With --no-normalise the bytes are those of the file, as float32."""
    path = tmp_path / "other.npz"
    vectors = np.arange(10 * DIMENSION, dtype=np.float64).reshape(10, DIMENSION)
    np.savez(path, train=vectors)

    options = (
        "--vectors",
        "train",
        "--moral-value",
        0.1,
        "--offset",
        4,
        "--count",
        3,
        "--no-normalise",
        "--clients",
        1,
    )
    status = replay(path, "--url", server.url, *options)

    assert status == 0
    assert [(0.1, row.astype("<f4").tobytes()) for row in vectors[4:7]] == server.received


def test_zero_and_huge_vectors_are_normalised(server: Server, tmp_path: Path) -> None:
    """Zero stays zero; 1e30 becomes a unit vector."""
    path = tmp_path / "odd.npz"
    np.savez(path, vec=np.outer([0.0, 1e30], np.eye(DIMENSION)[0]).astype(np.float32))

    assert replay(path, "--url", server.url, "--moral-value", 1, "--clients", 1) == 0
    assert [np.frombuffer(vector, "<f4").tolist() for _, vector in server.received] == [
        [0.0] * DIMENSION,
        np.eye(DIMENSION)[0].tolist(),
    ]


def test_a_request_is_one_write() -> None:
    """Head and body arrive in the first segment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/behind/"
        connection = Connection(url, "key", RetryBudget(1, threading.Event()))
        vector = np.ones(DIMENSION, "<f4")

        def ask() -> None:
            with contextlib.suppress(ClientError):
                connection.decide(0.1 + 0.2, vector.data)

        thread = threading.Thread(target=ask)
        thread.start()
        peer, _ = listener.accept()
        with peer:
            head, _, body = peer.recv(65_536).partition(b"\r\n\r\n")
        listener.close()  # who lost an answer asks again
        thread.join()

    assert vector.tobytes() == body
    assert head.startswith(b"POST /behind/event HTTP/1.1\r\n")
    assert b"\r\nMoral-Value: 0.30000000000000004\r\n" in head
    assert b"\r\nAuthorization: Bearer key\r\n" in head


# -- what is reported ------------------------------------------------------------------------------------------------


def test_the_report_names_counts_rates_latencies_threshold_and_ema(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It includes the server's counters, which equal the answers."""
    replay(recording, "--url", server.url)

    out = capsys.readouterr().out
    rejected = 60 - server.accepted
    assert re.search(r"^sent +60 events in [\d.]+ s over 4 connections$", out, re.MULTILINE)
    assert re.search(rf"^accepted +{server.accepted} \([\d.]+%\)$", out, re.MULTILINE)
    assert re.search(rf"^rejected +{rejected} \([\d.]+%\)$", out, re.MULTILINE)
    assert re.search(r"^rate +[\d,]+ requests/s, [\d,]+ events/s$", out, re.MULTILINE)
    assert re.search(r"^latency +p50 [\d.]+ ms, p95 [\d.]+ ms, p99 [\d.]+ ms per request$", out, re.MULTILINE)
    assert re.search(rf"^threshold +0\.500 → {server.theta:.3f}, min 0\.\d+, max 0\.\d+$", out, re.MULTILINE)
    assert re.search(rf"^EMA +{server.ema:.6f} last$", out, re.MULTILINE)
    assert f"server      total +60, accepted +{server.accepted}, rejected +{rejected}: equals what was seen" in out


def test_counters_that_disagree_fail_the_replay(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that counted one event less than it answered is detected."""
    server.uncounted_from = 60

    status = replay(recording, "--url", server.url, "--clients", 1)

    assert status == 1
    assert "it counted less than it answered" in capsys.readouterr().out


def test_another_writing_client_is_reported_and_is_no_failure(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its decisions leave gaps in our sequence numbers."""
    server.strangers_at = {10, 20}

    assert replay(recording, "--url", server.url) == 0
    assert "other clients were writing too (2 sequence numbers between these are not ours)" in capsys.readouterr().out


def test_a_restart_during_the_replay_is_reported(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counters of two boots cannot be compared."""
    server.restart_at = 60

    assert replay(recording, "--url", server.url) == 1
    assert "it was restarted during the replay" in capsys.readouterr().out


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_and_no_event_is_applied_twice(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """A refused request is sent again after the time that the server asked for."""
    server.refusals = [(status, "1"), (status, "0"), (status, "soon")]
    began = time.monotonic()

    assert replay(recording, "--url", server.url, "--clients", 1, "--count", 3) == 0

    assert time.monotonic() - began >= 2.0  # 1 s, 0 s, and the second that stands for what cannot be read
    assert len(server.received) == 3
    assert "throttled   3 times, 2 s of waiting" in capsys.readouterr().out


def test_only_the_undecided_events_of_an_interrupted_batch_are_sent_again(
    server: Server, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of 20 that ends after 12 events, then after 3 more, takes three requests and decides nothing twice."""
    server.interrupt_after = [12, 3]
    saved = tmp_path / "decisions.npz"

    assert replay(recording, "--url", server.url, "--clients", 1, "--batch", 20, "--save", saved) == 0

    assert server.batches == [20, 8, 5, 20, 20]
    assert np.load(recording)["moral"].tolist() == [moral for moral, _ in server.received]
    assert np.load(saved)["sequence"].tolist() == list(range(1, 61))
    assert "total +60, " in capsys.readouterr().out


def test_an_interrupted_batch_without_its_decisions_is_not_sent_again(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is unknown how many events were decided, so none may be sent twice."""
    server.interrupt_after = [0]

    assert replay(recording, "--url", server.url, "--clients", 1, "--batch", 20) == 1

    assert server.batches == [20]
    assert "unknown     20 of them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("retry_after", "words"),
    [
        ("0", "gave up after 20 refusals in a row"),
        ("3600", "it asks to wait 3600 s, more than the maximum of 60 s"),
    ],
)
def test_a_server_that_keeps_refusing_ends_the_replay(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str], retry_after: str, words: str
) -> None:
    """It ends with one sentence, after ten refusals per client or at once."""
    server.refuse_always = (429, retry_after)

    status = replay(recording, "--url", server.url, "--clients", 2)

    err = capsys.readouterr().err
    assert status == 1
    assert "POST /event was answered 429 too_busy: come back later" in err
    assert words in err


def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 §10.2.3 allows an HTTP-date; a past date means no wait, a date next year is too long."""
    from mlsdm.replaying.connection import _retry_after_seconds  # noqa: PLC0415 — the only test that looks inside

    assert _retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert _retry_after_seconds("Fri, 31 Dec 9999 23:59:59 GMT") > 60.0


def test_the_wrong_dimension_prints_the_detail_of_the_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is applied, and the sentence names the rows of the file."""
    path = tmp_path / "short.npz"
    np.savez(path, vec=np.ones((4, 5), np.float16), moral=np.ones(4, np.float32))

    status = replay(path, "--url", server.url, "--batch", 4)

    captured = capsys.readouterr()
    assert status == 1
    assert (
        "mlsdm replay: POST /events was answered 422 dimension_mismatch: "
        f"the vector has 5 values, expected {DIMENSION} (rows 0–3 of the file)\n"
    ) in captured.err
    assert "sent        0 of 4 events" in captured.out
    assert server.total == 0


@pytest.mark.parametrize("batch", [1, 10])
def test_an_event_whose_answer_is_lost_is_sent_again_and_decided_once(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    """Its idempotency key returns the first decision, and nothing diverges."""
    server.lose_answers_to = {10: 3, 40: 1}

    status = replay(recording, "--url", server.url, "--clients", 1, "--batch", batch)

    assert (status, server.total) == (0, 60), capsys.readouterr().err
    assert len(server.receipts) == 60 // batch


def test_a_repeatedly_lost_answer_is_reported(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outcome of the event is reported as unknown, and the counters show that it was applied."""
    server.lose_answers_to = {5: 99}

    status = replay(recording, "--url", server.url, "--clients", 1)

    captured = capsys.readouterr()
    assert status == 1
    assert server.total == 5
    assert "sent        5 of 60 events" in captured.out
    assert "unknown     1 of them got no usable answer" in captured.out
    assert "events that were sent without an answer explain it" in captured.out
    assert "broke during POST /event" in captured.err


@pytest.mark.parametrize("manner", ["said", "silent"])
def test_a_connection_that_the_server_closes_between_requests_is_replaced(
    server: Server, recording: Path, manner: str
) -> None:
    """The server may announce the close or not, as a recycled worker does."""
    server.close_after_each = manner
    vector = np.ones(DIMENSION, "<f4").data

    with contextlib.closing(Connection(server.url, None, RetryBudget(1, threading.Event()))) as connection:
        for closed in range(1, 4):
            connection.decide(1.0, vector)
            while server.closed < closed:  # a close that crosses a request is a lost answer, and rightly so
                time.sleep(0.001)

    assert server.total == 3
    assert server.connections == 3


def test_a_key_from_the_option_or_the_environment_is_sent(
    server: Server, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key the sentence says where to give it."""
    server.api_key = "geheim"

    assert replay(recording, "--url", server.url, "--count", 1) == 1
    assert "give the key with --api-key or the variable API_KEY" in capsys.readouterr().err
    assert replay(recording, "--url", server.url, "--count", 1, "--api-key", "geheim") == 0
    monkeypatch.setenv("API_KEY", "geheim")
    assert replay(recording, "--url", server.url, "--count", 1) == 0


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:99999", "http://[::1", "http://h/?x", "http://a@h"]
)
def test_a_url_that_cannot_be_used_is_one_sentence(
    recording: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """It shows the expected form."""
    assert replay(recording, "--url", url) == 1
    assert f"mlsdm replay: the URL '{url}' cannot be used: expected http://HOST[:PORT] or https://HOST[:PORT]\n" == (
        capsys.readouterr().err
    )


def test_a_refused_connection_is_one_sentence(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence asks whether the server runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    assert replay(recording, "--url", url) == 1
    assert f"mlsdm replay: cannot connect to {url} (Connection refused): is the server running?\n" == (
        capsys.readouterr().err
    )


def test_another_kind_of_server_is_one_sentence(
    server: Server, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the 404 and asks whether the address is right."""
    assert replay(recording, "--url", f"{server.url}/elsewhere") == 1
    assert "404 not_found: there is no /elsewhere/state here (is --url the address of an mlsdm server?)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"220 mail.example ESMTP\r\n", OutcomeUnknownError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", OutcomeUnknownError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", OutcomeUnknownError),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"sequence":1}', OutcomeUnknownError),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", OutcomeUnknownError),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", RefusedError),
    ],
)
def test_any_other_answer_to_an_event_says_whether_the_event_may_have_been_applied(
    content: bytes, kind: type[ClientError]
) -> None:
    """Only a refusal below 500 means that it was not applied."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.recv(65_536)
                        peer.sendall(content)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connection = Connection(url, None, RetryBudget(1, threading.Event()))
        with contextlib.closing(connection), pytest.raises(kind):
            connection.decide(1.0, np.ones(DIMENSION, "<f4").data)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_file_that_cannot_be_used_is_one_sentence(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names the array, its problem and what was expected; nothing is sent."""
    vec, moral = np.ones((3, DIMENSION), np.float32), np.ones(3, np.float32)
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", vec)
    for name, arrays in {
        "other": {"train": vec},
        "flat": {"vec": vec[0], "moral": moral},
        "words": {"vec": vec, "moral": np.array(["a", "b", "c"])},
        "pickled": {"vec": vec, "moral": np.array([1, None, 3], object)},
        "short": {"vec": vec, "moral": moral[:2]},
        "none": {"vec": vec[:0], "moral": moral[:0]},
    }.items():
        np.savez(tmp_path / name, **arrays)
    sentences = {
        "absent.npz": "cannot read {}: No such file or directory",
        ".": "cannot read {}: Is a directory",
        "text.npz": "{} is not an .npz archive of plain arrays, or it is damaged",
        "empty.npz": "{} is not an .npz archive of plain arrays, or it is damaged",
        "single.npy": "{} is a single array: expected an .npz archive of arrays",
        "other.npz": "{} has no array 'vec': it has train",
        "flat.npz": f"'vec' of {{}} is float32 of shape [{DIMENSION}]: expected numbers of shape [N, D]",
        "words.npz": "'moral' of {} is <U1 of shape [3]: expected numbers of shape [N]",
        "pickled.npz": "{} is not an .npz archive of plain arrays, or it is damaged",
        "short.npz": "{} has 3 vectors in 'vec' but 2 moral values in 'moral'",
        "none.npz": "{} has 0 events: none is left after --offset 0",
    }

    for name, sentence in sentences.items():
        assert replay(tmp_path / name, "--url", server.url) == 1
        assert capsys.readouterr().err == f"mlsdm replay: {sentence.format(tmp_path / name)}\n"
    assert server.connections == 0


def test_unwritable_output_files_are_found_before_anything_is_sent(
    server: Server, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory does not exist, or the path is a directory."""
    for path in (tmp_path / "absent" / "file.npz", tmp_path):
        assert replay(recording, "--url", server.url, "--save", path) == 1
        assert f"cannot write {path}: expected a writable file" in capsys.readouterr().err
    assert server.connections == 0


@pytest.mark.parametrize("words", [("--batch", "0"), ("--clients", "x"), ("--batch", "1001"), ("--count", "-1")])
def test_numbers_out_of_range_are_refused_with_their_range(
    recording: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    """argparse refuses them with status 2."""
    with pytest.raises(SystemExit) as exit_:
        replay(recording, *words)

    assert exit_.value.code == 2
    assert re.search(rf"argument {words[0]}: '{words[1]}': expected a whole number", capsys.readouterr().err)


@pytest.mark.parametrize("hanging", [False, True])
def test_ctrl_c_prints_the_partial_report_and_exits_130(server: Server, recording: Path, hanging: bool) -> None:
    """A slow request in flight is finished; a connection without an answer is shut down."""
    server.seconds_per_event = 60.0 if hanging else 0.05
    program = (
        "import argparse, sys; from mlsdm.commands.replay import add_arguments, run; "
        "parser = argparse.ArgumentParser(); "
        "add_arguments(parser); sys.exit(run(parser.parse_args()))"
    )
    command = [sys.executable, "-c", program, str(recording), "--url", server.url, "--clients", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        # The first connection asked for the state.
        eventually(lambda: server.connections >= 2 and (hanging or server.total >= 2))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_SECONDS)

    assert process.returncode == INTERRUPTED == 130
    assert "Traceback" not in err
    if hanging:
        assert "sent        1 of 60 events" in out
        assert "unknown     1 of them" in out
    else:
        assert f"sent        {server.total} of 60 events" in out
        assert f"server      total +{server.total}, " in out
        assert "equals what was seen" in out
