"""The stubs of the native modules: equal to what the generator prints, and complete."""

from pathlib import Path

import pytest

from app.api.codec import _native as _codec
from shm import _native, native_stubs
from shm.layout import RECORDS, Record, declarations

ROOT = Path(__file__).parents[2]
CODEC = ROOT / "app" / "api" / "codec"
DECLARED = {
    ROOT / "shm" / "_native.pyi": declarations() + native_stubs.API.read_text(encoding="utf-8"),
    CODEC / "_native.pyi": (CODEC / "native" / "api.h").read_text(encoding="utf-8"),
}


class TestGolden:
    @pytest.mark.parametrize("path", DECLARED, ids=lambda path: str(path.name))
    def test_file_equals_generator(self, path: Path) -> None:
        """A change of the layout table or of an api.h is followed by `make manual`."""
        assert path.read_text(encoding="utf-8") == native_stubs.stub(DECLARED[path])


class TestCompleteness:
    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record.name))
    def test_every_field_of_the_table_has_a_type(self, record: Record) -> None:
        """Each record is a class whose members are its fields."""
        stub = native_stubs.stub(DECLARED[ROOT / "shm" / "_native.pyi"])
        body = stub.partition(f"class {record.name.capitalize()}(CData):\n")[2].partition("\nclass ")[0]

        assert [field.name for field in record.fields if f" {field.name}" not in body] == []

    @pytest.mark.parametrize(
        ("module", "path"),
        [(_native, ROOT / "shm" / "_native.pyi"), (_codec, CODEC / "_native.pyi")],
        ids=["shm", "codec"],
    )
    def test_every_native_name_has_a_type(self, module: object, path: Path) -> None:
        """Functions and constants of the compiled module are those of its stub."""
        library = getattr(module, "lib")  # noqa: B009  the modules share no type
        stub = path.read_text(encoding="utf-8")
        typed = {line.split("(")[0].split(":")[0].removeprefix("    def ").strip() for line in stub.splitlines()}

        assert [name for name in dir(library) if name not in typed] == []

    def test_stubs_contain_no_any(self) -> None:
        """No type in a stub is `Any`."""
        assert [path.name for path in DECLARED if "Any" in path.read_text(encoding="utf-8")] == []


class TestDeclarations:
    def test_pointer_that_may_be_null(self) -> None:
        """Only what is marked takes NULL."""
        stub = native_stubs.stub("int mlsdm_f(const float *a, const float *b /* or NULL */, uint8_t c[], int d);")

        assert (
            "def mlsdm_f(self, a: FloatPointer, b: FloatPointer | Null, c: UInt8Pointer, d: int, /) -> int: ..." in stub
        )

    def test_nested_structure_is_no_argument(self) -> None:
        """A structure inside another one has no class of a pointer: `ffi.addressof` makes it one."""
        stub = native_stubs.stub("struct mlsdm_a { double x; }; struct mlsdm_b { struct mlsdm_a a; };")

        assert "class B(CData):\n    a: A\n" in stub
        assert 'def addressof(self, cdata: B, field: Literal["a"]) -> APointer: ...' in stub

    def test_unknown_declaration_is_refused(self) -> None:
        """A declaration that the generator does not understand is an error and not `Any`."""
        with pytest.raises(AssertionError, match="is not a declaration"):
            native_stubs.stub("int mlsdm_f(float **matrix);")
