"""The rate tiers of keys: their names, and the token bucket that a configuration gives each."""

from typing import Final, NamedTuple, get_args

from core.settings.config import BulkTier, Config, HighTier, RateLimiting, TierName

STANDARD: Final = "standard"
TIERS: Final[tuple[str, ...]] = get_args(TierName)


class Tier(NamedTuple):
    """The size of a token bucket: `rate` in tokens per second, `burst` in tokens."""

    rate: float
    burst: int


def tiers(config: Config) -> dict[str, Tier]:
    """Return the buckets by name, in the order of TIERS."""
    limits = config.security.rate_limiting
    sections: tuple[RateLimiting | HighTier | BulkTier, ...] = (limits, limits.tiers.high, limits.tiers.bulk)
    return {
        name: Tier(section.requests_per_second, section.burst_capacity)
        for name, section in zip(TIERS, sections, strict=True)
    }
