"""Media types: the three of bodies that carry vectors, and the one of responses."""

import re
from typing import Final
from wsgiref.types import WSGIEnvironment

import msgspec

from app.api.problem import Problem

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"

_CHARSET: Final = re.compile(r';\s*charset\s*=\s*"?([^\s;"]*)', re.IGNORECASE)

encode = msgspec.json.Encoder().encode


def media_type(environ: WSGIEnvironment) -> str:
    """Return the media type of a body that carries a vector, without its parameters. Raises 415 for any other."""
    media = environ.get("CONTENT_TYPE", JSON)
    if media in (JSON, MSGPACK, RAW):
        return str(media)
    bare = media.partition(";")[0].strip().lower()
    if bare not in (JSON, MSGPACK, RAW):
        raise Problem(
            415, "unsupported_media_type", f"Content-Type is {bare[:40]!r}; expected {JSON}, {MSGPACK} or {RAW}",
            field="Content-Type", expected=f"{JSON}, {MSGPACK} or {RAW}",
        )  # fmt: skip
    if bare == JSON:
        check_charset(media)
    return str(bare)


def check_charset(content_type: str) -> None:
    """Raise 415 when a Content-Type says that JSON is in another encoding than UTF-8.

    RFC 8259 §8.1 allows no other, and §11 defines no parameter `charset`. Bytes in another one may be valid UTF-8 by
    chance, and would be stored as another text.
    """
    for charset in _CHARSET.findall(content_type):
        if charset.lower() not in {"utf-8", "utf8", "us-ascii"}:
            raise Problem(
                415, "unsupported_media_type", f"Content-Type has the charset {charset[:40]!r}; expected utf-8",
                field="Content-Type", expected="utf-8",
            )  # fmt: skip
