"""The supervisor and its children: real forks of this process. With real servers: test_children.py, test_server.py."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.processes import child_table, supervised_child, supervisor
from app.processes.child import Access, Child, ChildContext
from app.processes.controller_child import controller_child
from app.processes.respawn import BURST, BURST_SECONDS
from app.processes.supervisor import END_SECONDS_MAX, Supervisor
from core.settings.config import Config
from shm import process
from testing.block_fixture import Formed
from testing.eventually import eventually

MB = 1_000_000


class ArbiterLoop:
    """A supervisor on a formed block, whose arbiter's loop is played by `turn`; a controller that only beats."""

    def __init__(self, children: list[Child]) -> None:
        self.formed = Formed()
        self.config = Config()
        self.taken_back = 0
        self.supervisor = Supervisor(
            self.formed.block, [_controller(), *children], lambda: self.config, lambda: None, self._on_taken_back
        )

    def _on_taken_back(self) -> None:
        self.taken_back += 1

    def turn(self) -> None:
        """Do what the arbiter's loop does in one turn."""
        self.supervisor.reap(respawn=True)
        self.supervisor.watch()

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until something holds."""

        def turned() -> object:
            self.turn()
            return condition()

        eventually(turned)

    def pid(self, name: str = "child") -> int:
        """Return the pid of a child, 0 while it does not run."""
        return self.supervisor.states()[name].pid

    def starts(self, name: str = "child") -> int:
        """Return how often a child was started."""
        return self.supervisor.states()[name].starts

    def reason(self, name: str = "child") -> str:
        """Return why a child ended last."""
        return self.supervisor.states()[name].reason

    def close(self) -> None:
        """End the children and close the block."""
        self.supervisor.end()
        assert [state.pid for state in self.supervisor.states().values() if state.pid] == []
        self.formed.close()


RunLoop = Callable[..., ArbiterLoop]


class Clock:
    """The monotonic clock of the supervisor, moved by the test. It stands still while children run."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    @staticmethod
    def sleep(seconds: float) -> None:
        """Wait in real time."""
        time.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the supervisor a clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.fixture
def run_loop() -> Iterator[RunLoop]:
    """Make supervisors whose children are started, and end them afterwards."""
    made: list[ArbiterLoop] = []

    def make(*children: Child) -> ArbiterLoop:
        loop = ArbiterLoop(list(children))
        made.append(loop)
        assert loop.supervisor.spawn()
        return loop

    yield make
    for loop in made:
        loop.close()


def wait_for_end(context: ChildContext) -> int:
    """Run until told to end."""
    while not context.wait(60):
        pass
    return 0


def _controller(
    run: Callable[[ChildContext], int] = wait_for_end, start_seconds: float = 600.0, settings: object = None
) -> Child:
    return Child("controller", run, Access.write("vitals"), 600.0, start_seconds, settings=settings)


def test_a_child_that_beats_lives_and_ends_when_told(run_loop: RunLoop, clock: Clock) -> None:
    """It is a process of its own; told to end it exits with its own status, and is not started again."""
    woken, wake = os.pipe()

    def beat(context: ChildContext) -> int:
        while not context.wait(0.01):
            os.write(wake, b".")
        return 0

    loop = run_loop(Child("child", beat, silence_seconds=1.0))
    pid = loop.pid()
    for _ in range(10):  # five silences
        os.read(woken, 1)
        clock.now += 0.5
        loop.turn()

    assert loop.pid() == pid != os.getpid()
    loop.supervisor.end()
    assert loop.supervisor.states()["child"] == (0, 1, "ended", 0)
    os.close(woken)
    os.close(wake)


@pytest.mark.parametrize(
    ("number", "reason", "status"), [(signal.SIGKILL, "killed", -9), (signal.SIGTERM, "exited", 0)]
)
def test_a_child_that_dies_is_respawned_at_once(
    run_loop: RunLoop, number: signal.Signals, reason: str, status: int
) -> None:
    """In the very turn of the loop that notices its death. A signal right after the fork is not lost."""
    loop = run_loop(Child("child", wait_for_end))
    first = loop.pid()

    os.kill(first, number)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    loop.supervisor.reap(respawn=True)

    assert loop.pid() not in (0, first)
    assert loop.supervisor.states()["child"][1:] == (2, reason, status)


def test_a_child_that_raises_is_logged_with_its_name_and_respawned(run_loop: RunLoop, tmp_path: Path) -> None:
    """An exception ends the child with status 1, never the arbiter."""
    flag = tmp_path / "raised"

    def raise_once(context: ChildContext) -> int:
        if flag.exists():
            return wait_for_end(context)
        flag.touch()
        raise RuntimeError("broken")

    loop = run_loop(Child("child", raise_once))
    loop.until(lambda: loop.starts() == 2)

    assert loop.supervisor.states()["child"][2:] == ("exited", 1)


def test_a_child_that_hangs_is_killed_and_respawned(run_loop: RunLoop, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped or in an endless loop, it does not beat."""

    def hang(context: ChildContext) -> int:
        context.beat()
        signal.pause()
        return 0

    loop = run_loop(Child("child", hang, silence_seconds=0.5))
    first = loop.pid()
    loop.until(lambda: loop.starts() == 2)

    assert loop.reason() == "silent"
    assert f"child pid={first} is silent and is killed" in caplog.text
    assert f"child pid={first} died (status 9) and is respawned" in caplog.text


class SlowStarter:
    """A child that beats and begins to start when the test says so; it may be silent for 1 s, and start for 20 s."""

    def __init__(self, make: RunLoop, clock: Clock, log: pytest.LogCaptureFixture) -> None:
        self._told, self._tell = os.pipe()
        self._done, self._answer = os.pipe()
        self._clock = clock
        self._log = log
        self.loop = make(Child("child", self._run, silence_seconds=1.0, start_seconds=20.0))

    def _run(self, context: ChildContext) -> int:
        while True:
            getattr(context, os.read(self._told, 64).decode())()
            os.write(self._answer, b".")

    def tell(self, method: str) -> None:
        """Have it call a method of its context, and the arbiter check it."""
        assert "is killed" not in self._log.text
        os.write(self._tell, method.encode())
        os.read(self._done, 1)
        self.loop.turn()

    def seconds_until_killed(self) -> float:
        """Move the clock from check to check until it is killed; return for how long."""
        assert "is killed" not in self._log.text
        began, pid = self._clock.now, self.loop.pid()
        while "is killed" not in self._log.text:
            self._clock.now += self.loop.supervisor.seconds_to_next_check()
            self.loop.supervisor.watch()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.loop.supervisor.reap(respawn=False)
        for end in (self._told, self._tell, self._done, self._answer):
            os.close(end)
        return self._clock.now - began


def test_silence_counts_from_the_first_beat_on(
    run_loop: RunLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A child that loads something for longer than it may be silent lives; from then on its silence is limited."""
    starter = SlowStarter(run_loop, clock, caplog)
    for _ in range(19):
        clock.now += 1
        starter.loop.turn()
    starter.tell("beat")

    assert 1.0 <= starter.seconds_until_killed() <= 1.3
    assert (starter.loop.starts(), starter.loop.reason()) == (1, "silent")


@pytest.mark.parametrize("beats", [False, True], ids=["at once", "after it has waited"])
def test_a_child_that_never_beats_is_killed_after_its_start(
    run_loop: RunLoop, clock: Clock, caplog: pytest.LogCaptureFixture, beats: bool
) -> None:
    """A child that had to beat before it could start tells when it begins."""
    starter = SlowStarter(run_loop, clock, caplog)
    if beats:
        starter.tell("beat")
        starter.tell("begin_start")
    pid = starter.loop.pid()

    assert 20.0 <= starter.seconds_until_killed() <= 23.0
    assert starter.loop.reason() == "slow_start"
    assert f"child pid={pid} has not started within 20 s and is killed" in caplog.text


def test_a_controller_that_does_not_start_is_killed(
    run_loop: RunLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat that its predecessor has left in the block is not its own."""
    loop = run_loop()
    loop.formed.block.region("vitals").heartbeat_ns = 5
    replaced = _controller(wait_for_end, start_seconds=2.0, settings="other")
    loop.supervisor.reload([replaced])
    loop.until(lambda: loop.starts("controller") == 2)
    began, pid = clock.now, loop.pid("controller")

    while "is killed" not in caplog.text:
        clock.now += loop.supervisor.seconds_to_next_check()
        loop.supervisor.watch()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    loop.supervisor.reap(respawn=False)

    assert 2.0 <= clock.now - began <= 2.5
    assert loop.reason("controller") == "slow_start"


def test_a_child_that_outgrows_its_limit_is_killed_and_respawned(
    run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anonymous memory counts; the page cache and shared memory do not."""
    monkeypatch.setattr(supervised_child, "MEMORY_CHECK_SECONDS", 0.05)
    limit = psutil.Process().memory_info().rss + 100 * MB

    def grow(context: ChildContext) -> int:
        held = bytearray(b"x") * (limit + 100 * MB)
        wait_for_end(context)
        return len(held)

    loop = run_loop(Child("child", grow, memory_size_max=limit), Child("small", wait_for_end, memory_size_max=limit))
    loop.until(lambda: loop.starts() == 2)

    assert loop.reason() == "memory"
    assert loop.supervisor.states()["small"][1:] == (1, "none", 0)


def test_a_child_that_exits_at_once_is_started_after_growing_delays(run_loop: RunLoop, clock: Clock) -> None:
    """At once after the first death, then after 0.1 s, doubled up to 30 s; after a minute of life, at once again."""
    loop = run_loop(Child("child", lambda _context: 0))
    delays = []
    for _ in range(12):
        os.waitid(os.P_PID, loop.pid(), os.WEXITED | os.WNOWAIT)
        died = clock.now
        loop.supervisor.reap(respawn=True)
        while not loop.pid():
            clock.now += loop.supervisor.seconds_to_next_check()
            loop.supervisor.watch()
        delays.append(round(clock.now - died, 3))

    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    os.waitid(os.P_PID, loop.pid(), os.WEXITED | os.WNOWAIT)
    clock.now += 60
    loop.supervisor.reap(respawn=True)
    assert loop.pid()


def test_a_child_that_runs_once_is_finished_by_status_0_only(run_loop: RunLoop, clock: Clock, tmp_path: Path) -> None:
    """A migration that fails is tried again; one that is done is done, and only the controller is checked."""
    flag = tmp_path / "failed"

    def fail_once(_context: ChildContext) -> int:
        done = flag.exists()
        flag.touch()
        return 0 if done else 3

    loop = run_loop(Child("child", fail_once, once=True))
    loop.until(lambda: loop.reason() == "finished")
    for _ in range(20):
        loop.turn()

    assert loop.supervisor.states()["child"] == (0, 2, "finished", 0)
    clock.now += 0.25
    assert loop.supervisor.seconds_to_next_check() == 0.75


def test_a_reload_replaces_children_whose_settings_differ_only(
    run_loop: RunLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """The new one starts when the old one is gone; new names are started, missing ones ended and forgotten."""
    loop = run_loop(
        Child("same", wait_for_end, settings=[1]), Child("child", wait_for_end), Child("gone", wait_for_end)
    )
    same, changed = loop.pid("same"), loop.pid()

    loop.supervisor.reload(
        [_controller(), Child("same", wait_for_end, settings=[1]), Child("child", wait_for_end, settings=2),
         Child("new", wait_for_end)]
    )  # fmt: skip
    loop.until(lambda: loop.pid() not in (0, changed) and "gone" not in loop.supervisor.states())

    assert loop.pid("same") == same
    assert loop.pid("new")
    assert loop.supervisor.states()["child"][1:] == (2, "replaced", 0)
    assert "died" not in caplog.text


def test_a_reload_may_replace_a_full_table(run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new children start when the old ones have given their records back; none is forgotten."""
    monkeypatch.setattr(child_table, "CHILDREN_MAX", 4)
    loop = run_loop(*(Child(f"old{number}", wait_for_end) for number in range(2)))

    loop.supervisor.reload([_controller(), *(Child(f"new{number}", wait_for_end) for number in range(3))])
    new = {"controller", "new0", "new1", "new2"}
    loop.until(lambda: loop.supervisor.states().keys() == new and all(map(loop.pid, new)))


def test_a_reload_does_not_wait_for_a_child_that_does_not_end(run_loop: RunLoop, clock: Clock) -> None:
    """It is killed when it is late; until then there is no second one."""

    deaf, tell = os.pipe()

    def defy(context: ChildContext) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(tell, b".")
        while True:
            context.beat()
            time.sleep(0.01)

    loop = run_loop(Child("child", defy))
    first = process.identify(loop.pid())
    os.read(deaf, 1)

    loop.supervisor.reload([_controller(), Child("child", wait_for_end, settings="other")])
    clock.now += 0.9 * END_SECONDS_MAX
    loop.turn()
    assert loop.pid() == first.pid
    assert first.alive
    clock.now += 0.2 * END_SECONDS_MAX
    loop.until(lambda: loop.pid() not in (0, first.pid))

    assert loop.supervisor.states()["child"][1:] == (2, "replaced", -signal.SIGKILL)
    os.close(deaf)
    os.close(tell)


def test_a_child_that_gunicorn_reaped_first_is_respawned(run_loop: RunLoop) -> None:
    """Its status is lost; that it has died is not."""
    loop = run_loop(Child("child", wait_for_end))
    first = loop.pid()

    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    loop.turn()

    assert loop.pid() not in (0, first)


def test_a_failed_fork_is_tried_again(run_loop: RunLoop, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """The machine may have processes again later; the arbiter goes on."""
    fork, refused = os.fork, 3

    def fork_or_refuse() -> int:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise BlockingIOError("no more processes")
        return fork()

    loop = run_loop()
    monkeypatch.setattr(os, "fork", fork_or_refuse)
    loop.supervisor.reload([_controller(), Child("child", wait_for_end)])
    assert (loop.pid(), loop.reason()) == (0, "not_started")
    for _ in range(3):
        clock.now += loop.supervisor.seconds_to_next_check()
        loop.turn()

    assert loop.pid()


def test_a_reload_starts_a_child_in_its_back_off(run_loop: RunLoop) -> None:
    """Other settings start it at once."""
    loop = run_loop(Child("child", lambda _context: 1))
    loop.until(lambda: loop.starts() > 5)
    loop.until(lambda: not loop.pid())

    loop.supervisor.reload([_controller(), Child("child", wait_for_end, settings="other")])

    assert loop.pid()


def test_nothing_is_started_in_a_server_that_stops(run_loop: RunLoop) -> None:
    """Not a child that dies meanwhile, and not one in its back-off."""
    loop = run_loop(Child("child", wait_for_end), Child("failing", lambda _context: 1))
    loop.until(lambda: loop.starts("failing") > 3 and not loop.pid("failing"))

    os.kill(loop.pid(), signal.SIGKILL)
    os.waitid(os.P_PID, loop.pid(), os.WEXITED | os.WNOWAIT)
    loop.supervisor.reap(respawn=False)
    assert loop.pid() == 0
    loop.supervisor.end()

    assert loop.starts() == 1


def test_children_without_access_cannot_read_the_block_and_readers_cannot_write_it(
    run_loop: RunLoop,
) -> None:
    """The kernel kills a child that tries; a reader's facade works."""
    loop: ArbiterLoop

    def read(_context: ChildContext) -> int:
        faulthandler.disable()  # pytest's would print the stack
        return loop.formed.block.memory[0] & 0

    def write(_context: ChildContext) -> int:
        faulthandler.disable()
        loop.formed.block.memory[0] = 0
        return 0

    def follow(context: ChildContext) -> int:
        assert context.memory is not None
        return int(context.memory.state().accepted + 40) if context.memory.position else 1

    loop = ArbiterLoop([])
    loop.formed.accept()
    loop.formed.accept()
    loop.supervisor.reload(
        [_controller(), Child("none", read), Child("writer", write, Access.READ), Child("reader", follow, Access.READ)]
    )
    loop.until(lambda: all(loop.reason(name) != "none" for name in ("none", "writer", "reader")))

    states = loop.supervisor.states()
    assert [states[name].status for name in ("none", "writer", "reader")] == [-signal.SIGSEGV, -signal.SIGSEGV, 42]
    loop.close()


def test_what_cannot_be_kept_is_refused() -> None:
    """Columns that do not exist, invalid names and limits, and two children with one name."""
    for bad in (
        {"name": "Two Words"},
        {"name": "x", "silence_seconds": 0.4},
        {"name": "x", "silence_seconds": float("nan")},
        {"name": "x", "start_seconds": 0.4},
        {"name": "x", "start_seconds": 601},
        {"name": "x", "memory_size_max": -1},
    ):
        with pytest.raises(ValueError, match="expected"):
            Child(run=wait_for_end, **bad)
    with pytest.raises(ValueError, match="nonsense"):
        Access.write("vitals", "nonsense")
    with pytest.raises(ValueError, match="same name"):
        ArbiterLoop([Child("twice", wait_for_end), Child("twice", wait_for_end)])


# -- the controller --------------------------------------------------------------------------------------------------


def test_many_checks_after_a_freeze_are_no_silence(run_loop: RunLoop, clock: Clock) -> None:
    """The arbiter stood still, too, and is woken by each of its children that went on; only then does time count."""

    def pause(_context: ChildContext) -> int:
        signal.pause()
        return 0

    loop = run_loop(Child("child", pause, start_seconds=1.0))
    child = process.identify(loop.pid())
    loop.supervisor.watch()
    clock.now += 5
    for _ in range(100):
        clock.now += 0.001
        loop.supervisor.watch()
    assert child.alive
    for _ in range(10):
        clock.now += loop.supervisor.seconds_to_next_check()
        loop.supervisor.watch()

    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not child.alive


def test_a_stopped_child_is_killed_after_its_silence_and_no_earlier(run_loop: RunLoop) -> None:
    """By the real clock."""
    beaten, tell = os.pipe()

    def beat_once(context: ChildContext) -> int:
        before = time.monotonic()
        context.beat()
        os.write(tell, str(before).encode())
        signal.pause()
        return 0

    loop = run_loop(Child("child", beat_once, silence_seconds=1.0))
    beat = float(os.read(beaten, 64))
    os.kill(loop.pid(), signal.SIGSTOP)
    loop.until(lambda: loop.starts() == 2)

    assert loop.reason() == "silent"
    assert time.monotonic() - beat > 1.0
    os.close(beaten)
    os.close(tell)


def test_a_controller_that_cannot_live_is_respawned_five_times_a_second(clock: Clock) -> None:
    """At once while there were fewer within a second, and then no sooner than that second is over, at each check."""
    formed, config = Formed(), Config()
    loop = Supervisor(formed.block, [_controller(lambda _context: 1)], lambda: config, lambda: None, lambda: None)

    def starts_until_rest() -> int:
        before = loop.states()["controller"].starts
        while pid := loop.states()["controller"].pid:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            loop.reap(respawn=True)
        return loop.states()["controller"].starts - before

    loop.spawn()
    assert 1 + starts_until_rest() == BURST
    for _ in range(100):
        loop.watch()
    assert starts_until_rest() == 0
    clock.now += BURST_SECONDS
    loop.watch()
    assert 1 + starts_until_rest() == BURST
    formed.close()


def test_children_of_a_superseded_arbiter_end_and_come_back_with_its_controller(
    run_loop: RunLoop,
) -> None:
    """Two arbiters on one block: the real controllers decide, by their epochs, which one has children."""
    formed, config = Formed(), Config(dimension=16, capacity=50)
    taken_back: list[int] = []
    child = Child("child", wait_for_end)
    old = Supervisor(
        formed.block, [controller_child(formed.block, config), child], lambda: config, lambda: None,
        lambda: taken_back.append(1),
    )  # fmt: skip
    assert old.spawn()
    eventually(lambda: formed.block.region("vitals").arbiter_pid == os.getpid())
    first = old.states()["child"].pid

    newer = os.fork()
    if newer == 0:
        try:
            supervised = Supervisor(
                formed.block, [controller_child(formed.block, config), child], lambda: config, lambda: None,
                lambda: None,
            )  # fmt: skip
            supervised.spawn()
            while True:
                signal.pause()
        finally:
            os._exit(1)

    def turned(condition: Callable[[], object]) -> None:
        def turn() -> object:
            old.reap(respawn=True)
            old.watch()
            return condition()

        eventually(turn)

    turned(lambda: old.states()["child"].pid == 0)
    assert old.superseded
    assert (old.states()["child"].reason, old.states()["controller"].status) == ("superseded", 9)
    eventually(lambda: formed.block.region("vitals").arbiter_pid == newer)
    for _ in range(20):
        old.watch()
    assert old.states()["child"].pid == 0
    os.kill(newer, signal.SIGKILL)
    os.waitpid(newer, 0)

    turned(lambda: old.states()["child"].pid and old.states()["controller"].pid)

    assert old.states()["child"].pid != first
    assert taken_back == [1]
    old.end()
    formed.close()
