"""`mlsdm stat`: what is in the memory of a running server, for the operator who cannot or will not ask it over HTTP.

It finds the blocks that this user may look into, picks the server that is meant, and prints `mlsdm.snapshot` for people
or as JSON, once or again and again. It works while the server answers nobody: it needs no port, no key and no lock,
only the permission to look into the process (the same user, or root).

The text is for reading and may change; programs take --json, whose names are those of the snapshot's fields.

Exit status: 0 seen, and a watch that Ctrl-C ends; 1 there is nothing to see, it is not clear which server is meant, or
what there is cannot be read.
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
from mlsdm.block_snapshot import Snapshot, Worker, is_foreign, look
from shm.block import Block, BlockError, find_blocks

WATCH_SECONDS_MIN: Final = 0.1
_WORDS: Final[dict[str, tuple[str, str]]] = {name: (SENTENCES[bit], REMEDIES[bit]) for bit, name in REASONS.items()}
_DRIFTS: Final = {
    "at_minimum": "the threshold sits at its minimum and cannot fall further",
    "at_maximum": "the threshold sits at its maximum and cannot rise further",
    "mean_moved": "the threshold's ten-minute mean has moved",
}
_CLEAR: Final = "\x1b[H\x1b[2J"  # home, erase: ECMA-48 §8.3.21 and §8.3.39


class StatError(Exception):
    """One sentence for the operator: why there is nothing to see."""


def run(arguments: argparse.Namespace) -> int:
    """Look as the arguments say; return the exit status."""
    try:
        server = _meant(arguments.pid)
        snapshot = server.look()
        while True:
            if arguments.json:
                _print_json(snapshot, pretty=arguments.watch is None)
            else:
                clear = _CLEAR if arguments.watch is not None and sys.stdout.isatty() else ""
                print(clear + "\n".join(lines_of(snapshot)), flush=True)
            if arguments.watch is None:
                return 0 if snapshot.state is not None else 1
            time.sleep(arguments.watch)
            snapshot = server.look()
            if snapshot.abandoned:
                raise StatError(f"the server of process {server.pid} has ended")
    except StatError as error:
        print(f"mlsdm stat: {error}", file=sys.stderr)
        return 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm stat`."""
    parser.add_argument("--pid", type=_pid, help="a process of the server, when several run (any of its processes)")
    parser.add_argument("--json", action="store_true", help="for programs; with --watch one object a line")
    parser.add_argument("--watch", metavar="SECONDS", type=_seconds, help="look again every SECONDS, until Ctrl-C")


class Server(NamedTuple):
    """A server that can be looked into: one of its processes, and its block, mapped read-only."""

    pid: int
    block: Block
    foreign: bool

    def look(self) -> Snapshot:
        """Return what its block holds now."""
        return look(self.block, boot_clock(), foreign=self.foreign)


def _meant(pid: int | None) -> Server:
    """Return the server that `pid` is a process of, or the only one there is. Raises StatError."""
    servers, unusable = [], []
    for holder, link in find_blocks(pid):
        try:
            servers.append(Server(holder, _opened(link), is_foreign(holder)))
        except (BlockError, OSError) as error:
            unusable.append(f"the block of process {holder} cannot be read ({error})")
    living = [server for server in servers if pid is not None or not server.look().abandoned]
    if len(living) == 1:
        return living[0]
    if living:
        raise StatError(
            "several servers run, say which with --pid:\n" + "\n".join(f"  {_line_of(server)}" for server in living)
        )
    if unusable:
        raise StatError("; ".join(unusable))
    raise StatError(_nothing(pid))


def _opened(link: Path) -> Block:
    descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Block.open(descriptor, writable=False)
    finally:
        os.close(descriptor)  # the mapping stays


def _nothing(pid: int | None) -> str:
    if pid is None:
        return "no server is running that this user can look into: become its user or root, and look on its machine"
    directory = Path(f"/proc/{pid}/fd")
    if not directory.exists():
        return f"there is no process {pid}"
    if not os.access(directory, os.R_OK):
        return f"this user may not look into process {pid}: become its user or root"
    return f"process {pid} is not of an mlsdm server: it holds no block"


def _line_of(server: Server) -> str:
    snapshot = server.look()
    pid = snapshot.controller.arbiter_pid if snapshot.controller.arbiter_alive else server.pid
    sizes, total = snapshot.sizes, "?" if snapshot.state is None else f"{snapshot.state.total:,}"
    return (
        f"--pid {pid}: boot {snapshot.boot_id[:8]}, {_span(snapshot.age_seconds)} old, "
        f"{sizes.capacity:,} × {sizes.dimension}, {total} events"
    )


# -- as text and as JSON -----------------------------------------------------------------------------------------------


def lines_of(snapshot: Snapshot) -> Iterator[str]:
    """Yield a snapshot for people: first what is wrong, then a line for each thing to look at."""
    sizes, controller, lock = snapshot.sizes, snapshot.controller, snapshot.lock
    for number, line in enumerate(_troubles(snapshot) or ["nothing is wrong, as far as can be seen from here"]):
        yield f"{'' if number else 'status':12}{line}"
    yield (
        f"boot        {snapshot.boot_id}, {_span(snapshot.age_seconds)} old, layout {snapshot.layout_version}, "
        f"{sizes.block_size / 1e6:,.1f} MB"
    )
    yield from _lines_of_state(snapshot)
    yield (
        f"controller  pid {controller.pid}{_life(controller.alive)}, beat {_beat(controller.heartbeat_age_seconds)}"
        f"; arbiter pid {controller.arbiter_pid}{_life(controller.arbiter_alive)}"
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
        yield f"            {_line_of_worker(worker)}"
    if controller.alive is None:
        yield "note        another pid namespace: its pids are not those of here, and who is alive cannot be told"


def _troubles(snapshot: Snapshot) -> list[str]:
    """Return what is wrong, worst first, each with what to do about it where that is known."""
    emergency, controller = snapshot.emergency, snapshot.controller
    troubles = []
    if emergency.reasons:
        troubles.append(f"EMERGENCY for {_span(emergency.since_seconds or 0)}: events are refused")
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
        troubles.append(f"SILENT: the controller, for {_span(controller.heartbeat_age_seconds or 0)}")
    if controller.arbiter_alive is False:
        troubles.append("NO ARBITER: nobody replaces what dies; its memory ends with the last process")
    living = [worker for worker in snapshot.workers if worker.alive is not False]  # the dead leave their rows behind
    if snapshot.workers and not living:
        troubles.append("NO WORKER: nobody serves")
    silent = [str(worker.pid) for worker in living if worker.heartbeat_age_seconds >= SILENCE_SECONDS]
    if silent:
        troubles.append(f"SILENT: workers {', '.join(silent)}")
    troubles += [f"DRIFT: {_DRIFTS[kind]}" for kind in snapshot.drift]
    return troubles


def _lines_of_state(snapshot: Snapshot) -> Iterator[str]:
    state, sizes = snapshot.state, snapshot.sizes
    if state is None:
        yield f"state       cannot be read, {snapshot.problem}"
        return
    yield (
        f"slots       {state.memories:,} of {sizes.capacity:,} used ({state.memories / sizes.capacity:.1%}), "
        f"{sizes.dimension} dimensions, payload up to {sizes.payload_size_max:,} bytes"
    )
    yield f"events      {state.total:,} = {state.accepted:,} accepted + {state.rejected:,} rejected"
    yield f"threshold   {state.threshold:.12g}, EMA {state.ema:.6g}"
    yield f"phase       {state.phase}, {state.phase_steps_left} steps left, step {state.step:,}"
    yield "levels      " + ", ".join(f"|L{i}| {norm:.6g}" for i, norm in enumerate(state.level_norms, 1))
    yield f"log         position {state.position:,}, oldest {state.log_oldest:,}, room for {sizes.log_capacity:,}"
    yield f"epoch       {state.epoch} of controllers"


def _line_of_worker(worker: Worker) -> str:
    return (
        f"row {worker.row}: pid {worker.pid}{_life(worker.alive)}, {worker.connections:,} connections, "
        f"{worker.requests:,} requests, beat {_beat(worker.heartbeat_age_seconds)}"
    )


def _life(alive: bool | None) -> str:
    return {True: "", False: " DEAD", None: " (?)"}[alive]


def _beat(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds:.2f} s ago" if seconds < SILENCE_SECONDS else f"SILENT for {_span(seconds)}"


def _span(seconds: float) -> str:
    """Return a duration with its two largest units: 3 d 4 h, 5 min 6 s, 7.8 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    first = next(number for number, (_, size) in enumerate(units) if seconds >= size)
    (large, large_size), (small, small_size) = units[first], units[first + 1]
    count, rest = divmod(int(seconds), large_size)
    return f"{count} {large} {rest // small_size} {small}"


def _print_json(snapshot: Snapshot, *, pretty: bool) -> None:
    document = msgspec.json.encode(snapshot)
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
