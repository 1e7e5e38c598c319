"""Drift of the moral threshold: reported once for each episode.

A threshold that moves is normal. Two things are not: it has been at the same bound for a minute, where it can no
longer adapt in that direction; or its mean over ten minutes differs by at least 0.15 from the mean over the ten minutes
before, so what is accepted now is not what was accepted then. Each is an episode. It is returned once, when it begins,
and ends when its cause is gone; after that a new episode may begin.

Invariants: deterministic; time (monotonic ns) is an argument. Memory is bounded: 120 means of ten seconds each, at any
rate of observation. Between two observations the threshold counts as unchanged, so a gap neither ends an episode nor
leaves a mean without values. A new controller starts without means and cannot report a moved mean for twenty minutes;
it gets the episodes that its predecessor reported, so that none is reported twice.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

_SECOND_NS = 1_000_000_000
AT_BOUND_NS = 60 * _SECOND_NS
MEAN_SHIFT_MIN = 0.15
MEAN_NS = 600 * _SECOND_NS
_BUCKET_NS = 10 * _SECOND_NS
_BUCKETS_PER_MEAN = MEAN_NS // _BUCKET_NS
# 0.65 - 0.50 is not exactly 0.15 in binary; the threshold itself is rounded to 1e-12.
_ROUNDING = 1e-9

Kind = Literal["at_minimum", "at_maximum", "mean_moved"]
BITS: Final[Mapping[Kind, int]] = {"at_minimum": 1, "at_maximum": 2, "mean_moved": 4}  # in the vitals
_AT_BOUND: Final[frozenset[Kind]] = frozenset({"at_minimum", "at_maximum"})


class Episode(msgspec.Struct, frozen=True):
    """A drift that has begun, noticed at `began_ns` by the clock of the observations. `sentence` is logged."""

    kind: Kind
    began_ns: int
    sentence: str


class DriftWatch:
    """Watches one threshold. Not shared between threads."""

    def __init__(self, active: Iterable[Kind] = ()) -> None:
        """`active` are the episodes that have been reported already."""
        self.active: set[Kind] = set(active)
        self._bound: tuple[Kind, float] | None = None  # the bound at which the threshold sits, and its value
        self._bound_since_ns = 0
        self._means: deque[float] = deque(maxlen=2 * _BUCKETS_PER_MEAN)  # of complete buckets, oldest first
        self._bucket: int | None = None  # number of the bucket being filled
        self._sum = 0.0
        self._count = 0
        self._last = 0.0

    def observe(self, now_ns: int, threshold: float, minimum: float, maximum: float) -> list[Episode]:
        """Return the episodes that begin with this observation: none, one or two. `now_ns` never decreases."""
        began = [*self._watch_bound(now_ns, threshold, minimum, maximum), *self._watch_mean(now_ns, threshold)]
        self.active.update(episode.kind for episode in began)
        return began

    def _watch_bound(self, now_ns: int, threshold: float, minimum: float, maximum: float) -> list[Episode]:
        bound = _bound(threshold, minimum, maximum)
        first = self._bucket is None  # of this watch: a reported episode may last
        if first or bound != self._bound:
            self.active -= _AT_BOUND - {bound[0]} if first and bound else _AT_BOUND
            self._bound, self._bound_since_ns = bound, now_ns
        if bound is None or bound[0] in self.active or now_ns - self._bound_since_ns < AT_BOUND_NS:
            return []
        kind, value = bound
        seconds = (now_ns - self._bound_since_ns) // _SECOND_NS
        name = kind.removeprefix("at_")
        return [Episode(kind, now_ns, f"the moral threshold has been at its {name} of {value:g} for {seconds} s")]

    def _watch_mean(self, now_ns: int, threshold: float) -> list[Episode]:
        completed = self._advance(now_ns // _BUCKET_NS)
        self._sum += threshold
        self._count += 1
        self._last = threshold
        if not completed or len(self._means) < 2 * _BUCKETS_PER_MEAN:
            return []
        means = list(self._means)
        before = sum(means[:_BUCKETS_PER_MEAN]) / _BUCKETS_PER_MEAN
        recent = sum(means[_BUCKETS_PER_MEAN:]) / _BUCKETS_PER_MEAN
        if abs(recent - before) < MEAN_SHIFT_MIN - _ROUNDING:
            self.active.discard("mean_moved")
            return []
        if "mean_moved" in self.active:
            return []
        sentence = f"the moral threshold's ten-minute mean has moved from {before:.3f} to {recent:.3f}"
        return [Episode("mean_moved", now_ns, sentence)]

    def _advance(self, bucket: int) -> bool:
        """Close the buckets before `bucket`; return whether there was one to close."""
        if self._bucket is None or bucket == self._bucket:
            self._bucket = bucket
            return False
        assert bucket > self._bucket, "monotonic time does not run backwards"
        self._means.append(self._sum / self._count)
        # No observation fell into the skipped buckets; more of them than are kept need not be written.
        skipped = min(bucket - self._bucket - 1, 2 * _BUCKETS_PER_MEAN)
        self._means.extend([self._last] * skipped)
        self._bucket, self._sum, self._count = bucket, 0.0, 0
        return True


def _bound(threshold: float, minimum: float, maximum: float) -> tuple[Kind, float] | None:
    """Return the bound that `threshold` is at, if any. A range of one point is intended and no drift."""
    if minimum >= maximum:
        return None
    if threshold <= minimum:
        return "at_minimum", minimum
    if threshold >= maximum:
        return "at_maximum", maximum
    return None
