"""`mlsdm stat`: prints the state of a running server from its shared memory, without HTTP.

It finds the blocks that this user may read, selects the server, and prints its snapshot (`mlsdm.block_snapshot`) as
text or JSON, once or repeatedly. It works while the server does not answer: it needs no port, no key and no lock, only
the permission to read the process (same user, or root). With it go what the arbiter has recorded
(`app.processes.arbiter_record`), and CPU and memory of each process (`mlsdm.process_usage`).

The text is for people and may change; the names in --json are the fields of the snapshot.

Exit status: 0 nothing is wrong, or Ctrl-C has ended --watch; 1 a problem is printed first, or no state can be printed:
no server, or several without --pid. With --json a document with `problems` is status 0, so that a pipe goes on.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from core.clock import boot_clock
from core.controller.emergency import REASONS, REMEDIES, SENTENCES
from core.heartbeat import SILENCE_SECONDS
from mlsdm.block_snapshot import Arbiter, Snapshot, State, Worker, is_foreign, read_arbiter, take_snapshot
from mlsdm.process_usage import ProcessUsage, UsageMeter
from shm.block import Block, BlockError, find_blocks

WATCH_SECONDS_MIN: Final = 0.1
CPU_SECONDS: Final = 0.2  # over which a single snapshot measures the CPU; the kernel counts in hundredths of a second
JUDGED_EVENTS_MIN: Final = 20  # recent events of which none was accepted, for this to be a problem
_WORDS: Final[dict[str, tuple[str, str]]] = {name: (SENTENCES[bit], REMEDIES[bit]) for bit, name in REASONS.items()}
_DRIFTS: Final = {
    "at_minimum": "the threshold sits at its minimum and cannot fall further",
    "at_maximum": "the threshold sits at its maximum and cannot rise further",
    "mean_moved": "the threshold's ten-minute mean has moved",
}
_CLEAR: Final = "\x1b[H\x1b[2J"  # home, erase: ECMA-48 §8.3.21 and §8.3.39


class StatError(Exception):
    """One sentence for the operator: why no state can be printed."""


def run(arguments: argparse.Namespace) -> int:
    """Print one snapshot, or one per interval; return the exit status."""
    is_first = True
    try:
        server, meter = _select_server(arguments.pid), UsageMeter()
        server.complete_snapshot(meter)  # the CPU is measured from here on
        time.sleep(CPU_SECONDS)
        while True:
            snapshot = server.complete_snapshot(meter)
            if snapshot.abandoned and not is_first:
                raise StatError(f"the server of process {server.pid} has ended")
            is_first = False
            if arguments.json:
                _print_json(snapshot, pretty=arguments.watch is None)
            else:
                clear = _CLEAR if arguments.watch is not None and sys.stdout.isatty() else ""
                print(clear + "\n".join(to_lines(snapshot)), flush=True)
            if arguments.watch is None:
                return 1 if snapshot.state is None or (problem_lines(snapshot) and not arguments.json) else 0
            time.sleep(arguments.watch)
    except StatError as error:
        print(f"mlsdm stat: {error}", file=sys.stderr)
        return 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm stat`."""
    parser.add_argument("--pid", type=_pid, help="any process of the server; needed when several servers run")
    parser.add_argument("--json", action="store_true", help="print JSON for programs; with --watch one object per line")
    parser.add_argument("--watch", metavar="SECONDS", type=_seconds, help="print again every SECONDS, until Ctrl-C")


class Server(NamedTuple):
    """A running server: one of its processes, and its block, mapped read-only."""

    pid: int
    block: Block
    foreign: bool

    def snapshot(self) -> Snapshot:
        """Return a snapshot of its block."""
        return take_snapshot(self.block, boot_clock(), foreign=self.foreign)

    def complete_snapshot(self, meter: UsageMeter) -> Snapshot:
        """Return a snapshot of its block, with the record of its arbiter and the use of its processes."""
        snapshot = self.snapshot()
        controller = snapshot.controller
        pid = controller.arbiter_pid if controller.arbiter_alive else self.pid
        processes = [] if self.foreign or not controller.arbiter_pid else meter.measure(_parts(snapshot), pid)
        return msgspec.structs.replace(snapshot, arbiter=read_arbiter(pid, time.time()), processes=processes)


def _parts(snapshot: Snapshot) -> dict[int, str]:
    """Return which part of the server each of its living processes is, by pid."""
    controller = snapshot.controller
    workers = {worker.pid: f"worker {worker.row}" for worker in snapshot.workers if worker.alive}
    parts = {controller.arbiter_pid: "arbiter", controller.pid: "controller", **workers}
    alive = {controller.arbiter_pid: controller.arbiter_alive, controller.pid: controller.alive}
    return {pid: part for pid, part in parts.items() if alive.get(pid, True)}


def _select_server(pid: int | None) -> Server:
    """Return the server of process `pid`, or the only running server. Raises StatError."""
    servers, unusable = [], []
    for holder, link in find_blocks(pid):
        try:
            servers.append(Server(holder, _open_block(link), is_foreign(holder)))
        except (BlockError, OSError) as error:
            unusable.append(f"the block of process {holder} cannot be read ({error})")
    living = [server for server in servers if pid is not None or not server.snapshot().abandoned]
    if len(living) == 1:
        return living[0]
    if living:
        raise StatError(
            "several servers run; choose one with --pid:\n"
            + "\n".join(f"  {_server_line(server)}" for server in living)
        )
    if unusable:
        raise StatError("; ".join(unusable))
    raise StatError(_why_no_server(pid))


def _open_block(link: Path) -> Block:
    descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Block.open(descriptor, writable=False)
    finally:
        os.close(descriptor)  # the mapping stays


def _why_no_server(pid: int | None) -> str:
    if pid is None:
        return "no server found that this user may read: run this on its machine, as its user or as root"
    directory = Path(f"/proc/{pid}/fd")
    if not directory.exists():
        return f"there is no process {pid}"
    if not os.access(directory, os.R_OK):
        return f"this user may not read process {pid}: run this as its user or as root"
    return f"process {pid} does not belong to an mlsdm server: it maps no block"


def _server_line(server: Server) -> str:
    snapshot = server.snapshot()
    pid = snapshot.controller.arbiter_pid if snapshot.controller.arbiter_alive else server.pid
    sizes, total = snapshot.sizes, "?" if snapshot.state is None else f"{snapshot.state.total:,}"
    return (
        f"--pid {pid}: boot {snapshot.boot_id[:8]}, {_duration_text(snapshot.age_seconds)} old, "
        f"{sizes.capacity:,} × {sizes.dimension}, {total} events"
    )


# -- as text and as JSON -----------------------------------------------------------------------------------------------


def to_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield a snapshot as text: first the problems, then a line per subject."""
    sizes, controller, lock = snapshot.sizes, snapshot.controller, snapshot.lock
    for number, line in enumerate(problem_lines(snapshot) or ["nothing is wrong, as far as can be seen from here"]):
        yield f"{'' if number else 'status':12}{line}"
    yield (
        f"boot        {snapshot.boot_id}, {_duration_text(snapshot.age_seconds)} old, "
        f"layout {snapshot.layout_version}, {sizes.block_size / 1e6:,.1f} MB"
    )
    yield from _state_lines(snapshot)
    yield (
        f"controller  pid {controller.pid}{_alive_suffix(controller.alive)}, "
        f"beat {_heartbeat_text(controller.heartbeat_age_seconds)}; "
        f"arbiter pid {controller.arbiter_pid}{_alive_suffix(controller.arbiter_alive)}"
        if controller.pid
        else "controller  none has begun yet"
    )
    yield (
        f"            {controller.scrubbed:,} slots scrubbed, {controller.torn:,} torn, "
        f"{controller.drift_episodes:,} drifts, {controller.late_steps:,} late steps, "
        f"{snapshot.emergency.episodes:,} emergencies"
    )
    machine = snapshot.machine
    yield (
        f"machine     memory {machine.memory_percent:.1f} %, CPU {machine.cpu_percent:.1f} % "
        f"({machine.cpu_percent_30s:.1f} % over 30 s), disk {machine.disk_percent:.1f} %"
    )
    yield (
        f"lock        {'LOST' if lock.lost else f'held by pid {lock.holder_pid}' if lock.holder_pid else 'free'}; "
        f"{lock.acquisitions:,} acquisitions, {lock.deaths:,} deaths, "
        f"{lock.rollbacks:,} rollbacks, {lock.kills:,} kills"
    )
    yield f"workers     {len(snapshot.workers)} of {sizes.rows} rows"
    for worker in snapshot.workers:
        yield f"            {_worker_line(worker)}"
    if snapshot.arbiter is not None:
        yield from _arbiter_lines(snapshot.arbiter)
    for number, usage in enumerate(snapshot.processes):
        yield f"{'' if number else 'processes':12}{_usage_line(usage)}"
    if controller.alive is None:
        yield "note        another pid namespace: its pids are not those of here, and who is alive cannot be told"


def problem_lines(snapshot: Snapshot) -> list[str]:
    """Return the problems, worst first, each with its remedy where one is known."""
    emergency, controller = snapshot.emergency, snapshot.controller
    troubles = []
    if emergency.reasons:
        troubles.append(f"EMERGENCY for {_duration_text(emergency.since_seconds or 0)}: events are refused")
        troubles += [f"  {name}: {_WORDS[name][0]}; {_WORDS[name][1]}" for name in emergency.reasons]
    if snapshot.state is None:
        troubles.append(f"UNREADABLE: {snapshot.problem}")
    elif snapshot.state.stopped:
        troubles.append("STOPPED by an operator: events are refused; POST /governor/resume")
    if snapshot.lock.lost and "lock" not in emergency.reasons:
        troubles.append(f"LOST: {_WORDS['lock'][0]}; {_WORDS['lock'][1]}")
    troubles += [
        f"OVERRULED by an operator, {name}: {_WORDS[name][0]}, and events are decided" for name in emergency.overruled
    ]
    if controller.alive is False:
        troubles.append("NO CONTROLLER: it has died, and should be back within a second")
    elif controller.pid and (controller.heartbeat_age_seconds or 0) >= SILENCE_SECONDS:
        troubles.append(f"SILENT: the controller, for {_duration_text(controller.heartbeat_age_seconds or 0)}")
    if controller.arbiter_alive is False:
        troubles.append("NO ARBITER: nobody replaces what dies; its memory ends with the last process")
    elif controller.arbiter_stopped:
        troubles.append(
            "ARBITER STOPPED: nobody replaces what dies, and no reload or stop is carried out; "
            f"kill -CONT {controller.arbiter_pid}, or detach its debugger"
        )
    living = [worker for worker in snapshot.workers if worker.alive is not False]  # a dead worker's row stays
    if snapshot.workers and not living:
        troubles.append("NO WORKER: nobody serves")
    silent = [str(worker.pid) for worker in living if worker.heartbeat_age_seconds >= SILENCE_SECONDS]
    if silent:
        troubles.append(f"SILENT: workers {', '.join(silent)}")
    if snapshot.state is not None and (rejecting := _rejecting_line(snapshot.state)):
        troubles.append(rejecting)
    troubles += [f"DRIFT: {_DRIFTS[kind]}" for kind in snapshot.drift]
    arbiter = snapshot.arbiter
    if arbiter is not None and not arbiter.reload_succeeded:
        troubles.append(f"NOT RELOADED: {_reload_text(arbiter)}; the log says why")
    return troubles


def _rejecting_line(state: State) -> str:
    """Return the problem of a server that accepts nothing, "" if it accepts something or has decided too little."""
    recent = state.recent
    if state.stopped or recent.accepted or recent.events < JUDGED_EVENTS_MIN:
        return ""
    said = f"REJECTING: none of the last {recent.events} events was accepted; the threshold is {state.threshold:.12g}"
    if state.threshold > state.threshold_min:
        return f"{said}, and falls until some are, or to {state.threshold_min:.12g}"
    return f"{said}, its lower bound: look at the moral values, or PATCH /governor with a lower min_threshold"


_RELOADS: Final = {
    "succeeded": "succeeded",
    "refused": "was refused: the configuration or the keys file has problems, and the old ones stay",
    "not_booted": "was taken back: the new workers did not start, and the old ones stay",
    "incomplete": "is in force without the children or the governor's settings: send HUP again",
    "failed": "was taken back: a step of it failed",
}


def _reload_text(arbiter: Arbiter) -> str:
    ago = f"{_duration_text(arbiter.last_reload_age_seconds)} ago"
    if not any(arbiter.reloads.values()) and arbiter.reload_succeeded:
        return f"none since the start {ago}"
    return f"the last, {ago}, {_RELOADS[arbiter.last_reload]}"


def _state_lines(snapshot: Snapshot) -> Iterator[str]:
    state, sizes = snapshot.state, snapshot.sizes
    if state is None:
        yield f"state       cannot be read, {snapshot.problem}"
        return
    yield (
        f"slots       {state.memories:,} of {sizes.capacity:,} used ({state.memories / sizes.capacity:.1%}), "
        f"{sizes.dimension} dimensions, payload up to {sizes.payload_size_max:,} bytes"
    )
    yield f"events      {state.total:,} = {state.accepted:,} accepted + {state.rejected:,} rejected"
    recent = state.recent
    yield (
        f"recent      {recent.accepted} of the last {recent.events} events accepted "
        f"({recent.accepted / recent.events:.0%}), within {_duration_text(recent.seconds)}"
        if recent.events
        else "recent      no event"
    )
    yield (
        f"threshold   {state.threshold:.12g}, from {state.threshold_min:.12g} to {state.threshold_max:.12g}; "
        f"EMA {state.ema:.6g}"
    )
    yield f"phase       {state.phase}, {state.phase_steps_left} steps left, step {state.step:,}"
    yield "levels      " + ", ".join(f"|L{i}| {norm:.6g}" for i, norm in enumerate(state.level_norms, 1))
    yield f"log         {snapshot.log_id}"
    yield f"            position {state.position:,}, oldest {state.log_oldest:,}, room for {sizes.log_capacity:,}"
    yield f"epoch       {state.epoch} of controllers"


def _arbiter_lines(arbiter: Arbiter) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {result.replace('_', ' ')}" for result, count in arbiter.reloads.items() if count)
    yield f"reload      {_reload_text(arbiter)}{f' ({counts})' if counts else ''}"
    killed, lost = arbiter.workers_killed, arbiter.log_lines_lost
    yield (
        f"            {killed['stopped']:,} stopped and {killed['stuck']:,} stuck workers killed, "
        f"{'?' if lost is None else f'{lost:,}'} lines of the log lost, since the arbiter's start"
    )


def _usage_line(usage: ProcessUsage) -> str:
    memory = "     ?" if usage.memory_bytes is None else f"{usage.memory_bytes / 1e6:6.1f}"
    return f"{usage.part:<11} pid {usage.pid:<8} CPU {usage.cpu_percent:5.1f} %, memory {memory} MB"


def _worker_line(worker: Worker) -> str:
    return (
        f"row {worker.row}: pid {worker.pid}{_alive_suffix(worker.alive)}, {worker.connections:,} connections, "
        f"{worker.requests:,} requests, beat {_heartbeat_text(worker.heartbeat_age_seconds)}"
    )


def _alive_suffix(alive: bool | None) -> str:
    return {True: "", False: " DEAD", None: " (?)"}[alive]


def _heartbeat_text(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds:.2f} s ago" if seconds < SILENCE_SECONDS else f"SILENT for {_duration_text(seconds)}"


def _duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: 3 d 4 h, 5 min 6 s, 7.8 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    first = next(number for number, (_, size) in enumerate(units) if seconds >= size)
    (large, large_size), (small, small_size) = units[first], units[first + 1]
    count, rest = divmod(int(seconds), large_size)
    return f"{count} {large} {rest // small_size} {small}"


def _print_json(snapshot: Snapshot, *, pretty: bool) -> None:
    document = msgspec.json.encode({**msgspec.structs.asdict(snapshot), "problems": problem_lines(snapshot)})
    print((msgspec.json.format(document, indent=2) if pretty else document).decode(), flush=True)


def _pid(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the id of a process")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not WATCH_SECONDS_MIN <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds from {WATCH_SECONDS_MIN} to 86400")
    return seconds
