"""Replay of the store's log, reference version: makes each transition again from its entry, and compares the two.

What each entry holds, with the content that was written at its position, must be enough to get the state back bit by
bit: the governors of namespaces, the levels, the slots and the order in which they are given. A replay begins with the
entry `start`.
"""

from collections.abc import Callable, Iterable

from core.namespaces import Terms
from core.reference.entry import Entry
from core.reference.memory import Content
from core.reference.refusal import Refused
from core.reference.settings import Settings, Sizes
from core.reference.store import Change, Event, Restored, Store

Contents = Callable[[int], Content]  # position → the content that its entry wrote


class EntryDivergenceError(Exception):
    """An entry does not follow from those before; the message names the position, and the field with both values."""


def replay(entries: Iterable[Entry], contents: Contents, sizes: Sizes) -> Store:
    """Return the store after consecutive entries, of which the first is `start`. Raises EntryDivergenceError."""
    store = Store(sizes)
    for entry in entries:
        try:
            made = repeat(store, entry, contents)
        except Refused as refused:
            raise EntryDivergenceError(
                f"position {entry.position}: the reference model refuses it: {refused}"
            ) from refused
        for field, logged, expected in zip(Entry._fields, entry, made, strict=True):
            if logged != expected:
                raise EntryDivergenceError(
                    f"position {entry.position}: {field} is {logged}, the reference model has {expected}"
                )
    return store


def repeat(store: Store, entry: Entry, contents: Contents) -> Entry:
    """Make the transition of an entry again, from what the entry holds. Raises Refused if the store refuses it."""
    now_ns = entry.time_ns
    if entry.kind == "decision":
        return _repeat_decision(store, entry, contents)
    if entry.kind == "update":
        content = contents(entry.position)
        change = Change(content.payload, content.metadata, entry.pinned, expires_at=entry.expires_at)
        return store.update(now_ns, entry.memory_id, change)
    if entry.kind == "restore":
        return _repeat_restore(store, entry, contents)
    if entry.kind == "delete":
        return store.delete(now_ns, entry.memory_id)
    if entry.kind == "lost":
        return store.lost(now_ns, entry.victims[0].slot)
    if entry.kind == "expire":
        return store.expire(now_ns)
    if entry.kind == "start":
        return store.start(now_ns, _settings(entry))
    if entry.kind == "configure":
        return store.configure(now_ns, _settings(entry))
    if entry.kind == "reset":
        return store.reset(now_ns, entry.namespace)
    if entry.kind == "namespace":
        return _repeat_namespace(store, entry)
    return {"tick": store.tick, "stop": store.stop, "resume": store.resume}[entry.kind](now_ns)


def _settings(entry: Entry) -> Settings:
    assert entry.settings is not None
    return entry.settings


def _repeat_decision(store: Store, entry: Entry, contents: Contents) -> Entry:
    """Decide again. Of an event that was not stored, the content is only known by its checksum, and changes nothing."""
    assert entry.namespace is not None
    content = contents(entry.position) if entry.stored else Content(b"")
    event = Event(
        entry.namespace,
        content,
        entry.moral,
        moral_defaulted=entry.moral_defaulted,
        scorer=entry.scorer,
        own_id=entry.own_id,
        pinned=entry.pinned,
        expires_at=entry.expires_at if entry.stored else None,
        created_at=entry.created_at,
        origin=entry.origin,
    )
    made = store.decide_known(entry.time_ns, event, entry.duplicate)
    return made if entry.stored else made._replace(content=entry.content)


def _repeat_restore(store: Store, entry: Entry, contents: Contents) -> Entry:
    assert entry.namespace is not None
    restored = Restored(
        entry.namespace,
        contents(entry.position),
        entry.moral,
        entry.created_at,
        entry.updated_at,
        entry.moral_defaulted,
        entry.scorer,
        entry.phase,
        entry.memory_id,
        entry.own_id,
        entry.pinned,
        entry.expires_at,
        replace_oldest=True,  # whether it was allowed shows in the victim
    )
    return store.restore(entry.time_ns, restored)


def _repeat_namespace(store: Store, entry: Entry) -> Entry:
    assert entry.namespace is not None
    name, terms = entry.name or "", entry.terms or Terms()
    if entry.step == "create":
        return store.create_namespace(entry.time_ns, name, terms)
    if entry.step == "change":
        return store.change_namespace(entry.time_ns, entry.namespace, terms)
    if entry.step == "close":
        return store.close_namespace(entry.time_ns, entry.namespace)
    return store.free_namespace(entry.time_ns, entry.namespace)
