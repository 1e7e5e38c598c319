"""The block: creates, opens and finds the shared memory, and checks that it has the layout that this code expects.

Owns: one memfd of fixed size, sealed against shrinking and growing, allocated before the first request. It has no name
in a file system, so it cannot leak: the kernel frees it with the last process that holds it. Workers inherit the
mapping by fork, a new arbiter (USR2) inherits the descriptor by exec, an observer maps /proc/PID/fd/N read-only.
Invariants: the creator writes the header once, before another process can see the block; every process that opens the
block checks the header and keeps a copy, from which the controller repairs a flipped bit.
Rejected: `multiprocessing.shared_memory` (see layout); a file in /dev/shm (64 MB by default in containers, and it leaks
when all processes are killed).
"""

import ctypes
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, overload

from shm._native import ffi, lib
from shm.errors import Corrupt
from shm.layout import LAYOUT_VERSION, MAGIC, NO_ROW, PAGE, REGIONS, Layout, seal
from shm.process import Identity
from shm.records import (
    CData,
    CodePointer,
    CommandPointer,
    CommitPointer,
    EntryPointer,
    HeaderPointer,
    KindsPointer,
    LinkPointer,
    ListPointer,
    LockPointer,
    MapPointer,
    NamespacePointer,
    RowPointer,
    SlotPointer,
    StatePointer,
    VitalsPointer,
)  # fmt: skip

if TYPE_CHECKING:
    from shm.numpy_views import Array, Codes, Records, Vectors

NAME: Final = "mlsdm"
_HEADER_SIZE: Final = ffi.sizeof("struct mlsdm_header")
_MADV_POPULATE_READ: Final = 22
_DAMAGED: Final = 2**64 - 1  # the native core's value of a sealed word whose check is wrong
_RECORDS: Final = {
    "states": "state", "rows": "row", "namespaces": "namespace", "slots": "slot", "codes": "code", "links": "link",
    "lists": "list", "log": "entry",
}  # fmt: skip


class BlockError(Exception):
    """The memory is not a block that this code can use. The message gives the reason in one sentence."""


class BlockIdentity(NamedTuple):
    """The random words of a new block, 16 bytes each."""

    boot_id: bytes
    log_id: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Self:
        """Draw the identity of a block that begins a history of its own."""
        return cls(secrets.token_bytes(16), secrets.token_bytes(16), secrets.token_bytes(16))


@dataclass
class Block:
    """A mapped block.

    `fd` is its descriptor, `memory` the mapping, `header` a copy of the header as the creator wrote it. `map` is the
    native core's view of the block (`struct mlsdm_map`), private to this process: `bind` completes it after each fork.
    `_log_offset_ns` is what log time is ahead of CLOCK_BOOTTIME, fixed at the creation.
    """

    fd: int
    layout: Layout
    memory: mmap.mmap
    header: bytes
    map: MapPointer
    writable: bool
    _log_offset_ns: int = 0

    @classmethod
    def create(cls, layout: Layout, identity: BlockIdentity, wall_ns: int, boot_ns: int) -> Self:
        """Create a block: allocate and seal the memory, write the header, initialise the mutex.

        `wall_ns` is CLOCK_REALTIME and `boot_ns` CLOCK_BOOTTIME in ns.
        The store has no state until a controller has begun its first epoch.
        Raises BlockError if the machine does not have that much memory, or no robust mutexes.
        """
        fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Now, because a write to a page that cannot be allocated is a SIGBUS.
            os.posix_fallocate(fd, 0, layout.block_size)
        except OSError as error:
            os.close(fd)
            raise BlockError(
                f"cannot allocate {layout.block_size / 1e6:.0f} MB of shared memory ({error.strerror}): "
                "lower `capacity`, `dimension` or `log_capacity`, or give the machine more memory"
            ) from error
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        block = cls._mapped(fd, layout, writable=True)
        header = block.region("header")
        header.magic = MAGIC
        header.layout_version = LAYOUT_VERSION
        header.dimension = layout.dimension
        header.capacity = layout.capacity
        header.payload_size_max = layout.payload_size_max
        header.log_capacity = layout.log_capacity
        header.rows = layout.rows
        header.receipt_capacity = layout.receipt_capacity
        header.slack = layout.slack
        header.namespaces = layout.namespaces
        header.pins_max = layout.pins_max
        header.archivist_size = layout.archivist_size
        header.identity_size = layout.identity_size
        header.modules_size = layout.modules_size
        header.outbox_size = layout.outbox_size
        header.block_size = layout.block_size
        header.created_wall_ns = wall_ns
        header.created_boot_ns = boot_ns
        ffi.memmove(header.boot_id, identity.boot_id, 16)
        ffi.memmove(header.log_id, identity.log_id, 16)
        ffi.memmove(header.secret, identity.secret, 16)
        ffi.memmove(header.fingerprint, layout.fingerprint(), 32)
        header.checksum = lib.mlsdm_header_checksum(header)
        refused = lib.mlsdm_lock_create(block.map)
        if refused:
            raise BlockError(f"cannot create a robust mutex: {os.strerror(refused)}")
        block._with_header(header)
        lib.mlsdm_slots_create(block.map)
        return block

    @classmethod
    def open(cls, fd: int, writable: bool) -> Self:
        """Map a block that another process created; `fd` stays open and becomes the block's.

        Raises BlockError if the memory is not a block, if its header is damaged, or if other code laid it out.
        """
        try:
            with mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
                header = ffi.new("struct mlsdm_header *")
                ffi.memmove(header, page[:_HEADER_SIZE], _HEADER_SIZE)
        except (OSError, ValueError) as error:
            raise BlockError(f"descriptor {fd} is not a block: {error}") from error
        if header.magic != MAGIC:
            raise BlockError(f"descriptor {fd} is not a block: it starts with {header.magic:#x}, expected {MAGIC:#x}")
        other_code = BlockError(
            f"the block was laid out by other code (version {header.layout_version}, this is {LAYOUT_VERSION}): "
            "stop the old server and start the new one; what it remembers ends with it"
        )
        if header.layout_version != LAYOUT_VERSION:  # first: the checksum of another version may lie elsewhere
            raise other_code
        if header.checksum != lib.mlsdm_header_checksum(header) or any(header.reserved):
            raise BlockError("the header of the block is damaged: its checksum does not match")
        layout = Layout(*(getattr(header, name) for name in Layout._fields))
        if bytes(header.fingerprint) != layout.fingerprint():
            raise other_code
        if os.fstat(fd).st_size != header.block_size or header.block_size != layout.block_size:
            raise BlockError(f"the block has {os.fstat(fd).st_size} bytes, expected {layout.block_size}")
        return cls._mapped(fd, layout, writable)._with_header(header)

    @classmethod
    def _mapped(cls, fd: int, layout: Layout, writable: bool) -> Self:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        populate = mmap.MAP_POPULATE if writable else 0
        memory = mmap.mmap(fd, layout.block_size, mmap.MAP_SHARED | populate, protection)
        view = ffi.new("struct mlsdm_map *")
        view.base = ffi.cast("uint8_t *", ffi.from_buffer(memory))
        for number, region in enumerate(layout.regions()):
            assert region.name == REGIONS[number]
            view.offset[number] = region.offset
        view.dimension = layout.dimension
        view.padded = layout.vector_stride // 4
        view.shadow_stride = layout.shadow_stride
        view.capacity = layout.capacity
        view.slots = layout.slots
        view.index_mask = layout.index_size - 1
        view.payload_stride = layout.regions()[REGIONS.index("payloads")].stride
        view.log_capacity = layout.log_capacity
        view.rows = layout.rows
        view.namespaces = layout.namespaces
        view.pins_max = layout.pins_max
        view.receipt_capacity = layout.receipt_capacity
        for number, name in enumerate(("keys", "peers")):
            view.buckets[number] = layout.regions()[REGIONS.index(name)].count
        view.row = NO_ROW
        view.pid = os.getpid()
        return cls(fd, layout, memory, b"", view, writable)

    def _with_header(self, header: HeaderPointer) -> Self:
        """Keep a copy of the header, so that damage of the shared one cannot reach this process and its children."""
        self.header = bytes(ffi.buffer(header))
        self.map.index_key = int.from_bytes(self.secret[:8], "little")
        self._log_offset_ns = self.map.log_offset_ns = header.created_wall_ns - header.created_boot_ns
        return self

    @property
    def boot_id(self) -> str:
        """The identity of this memory: 32 hexadecimal digits."""
        return bytes(self._header.boot_id).hex()

    @property
    def log_id(self) -> str:
        """The identity of the history, in which positions and ids have their meaning: 32 hexadecimal digits."""
        return bytes(self._header.log_id).hex()

    @property
    def secret(self) -> bytes:
        """The 16 bytes that key the hashes of clients' names and of idempotency keys. They never leave the server."""
        return bytes(self._header.secret)

    @property
    def created_ns(self) -> int:
        """Log time of the creation, in ns UTC."""
        return self._header.created_wall_ns

    def log_time(self, boot_ns: int) -> int:
        """Return log time, in ns UTC, at a reading of CLOCK_BOOTTIME in ns.

        It is the wall clock of the creation, advanced by the boot clock: a wall clock that is set meanwhile does not
        move it. Everything that the block stores or tells is log time but heartbeats and token buckets.
        """
        return boot_ns + self._log_offset_ns

    @property
    def _header(self) -> HeaderPointer:
        return ffi.from_buffer("struct mlsdm_header *", self.header)

    @property
    def position(self) -> int:
        """The committed position, 0 before the first state. Raises Corrupt if the commit word is damaged."""
        position = lib.mlsdm_position(self.map)
        if position == _DAMAGED:
            raise Corrupt("the commit word is damaged: its seal is broken")
        return position

    @property
    def epoch(self) -> int:
        """The number of the newest controller, 0 before the first. Raises Corrupt if both words of it are damaged."""
        epoch = lib.mlsdm_epoch(self.map)
        if epoch == _DAMAGED:
            raise Corrupt("the epoch is damaged: the seals of both of its words are broken")
        return epoch

    @property
    def is_epoch_damaged(self) -> bool:
        """Whether the word of the epoch is damaged: then no controller may write, until the next one has begun."""
        word = int(self.region("lock").epoch)
        return word != seal(word % 2**48)

    def repair_header(self) -> bool:
        """Write the header again from the copy. Returns False if it was not damaged."""
        if self.memory[:_HEADER_SIZE] == self.header:
            return False
        self.memory[:_HEADER_SIZE] = self.header
        return True

    def bind(self, pid: int, row: int, wait_ms: int, norm_max: float) -> None:
        """Write the values of this process into `map`. Call it after every fork.

        `row` is the worker's row or NO_ROW, `wait_ms` the longest wait for the lock in ms (0: never wait), `norm_max`
        the largest norm of a vector that is admitted.
        """
        self.map.pid = pid
        self.map.row = row
        self.map.wait_ms = wait_ms
        self.map.norm_max = norm_max

    def populate(self) -> None:
        """Fill the page table of this process now instead of during requests. Without effect before Linux 5.14."""
        try:
            self.memory.madvise(_MADV_POPULATE_READ)
        except OSError:
            return

    @overload
    def region(self, name: Literal["header"], index: int = 0) -> HeaderPointer: ...
    @overload
    def region(self, name: Literal["lock"], index: int = 0) -> LockPointer: ...
    @overload
    def region(self, name: Literal["commit"], index: int = 0) -> CommitPointer: ...
    @overload
    def region(self, name: Literal["states"], index: int = 0) -> StatePointer: ...
    @overload
    def region(self, name: Literal["vitals"], index: int = 0) -> VitalsPointer: ...
    @overload
    def region(self, name: Literal["command"], index: int = 0) -> CommandPointer: ...
    @overload
    def region(self, name: Literal["rows"], index: int = 0) -> RowPointer: ...
    @overload
    def region(self, name: Literal["namespaces"], index: int = 0) -> NamespacePointer: ...
    @overload
    def region(self, name: Literal["kinds"], index: int = 0) -> KindsPointer: ...
    @overload
    def region(self, name: Literal["slots"], index: int = 0) -> SlotPointer: ...
    @overload
    def region(self, name: Literal["codes"], index: int = 0) -> CodePointer: ...
    @overload
    def region(self, name: Literal["links"], index: int = 0) -> LinkPointer: ...
    @overload
    def region(self, name: Literal["lists"], index: int = 0) -> ListPointer: ...
    @overload
    def region(self, name: Literal["log"], index: int = 0) -> EntryPointer: ...
    @overload
    def region(self, name: str, index: int = 0) -> CData: ...
    def region(self, name: str, index: int = 0) -> CData:
        """Return element `index` of a region that holds records: a view, valid as long as the block is mapped."""
        region = self.layout.regions()[REGIONS.index(name)]
        assert 0 <= index < region.count
        pointer = f"struct mlsdm_{_RECORDS.get(name, name)} *"
        return ffi.cast(pointer, self.map.base + region.offset + index * region.stride)

    @property
    def vectors(self) -> "Vectors":
        """All vectors as float32[slots, D]: a read-only view, see shm/numpy_views.py."""
        return _view(self, "vectors")

    @property
    def shadow(self) -> "Codes":
        """The int8 codes of all vectors as int8[slots, D]: a read-only view."""
        return _view(self, "shadow")

    @property
    def slots(self) -> "Records":
        """The slot records as a structured array[slots]: a read-only view."""
        return _view(self, "slots")

    @property
    def entries(self) -> "Records":
        """The log as a structured array[log_capacity]: a read-only view. Index = position mod log_capacity."""
        return _view(self, "log")

    def row_owner(self, row: int) -> Identity:
        """Return the process that owns a worker row, NOBODY if it is free. A killed worker's row still names it."""
        record = self.region("rows", row)
        return Identity(record.pid, record.started)

    def live_workers(self) -> Iterator[tuple[int, Identity]]:
        """Yield (row, owner) of each worker row whose owner is alive, in order of the rows."""
        for row in range(self.layout.rows):
            owner = self.row_owner(row)
            if owner.alive:
                yield row, owner

    def mutex_owner(self) -> int:
        """Return the id of the thread that owns the mutex, 0 if it is free.

        The owner is the low 30 bits of a robust futex word (futex(2)).
        """
        return self.region("lock").mutex[0] & 0x3FFF_FFFF

    def restrict(self, readable: bool) -> None:
        """Give up this process's right to write to the block, and unless `readable` the right to read it.

        From then on such an access is a SIGSEGV. The descriptor is closed, so nothing that this process starts inherits
        it. Raises OSError.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        start, size = ctypes.c_void_p(int(ffi.cast("uintptr_t", self.map.base))), ctypes.c_size_t(len(self.memory))
        if libc.mprotect(start, size, mmap.PROT_READ if readable else 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect of the block")
        self.writable = False
        os.close(self.fd)

    def close(self) -> None:
        """Close the descriptor. The mapping stays until the process ends, because a held mutex must stay mapped."""
        os.close(self.fd)


def _view(block: Block, region: str) -> "Array":
    from shm.numpy_views import view  # noqa: PLC0415 - no process of the server has NumPy

    return view(block, region)


def find_blocks(pid: int | None = None) -> Iterator[tuple[int, Path]]:
    """Yield (pid, /proc/PID/fd/N) of every block that this user can open: each block once, lowest pid first.

    With `pid`, only of that process.
    """
    seen = set()
    holders = [pid] if pid else sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for holder in holders:
        with suppress(OSError):  # the process has ended, or belongs to another user
            for link in sorted(Path(f"/proc/{holder}/fd").iterdir(), key=lambda link: int(link.name)):
                with suppress(OSError):  # closed since it was listed; a later one may still be the block
                    if os.readlink(link).startswith(f"/memfd:{NAME} ") and (inode := link.stat().st_ino) not in seen:
                        seen.add(inode)
                        yield holder, link
