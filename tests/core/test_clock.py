"""Clock: the boot clock."""

from core.clock import elapsed_seconds


def test_elapsed_time_is_never_negative() -> None:
    """Another process may have read its clock later than this one."""
    assert [elapsed_seconds(5, 1_500_000_005), elapsed_seconds(5, 4)] == [1.5, 0]
