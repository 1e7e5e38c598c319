"""The write deadline: which paces of reading keep it away."""

import random
from typing import Any

import pytest

from app.httpd.write_buffer import STALL_SECONDS, WriteBuffer
from core.limits import READ_RATE, WRITE_BUFFER_SIZE, WRITE_SECONDS, Limit

SWEEP_SECONDS = 0.25


class FakeTransport:
    """A transport whose peer reads when the test says so."""

    def __init__(self) -> None:
        self.unread_size = 0

    def write(self, data: bytes) -> None:
        self.unread_size += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_size

    def set_write_buffer_limits(self, high: int) -> None:
        """No flow control here."""

    def get_extra_info(self, _name: str) -> Any:
        return None


def read(bursts: list[tuple[float, int]], size: int) -> float | None:
    """Write `size` bytes of which a peer reads bursts of (seconds after the last one, bytes).

    Returns the time at which the deadline was over; None when everything was read.
    """
    transport = FakeTransport()
    buffer = WriteBuffer(transport)  # type: ignore[arg-type]  # it has what a WriteBuffer calls
    start = now = random.uniform(0, 1e6)
    buffer.write(bytes(size))
    for pause, count in bursts:
        until = now + pause
        while now < until:
            if buffer.check_deadline(now) is WRITE_SECONDS:
                return now - start
            now += SWEEP_SECONDS
        transport.unread_size -= min(count, transport.unread_size)
    assert buffer.check_deadline(now) is None
    assert transport.unread_size == 0
    return None


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_no_progress_ends_after_write_seconds(size: int) -> None:
    assert read([(100, 0)], size) == pytest.approx(WRITE_SECONDS.value, abs=2 * SWEEP_SECONDS)


@pytest.mark.parametrize(
    ("pause", "burst"), [(0.25, READ_RATE.value // 4), (4, 4 * READ_RATE.value), (9, 65_536), (16, 65_536)]
)
def test_a_steady_reader_has_no_deadline(pause: float, burst: int) -> None:
    """Whatever the bursts, at READ_RATE on average; the first one comes within WRITE_SECONDS."""
    size = 50 * burst

    assert read([(min(pause, 9), burst), *[(pause, burst)] * 49], size) is None


def test_below_the_rate_the_deadline_comes() -> None:
    """Half of READ_RATE uses up WRITE_SECONDS in twice that time."""
    ended = read([(1, READ_RATE.value // 2)] * 1000, 10**9)

    assert ended == pytest.approx(2 * WRITE_SECONDS.value, abs=2)


def test_a_fast_start_does_not_buy_a_long_stop() -> None:
    """What was read ahead is worth STALL_SECONDS at most."""
    assert read([(1, 10**7), (1000, 0)], 2 * 10**7) == pytest.approx(1 + STALL_SECONDS, abs=1)


def test_reading_says_how_fast() -> None:
    transport = FakeTransport()
    buffer = WriteBuffer(transport)  # type: ignore[arg-type]  # as above
    buffer.write(bytes(1_000))
    buffer.check_deadline(100.0)
    transport.unread_size = 400

    assert buffer.reading(110.0) == (600, 400, 10.0)
    assert buffer.reading(110.0).rate == 60.0


def test_each_wait_of_a_slow_peer_is_reported_once() -> None:
    """From the check on at which it is first found paused, also when less than that was waiting before."""
    transport = FakeTransport()
    buffer = WriteBuffer(transport)  # type: ignore[arg-type]  # as above

    def checks(*paused: bool) -> list[Limit | None]:
        found = []
        for is_paused in paused:
            buffer.is_paused = is_paused
            found.append(buffer.check_deadline(1.0))
        return found

    buffer.write(bytes(1_000))
    transport.unread_size = 1_000
    assert checks(False, True, True) == [None, WRITE_BUFFER_SIZE, None]
    transport.unread_size = 0
    assert checks(False) == [None]
    buffer.write(bytes(1_000))
    transport.unread_size = 1_000
    assert checks(True, True) == [WRITE_BUFFER_SIZE, None]
