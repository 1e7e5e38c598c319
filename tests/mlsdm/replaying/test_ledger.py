"""What the ledger of a replay says about counters that differ. The report and the file are seen in test_replay."""

import pytest

from mlsdm.replaying.connection import Decision, State
from mlsdm.replaying.ledger import DECISION_ROW, Ledger, compare


def ledger_of(*sequences: int) -> Ledger:
    """A ledger of accepted decisions with these sequence numbers."""
    ledger = Ledger(len(sequences), 0)
    for row, sequence in enumerate(sequences):
        ledger.record(row, [Decision(sequence, True, 0.5, 0.5, 0.5, sequence)], 0.001)
    return ledger


@pytest.mark.parametrize(
    ("sequences", "after", "unknown", "agrees", "words"),
    [
        ((1, 2, 3), (3, 3, 0), 0, True, "equals what was seen"),
        ((1, 2, 3), (4, 4, 0), 1, False, "sent without an answer explain it"),
        ((1, 2, 3), (4, 4, 0), 0, False, "no gap in the sequence shows it"),
        ((1, 3, 4), (4, 3, 1), 0, True, "other clients were writing too"),
        ((1, 2, 2), (3, 3, 0), 0, False, "the same sequence number"),
        ((1, 2, 3), (3, 3, 1), 0, False, "its own counters disagree"),
        ((), (0, 0, 0), 0, True, "equals what was seen"),
    ],
)
def test_compare_judges_by_counters_and_sequence_numbers(
    sequences: tuple[int, ...], after: tuple[int, int, int], unknown: int, agrees: bool, words: str
) -> None:
    """A surplus is no failure only when the sequence numbers show whose it is."""
    ledger = ledger_of(*sequences)
    ledger.record_unknown(unknown)

    verdict = compare(State(0, 0, 0, "b"), State(*after, "b"), ledger)

    assert agrees == verdict[0]
    assert words in verdict[1]
    assert ledger.in_sequence().dtype == DECISION_ROW
