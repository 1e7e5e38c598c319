"""The block: created, sealed, opened, refused if it is another; an observer reads it and cannot write."""

import faulthandler
import fcntl
import mmap
import os
import resource
import signal
from pathlib import Path

import pytest

from shm._native import ffi, lib
from shm.block import Block, BlockError, BlockIdentity, find_blocks
from shm.errors import Unformed
from shm.layout import LAYOUT_VERSION, MAGIC, PAGE
from shm.store import Store
from testing.block_fixture import SMALL, Formed, Witness, begin, end, exit_of, wait_until
from tests.shm.conftest import Form
from tests.shm.test_concurrency import hot


class TestCreate:
    def test_header_has_sizes_identity_and_fingerprint(self, formed: Formed) -> None:
        """The header describes the block."""
        header = formed.block.region("header")

        assert (MAGIC, LAYOUT_VERSION, formed.started_ns) == (
            header.magic,
            header.layout_version,
            header.created_wall_ns,
        )
        assert (header.dimension, header.capacity, header.rows) == (SMALL.dimension, SMALL.capacity, SMALL.rows)
        assert bytes(header.boot_id).hex() == formed.block.boot_id
        assert bytes(header.log_id).hex() == formed.block.log_id
        assert SMALL.fingerprint() == bytes(header.fingerprint)
        assert SMALL.block_size == header.block_size == os.fstat(formed.block.fd).st_size

    def test_memory_cannot_be_resized(self, formed: Formed) -> None:
        """The memory can neither shrink nor grow, and its seals cannot be removed."""
        for size in (0, SMALL.block_size - PAGE, SMALL.block_size + PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(formed.block.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(formed.block.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    def test_new_block_has_no_state(self) -> None:
        """A new block has no state until a controller has begun an epoch."""
        block = Block.create(SMALL, BlockIdentity.new(), 1, 2)
        block.bind(os.getpid(), 0, 100, 1e6)
        with pytest.raises(Unformed):
            Store(block).state()
        block.close()

    def test_every_page_is_allocated(self, formed: Formed) -> None:
        """Every page is allocated at the creation, so that no later write can fail."""
        assert os.fstat(formed.block.fd).st_blocks * 512 >= SMALL.block_size

    def test_too_much_memory_is_one_sentence(self) -> None:
        """More memory than the machine has: one sentence that names the remedy, and no descriptor is left."""

        def work() -> None:
            before = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))  # a limit that costs the machine nothing to reach
            with pytest.raises(BlockError, match=r"cannot allocate 3 MB of shared memory .* lower `capacity`"):
                Block.create(SMALL, BlockIdentity.new(), 1, 2)
            assert before == len(os.listdir("/proc/self/fd"))

        assert exit_of(begin(work)) == 0

    def test_closed_block_leaves_no_descriptor(self) -> None:
        """A closed block without references leaves no descriptor."""
        before = len(os.listdir("/proc/self/fd"))
        Block.create(SMALL, BlockIdentity.new(), 1, 2).close()

        assert before == len(os.listdir("/proc/self/fd"))


class TestOpen:
    def test_is_the_same_memory(self, formed: Formed) -> None:
        """What is written through one mapping is read through the other."""
        other = Block.open(os.dup(formed.block.fd), writable=True)
        other.bind(os.getpid(), 1, 100, 1e6)
        formed.accept()

        assert (formed.block.boot_id, formed.started_ns, SMALL) == (other.boot_id, other.created_ns, other.layout)
        assert formed.block.log_id == other.log_id
        assert Store(other).state().scalars.accepted == 1
        other.close()

    def test_log_time_is_the_same_in_every_process(self, formed: Formed) -> None:
        """It is the wall clock of the creation, advanced by the boot clock; its offset is in the header."""
        other = Block.open(os.dup(formed.block.fd), writable=False)
        header = formed.block.region("header")
        boot_ns = header.created_boot_ns + 12_345_678_901

        assert formed.block.log_time(boot_ns) == other.log_time(boot_ns) == header.created_wall_ns + 12_345_678_901
        other.close()

    @pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(PAGE), os.urandom(PAGE)])
    def test_other_memory_is_refused(self, content: bytes) -> None:
        """Memory that is not a block is refused."""
        fd = os.memfd_create("other")
        os.write(fd, content)
        with pytest.raises(BlockError, match="is not a block"):
            Block.open(fd, writable=True)
        os.close(fd)

    def test_other_descriptors_are_refused(self) -> None:
        """A pipe and a closed descriptor are refused."""
        ends = os.pipe()
        for fd in (ends[0], 9999):
            with pytest.raises(BlockError, match="is not a block"):
                Block.open(fd, writable=True)
        for fd in ends:
            os.close(fd)

    def test_block_of_the_version_before_is_refused(self, formed: Formed) -> None:
        """Its header has another form, and is not called damaged: an upgrade says what to do instead."""
        header = formed.block.region("header")
        header.layout_version, header.checksum = LAYOUT_VERSION - 1, 0

        with pytest.raises(BlockError, match=r"version .*: stop the old server and start the new one"):
            Block.open(formed.block.fd, writable=True)

    @pytest.mark.parametrize(
        ("field", "value", "sentence"),
        [
            ("magic", 0, "it starts with 0x0"),
            ("layout_version", LAYOUT_VERSION + 1, "laid out by other code"),
            ("dimension", 17, "laid out by other code"),
            ("capacity", 51, "laid out by other code"),
            ("rows", 5, "laid out by other code"),
            ("block_size", 4096, "expected"),
        ],
    )
    def test_block_of_other_code_is_refused(self, formed: Formed, field: str, value: int, sentence: str) -> None:
        """A block with a sound header of another layout is refused in one sentence."""
        header = formed.block.region("header")
        setattr(header, field, value)
        header.checksum = lib.mlsdm_header_checksum(header)

        with pytest.raises(BlockError, match=sentence):
            Block.open(formed.block.fd, writable=True)

    def test_truncated_copy_is_refused(self) -> None:
        """A copy of a block in a smaller memory is refused before it is mapped."""
        formed = Formed()
        fd = os.memfd_create("copy")
        os.write(fd, formed.block.memory[: 2 * PAGE])
        with pytest.raises(BlockError, match=f"has {2 * PAGE} bytes"):
            Block.open(fd, writable=True)
        os.close(fd)
        formed.close()


class TestObserver:
    def test_reads_while_others_write(self, form: Form) -> None:
        """Through /proc/PID/fd/N, mapped read-only, the state is read while a writer writes."""
        formed = form()
        writer = begin(hot(formed, 1))
        mine = os.fstat(formed.block.fd).st_ino  # other tests' servers may be mapped here, too
        holder, path = next((pid, path) for pid, path in find_blocks(writer) if path.stat().st_ino == mine)
        fd = os.open(path, os.O_RDONLY)
        observer = Block.open(fd, writable=False)
        observer.bind(os.getpid(), 0xFFFF_FFFF, 0, 1e6)
        store = Store(observer)
        wait_until(lambda: observer.position > 1000)
        end(writer)
        state = store.state()

        assert (writer, formed.block.boot_id) == (holder, observer.boot_id)
        assert state.scalars.accepted + state.scalars.rejected == state.position - 1
        observer.close()

    def test_a_read_only_mapping_cannot_be_written(self, form: Form) -> None:
        """A write through a read-only mapping ends the observer and leaves the block alone."""
        formed = form()

        def write() -> None:
            observer = Block.open(os.open(f"/proc/self/fd/{formed.block.fd}", os.O_RDONLY), writable=False)
            faulthandler.disable()  # the fault is wanted
            observer.region("commit").sealed = 99

        assert exit_of(begin(write)) == -signal.SIGSEGV
        assert formed.store.state().position == 1
        fd = os.open(f"/proc/self/fd/{formed.block.fd}", os.O_RDONLY)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE)
        os.close(fd)

    def test_find_blocks_yields_each_block_once(self, form: Form) -> None:
        """A block that several processes hold is found at the lowest pid; other memories are not found."""
        formed = form()
        other = os.memfd_create("mlsdm-other")
        child = begin(signal.pause)
        mine = os.fstat(formed.block.fd).st_ino
        found = [(pid, path) for pid, path in find_blocks() if path.stat().st_ino == mine]

        assert [pid for pid, _ in found] == [min(os.getpid(), child)]  # pids wrap around
        assert [pid for pid, path in find_blocks(child) if path.stat().st_ino == mine] == [child]
        assert other not in [int(path.name) for _, path in find_blocks(os.getpid())]
        end(child)
        os.close(other)

    def test_find_blocks_tolerates_descriptors_that_close(self, form: Form) -> None:
        """A process that opens and closes files during the search is found each time."""
        formed = form()

        def busy() -> None:
            os.dup2(formed.block.fd, 500)
            os.close(formed.block.fd)
            spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
            while True:
                for number in spare:
                    os.close(number)
                for _ in spare:
                    os.open(os.devnull, os.O_RDONLY)  # the lowest free number: the same ones again

        child = begin(busy)
        wait_until(lambda: Path(f"/proc/{child}/fd/500").exists())
        missed = sum(not any(find_blocks(child)) for _ in range(500))
        end(child)

        assert missed == 0

    def test_process_without_a_block(self) -> None:
        """A process without a block yields none."""
        assert list(find_blocks(1 if os.getpid() != 1 else 2)) == []


class TestRegion:
    def test_regions_begin_at_their_offsets(self, formed: Formed) -> None:
        """Every region with records begins at its offset from the base of the mapping."""
        base = int(ffi.cast("uintptr_t", formed.block.map.base))
        records = ("header", "lock", "commit", "states", "vitals", "command", "rows", "slots", "codes", "log")
        for region in SMALL.regions():
            if region.name in records:
                last = region.count - 1
                address = int(ffi.cast("uintptr_t", formed.block.region(region.name, last)))
                assert base + region.offset + last * region.stride == address

    def test_memory_outlives_its_creator(self, form: Form) -> None:
        """The memory lives as long as one process holds it."""
        formed = form()

        def work() -> None:
            formed.be(1)
            for number in range(100):
                formed.accept(number)

        assert exit_of(begin(work)) == 0
        Witness(formed).check()
        assert formed.store.state().scalars.accepted == 100
