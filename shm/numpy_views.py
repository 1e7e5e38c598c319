"""NumPy views of the block: arrays that read the shared bytes in place. The dtypes are made from the layout table.

Invariants: a view is read-only and cannot be made writable. It keeps the mapping alive, also after `Block.close`; the
kernel frees the memory with the last process that maps it. A view is not a copy and checks nothing: bytes change while
it is read. Use one where no process writes, or copy, and compare `Block.position` before and after; `Store` has reads
that are consistent and verified.
Rejected: an import of NumPy in shm/block.py. It costs a worker 9 MB, and no process of the server needs it.
"""

import mmap
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shm.layout import DTYPES, MEMBERS_ABREAST, RECORDS, REGIONS, Layout, offsets, size_of

Array = NDArray[Any]
Vectors = NDArray[np.float32]
Codes = NDArray[np.int8]
Records = NDArray[np.void]  # a structured array: `records["field"]`, `records[index]["record"]["field"]`


class Mapped(Protocol):
    """A mapped block: `shm.block.Block`, which imports this file and not the reverse."""

    memory: mmap.mmap
    layout: Layout


# Region → the record that it consists of.
_RECORDS: Final = {
    "header": "header", "lock": "lock", "commit": "commit", "states": "state", "vitals": "vitals",
    "command": "command", "rows": "row", "namespaces": "namespace", "slots": "slot", "codes": "code",
    "kinds": "kinds", "links": "link", "lists": "list", "log": "entry", "receipts": "receipt", "keys": "bucket",
    "peers": "bucket",
}  # fmt: skip
_BY_NAME: Final = {record.name: record for record in RECORDS}


@cache
def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of a scalar of the layout table (little-endian) or of a record, with the table's offsets."""
    if name in DTYPES:
        return np.dtype(f"<{name}")
    fields = list(offsets(_BY_NAME[name]))
    return np.dtype(
        {
            "names": [field.name for field, _ in fields],
            "formats": [(dtype_of(field.dtype), (field.count,) if field.count > 1 else ()) for field, _ in fields],
            "offsets": [offset for _, offset in fields],
            "itemsize": size_of(name),
        }
    )


def view(block: Mapped, region: str) -> Array:
    """Return a region as a read-only array. Its first axis is the element: slot, position modulo log length, …

    Regions of records are structured. `vectors` is float32[slots, D], `shadow` int8[slots, D], `levels`
    float32[2, 3, D], `payloads` uint8[slots, bytes], `chains` uint64[chains], `index` uint32[chains]. The padding
    behind D is left out.
    Raises ValueError for a name that is not in REGIONS.
    """
    if region not in REGIONS:
        raise ValueError(f"region is {region!r}, expected one of {', '.join(REGIONS)}")
    layout = block.layout
    place = layout.regions()[REGIONS.index(region)]
    # Of one element: dtype, shape and strides in bytes.
    dtype, shape, strides = {
        "vectors": (dtype_of("f4"), (layout.dimension,), (4,)),
        "shadow": (np.dtype("i1"), (layout.dimension,), (1,)),
        "levels": (dtype_of("f4"), (3, layout.dimension), (layout.vector_stride, 4)),
        "payloads": (dtype_of("u1"), (place.stride,), (1,)),
        "members": (dtype_of("member"), (MEMBERS_ABREAST,), (size_of("member"),)),
        "index": (dtype_of("u4"), (), ()),
        "chains": (dtype_of("u8"), (), ()),
        **{name: (dtype_of("u1"), (place.stride,), (1,)) for name in ("archivist", "identity", "modules", "outbox")},
    }.get(region) or (dtype_of(_RECORDS[region]), (), ())
    # Read-only by its base and not by a flag, because NumPy lets the owner of a writable buffer set the flag again.
    # `frombuffer` keeps the export of the mapping; the constructor alone would drop it, and `mmap.close` would unmap.
    whole = np.frombuffer(memoryview(block.memory).toreadonly(), np.uint8)
    return np.ndarray((place.count, *shape), dtype, whole, place.offset, (place.stride, *strides))
