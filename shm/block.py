"""The block: how the shared memory is made, handed on, found again, and proven to be what this code expects.

One memfd, sized once, sealed against shrinking and growing, allocated before anything is served. It has no name in any
file system, so nothing can be left behind; it lives exactly as long as a process holds it. Workers inherit the mapping
by fork. A new arbiter (USR2) inherits the descriptor through exec and adopts it. An observer opens /proc/PID/fd/N and
maps it read-only: it can look, and cannot harm.

The header is written once, before anybody else can see the block, and checked by everybody who comes later. Whoever has
opened it keeps a copy, so the controller can write it again when a bit of it has flipped.

Rejected: `multiprocessing.shared_memory` (see layout), a file in /dev/shm (64 MB by default in containers, and it leaks
when everybody is killed).
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from shm._native import ffi, lib
from shm.errors import Corrupt
from shm.layout import LAYOUT_VERSION, MAGIC, NO_ROW, PAGE, REGIONS, Layout

NAME: Final = "mlsdm"
_HEADER_SIZE: Final = ffi.sizeof("struct mlsdm_header")
_MADV_POPULATE_READ: Final = 22
_DAMAGED: Final = 2**64 - 1  # what the native core reads for a word whose seal is broken


class BlockError(Exception):
    """The memory is not a block that this code can use; the message says why in one sentence."""


@dataclass
class Block:
    """A mapped block. `header` are the bytes of its header as they were made; `map` is the native core's view of the
    block, private to this process: see `bind`.
    """

    fd: int
    layout: Layout
    memory: mmap.mmap
    header: bytes
    map: Any
    writable: bool

    @classmethod
    def create(cls, layout: Layout, boot_id: bytes, secret: bytes, wall_ns: int, boot_ns: int) -> Self:
        """Make a new block: allocated, formed, sealed.

        `boot_id` and `secret` are 16 random bytes each; times are CLOCK_REALTIME and CLOCK_BOOTTIME in ns.

        Raises BlockError when the machine cannot give that much memory.
        """
        fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(
                fd, 0, layout.block_size
            )  # now, not at the first write: a page that is missing later is a SIGBUS
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
        header.block_size = layout.block_size
        header.created_wall_ns = wall_ns
        header.created_boot_ns = boot_ns
        ffi.memmove(header.boot_id, boot_id, 16)
        ffi.memmove(header.secret, secret, 16)
        ffi.memmove(header.fingerprint, layout.fingerprint(), 32)
        header.checksum = lib.mlsdm_header_checksum(header)
        refused = lib.mlsdm_lock_create(block.map)
        if refused:
            raise BlockError(f"cannot create a robust mutex: {os.strerror(refused)}")
        return block._remembering(header)

    @classmethod
    def open(cls, fd: int, writable: bool) -> Self:
        """Map a block that another process made.

        Raises BlockError when it is none, is damaged, or was laid out by other code.
        """
        try:
            with mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
                header = ffi.new("struct mlsdm_header *")
                ffi.memmove(header, page[:_HEADER_SIZE], _HEADER_SIZE)
        except (OSError, ValueError) as error:
            raise BlockError(f"descriptor {fd} is not a block: {error}") from error
        if header.magic != MAGIC:
            raise BlockError(f"descriptor {fd} is not a block: it starts with {header.magic:#x}, expected {MAGIC:#x}")
        if header.checksum != lib.mlsdm_header_checksum(header) or any(header.reserved):
            raise BlockError("the header of the block is damaged: its checksum does not hold")
        layout = Layout(*(getattr(header, name) for name in Layout._fields))
        if header.layout_version != LAYOUT_VERSION or bytes(header.fingerprint) != layout.fingerprint():
            raise BlockError(
                f"the block was laid out by other code (version {header.layout_version}, this is {LAYOUT_VERSION}): "
                "stop the old server and start the new one"
            )
        if os.fstat(fd).st_size != header.block_size or header.block_size != layout.block_size:
            raise BlockError(f"the block has {os.fstat(fd).st_size} bytes, expected {layout.block_size}")
        return cls._mapped(fd, layout, writable)._remembering(header)

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
        view.payload_stride = layout.regions()[REGIONS.index("payloads")].stride
        view.log_capacity = layout.log_capacity
        view.rows = layout.rows
        view.receipt_capacity = layout.receipt_capacity
        for number, name in enumerate(("keys", "peers")):
            view.buckets[number] = layout.regions()[REGIONS.index(name)].count
        view.row = NO_ROW
        view.pid = os.getpid()
        return cls(fd, layout, memory, b"", view, writable)

    def _remembering(self, header: Any) -> Self:
        """Keep a copy of the header: what this process and its children know of it does not change under them."""
        self.header = bytes(ffi.buffer(header))
        return self

    @property
    def boot_id(self) -> str:
        """The identity of this memory, in hexadecimal digits."""
        return bytes(self._known.boot_id).hex()

    @property
    def secret(self) -> bytes:
        """What keys the hashes of clients' names and of idempotency keys: 16 bytes, never told."""
        return bytes(self._known.secret)

    @property
    def created_boot_ns(self) -> int:
        """CLOCK_BOOTTIME at which the block was made, in ns."""
        return int(self._known.created_boot_ns)

    @property
    def created_wall_ns(self) -> int:
        """CLOCK_REALTIME at which the block was made, in ns."""
        return int(self._known.created_wall_ns)

    @property
    def _known(self) -> Any:
        return ffi.from_buffer("struct mlsdm_header *", self.header)

    @property
    def position(self) -> int:
        """The position that was committed last. Raises Corrupt where the commit word is damaged."""
        position = int(lib.mlsdm_position(self.map))
        if position == _DAMAGED:
            raise Corrupt("the commit word is damaged: its seal is broken")
        return position

    def repair_header(self) -> bool:
        """Write the header again as it was made; False when nothing of it had changed."""
        if self.memory[:_HEADER_SIZE] == self.header:
            return False
        self.memory[:_HEADER_SIZE] = self.header
        return True

    def bind(self, pid: int, row: int, wait_ms: int, norm_max: float) -> None:
        """Say who this process is: to be called after every fork.

        `wait_ms` bounds each wait for the lock; `row` may be NO_ROW.
        """
        self.map.pid = pid
        self.map.row = row
        self.map.wait_ms = wait_ms
        self.map.norm_max = norm_max

    def populate(self) -> None:
        """Fill this process's page table now, so that no request pays; kernels before 5.14 fault lazily instead."""
        try:
            self.memory.madvise(_MADV_POPULATE_READ)
        except OSError:
            return

    def region(self, name: str, index: int = 0) -> Any:
        """Return element `index` of a region that holds records, as a cffi struct pointer; valid while the block is."""
        region = self.layout.regions()[REGIONS.index(name)]
        assert 0 <= index < region.count
        record = {"states": "state", "rows": "row", "slots": "slot", "codes": "code", "log": "entry"}.get(name, name)
        return ffi.cast(f"struct mlsdm_{record} *", self.map.base + region.offset + index * region.stride)

    def mutex_owner(self) -> int:
        """Return the thread id that owns the mutex, 0 when it is free: the low 30 bits of a robust futex word are its
        owner (futex(2)).
        """
        return int(self.region("lock").mutex[0]) & 0x3FFF_FFFF

    def close(self) -> None:
        """Let go of the descriptor.

        The mapping goes with the process: the mutex page must never be unmapped under a holder.
        """
        os.close(self.fd)


def find_blocks(pid: int | None = None) -> Iterator[tuple[int, Path]]:
    """Yield (pid, /proc/PID/fd/N) of every block that this user can see, each memory once, lowest pid first; only of
    `pid` if given.
    """
    seen = set()
    holders = [pid] if pid else sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for holder in holders:
        with suppress(OSError):  # it has ended, or is another user's
            for link in sorted(Path(f"/proc/{holder}/fd").iterdir(), key=lambda link: int(link.name)):
                with suppress(OSError):  # closed since it was listed: the next one may still be the block
                    if os.readlink(link).startswith(f"/memfd:{NAME} ") and (inode := link.stat().st_ino) not in seen:
                        seen.add(inode)
                        yield holder, link
