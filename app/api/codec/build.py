"""Build the native readers and writers of bodies as `app.api.codec._native` (cffi, API mode); setup.py runs it.

`-ffp-contract=off` forbids fused multiply-add, so that every processor computes the same numbers.
"""

from pathlib import Path

import cffi

NATIVE = Path(__file__).resolve().parent / "native"
SOURCES = ("json_walk.c", "msgpack_walk.c", "json_reader.c", "answer_writer.c")  # one translation unit, in this order

_api = (NATIVE / "api.h").read_text(encoding="utf-8")

ffibuilder = cffi.FFI()
ffibuilder.cdef(_api)
ffibuilder.set_source(
    "app.api.codec._native",
    "\n".join(["#include <stddef.h>", "#include <stdint.h>", _api, *(f'#include "{name}"' for name in SOURCES)]),
    include_dirs=[str(NATIVE)],
    depends=[str(NATIVE / name) for name in (*SOURCES, "walk.h", "api.h")],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
