"""The layout table: its generated document, its arithmetic, and its fingerprint."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm import layout_markdown
from shm._native import ffi, lib
from shm.layout import (
    CACHE_LINE,
    DTYPES,
    KINDS,
    LAYOUT_VERSION,
    PAGE,
    RECORDS,
    REGIONS,
    STATUSES,
    Layout,
    Record,
    offsets,
    size_of,
)

GOLDEN = Path(__file__).parents[2] / "docs" / "layout.md"
DEFAULT = Layout(
    dimension=384, capacity=20_000, payload_size_max=1024, log_capacity=65_536, rows=8, receipt_capacity=32_768
)
SIZES = Layout._fields

layouts = st.builds(
    Layout,
    dimension=st.integers(2, 4096),
    capacity=st.integers(1, 1_000_000),
    payload_size_max=st.integers(0, 65_536),
    log_capacity=st.integers(16, 16_777_216),
    rows=st.integers(1, 256),
    receipt_capacity=st.integers(1, 1_000_000),
    slack=st.integers(0, 40_000),
    namespaces=st.integers(1, 1024),
    pins_max=st.integers(0, 2**32 - 1),
    archivist_size=st.integers(0, 65_536),
    identity_size=st.integers(0, 65_536),
    modules_size=st.integers(0, 65_536),
    outbox_size=st.integers(0, 65_536),
)


class TestTable:
    def test_document_equals_the_layout(self) -> None:
        """A change of the layout is a visible change of its document.

        When it is wanted: bump LAYOUT_VERSION if the meaning changed without the shape, and run `make manual`.
        """
        assert GOLDEN.read_text(encoding="utf-8") == layout_markdown.markdown()

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.name))
    def test_fields_are_aligned_and_fill_their_record(self, record: Record) -> None:
        """Each field begins where the one before ends, on a multiple of its size, and nothing is left over."""
        at = 0
        for field, offset in offsets(record):
            assert at == offset
            assert offset % min(size_of(field.dtype), 8) == 0
            at += size_of(field.dtype) * field.count

        assert record.size == at

    def test_compiler_uses_the_offsets_of_the_table(self) -> None:
        """Size and offsets of every C structure are those of the table."""
        for record in RECORDS:
            ctype = ffi.typeof(f"struct mlsdm_{record.name}")
            assert record.size == ffi.sizeof(ctype)
            assert [(field.name, offset) for field, offset in offsets(record)] == [
                (name, member.offset) for name, member in ctype.fields
            ]

    def test_names_are_unique(self) -> None:
        """No two records, fields of one record, kinds, statuses or regions share a name."""
        for names in (
            [record.name for record in RECORDS],
            *([field.name for field in record.fields] for record in RECORDS),
            KINDS,
            STATUSES,
            REGIONS,
        ):
            assert len(set(names)) == len(names)

    def test_numbers_reach_the_native_core(self) -> None:
        """Kinds, statuses and regions have the same number in C."""
        for prefix, names in (("KIND", KINDS), ("STATUS", STATUSES), ("REGION", REGIONS)):
            assert list(range(len(names))) == [getattr(lib, f"MLSDM_{prefix}_{name.upper()}") for name in names]

    def test_records_have_one_of_four_writers(self) -> None:
        """The writer is creator, lock holder, row owner, or anyone; each field has a dtype and a meaning."""
        assert {record.writer for record in RECORDS} == {"creator", "lock", "row", "anyone"}
        known = {*DTYPES, *(record.name for record in RECORDS)}
        for record in RECORDS:
            for field in record.fields:
                assert field.dtype in known
                assert field.meaning


class TestRegions:
    @given(layouts)
    def test_regions_do_not_overlap(self, layout: Layout) -> None:
        """Regions follow each other in the order of REGIONS, each begins on a cache line, and the block holds all of
        them.
        """
        regions = layout.regions()

        assert tuple(region.name for region in regions) == REGIONS
        assert regions[0].offset == 0
        assert all(region.offset % CACHE_LINE == 0 for region in regions)
        for before, after in itertools.pairwise(regions):
            assert before.offset + before.size <= after.offset < before.offset + before.size + PAGE
        assert 0 <= layout.block_size - (regions[-1].offset + regions[-1].size) < PAGE
        assert layout.block_size % PAGE == 0

    @given(layouts)
    def test_elements_are_aligned(self, layout: Layout) -> None:
        """Every element is 8-byte aligned but for the references of the index; vectors and slot lines have whole cache
        lines.
        """
        by_name = {region.name: region for region in layout.regions()}

        assert [name for name, region in by_name.items() if region.stride % 8] == ["index"]
        for name in ("slots", "vectors", "levels", "states", "commit", "lock", "rows", "log"):
            assert by_name[name].stride % CACHE_LINE == 0, name

    @given(layouts)
    def test_the_mutex_and_the_commit_word_have_pages_of_their_own(self, layout: Layout) -> None:
        """Nothing else is on the lock's page or on the commit word's."""
        pages = [
            range(region.offset // PAGE, -(-(region.offset + max(region.size, 1)) // PAGE))
            for region in layout.regions()
        ]
        for name in ("lock", "commit"):
            mine = REGIONS.index(name)
            assert all(not set(pages[mine]) & set(others) for other, others in enumerate(pages[:4]) if other != mine), (
                name
            )

    @pytest.mark.parametrize("dimension", [2, 384, 4096])
    @pytest.mark.parametrize("capacity", [100, 20_000])
    def test_block_size_is_the_sum_of_its_parts(self, dimension: int, capacity: int) -> None:
        """C + 1 slots of record, code, shadow, vector, payload, members and link, the index, two lists, the log, the
        rows, the namespaces, receipts and buckets, six pages of control, and less than a page between parts.
        """
        layout = Layout(dimension, capacity, 1024, 65_536, 8, 16)
        vector = -(-dimension * 4 // 64) * 64
        shadow = -(-dimension // 16) * 16
        index = {100: 128, 20_000: 32_768}[capacity]
        parts = (capacity + 1) * (128 + 24 + 24 + shadow + vector + 1024 + 272) + 4 * index + 2 * 16
        parts += 65_536 * 384 + 8 * 128 + 1024 * 512 + 2 * 3 * vector
        parts += 17 * 120 + 16 * 8 + (8_192 + 65_536) * 16

        assert parts < layout.block_size < parts + 6 * PAGE + len(REGIONS) * CACHE_LINE


class TestFingerprint:
    @given(layouts, st.integers(0, len(SIZES) - 1))
    def test_changes_with_any_size(self, layout: Layout, which: int) -> None:
        """Layouts that differ in one number have different fingerprints; equal ones have equal."""
        name = SIZES[which]
        sizes = {one: getattr(layout, one) for one in SIZES}
        other = Layout(**{**sizes, name: sizes[name] + 1})

        assert len(layout.fingerprint()) == 32
        assert layout.fingerprint() == Layout(**sizes).fingerprint()
        assert layout.fingerprint() != other.fingerprint()

    def test_changes_with_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another writer, another version or a new kind make another fingerprint."""
        seen = {DEFAULT.fingerprint()}
        first = RECORDS[0]
        renamed = Record(first.name, first.size, "somebody", first.fields)
        for name, value in (
            ("RECORDS", (renamed, *RECORDS[1:])),
            ("LAYOUT_VERSION", LAYOUT_VERSION + 1),
            ("KINDS", (*KINDS, "other")),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"shm.layout.{name}", value)
                seen.add(DEFAULT.fingerprint())

        assert len(seen) == 4

    def test_does_not_change_with_a_description(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another sentence about a field is the same layout: a running server can be upgraded across it."""
        before, first = DEFAULT.fingerprint(), RECORDS[0]
        reworded = replace(first.fields[0], meaning="another sentence")
        monkeypatch.setattr("shm.layout.RECORDS", (first._replace(fields=(reworded, *first.fields[1:])), *RECORDS[1:]))

        assert DEFAULT.fingerprint() == before
