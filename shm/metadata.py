"""Metadata of a memory: the bytes that its slot keeps, and the words by which the block decides filters.

Owns: the encoding. A member is its kind (1 byte), the size of its name (2 bytes), the size of its value (4 bytes), the
name and the value. Names and strings are UTF-8, an integer has 8 bytes, a float is a double, a boolean is one byte. All
numbers are little-endian. `shm/native/filter.c` walks the same bytes.
Invariants: what was encoded is decoded to equal values of equal types: 5 stays an int, and -0.0 stays -0.0. The words
are those of core/reference/filter_words.py: 5 and 5.0 have the same, 0.0 and -0.0 too. A string that UTF-8 cannot
encode (a lone surrogate) is refused.
"""

import math
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from shm._native import ffi
from shm.layout import MEMBERS_MAX, VALUES
from shm.records import MembersPointer, Null

Scalar = bool | int | float | str
Metadata = Mapping[str, Scalar]
Hash = Callable[[bytes], int]  # keyed with the secret of the block; 64 bits

INTEGER_MAX: Final = 2**53  # every integer up to this one is a double
NAME_SIZE_MAX: Final = 2**16 - 1  # bytes
NUMBER: Final = VALUES.index("number")
BOOLEAN: Final = VALUES.index("boolean")
STRING: Final = VALUES.index("string")

_INTEGER: Final = NUMBER | 4  # in the bytes only: the two low bits are the kind of the word
_KIND_MASK: Final = 3
_HEAD: Final = struct.Struct("<BHI")
_INT64: Final = struct.Struct("<q")
_DOUBLE: Final = struct.Struct("<d")
_WORDS: Final = struct.Struct("<QQ")


class InvalidMetadata(ValueError):
    """Metadata that cannot be stored exactly. The message names the member, what was wrong and what was expected."""


class EncodedMetadata(NamedTuple):
    """Metadata as the block keeps it: the encoded members, and their kinds and words, NULL without members."""

    encoded: bytes
    members: MembersPointer | Null


NO_METADATA: Final = EncodedMetadata(b"", ffi.NULL)


def hash_of(secret: bytes) -> Hash:
    """Return the hash of a block: 64 bits of BLAKE2b, keyed so that nobody can choose strings with equal hashes."""

    def hashed(octets: bytes) -> int:
        return int.from_bytes(blake2b(octets, digest_size=8, key=secret, person=b"metadata").digest(), "little")

    return hashed


class MetadataEncoder:
    """Encodes metadata for one block. Any thread may use it. The hashes of 1,024 names are cached."""

    def __init__(self, hashed: Hash) -> None:
        self.hashed = hashed
        self._name_of = lru_cache(1024)(self._named)

    def _named(self, name: str) -> tuple[bytes, int]:
        octets = name.encode()
        return octets, self.hashed(octets)

    def encode(self, metadata: Metadata) -> EncodedMetadata:
        """Return the bytes and the words of metadata. Raises InvalidMetadata."""
        if not metadata:
            return NO_METADATA
        if len(metadata) > MEMBERS_MAX:
            raise InvalidMetadata(f"metadata has {len(metadata)} members, at most {MEMBERS_MAX} are allowed")
        octets: list[bytes] = []
        words: list[bytes] = []
        kinds = bytearray()
        names: set[int] = set()
        for name, value in metadata.items():
            try:
                name_octets, name_hash = self._name_of(name)
                kind, encoded, word = self._encode(name, value)
            except UnicodeEncodeError:
                shown = name.encode(errors="backslashreplace").decode()
                raise InvalidMetadata(f"metadata.{shown} has a lone surrogate, which UTF-8 cannot encode") from None
            if len(name_octets) > NAME_SIZE_MAX:
                raise InvalidMetadata(
                    f"metadata has a name of {len(name_octets)} bytes, at most {NAME_SIZE_MAX} are allowed"
                )
            if name_hash in names:  # once in 2^64 pairs of names
                raise InvalidMetadata(f"metadata.{name} has the hash of another member's name, choose another name")
            names.add(name_hash)
            octets += (_HEAD.pack(kind, len(name_octets), len(encoded)), name_octets, encoded)
            kinds.append(kind_byte(kind & _KIND_MASK, name_hash))
            words.append(_WORDS.pack(name_hash, word))
        members = ffi.new("struct mlsdm_members *")
        record = kinds.ljust(MEMBERS_MAX, b"\0") + b"".join(words)
        ffi.memmove(members, record, len(record))
        return EncodedMetadata(b"".join(octets), members)

    def _encode(self, name: str, value: Scalar) -> tuple[int, bytes, int]:
        """Return the kind of a value, its bytes and its word."""
        if isinstance(value, str):
            encoded = value.encode()
            return STRING, encoded, self.hashed(encoded)
        if isinstance(value, bool):
            return BOOLEAN, b"\1" if value else b"\0", int(value)
        if isinstance(value, int):
            if abs(value) > INTEGER_MAX:
                raise InvalidMetadata(f"metadata.{name} is {value}, an integer must be within ±2^53")
            return _INTEGER, _INT64.pack(value), bits_of(float(value))
        if not isinstance(value, float):
            raise InvalidMetadata(f"metadata.{name} is neither a string nor a number nor a boolean")
        if not math.isfinite(value):
            raise InvalidMetadata(f"metadata.{name} is {value}, a number must be finite")
        return NUMBER, _DOUBLE.pack(value), bits_of(value)


def kind_byte(kind: int, name_hash: int) -> int:
    """Return the byte by which a member is found: the kind of its value, and six bits of the hash of its name."""
    return kind | name_hash >> 58 << 2


def bits_of(number: float) -> int:
    """Return the word of a number: the bits of the double, with 0.0 for -0.0."""
    return int.from_bytes(_DOUBLE.pack(number + 0.0), "little")


def decode(octets: bytes) -> dict[str, Scalar]:
    """Return the metadata that was encoded. Raises ValueError if the bytes are no encoded metadata."""
    metadata: dict[str, Scalar] = {}
    at = 0
    try:
        while at < len(octets):
            kind, name_size, value_size = _HEAD.unpack_from(octets, at)
            value_at = at + _HEAD.size + name_size
            name, value = octets[at + _HEAD.size : value_at], octets[value_at : value_at + value_size]
            at = value_at + value_size
            metadata[name.decode()] = _decoded(kind, value)
    except struct.error as error:
        raise ValueError(f"metadata ends within a member: {error}") from error
    if at != len(octets):
        raise ValueError(f"metadata has {len(octets)} bytes, its members have {at}")
    return metadata


def _decoded(kind: int, value: bytes) -> Scalar:
    if kind == STRING:
        return value.decode()
    if kind == BOOLEAN:
        return value == b"\1"
    if kind == _INTEGER:
        number: int = _INT64.unpack(value)[0]
        return number
    if kind == NUMBER:
        double: float = _DOUBLE.unpack(value)[0]
        return double
    raise ValueError(f"kind of a member is {kind}, expected {NUMBER}, {_INTEGER}, {BOOLEAN} or {STRING}")
