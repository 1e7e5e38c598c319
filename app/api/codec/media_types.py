"""Media types: the three of bodies that carry vectors, and the one of responses."""

from typing import Final
from wsgiref.types import WSGIEnvironment

import msgspec

from app.api.problem import Problem

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"

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
    return str(bare)
