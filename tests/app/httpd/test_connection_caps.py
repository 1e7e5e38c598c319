"""How many connections the descriptors of a worker suffice for."""

import os

import pytest

from app.httpd.connection_caps import BATCH_COUNT_MAX, SURPLUS_COUNT_MAX, caps_of, count_descriptors
from app.processes.file_limits import _OTHERS_COUNT


@pytest.mark.parametrize("configured", [1, 20, 1_024, 65_536])
def test_the_raised_limit_suffices_for_the_configured_number(configured: int) -> None:
    """What the arbiter raises the limit to (`app.processes.file_limits`) leaves the configured number as it is."""
    assert caps_of(configured, configured + _OTHERS_COUNT, 30).connections == configured


def test_an_unlimited_worker_has_all() -> None:
    assert caps_of(1_024, 2**63 - 1, 30) == (1_024, SURPLUS_COUNT_MAX, BATCH_COUNT_MAX)


@pytest.mark.parametrize("limit", [48, 64, 128, 256, 1_024])
def test_the_caps_stay_below_the_descriptors(limit: int) -> None:
    """Connections, those above the cap, a batch of new ones, and what is open already: some descriptors are left."""
    used = 26
    connections, surplus, batch = caps_of(65_536, limit, used)

    assert connections >= 1
    assert min(surplus, batch) >= 4
    assert used + connections + surplus + batch < limit


def test_too_few_descriptors_leave_one_connection() -> None:
    assert caps_of(1_024, 30, 30).connections == 1


def test_descriptors_are_counted() -> None:
    before = count_descriptors()
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    try:
        assert count_descriptors() == before + 5
    finally:
        for descriptor in extra:
            os.close(descriptor)
