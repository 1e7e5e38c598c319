"""Second block: a block that follows the history of another one, and the comparison of the two.

Two blocks of one history are equal in every region but OWN_REGIONS, except for bytes that no reader looks at: the
buffer of the state before, the slot and the log entry that come next, what is left in a free slot. A transition that
was refused, or whose writer died, leaves something there. `same_bytes` compares all bytes, `same_history` those that
count.
"""

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shm.block import Block, BlockIdentity
from shm.errors import Gone
from shm.layout import KINDS, MEMBERS_ABREAST, MEMBERS_MAX, NO_ROW, OWN_REGIONS, REGIONS
from shm.numpy_views import view
from shm.records import EntryPointer, decided_of
from shm.store import Content, Store
from testing.block_fixture import NORM_MAX, WAIT_MS, Formed

HISTORY: Final = tuple(name for name in REGIONS if name not in OWN_REGIONS)


class SecondBlock:
    """A block with the layout and the history of a formed one, and no state yet."""

    def __init__(self, formed: Formed) -> None:
        first = formed.block
        identity = BlockIdentity(os.urandom(16), bytes.fromhex(first.log_id), first.secret)
        self.log_id = first.log_id
        self.block = Block.create(first.layout, identity, formed.started_ns + 5, 7)
        self.block.bind(os.getpid(), NO_ROW, WAIT_MS, NORM_MAX)
        self.store = Store(self.block)

    def apply(self, entry: EntryPointer, content: Content | None) -> bool:
        """Apply an entry of the first block."""
        return self.store.apply(self.log_id, entry, content)

    def follow(self, formed: Formed) -> None:
        """Apply everything that has happened in the first block since. No process may write to it meanwhile."""
        for position in range(self.block.position + 1, formed.block.position + 1):
            entry = formed.entry(position)
            assert self.apply(entry, content_of(formed.store, entry))

    def close(self) -> None:
        """Close the block. Its mapping ends with the last object that refers to it."""
        self.block.close()
        del self.block, self.store


def content_of(store: Store, entry: EntryPointer) -> Content | None:
    """Return what an entry wrote, None if it wrote nothing or that is gone."""
    if KINDS[entry.kind] not in ("decision", "update") or not decided_of(entry).slot:
        return None
    try:
        return store.written(entry)
    except Gone:
        return None


def same_bytes(first: Block, second: Block) -> None:
    """Assert that two blocks are equal in every byte of every region of the history."""
    for name in HISTORY:
        offset, size = _place(first, name)
        assert first.memory[offset : offset + size] == second.memory[offset : offset + size], name


def same_history(first: Block, second: Block) -> None:
    """Assert that two blocks are equal in every byte that a reader looks at."""
    left, right = significant(first), significant(second)
    for name in left:
        assert left[name] == right[name], name


def _members(block: Block, has_metadata: NDArray[np.bool_]) -> tuple[bytes, bytes]:
    """Return the kinds of the members of memories that have metadata, and their words."""
    kinds = view(block, "kinds")["members"][has_metadata]
    groups = view(block, "members").reshape(-1, block.layout.slots, MEMBERS_ABREAST)
    words = groups.transpose(1, 0, 2).reshape(block.layout.slots, MEMBERS_MAX)[has_metadata]
    words[kinds == 0] = np.zeros((), words.dtype)
    return kinds.tobytes(), words.tobytes()


def significant(block: Block) -> dict[str, Any]:
    """Return what counts of every region of the history, at the committed position.

    The order of a chain of the index depends on when the index was made, so of the index the members count.
    """
    layout, position = block.layout, block.position
    state = view(block, "states")[position & 1]
    slots, codes, links = (view(block, name).copy() for name in ("slots", "codes", "links"))
    live = (slots["mark"] % 2**48 & 1) == 0
    slots[~live] = _marks_only(slots[~live])
    codes["excluded"] = 0
    codes[~live] = _marks_only(codes[~live])
    links["next"] = 0
    payloads = view(block, "payloads").copy()
    sizes = sum(slots[name].astype(np.int64) for name in ("payload_size", "metadata_size", "own_id_size"))
    payloads[np.arange(payloads.shape[1]) >= np.asarray(sizes)[:, None]] = 0
    log = view(block, "log")
    receipts, newest = view(block, "receipts"), int(state["receipts"])
    kept = range(max(1, newest - layout.receipt_capacity + 1), newest + 1)
    heads = view(block, "chains").copy()
    oldest = newest - layout.receipt_capacity
    heads[(heads & np.uint64(2**48 - 1)) <= max(oldest, 0)] = 0
    counted = range(max(1, position - layout.log_capacity + 2), position + 1)
    return {
        "position": position,
        "state": state.tobytes(),
        "namespaces": [_newest(row, position) for row in view(block, "namespaces")],
        "levels": view(block, "levels")[int(state["levels"])].tobytes(),
        "slots": slots.tobytes(),
        "codes": codes.tobytes(),
        "shadow": view(block, "shadow")[live].tobytes(),
        "vectors": view(block, "vectors")[live].tobytes(),
        "payloads": payloads.tobytes(),
        "members": _members(block, live & (slots["metadata_size"] > 0)),
        "links": links.tobytes(),
        "lists": view(block, "lists").tobytes(),
        "index": index_of(block),
        "log": [log[at % layout.log_capacity].tobytes() for at in counted],
        "receipts": [receipts[ordinal % (layout.receipt_capacity + 1)].tobytes() for ordinal in kept],
        "chains": heads.tobytes(),
    }


def index_of(block: Block) -> list[frozenset[int]]:
    """Return the slots in each chain of the index."""
    links = view(block, "links")
    chains = []
    for head in view(block, "index").tolist():
        members, reference = set(), head
        while reference:
            members.add((reference & 0xFFFFF) - 1)
            reference = int(links["next"][(reference & 0xFFFFF) - 1])
        chains.append(frozenset(members))
    return chains


def _newest(row: Any, position: int) -> list[bytes]:
    """Return the copies of a namespace that count: the newest at or before the position."""
    found = []
    for name in ("cells", "terms"):
        copies = [copy for copy in row[name] if copy["position"] <= position]
        found.append(max(copies, key=lambda copy: int(copy["position"])).tobytes())
    return found


def _marks_only(records: Any) -> Any:
    marks = np.zeros_like(records)
    marks["mark"] = records["mark"]
    return marks


def _place(block: Block, name: str) -> tuple[int, int]:
    region = block.layout.regions()[REGIONS.index(name)]
    return region.offset, region.size
