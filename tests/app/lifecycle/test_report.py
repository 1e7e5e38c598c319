"""The board and the report: whole cells or none, the worst state of the processes that live."""

import os
import time

import pytest

from app.lifecycle.report import REASON_LENGTH_MAX, Board, Cell, ChildReport, Declared, Report
from app.processes.child_table import ChildState, Reason
from shm.process import Identity, identify_self

ME = identify_self()
DEAD = Identity(os.getpid(), 1)  # this pid, of a process that began at another time
DECLARED = Declared("a", "1.0", (), False, "configured", 0.0, "", {"import": 1.0})


def cell(writer: Identity = ME, state: str = "ready", **members: object) -> Cell:
    """Return a cell of this process, or of a dead one."""
    return Cell(*writer, state, 100.0, **members)  # type: ignore[arg-type] # the members of a cell


def test_a_cell_is_read_as_it_was_written() -> None:
    """It reads the same in another process, and no other cell changes."""
    board = Board(["a", "b"], 2)
    written = cell(state="degraded", reason="no disk", phases={"open": 1.5}, running="check", deaths=2)
    pid = os.fork()
    if pid == 0:
        board.write("b", 1, written)
        os._exit(0)
    os.waitpid(pid, 0)

    assert board.read("b", 1) == written
    assert board.cells("b") == [(1, written)]
    assert board.cells("a") == []


def test_a_torn_cell_is_none() -> None:
    """A process that is killed in the middle of writing leaves one."""
    board = Board(["a"], 1)
    board.write("a", 0, cell(reason="x"))
    at = board._map.find(b"x")
    board._map[at] = ord("y")

    assert board.read("a", 0) is None


def test_a_reason_is_cut_so_that_the_cell_fits() -> None:
    """Whatever characters it has."""
    board = Board(["a"], 1)
    board.write("a", 0, cell(reason="𝄞" * 1000, phases={f"phase {number}": 1e9 / 3 for number in range(8)}))
    read = board.read("a", 0)

    assert read is not None
    assert read.reason == "𝄞" * REASON_LENGTH_MAX


def test_a_process_is_looked_up_once_for_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is made on the event loop, and each look reads /proc."""
    asked: list[Identity] = []

    def is_alive(writer: Identity) -> bool:
        asked.append(writer)
        return True

    monkeypatch.setattr(Identity, "alive", property(is_alive))
    board = Board(["a", "b"], 2)
    for module in "ab":
        board.write(module, 0, cell())
        board.write(module, 1, cell(DEAD))
    Report([DECLARED._replace(name=name) for name in "ab"], board).modules()

    assert sorted(asked) == sorted([ME, DEAD])


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        pytest.param(["ready", "ready"], "ready", id="all_ready"),
        pytest.param(["ready", "closed"], "ready", id="one_worker_ends"),
        pytest.param(["ready", "opening"], "opening", id="one_worker_starts"),
        pytest.param(["degraded", "failed", "stuck"], "failed", id="failed_is_worst"),
        pytest.param(["degraded", "stuck"], "stuck", id="stuck_is_worse_than_degraded"),
        pytest.param([], "configured", id="none_yet"),
    ],
)
def test_a_module_has_the_worst_state_of_any_process(states: list[str], worst: str) -> None:
    """Of those that live."""
    board = Board(["a"], 4)
    for holder, state in enumerate(states):
        board.write("a", holder, cell(state=state))
    board.write("a", 3, cell(DEAD, "failed"))

    assert [module.state for module in Report([DECLARED], board).modules()] == [worst]


def test_a_module_that_was_left_out_says_why() -> None:
    """Nothing else is known of it."""
    declared = DECLARED._replace(state="failed", reason="import: no", version="")
    (module,) = Report([declared], Board(["a"], 1)).modules()

    assert (module.state, module.reason, module.version, module.phases) == ("failed", "import: no", "", {"import": 1.0})


def test_a_child_that_is_down_degrades_its_module() -> None:
    """The reason says which, and how it ended; children of others are not shown."""
    board = Board(["a"], 1)
    board.write("a", 0, cell(phases={"open": 2.0}))
    children = {
        "a-x": ChildState(0, 3, "exited", 13),
        "a-migrations": ChildState(0, 1, "finished", 0),
        "b-x": ChildState(0, 1, "killed", -9),
    }
    (module,) = Report([DECLARED], board, lambda: children).modules()

    assert (module.state, module.reason) == ("degraded", "child x is down: exited with status 13")
    assert (module.children, module.load_ms) == (
        [ChildReport("x", False, 3, "exited with status 13"), ChildReport("migrations", False, 1, "finished")], 3.0,
    )  # fmt: skip


def test_since_is_when_the_state_began() -> None:
    """In UTC, RFC 3339."""
    board = Board(["a"], 1)
    board.write("a", 0, cell())
    (module,) = Report([DECLARED], board).modules()

    assert module.since == "1970-01-01T00:01:40.000+00:00"
    assert module.since < time.strftime("%Y")


def test_every_end_of_a_child_has_words() -> None:
    """Whatever the supervisor notes."""
    for reason in Reason:
        name = reason.name.lower()
        words = ChildReport.of("x", ChildState(0, 1, name, -9)).reason

        assert (words == "") == (reason == Reason.NONE)


def test_a_reason_may_hold_any_text() -> None:
    """A lone surrogate, as in an odd file name, is replaced."""
    board = Board(["a"], 1)
    board.write("a", 0, cell(reason="\udcff"))
    read = board.read("a", 0)

    assert read is not None
    assert read.reason == "?"
