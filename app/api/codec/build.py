"""Build the JSON reader as `app.api.codec._json_reader` (cffi, API mode). setuptools runs it through setup.py.

`-ffp-contract=off` forbids fused multiply-add, so that every processor computes the same numbers.
"""

from pathlib import Path

import cffi

NATIVE = Path(__file__).resolve().parent / "native"

_api = (NATIVE / "api.h").read_text(encoding="utf-8")

ffibuilder = cffi.FFI()
ffibuilder.cdef(_api)
ffibuilder.set_source(
    "app.api.codec._json_reader",
    f'#include <stddef.h>\n#include <stdint.h>\n{_api}\n#include "json_reader.c"',
    include_dirs=[str(NATIVE)],
    depends=[str(NATIVE / name) for name in ("json_reader.c", "api.h")],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
