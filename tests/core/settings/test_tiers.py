"""The rate tiers: their names and their buckets."""

from core.settings.config import Config
from core.settings.tiers import TIERS, tiers
from core.startup import load


def test_tiers_are_those_that_keys_may_name() -> None:
    """`standard` takes the rate and burst of `security.rate_limiting` itself."""
    assert list(tiers(Config())) == list(TIERS)
    assert tiers(Config()) == {"standard": (5.0, 10), "high": (100.0, 200), "bulk": (10_000.0, 20_000)}


def test_each_tier_has_settings_of_its_own() -> None:
    """Each tier is configured by its own pair of settings."""
    changed = load(
        None,
        {
            "MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND": "1",
            "MLSDM_SECURITY__RATE_LIMITING__TIERS__HIGH__BURST_CAPACITY": "2",
            "MLSDM_SECURITY__RATE_LIMITING__TIERS__BULK__REQUESTS_PER_SECOND": "0.5",
        },
    ).config

    assert tiers(changed) == {"standard": (1.0, 10), "high": (100.0, 2), "bulk": (0.5, 20_000)}
