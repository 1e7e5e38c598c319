"""Bodies with a content coding: what reaches the application, and how little a bomb costs."""

import contextlib
import gzip
import json
import random
import tracemalloc
import zlib
from collections import deque
from typing import Any

import pytest

from app.httpd.body_decoder import DECODER_SIZE, STEP_SIZE, BodyDecoder, decoder_of
from app.httpd.connection import Connection
from app.httpd.pipeline import SLICE_SIZE
from app.httpd.refusal import Refusal
from core.limits import BODY_RATIO, BODY_SIZE
from testing.eventually import eventually
from tests.app.httpd.serving import (
    CHUNKED,
    GOOD,
    LAST_CHUNK,
    AnswerReader,
    ByteByByteConnection,
    EchoApplication,
    SelectiveApplication,
    connect,
    fetch,
    post,
    serving,
)

CODED = b"Content-Encoding: gzip\r\n"
TEXT = b"hello " * 100


def decode(packed: bytes, piece_size: int = 2**20) -> bytes:
    """Return the decoded body, which arrives in pieces of `piece_size`."""
    decoder = BodyDecoder()
    pieces = (packed[i : i + piece_size] for i in range(0, len(packed), piece_size))
    decoded = b"".join(step for piece in pieces for step in decoder.decode(piece))
    decoder.finish()
    return decoded


@pytest.mark.parametrize("protocol", [None, ByteByByteConnection], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("coding", [b"gzip", b"X-GZIP", b"identity, gzip", b", gzip ,"])
def test_the_application_gets_the_plain_body(coding: bytes, protocol: Any) -> None:
    """With its plain length and without the coding; the next request on the connection is served."""
    packed = gzip.compress(TEXT)
    request = post(b"Content-Encoding: %s\r\nContent-Length: %d\r\n" % (coding, len(packed)), packed)
    with serving(**({"protocol": protocol} if protocol else {})) as server:
        answers = fetch(server, (request + GOOD) * 3, 6)  # three times: a head may be cached from the second on

    for answer in answers[::2]:
        assert answer.json["body"].encode() == TEXT
        assert answer.environ["CONTENT_LENGTH"] == str(len(TEXT))
        assert "HTTP_CONTENT_ENCODING" not in answer.environ
    assert {answer.environ["PATH_INFO"] for answer in answers[1::2]} == {"/good"}


def test_a_chunked_body_may_be_coded() -> None:
    """Transfer coding and content coding are both removed."""
    packed = gzip.compress(TEXT)
    body = b"5\r\n%s\r\n%x\r\n%s\r\n" % (packed[:5], len(packed) - 5, packed[5:]) + LAST_CHUNK
    with serving() as server:
        (answer,) = fetch(server, post(CODED + CHUNKED, body))

    assert answer.json["body"].encode() == TEXT
    assert answer.environ["CONTENT_LENGTH"] == str(len(TEXT))
    assert "HTTP_TRANSFER_ENCODING" not in answer.environ


@pytest.mark.parametrize("fields", [b"Content-Encoding: identity\r\n", b"Content-Encoding: \r\n"])
def test_identity_is_no_coding(fields: bytes) -> None:
    """`identity` and an empty list leave the body as it is."""
    with serving() as server:
        (answer,) = fetch(server, post(fields + b"Content-Length: 5\r\n", b"hello"))

    assert answer.json["body"] == "hello"


@pytest.mark.parametrize("field", [b"Content-Encoding: br\r\n", b"Content-Range: bytes 0-4/10\r\n"])
def test_without_a_body_there_is_nothing_to_decode(field: bytes) -> None:
    """Fields about a body are ignored where there is none."""
    with serving() as server:
        assert fetch(server, post(field))[0].status == 200


def test_415_says_what_is_accepted() -> None:
    """RFC 9110 §15.5.16: Accept-Encoding in a 415 says that the coding was at fault, and names those that are not."""
    with serving() as server:
        (answer,) = fetch(server, post(b"Content-Encoding: zstd\r\nContent-Length: 5\r\n", b"hello"))

    assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip")
    assert "'zstd'" in answer.json["detail"]


def test_continue_is_not_sent_when_the_body_has_begun() -> None:
    """A client whose gzip header has arrived does not wait for 100 Continue, although nothing is decoded yet."""
    packed = gzip.compress(TEXT)
    head = post(CODED + b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(packed), packed[:10])
    with serving() as server, connect(server) as client:
        client.sendall(head)
        client.sendall(packed[10:])

        assert AnswerReader(client).read_answer().json["body"].encode() == TEXT


@pytest.mark.parametrize("piece_size", [1, 7, 4_096, 2**20])
def test_any_split_gives_the_same_body(piece_size: int) -> None:
    """Bodies whose decoded size lies around multiples of STEP_SIZE."""
    seed = random.randrange(2**32)
    source = random.Random(seed)
    text = json.dumps([source.random() for _ in range(8_000)]).encode()
    for size in (0, 1, STEP_SIZE - 1, STEP_SIZE, STEP_SIZE + 1, 2 * STEP_SIZE, 2 * STEP_SIZE + 1):
        assert decode(gzip.compress(text[:size], 6), piece_size) == text[:size], (seed, size)


def test_a_step_is_bounded() -> None:
    """Nothing larger than STEP_SIZE is ever inflated at once."""
    text = bytes(random.Random(7).choices(b"0123456789", k=1_000_000))

    assert {len(step) <= STEP_SIZE for step in BodyDecoder().decode(gzip.compress(text))} == {True}


def test_a_bomb_is_refused_before_it_expands() -> None:
    """Sixteen megabytes of zeros take 16 kB in gzip: they are refused in the memory of a few steps."""
    bomb = gzip.compress(bytes(BODY_SIZE.value))
    tracemalloc.start()
    with pytest.raises(Refusal) as refused:
        deque(BodyDecoder().decode(bomb), maxlen=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (refused.value.status, refused.value.code) == (413, BODY_RATIO.code)
    assert peak < 8 * STEP_SIZE


def test_a_header_without_an_end_is_bounded() -> None:
    """The comment of a gzip header has no length: compressed bytes without output are bounded, too."""
    decoder = BodyDecoder()
    header = b"\x1f\x8b\x08\x10" + bytes(6)
    list(decoder.decode(header))
    for _ in range(BODY_SIZE.value // 65_536 - 1):
        list(decoder.decode(b"x" * 65_536))
    with pytest.raises(Refusal) as refused:
        list(decoder.decode(b"x" * 65_536))

    assert refused.value.code == BODY_SIZE.code


def test_small_bodies_may_expand_by_any_ratio() -> None:
    """The ratio counts above one step only: a small body of zeros is served."""
    assert decode(gzip.compress(bytes(STEP_SIZE))) == bytes(STEP_SIZE)


@pytest.mark.parametrize("coding", ["deflate", "compress", "gzip, gzip", "gzip;q=1", "none"])
def test_other_codings_are_refused(coding: str) -> None:
    with pytest.raises(Refusal) as refused:
        decoder_of(coding)

    assert refused.value.status == 415


@pytest.mark.parametrize("wbits", [15, -15])
def test_other_formats_of_zlib_are_refused(wbits: int) -> None:
    """zlib and raw deflate are not gzip (RFC 1950, RFC 1951)."""
    packer = zlib.compressobj(wbits=wbits)
    packed = packer.compress(TEXT) + packer.flush()

    with pytest.raises(Refusal) as refused:
        decode(packed)
    assert refused.value.code == "content_encoding_invalid"


class SizeApplication(EchoApplication):
    """An echo that wants a body up to `size_max` bytes, and records each size that it is asked about."""

    def __init__(self, size_max: int = 200_000) -> None:
        super().__init__()
        self.size_max = size_max
        self.asked: list[int] = []

    def wants_body(self, environ: dict[str, Any]) -> bool:
        self.asked.append(int(environ.get("CONTENT_LENGTH", 0)))
        return self.asked[-1] <= self.size_max


@pytest.mark.parametrize("coding", ["gzip", "chunked"])
def test_a_body_of_unknown_size_is_dropped_as_soon_as_it_is_too_large(coding: str) -> None:
    """The application is asked again while the body grows, so it never has to hold much more than it wants."""
    text = bytes(random.Random(7).choices(b"0123456789", k=400_000))
    packed = gzip.compress(text)
    head = CODED + b"Content-Length: %d\r\n" % len(packed) if coding == "gzip" else CHUNKED
    chunks = [b"3e8\r\n%s\r\n" % text[i : i + 1000] for i in range(0, len(text), 1000)]
    body = packed if coding == "gzip" else b"".join(chunks)
    application = SizeApplication()
    with serving(application) as server, connect(server) as client:
        client.sendall(post(head))
        eventually(lambda: bool(server.by_client))
        with contextlib.suppress(OSError):  # the server may have closed
            client.sendall(body)
        eventually(lambda: bool(application.calls))

        # The head of a body that is announced as large is asked about, too.
        grown = [size for size in application.asked if size != len(packed)]
        assert grown == sorted(grown)
        assert application.size_max < grown[-1] < application.size_max + 3 * STEP_SIZE
        assert server.run_on_loop(lambda: server.worker_state.bodies.size) == 0


def test_the_memory_of_a_decoder_is_reserved_before_the_body_arrives() -> None:
    """It is counted with large bodies, and released with the answer."""
    packed = gzip.compress(TEXT)
    with serving() as server, connect(server) as client:
        client.sendall(post(CODED + b"Content-Length: %d\r\n" % len(packed)))
        eventually(lambda: server.run_on_loop(lambda: server.worker_state.bodies.size) == DECODER_SIZE)
        client.sendall(packed)

        assert AnswerReader(client).read_answer().json["body"].encode() == TEXT
        assert server.run_on_loop(lambda: server.worker_state.bodies.size) == 0


def test_a_client_whose_body_is_not_wanted_gets_no_decoder() -> None:
    """It is answered before its body arrives, however small that is."""
    request = post(CODED + b"Content-Length: 30\r\n").replace(b"/", b"/no", 1)
    with serving(SelectiveApplication()) as server:
        (answer,) = fetch(server, request)

    assert (answer.json["body"], answer.headers["connection"]) == ("", "close")


class MeteredConnection(Connection):
    """A connection that records how many bytes of a body arrive, decoded, in one turn of the loop."""

    grown: list[int] = []  # noqa: RUF012 - of all connections of one test

    def data_received(self, data: bytes) -> None:
        before = self.parser.body_size
        super().data_received(data)
        self.grown.append(self.parser.body_size - before)

    def run_step(self) -> bool:
        before = self.parser.body_size
        is_left = super().run_step()
        self.grown.append(self.parser.body_size - before)
        return is_left


def test_one_turn_of_the_loop_inflates_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that holds megabytes is inflated in slices, between which others are served."""
    monkeypatch.setattr(MeteredConnection, "grown", [])
    source = random.Random(7)
    text = b"".join(source.randbytes(8) + b"a" * 900 for _ in range(5_000))
    packed = gzip.compress(text)
    with serving(SizeApplication(len(text)), protocol=MeteredConnection) as server, connect(server) as client:
        client.sendall(post(CODED + b"Content-Length: %d\r\n" % len(packed)))
        eventually(lambda: bool(server.by_client))
        client.sendall(packed)

        assert AnswerReader(client).read_answer().environ["CONTENT_LENGTH"] == str(len(text))
    assert STEP_SIZE < max(MeteredConnection.grown) <= BODY_RATIO.value * SLICE_SIZE
