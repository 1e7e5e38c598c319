"""Fixtures of the tests of `shm`: formed blocks, and a check for what a test leaves behind."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testing.block_fixture import Formed

Form = Callable[..., Formed]


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor or a child behind, unless it failed anyway: tracebacks hold references."""
    gc.collect()
    gc.freeze()  # PERF: the second collection looks at what is new; through all modules each took 100 ms of the CPU
    descriptors, children, failed = _descriptors(), _children(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        return
    gc.collect()  # a block's mapping, and its descriptor, go with the last object that looks into it
    assert [link for fd, link in _descriptors().items() if fd not in descriptors] == []
    assert _children() - children == set()


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is gone
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended since
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture
def form() -> Iterator[Form]:
    """Make formed blocks for one test; they are closed after it."""
    blocks: list[Formed] = []

    def formed(*arguments: object, **keywords: object) -> Formed:
        blocks.append(Formed(*arguments, **keywords))  # type: ignore[arg-type]  # handed through to Formed
        return blocks[-1]

    yield formed
    for one in blocks:
        one.close()


@pytest.fixture
def formed(form: Form) -> Formed:
    """A small formed block; this process owns row 0."""
    return form()
