"""Content coding of answers: a large answer is sent in gzip to a client that accepts it (RFC 9110 §12.5.3).

Only paths that the application names (`Hooks.compressed`), and only answers from COMPRESSED_SIZE_MIN on: a small
answer costs one comparison. An answer is compressed in pieces, between which the worker serves other requests
(`app.httpd.long_answers`). It is sent as it is when it is larger than COMPRESSED_SIZE_MAX, or while several long
answers wait: compression is never worth a delay of others, and what waits is bounded.

The answers of such a path say `Vary: Accept-Encoding` where their size makes them depend on the field.

Rejected: higher levels of zlib. Level 1 makes a recall with vectors 2.3 times smaller; level 6, 2.5 times, for three
times the CPU time.

Perf: 14 ms for a megabyte of recalled vectors. zlib collects 32 kB before it compresses them, so most pieces take 0.05
ms and every fourth 0.45 ms (AMD EPYC, zlib 1.2.13).
"""

import re
import zlib
from collections.abc import Generator
from typing import Final

COMPRESSED_SIZE_MIN: Final = 16_384  # bytes; a recall of ten memories with payloads of 1 kB is smaller
COMPRESSED_SIZE_MAX: Final = 4_194_304  # bytes
WAITING_COUNT_MAX: Final = 4  # long answers of a worker; while so many wait, no further one is compressed
VARY: Final = "Vary: Accept-Encoding\r\n"
ENCODED: Final = VARY + "Content-Encoding: gzip\r\n"
_PIECE_SIZE: Final = 8_192  # bytes
_LEVEL: Final = 1
_WINDOW_BITS: Final = 16 + zlib.MAX_WBITS  # with a gzip header and trailer
_WEIGHT: Final = re.compile(r"[qQ]=([01](?:\.[0-9]{0,3})?)")  # RFC 9110 §12.4.2


def accepts_gzip(field: str) -> bool:
    """Return whether the value of an Accept-Encoding field prefers gzip to no coding (RFC 9110 §12.5.3).

    A coding whose weight is malformed is not accepted.
    """
    weights: dict[str, float] = {}
    for member in field.split(","):
        coding, separator, weight = member.partition(";")
        weights[coding.strip(" \t").lower()] = _weight(weight.strip(" \t")) if separator else 1.0
    anything = weights.get("*", 0.0)
    gzip = weights.get("gzip", weights.get("x-gzip", anything))
    # Without a weight of its own, identity is acceptable, and comes after every coding that the client names.
    return gzip > 0.0 and gzip >= weights.get("identity", 0.0)


def _weight(text: str) -> float:
    """Return the weight of a coding, 0 when it is malformed."""
    found = _WEIGHT.fullmatch(text)
    return min(1.0, float(found[1])) if found else 0.0


def compress(body: bytes) -> Generator[bytes, None, None]:
    """Yield `body` in gzip. A piece takes less than half a millisecond, and may be empty."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS)
    for start in range(0, len(body), _PIECE_SIZE):
        yield compressor.compress(body[start : start + _PIECE_SIZE])
    yield compressor.flush()
