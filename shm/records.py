"""Native records: the structures of the layout table and of `native/api.h`, as types and as views.

`X` lies in another structure or in an array; `XPointer` owns its memory or points into the block, and only that is an
argument of a native function. The type checker reads both from `_native.pyi`, which is generated. At run time each of
them is `ffi.CData`.
"""

import struct
from typing import TYPE_CHECKING, Final

from shm._native import ffi
from shm.layout import DETAILS, KINDS, place_in

if TYPE_CHECKING:
    from shm._native import (
        Buffer,
        CData,
        Cell,
        ChangedPointer,
        CodePointer,
        CommandPointer,
        CommitPointer,
        DecidedPointer,
        Entry,
        EntryPointer,
        EventPointer,
        FilterPointer,
        FloatArray,
        HeaderPointer,
        IdempotencyHashPointer,
        KindsPointer,
        LinkPointer,
        ListPointer,
        LockPointer,
        MapPointer,
        MembersPointer,
        NamespacePointer,
        Null,
        RegimesPointer,
        RowPointer,
        Scalars,
        Settings,
        SettingsPointer,
        SlotPointer,
        State,
        StatePointer,
        Terms,
        TermsPointer,
        Vitals,
        VitalsPointer,
    )  # fmt: skip
else:
    CData = CodePointer = CommandPointer = CommitPointer = RegimesPointer = DecidedPointer = ffi.CData
    Entry = EntryPointer = ffi.CData
    HeaderPointer = IdempotencyHashPointer = LinkPointer = ListPointer = LockPointer = MapPointer = Null = ffi.CData
    EventPointer = FilterPointer = FloatArray = KindsPointer = MembersPointer = NamespacePointer = ffi.CData
    Cell = ChangedPointer = Terms = TermsPointer = ffi.CData
    RowPointer = Scalars = ffi.CData
    Settings = SettingsPointer = SlotPointer = State = StatePointer = Vitals = VitalsPointer = ffi.CData
    Buffer = object

__all__ = (
    "NO_IDEMPOTENCY_HASH", "Buffer", "CData", "Cell", "ChangedPointer", "CodePointer", "CommandPointer",
    "CommitPointer", "DecidedPointer", "Entry", "EntryPointer", "EventPointer", "FilterPointer", "FloatArray",
    "HeaderPointer", "IdempotencyHash", "KindsPointer", "LinkPointer", "ListPointer", "LockPointer", "MapPointer",
    "MembersPointer", "NamespacePointer", "Null", "RowPointer", "Scalars", "Settings", "SettingsPointer",
    "SlotPointer", "State", "StatePointer", "Terms", "TermsPointer", "Vitals", "VitalsPointer", "bytes_of",
    "changed_of", "decided_of", "difference_of", "initial_settings_of", "new_idempotency_hash", "new_settings",
    "new_terms", "new_vitals",
    "regimes_of", "replaced_settings_of",
)  # fmt: skip

IdempotencyHash = IdempotencyHashPointer | Null
NO_IDEMPOTENCY_HASH: Final = ffi.NULL
_FORMATS: Final = {"u1": "<B", "u2": "<H", "u4": "<I", "u8": "<Q", "i8": "<q", "f4": "<f", "f8": "<d"}


def new_idempotency_hash(words: tuple[int, int], body: int) -> IdempotencyHash:
    """Make the record that identifies an event with an idempotency key: 128 and 64 bits of keyed hashes."""
    return ffi.new("struct mlsdm_idempotency_hash *", {"words": words, "body": body})


def new_settings(**values: float | list[float]) -> SettingsPointer:
    """Make a `settings` record; every field must be given."""
    settings = ffi.new("struct mlsdm_settings *")
    assert set(values) == {name for name, _ in ffi.typeof("struct mlsdm_settings").fields}
    for name, value in values.items():
        setattr(settings, name, value)
    return settings


def new_terms(name: bytes = b"") -> TermsPointer:
    """Make a `terms` record with a name of at most 64 bytes and everything else zero."""
    return ffi.new("struct mlsdm_terms *", {"name": name})


def changed_of(entry: Entry) -> ChangedPointer:
    """Return the detail of a log entry of kind namespace: a view, valid while the entry is."""
    return ffi.cast("struct mlsdm_changed *", entry.detail)


def new_vitals() -> VitalsPointer:
    """Make an empty `vitals` record."""
    return ffi.new("struct mlsdm_vitals *")


def bytes_of(record: CData) -> bytes:
    """Return a copy of the bytes of a record."""
    return ffi.buffer(record)[:]


def decided_of(entry: Entry) -> DecidedPointer:
    """Return the detail of a log entry of kind decision, delete or lost: a view, valid while the entry is."""
    return ffi.cast("struct mlsdm_decided *", entry.detail)


def difference_of(entry: EntryPointer, made: EntryPointer, offset: int) -> str:
    """Return what differs at a byte of two log entries: the name of the field and both values."""
    kind = KINDS[entry.kind] if entry.kind < len(KINDS) else ""
    name, dtype, start = place_in("entry", offset, DETAILS.get(kind, ""))
    found, expected = (struct.unpack_from(_FORMATS[dtype], bytes_of(one), start)[0] for one in (entry, made))
    return f"{name} is {found}, this block has {expected}"


def regimes_of(entry: Entry) -> RegimesPointer:
    """Return the detail of a log entry of kind start or configure: a view, valid while the entry is."""
    return ffi.cast("struct mlsdm_regimes *", entry.detail)


def initial_settings_of(entry: Entry) -> SettingsPointer:
    """Return the settings with which a log entry of kind start began: a view, valid while the entry is."""
    return ffi.addressof(regimes_of(entry), "settings")


def replaced_settings_of(entry: Entry) -> SettingsPointer:
    """Return the settings that a log entry of kind configure replaced: a view, valid while the entry is."""
    return ffi.addressof(regimes_of(entry), "replaced")
