"""Compact JSON, reference version: what a payload is stored as, and which payloads are refused.

It is written with the standard library, apart from the escapes of strings, and shares no code with the native walk.
"""

import json
from typing import Any, NoReturn

import msgspec

DEPTH_MAX = 60


class _Digits(str):
    """A number as it is spelled."""

    __slots__ = ()


class _Members(list[tuple[str, Any]]):
    """The members of an object."""


def compact(text: bytes) -> bytes:
    """Return the compact form of a JSON value. Raises ValueError for what no payload may be."""
    value = json.loads(
        text.decode(), parse_int=_whole, parse_float=_float, parse_constant=_refuse, object_pairs_hook=_Members
    )
    return _write(value, 0).encode()


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


def _whole(digits: str) -> _Digits:
    if len(digits) > 30 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError("beyond 64 bits")
    return _Digits(digits)


def _float(digits: str) -> _Digits:
    if len(digits) > 1000 or abs(float(digits)) == float("inf"):
        raise ValueError("beyond float64, or too long")
    return _Digits(digits)


def _write(value: Any, depth: int) -> str:
    if isinstance(value, _Digits):
        return value
    if isinstance(value, _Members | list):
        if depth == DEPTH_MAX:
            raise ValueError("nested too deeply")
        if isinstance(value, _Members):
            if len({name for name, _ in value}) < len(value):
                raise ValueError("a repeated name")
            return "{" + ",".join(f"{_write(name, 0)}:{_write(of, depth + 1)}" for name, of in value) + "}"
        return "[" + ",".join(_write(item, depth + 1) for item in value) + "]"
    return msgspec.json.encode(value).decode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
