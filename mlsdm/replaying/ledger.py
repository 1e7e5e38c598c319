"""The decisions of a replay as the client saw them, the report on them, and the comparison with the server's counters.

Owns: the decisions by the row of their event, the latencies, and the .npz file that keeps them. It does not send.
Decisions are reported and saved by sequence number: the server's order, not the order of the answers.

Threading: every sender writes, under the ledger's lock.
"""

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlsdm.replaying.connection import ClientError, Decision, RetryBudget, State

# One row per event; the fields after `event` are those of client.Decision. sequence 0: no decision yet.
DECISION_ROW: Final = np.dtype(
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
assert DECISION_ROW.names is not None
assert Decision._fields == DECISION_ROW.names[1:]


class LedgerError(Exception):
    """One sentence for the operator: why the decisions could not be saved."""


class Ledger:
    """The decisions on `count` events, by the row of their event, and the latency of every answer. Thread-safe."""

    def __init__(self, count: int, offset: int) -> None:
        self.rows: npt.NDArray[Any] = np.zeros(count, DECISION_ROW)
        self.offset = offset  # of row 0 in the file
        self.latencies_seconds: list[float] = []
        self.answered = 0
        self.unknown = 0  # events that were sent and got no usable answer
        self.latest: Decision | None = None  # the highest sequence number so far
        self._lock = threading.Lock()

    def record(self, first: int, decisions: list[Decision], seconds: float) -> None:
        """Record the decisions of one answer, on the events from row `first`; `seconds` is its latency."""
        with self._lock:
            for row, decision in enumerate(decisions, first):
                self.rows[row] = (self.offset + row, *decision)
            self.latencies_seconds.append(seconds)
            self.answered += len(decisions)
            if self.latest is None or decisions[-1].sequence > self.latest.sequence:
                self.latest = decisions[-1]

    def record_unknown(self, count: int) -> None:
        """Record `count` events that were sent and whose outcome is unknown."""
        with self._lock:
            self.unknown += count

    def in_sequence(self) -> npt.NDArray[Any]:
        """Return the decisions, DECISION_ROW[answered], by sequence number."""
        answered: npt.NDArray[Any] = self.rows[self.rows["sequence"] != 0]
        return answered[np.argsort(answered["sequence"], kind="stable")]


def report(ledger: Ledger, seconds: float, connections: int, retry_budget: RetryBudget) -> list[str]:
    """Return the report on a replay that took `seconds` of wall time, as lines."""
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
    if retry_budget.waits:
        lines.append(
            f"throttled   {retry_budget.waits:,} times, "
            f"{retry_budget.waited_seconds:,.0f} s of waiting summed over the connections"
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
    """Compare the server's counters with the answers; return whether they agree, and a sentence.

    A surplus at the server agrees only if the sequence numbers prove it: decisions for others leave gaps between ours.
    Events of unknown outcome would explain a surplus, but do not prove it.
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
    """Write one array per field of DECISION_ROW to exactly `path` (numpy would append .npz).

    Raises LedgerError when the file cannot be written.
    """
    decided = ledger.in_sequence()
    arrays: dict[str, Any] = {name: decided[name] for name in decided.dtype.names or ()}
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}") from None
