"""loadtests/attack/fuzz_requests.py without a fuzzer: its properties on programs of a seeded generator."""

import random

import pytest

from app.httpd.request_parser import RequestParser
from loadtests.attack.fuzz_requests import FRAGMENTS, SEEDS, check, split, wire_of
from testing.strict_http import read_answers, read_request

PROGRAMS_COUNT = 1_500


def program(random_: random.Random) -> bytes:
    """Return two seeds, one behind the other, with a few fragments changed."""
    fragments = [*random_.choice(SEEDS), *random_.choice(SEEDS)]
    for _ in range(random_.randrange(4)):
        fragments.insert(random_.randrange(len(fragments) + 1), random_.randrange(len(FRAGMENTS)))
    return bytes(128 + fragment for fragment in fragments) + random_.randbytes(4)


@pytest.mark.parametrize("seed", range(4))
def test_properties_hold_for_random_programs(seed: int) -> None:
    """Every property holds for any bytes in any pieces."""
    random_ = random.Random(seed)
    for _ in range(PROGRAMS_COUNT):
        made = program(random_)
        try:
            check(made)
        except BaseException:
            print(f"seed {seed}: {split(wire_of(made), made)}")
            raise


def test_a_wrong_body_length_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict reader notices a server that ends a body elsewhere, which allows smuggling."""
    posted = bytes([128 + 1, 128 + 38, 128 + 23, 128 + 71]) + bytes(4)
    check(posted)
    monkeypatch.setattr(RequestParser, "on_body", lambda self, piece: self._body.append(b"x" * len(piece)))

    with pytest.raises(AssertionError, match="bodies differ"):
        check(posted)


def test_a_malformed_answer_is_detected() -> None:
    """The strict reader rejects duplicate fields and answers that are not HTTP."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    assert [(answer.status, answer.body) for answer in read_answers(good, ["GET"])] == [(200, b"hi")]
    for bad in (good.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n"), b"x" + good, good[:-1], good + b"x"):
        with pytest.raises(AssertionError):
            read_answers(bad, ["GET"])


@pytest.mark.parametrize(
    ("wire", "end"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", 27),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhirest", 49),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nT: t\r\n\r\nrest", 76),
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", None),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nhi", None),
    ],
)
def test_the_strict_reader_finds_the_end_of_a_request(wire: bytes, end: int | None) -> None:
    """It also knows when there is no request."""
    found = read_request(wire, 0)

    assert end == (found and found.end)
