"""The ledger of a replay: what the server was seen to decide, and what follows from it.

It owns the decisions, by the row of their event, and the latencies; the report made of them; the comparison with the
server's own counters; and the file that keeps them. Written by every sender, under the ledger's lock; it knows nothing
of sending.

Decisions are reported, compared and saved in the order of their sequence numbers, which is the order in which the
server took them, whatever the order in which the answers arrived. Numbers are of what was seen, not of what was meant.
"""

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlsdm.replaying.connection import ClientError, Decision, Patience, State

# One row per event; the fields after `event` are those of client.Decision. sequence 0: no decision yet.
DECIDED: Final = np.dtype(
    [
        ("event", "<i8"),
        ("sequence", "<i8"),
        ("accepted", "?"),
        ("threshold_before", "<f8"),
        ("threshold_after", "<f8"),
        ("ema", "<f8"),
        ("memory_id", "<i8"),
    ]
)
assert DECIDED.names is not None
assert Decision._fields == DECIDED.names[1:]


class LedgerError(Exception):
    """One sentence for the operator: why the decisions could not be saved."""


class Ledger:
    """Every decision on `count` events, by the row of its event, and the latency of every answer. Safe to share."""

    def __init__(self, count: int, offset: int) -> None:
        self.rows: npt.NDArray[Any] = np.zeros(count, DECIDED)
        self.offset = offset  # of row 0 in the file
        self.latencies_seconds: list[float] = []
        self.answered = 0
        self.unknown = 0  # events that were sent and got no usable answer
        self.latest: Decision | None = None  # the highest sequence number so far
        self._lock = threading.Lock()

    def record(self, first: int, decisions: list[Decision], seconds: float) -> None:
        """Enter the decisions on the events from row `first`, which came in one answer after `seconds`."""
        with self._lock:
            for row, decision in enumerate(decisions, first):
                self.rows[row] = (self.offset + row, *decision)
            self.latencies_seconds.append(seconds)
            self.answered += len(decisions)
            if self.latest is None or decisions[-1].sequence > self.latest.sequence:
                self.latest = decisions[-1]

    def lose(self, count: int) -> None:
        """Enter that `count` events were sent, and that what became of them cannot be told."""
        with self._lock:
            self.unknown += count

    def in_sequence(self) -> npt.NDArray[Any]:
        """Return the decisions, DECIDED[answered], in the order in which the server took them."""
        answered: npt.NDArray[Any] = self.rows[self.rows["sequence"] != 0]
        return answered[np.argsort(answered["sequence"], kind="stable")]


def report(ledger: Ledger, seconds: float, connections: int, patience: Patience) -> list[str]:
    """Return what was seen in `seconds` of wall time, as lines."""
    decided = ledger.in_sequence()
    count, requests = len(decided), len(ledger.latencies_seconds)
    sent, asked = count + ledger.unknown, len(ledger.rows)
    of = f" of {asked:,}" if sent < asked else ""
    over = f"over {connections} connection{'s' * (connections != 1)}"
    lines = [f"sent        {sent:,}{of} event{'s' * (asked != 1)} in {seconds:.2f} s {over}"]
    if ledger.unknown:
        lines.append(
            f"unknown     {ledger.unknown:,} of them got no usable answer: they may or may not have been applied"
        )
    if patience.waits:
        lines.append(
            f"throttled   {patience.waits:,} times, "
            f"{patience.waited_seconds:,.0f} s of waiting summed over the connections"
        )
    if not count:
        return lines
    accepted = int(decided["accepted"].sum())
    p50, p95, p99 = np.percentile(ledger.latencies_seconds, (50, 95, 99)) * 1e3
    path = np.concatenate((decided["threshold_before"], decided["threshold_after"]))
    first, last = decided["threshold_before"][0], decided["threshold_after"][-1]
    return [
        *lines,
        f"accepted    {accepted:,} ({accepted / count:.1%})",
        f"rejected    {count - accepted:,} ({1 - accepted / count:.1%})",
        f"rate        {requests / seconds:,.0f} requests/s, {count / seconds:,.0f} events/s",
        f"latency     p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms per request",
        f"threshold   {first:.3f} → {last:.3f}, min {path.min():.3f}, max {path.max():.3f}",
        f"EMA         {decided['ema'][-1]:.6f} last",
    ]


def compare(before: State, after: State | ClientError, ledger: Ledger) -> tuple[bool, str]:
    """Compare what the server counted with what was seen: whether they agree, and the sentence that says so.

    A surplus at the server agrees only if the sequence numbers prove it: decisions of others leave gaps between ours.
    Events of unknown outcome explain a surplus too, but prove nothing.
    """
    decided = ledger.in_sequence()
    if isinstance(after, ClientError):
        return False, f"the counters could not be compared: {after}"
    if before.boot_id != after.boot_id:
        return False, "it was restarted during the replay, so its counters cannot be compared"
    sequences = decided["sequence"]
    accepted = int(decided["accepted"].sum())
    seen = (len(decided), accepted, len(decided) - accepted)
    counted = (after.total - before.total, after.accepted - before.accepted, after.rejected - before.rejected)
    said = f"total {counted[0]:+,}, accepted {counted[1]:+,}, rejected {counted[2]:+,}"
    if len(np.unique(sequences)) != len(sequences):
        return False, f"{said}; it gave the same sequence number to more than one decision"
    if counted == seen:
        return True, f"{said}: equals what was seen"
    said += f", but seen were {seen[0]:,}, {seen[1]:,} and {seen[2]:,}"
    if counted[0] != counted[1] + counted[2]:
        return False, f"{said}: its own counters disagree, for total must be accepted + rejected"
    if any(there < here for there, here in zip(counted, seen, strict=True)):
        return False, f"{said}: it counted less than it answered"
    surplus = counted[0] - seen[0]
    if surplus <= ledger.unknown:
        return False, f"{said}: events that were sent without an answer explain it"
    gaps = int(sequences[-1] - sequences[0]) + 1 - len(sequences) if len(sequences) else 0
    if 0 < gaps <= surplus:
        return True, f"{said}: other clients were writing too ({gaps:,} sequence numbers between these are not ours)"
    return False, f"{said}: other clients may have written just before or after, though no gap in the sequence shows it"


def save(path: Path, ledger: Ledger) -> None:
    """Write one array per field of DECIDED to the very name given (numpy alone would append .npz to it).

    Raises LedgerError when the file cannot be written.
    """
    decided = ledger.in_sequence()
    arrays: dict[str, Any] = {name: decided[name] for name in decided.dtype.names or ()}
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}") from None
