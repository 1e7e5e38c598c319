"""A history of concurrent clients, checked for linearizability: one sequential order must explain every answer.

Every answer carries a log position, so no search is needed. `violations` runs the reference model (governor, rhythm,
cascade) along the decisions by sequence number and compares every answer. A read must equal the model's state at its
position. The order must agree with real time: a decision comes after everything acknowledged before it was sent, and
no read is older.

For servers whose rhythm steps with decisions (`cognitive_rhythm.clock: events`), without other writers, in the default
regime: then the answers alone determine everything.
"""

from bisect import bisect_right
from typing import Final, NamedTuple

import msgspec
import numpy as np

from core.phases import PHASE_NAMES
from core.reference.governor import Governor
from core.reference.rhythm import Rhythm
from core.reference.synapse import Synapse
from core.reference.vector import norm
from core.regime import Regime
from core.settings.config import Config

SENTENCES_MAX: Final = 5  # per kind; the rest is counted


class DecisionAnswer(msgspec.Struct):
    """The compared members of a decision."""

    accepted: bool
    sequence: int
    moral_value: float
    threshold_before: float
    moral_filter_threshold: float
    ema: float
    current_phase: str
    position: int
    memory_id: int = 0


class StateAnswer(msgspec.Struct):
    """The compared members of the state."""

    L1_norm: float
    L2_norm: float
    L3_norm: float
    current_phase: str
    latent_events_count: int
    accepted_events_count: int
    total_events_processed: int
    moral_filter_threshold: float
    ema: float
    memory_used: int
    step: int
    position: int


class Write(NamedTuple):
    """Events that were decided by one request. Times are monotonic, in ns."""

    sent_ns: int
    answered_ns: int
    vectors: list[bytes]  # float32[D] each
    decisions: list[DecisionAnswer]


class StateRead(NamedTuple):
    """A state that was read."""

    sent_ns: int
    answered_ns: int
    state: StateAnswer


class RecallRead(NamedTuple):
    """What recall found nearest to the vector of memory `own`, which its writer knew to be accepted."""

    sent_ns: int
    answered_ns: int
    own: int
    found: int  # 0 for nothing
    as_of: int


class History(NamedTuple):
    """All answers to all clients."""

    written: list[Write]
    state_reads: list[StateRead]
    recalls: list[RecallRead]


def violations(history: History, dimension: int, capacity: int) -> list[str]:
    """Return a sentence for each answer that no sequential run explains."""
    return [
        *_first(_sequence_violations(history)),
        *_first(_reference_violations(history, dimension, capacity)),
        *_first(_real_time_violations(history)),
    ]


def _first(sentences: list[str]) -> list[str]:
    more = len(sentences) - SENTENCES_MAX
    return sentences[:SENTENCES_MAX] + ([f"and {more} more like these"] if more > 0 else [])


def _in_order(history: History) -> list[tuple[DecisionAnswer, bytes]]:
    """Return every decision with its vector, by sequence number."""
    pairs = [pair for one in history.written for pair in zip(one.decisions, one.vectors, strict=True)]
    return sorted(pairs, key=lambda pair: pair[0].sequence)


def _sequence_violations(history: History) -> list[str]:
    """Return violations of the order: sequence numbers have no gap and no duplicate, and positions rise with them."""
    wrong: list[str] = []
    last = 0
    for number, (decision, _) in enumerate(_in_order(history), 1):
        if decision.sequence != number:
            return [
                *wrong,
                f"decision {number} of all that were acknowledged has the sequence number {decision.sequence}",
            ]
        if decision.position <= last:
            wrong.append(f"decision {number} is at position {decision.position}, the one before it at {last}")
        last = decision.position
    return wrong


def _reference_violations(history: History, dimension: int, capacity: int) -> list[str]:
    """Run the reference along the decisions; compare each decision, and each read at its position."""
    wrong: list[str] = []
    regime = Regime.of(Config())
    settings, cascade, steps = regime.governor, regime.synapse, regime.rhythm._replace(by_events=True)
    governor, rhythm, levels, accepted = (
        Governor.initial(settings),
        Rhythm.initial(steps),
        Synapse.initial(dimension),
        0,
    )
    decisions = _in_order(history)
    state_reads = sorted(history.state_reads, key=lambda one: one.state.position)
    positions, accepted_by = [decision.position for decision, _ in decisions], [0]
    seen = 0
    for number in range(len(decisions) + 1):
        until = positions[number] if number < len(decisions) else float("inf")
        while seen < len(state_reads) and state_reads[seen].state.position < until:
            shown = state_reads[seen].state
            l1, l2, l3 = (norm(level) for level in levels)
            expected = StateAnswer(
                l1,
                l2,
                l3,
                PHASE_NAMES[rhythm.phase],
                number - accepted,
                accepted,
                number,
                governor.theta,
                governor.ema,
                min(accepted, capacity),
                rhythm.step,
                shown.position,
            )
            if shown != expected:
                wrong.append(f"the state read at {shown.position} is {shown}; expected {expected}")
            seen += 1
        if number == len(decisions):
            break
        decision, vector = decisions[number]
        before, phase = governor.theta, PHASE_NAMES[rhythm.phase]
        taken, governor = governor.decide(decision.moral_value, settings)
        accepted += taken
        accepted_by.append(accepted)
        if taken:
            levels = levels.after_run(np.frombuffer(vector, np.float32), cascade)
        if rhythm.runs_cascade(steps):
            levels = levels.after_run(None, cascade)
        rhythm = rhythm.after_step(steps)
        due = DecisionAnswer(
            taken, decision.sequence, decision.moral_value, before, governor.theta, governor.ema, phase,
            decision.position, accepted if taken else 0,
        )  # fmt: skip
        if decision != due:
            wrong.append(f"decision {decision.sequence} is {decision}; expected {due}")
    for one in history.recalls:
        newest = accepted_by[bisect_right(positions, one.as_of)]
        lives = newest - capacity < one.own <= newest
        if (one.found == one.own) != lives:
            wrong.append(f"recall as of {one.as_of} found {one.found} for memory {one.own}; the newest was {newest}")
    return wrong


def _real_time_violations(history: History) -> list[str]:
    """Return violations of real time: a result must not precede one that was acknowledged before it was requested."""
    # (sent, answered, first position, last position, name, 1 if it must be strictly later)
    answers = [
        (one.sent_ns, one.answered_ns, one.decisions[0].position, one.decisions[-1].position, "a decision", 1)
        for one in history.written
    ]
    answers += [
        (one.sent_ns, one.answered_ns, one.state.position, one.state.position, "a state", 0)
        for one in history.state_reads
    ]
    answers += [(one.sent_ns, one.answered_ns, one.as_of, one.as_of, "a recall", 0) for one in history.recalls]
    by_known = sorted((known, last) for _, known, _, last, _, _ in answers)
    known = np.array([moment for moment, _ in by_known], np.int64)
    newest = np.maximum.accumulate(np.array([0] + [last for _, last in by_known], np.int64))
    wrong = []
    for sent, _, first, _, called, strictly in answers:
        floor = int(newest[np.searchsorted(known, sent, side="left")])
        if first < floor + strictly:
            wrong.append(f"{called} stands at position {first}, asked for when position {floor} was acknowledged")
    return wrong
