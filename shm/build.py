"""Builds the native core as `shm._native` (cffi, API mode).

Its structures are generated from `shm.layout`; there is no other copy. One translation unit on purpose: the compiler
sees the whole critical section, and every function but the API is static. `-ffp-contract=off` because the transition
must equal the Python reference to the last bit; no `-march`, because one build serves every processor (the wide loops
carry clones that the loader chooses from). `-fno-strict-aliasing` because a checksum reads as words what was written as
doubles and halves of words: without it the compiler may, and GCC 12 does, read before it writes. Run by setuptools
through setup.py.
"""

import importlib.util
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
SOURCES = (
    "block.h",
    "checksum.c",
    "vector.c",
    "lock.c",
    "memory.c",
    "receipt.c",
    "governor.c",
    "bucket.c",
    "read.c",
    "recall.c",
)

# By path: while the package is being built, `shm` may not be importable yet.
_spec = importlib.util.spec_from_file_location("_mlsdm_layout", HERE / "layout.py")
assert _spec is not None
assert _spec.loader is not None
layout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layout)

_api = (NATIVE / "api.h").read_text(encoding="utf-8")

ffibuilder = cffi.FFI()
ffibuilder.cdef(layout.declarations() + _api)
ffibuilder.set_source(
    "shm._native",
    "\n".join(
        ["#include <stddef.h>", "#include <stdint.h>", layout.declarations(), layout.assertions(), _api]
        + [f'#include "{name}"' for name in SOURCES]
    ),
    include_dirs=[str(NATIVE)],
    depends=[str(NATIVE / name) for name in (*SOURCES, "api.h")] + [str(HERE / "layout.py")],
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-fno-math-errno",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ],
    libraries=["m", "pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
