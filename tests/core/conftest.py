"""Tests of `core` that open blocks leave nothing behind either."""

from tests.shm.conftest import leaves_nothing

__all__ = ["leaves_nothing"]  # an autouse fixture
