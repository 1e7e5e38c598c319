"""Tests of `core` that open blocks leave nothing behind either."""

from tests.shm.conftest import Form, form, leaves_nothing

__all__ = ["Form", "form", "leaves_nothing"]  # fixtures, one of them autouse
