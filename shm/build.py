"""Build the native core as `shm._native` (cffi, API mode). setuptools runs it through setup.py.

Invariants: the structures are generated from `shm.layout`; there is no other copy. All sources are one translation
unit: the compiler sees the whole critical section, and every function that is not in api.h is static.
`-ffp-contract=off`: the transition must equal the Python reference to the last bit. No `-march`: one build serves every
processor, and the loader picks among the clones of the wide loops. `-fno-strict-aliasing`: a checksum reads as words
what was written as doubles and as halves of words; without the option a compiler may reorder the two, and GCC 12 does.
`-fno-ipa-ra`: without the option GCC leaves out `vzeroupper` where a function calls a static one. On Intel every
instruction of 128 bits that follows, those of the interpreter included, then waits for the wide half of its register.
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
    "namespace.c",
    "allocation.c",
    "lock.c",
    "memory.c",
    "filter.c",
    "receipt.c",
    "search.c",
    "duplicate.c",
    "governor.c",
    "bucket.c",
    "read.c",
    "terms.c",
    "apply.c",
    "recall.c",
)

# By path: while the package is being built, `shm` cannot be imported yet.
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
        "-fno-ipa-ra",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ],
    libraries=["m", "pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
