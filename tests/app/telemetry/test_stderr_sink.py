"""Standard error sink: a line is written whole, or lost and counted, and no process waits for its reader."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.telemetry.logging_setup import JsonFormatter
from app.telemetry.stderr_sink import Sink, StderrHandler
from testing.eventually import eventually
from testing.live_server import LiveServer
from tests.conftest import SMALL

PIPE_SIZE = 4096  # bytes: the smallest that there is
PIPES = ["pipe", "socket"]


@pytest.fixture(params=PIPES)
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Both ends of what a container's standard error may be: (reading, writing)."""
    if request.param == "pipe":
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    else:
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_SIZE)
        reading, writing = one.detach(), other.detach()
    os.set_blocking(reading, False)
    yield reading, writing
    for end in (reading, writing):
        os.close(end)


def handler(sink: Sink) -> StderrHandler:
    """Return a handler that writes JSON lines to a sink of this test."""
    made = StderrHandler()
    made.setFormatter(JsonFormatter())
    made._sink = sink
    return made


def say(to: StderrHandler, message: str, *arguments: object) -> None:
    """Log one line."""
    to.handle(logging.LogRecord("mlsdm.test", logging.INFO, __file__, 1, message, arguments, None))


def read(reading: int) -> list[dict[str, object]]:
    """Return every line that waits there; each must be whole."""
    text = b""
    try:
        while piece := os.read(reading, 65_536):
            text += piece
    except BlockingIOError:
        pass
    assert text == b"" or text.endswith(b"\n"), text[-100:]
    return [json.loads(line) for line in text.splitlines()]


def test_lines_without_room_are_counted_and_others_stay_whole(ends: tuple[int, int]) -> None:
    """No caller waits; once there is room again, the number of lost lines comes first, then the next line."""
    reading, writing = ends
    to = handler(Sink(writing))

    for number in range(1000):
        say(to, "line %d", number)
    first = drain(reading, to)
    say(to, "the end")
    last = read(reading)

    kept = [line["event"] for line in first if str(line["event"]).startswith("line ")]
    lost = sum(int(str(line.get("lost", 0))) for line in first + last)
    assert kept[:3] == ["line 0", "line 1", "line 2"]
    assert kept == [f"line {number}" for number in range(len(kept))]
    assert lost == 1000 - len(kept) > 0
    assert to._sink.lost_lines.count == lost
    assert last[-1]["event"] == "the end"


class WaitCounter:
    """Counts how often a sink has waited for room."""

    def __init__(self, sink: Sink) -> None:
        self._poll, self.count = sink._writable.poll, 0
        sink._writable = self  # type: ignore[assignment]

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        """Wait as it would have."""
        self.count += 1
        return self._poll(milliseconds)


@pytest.mark.parametrize("length", [10, 3_000])
def test_only_the_first_line_waits_for_a_slow_reader(ends: tuple[int, int], length: int) -> None:
    """However many find no room: once, and once more for each word about them that fits where a line does not."""
    reading, writing = ends
    to = handler(sink := Sink(writing))
    waits = WaitCounter(sink)

    for _ in range(1000):
        say(to, "x" * length)
    assert 1 <= waits.count <= PIPE_SIZE // 100

    drain(reading, to)
    for _ in range(1000):
        say(to, "x" * length)
    assert 2 <= waits.count <= 2 * PIPE_SIZE // 100


def drain(reading: int, to: StderrHandler) -> list[dict[str, object]]:
    """Return what waits there, and have the rest of a line that was begun written behind it."""
    text = b""
    while not text.endswith(b"\n"):
        try:
            text += os.read(reading, 65_536)
        except BlockingIOError:
            to._sink._finish()
    return [json.loads(line) for line in text.splitlines()]


def test_a_partly_written_line_is_finished_before_the_next(ends: tuple[int, int]) -> None:
    """Even one that is larger than the pipe."""
    reading, writing = ends
    to = handler(Sink(writing))

    say(to, "x" * 100_000)
    say(to, "no room")
    text = b""
    while text.count(b"\n") < 3:
        try:
            text += os.read(reading, 65_536)
        except BlockingIOError:
            say(to, "next")

    large, about, *_ = [json.loads(line) for line in text[: text.rindex(b"\n")].splitlines()]
    assert len(large["event"]) == 100_000
    assert about["lost"] >= 1


def test_the_parents_descriptor_stays_blocking() -> None:
    """The descriptor that the parent shares still blocks, as the parent expects."""
    reading, writing = os.pipe()

    Sink(writing)

    assert os.get_blocking(writing)
    for end in (reading, writing):
        os.close(end)


def test_a_closed_reader_raises_nothing(ends: tuple[int, int]) -> None:
    """No signal ends the process, and nothing is raised."""
    reading, writing = ends
    to = handler(Sink(writing))
    os.dup2(os.open(os.devnull, os.O_RDONLY), reading)

    say(to, "anybody there?")

    assert to._sink._lost == 1


def test_a_record_that_cannot_be_formatted_is_reported(ends: tuple[int, int]) -> None:
    """The caller gets no exception, and nothing unformatted is written."""
    reading, writing = ends

    say(handler(Sink(writing)), "%d", "no number")

    [line] = read(reading)
    assert line["level"] == "ERROR"
    assert str(line["event"]).startswith("a log line cannot be made: TypeError")


def test_a_fork_leaves_the_unfinished_line_to_its_parent(ends: tuple[int, int]) -> None:
    """Only the parent writes the rest; otherwise it would be there twice."""
    _, writing = ends
    to = handler(Sink(writing))
    say(to, "x" * 100_000)

    child = os.fork()
    if child == 0:
        os._exit(0 if to._sink._rest == b"" else 1)

    assert to._sink._rest
    assert os.waitpid(child, 0)[1] == 0


@dataclass
class PipedServer(LiveServer):
    """A server whose log is a pipe that this test reads, or does not."""

    reading: int = -1
    text: bytes = b""
    is_read: bool = True
    written: list[int] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What was read so far."""
        while self.is_read:
            try:
                piece = os.read(self.reading, 65_536)
            except BlockingIOError:
                break
            if not piece:
                break
            self.text += piece
        return self.text.decode()


def test_an_unread_log_stops_no_process(tmp_path: Path) -> None:
    """Requests, the arbiter and its controller go on; when it is read again, it says what is missing."""
    server = PipedServer(
        tmp_path, {**SMALL, "LOG_LEVEL": "DEBUG", "MLSDM_OBSERVABILITY__LOGGING__FORMAT": "json", "WORKERS": "2"}
    )
    os.mkfifo(server.log_path)
    server.reading = os.open(server.log_path, os.O_RDONLY | os.O_NONBLOCK)
    server.start()
    try:
        server.is_read = False
        for connection in server.connect_to_both_workers():
            for _ in range(200):  # 300 bytes each: twice what the pipe holds
                assert server.request("GET", "/state", connection=connection).status == 200
            connection.close()
        server.reload()
        assert server.get("/health/readiness").json["checks"]["controller"] == {"healthy": True}

        lost = [line for line in server.get("/metrics").body.splitlines() if b"log_lines_lost_total " in line]
        assert [float(line.split()[1]) > 0 for line in lost if not line.startswith(b"#")] == [True]

        server.is_read = True
        eventually(lambda: server.get("/livez").status == 200 and '"lost": ' in server.log)
        server.stop()
    finally:
        server.kill()
        os.close(server.reading)
