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
def test_programs_hold(seed: int) -> None:
    """Whatever is sent, in whatever pieces: the six promises hold."""
    random_ = random.Random(seed)
    for _ in range(PROGRAMS_COUNT):
        made = program(random_)
        try:
            check(made)
        except BaseException:
            print(f"seed {seed}: {split(wire_of(made), made)}")
            raise


def test_a_wrong_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict reading notices a server that ends a body somewhere else, which is how requests are smuggled."""
    posted = bytes([128 + 1, 128 + 38, 128 + 23, 128 + 71]) + bytes(4)
    check(posted)
    monkeypatch.setattr(RequestParser, "on_body", lambda self, piece: self._body.append(b"x" * len(piece)))

    with pytest.raises(AssertionError, match="bodies differ"):
        check(posted)


def test_a_second_field_of_a_name_is_found() -> None:
    """An answer in which something appears twice, or that is no answer, is no HTTP for the strict reading."""
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
def test_strict_reading(wire: bytes, end: int | None) -> None:
    """The strict reading knows where a request ends, and when there is none."""
    found = read_request(wire, 0)

    assert end == (found and found.end)
