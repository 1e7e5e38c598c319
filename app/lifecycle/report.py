"""The report of the modules: which there are, in which state, since when and why. Every worker answers the same.

Owns: the board, an anonymous shared mapping that the arbiter makes before it forks. Each holder (a worker row; of
migrations the process that runs them) has one cell for each module and is the only writer of its cells.
Invariants: a cell is written whole, with its checksum; a torn cell is read as none. Nothing blocks, nothing grows.
Rejected: a region of the block. Which modules there are changes at a reload; the layout of the block must not.
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.processes.child_table import ChildState
from shm.process import Identity

State = Literal["discovered", "configured", "opening", "ready", "degraded", "failed", "stuck", "closed"]

STATES: Final[tuple[State, ...]] = (
    "discovered", "configured", "opening", "ready", "degraded", "failed", "stuck", "closed",
)  # fmt: skip
USABLE: Final[frozenset[State]] = frozenset({"ready", "degraded"})
CELL_SIZE: Final = 1_024  # bytes
REASON_LENGTH_MAX: Final = 160  # characters; four bytes each at most, so that a cell always fits
_HEAD: Final = struct.Struct("<II")  # length and CRC-32 of what follows
# From best to worst: a module is reported in the worst state that it has in any process.
_SEVERITY: Final[Sequence[State]] = (
    "closed", "discovered", "configured", "ready", "opening", "degraded", "stuck", "failed",
)  # fmt: skip


class Cell(msgspec.Struct, frozen=True, array_like=True):
    """What one process reports of one module. `since` in Unix seconds, `phases` in milliseconds by name."""

    pid: int
    started: int  # with `pid` the identity of the process (`shm.process.Identity`)
    state: State
    since: float
    reason: str = ""
    phases: dict[str, float] = {}
    running: str = ""  # the method of the module that runs now; a process that dies in it leaves its name here
    deaths: int = 0  # processes of this holder that died in a method of the module

    @property
    def writer(self) -> Identity:
        """The process that wrote this cell."""
        return Identity(self.pid, self.started)


class Board:
    """The cells of `names` (the modules) × `holders`."""

    def __init__(self, names: Sequence[str], holders: int) -> None:
        self.names = tuple(names)
        self._holders = holders
        self._map = mmap.mmap(-1, max(1, len(self.names) * holders) * CELL_SIZE)

    def write(self, module: str, holder: int, cell: Cell) -> None:
        """Publish a cell, its reason cut to REASON_LENGTH_MAX characters."""
        reason = cell.reason[:REASON_LENGTH_MAX].encode("utf-8", "replace").decode()  # it may hold lone surrogates
        content = msgspec.msgpack.encode(msgspec.structs.replace(cell, reason=reason))
        at = self._offset(module, holder)
        assert _HEAD.size + len(content) <= CELL_SIZE
        self._map[at : at + _HEAD.size + len(content)] = _HEAD.pack(len(content), zlib.crc32(content)) + content

    def read(self, module: str, holder: int) -> Cell | None:
        """Return a cell; None while it was never written, or is being written."""
        at = self._offset(module, holder)
        length, checksum = _HEAD.unpack_from(self._map, at)
        if not 0 < length <= CELL_SIZE - _HEAD.size:
            return None
        content = self._map[at + _HEAD.size : at + _HEAD.size + length]
        return msgspec.msgpack.decode(content, type=Cell) if zlib.crc32(content) == checksum else None

    def cells(self, module: str) -> list[tuple[int, Cell]]:
        """Return (holder, cell) of each holder that has reported on a module, dead processes included."""
        read = ((holder, self.read(module, holder)) for holder in range(self._holders))
        return [(holder, cell) for holder, cell in read if cell is not None]

    def _offset(self, module: str, holder: int) -> int:
        return (self.names.index(module) * self._holders + holder) * CELL_SIZE


_ENDS: Final = {
    "none": "",
    "exited": "exited with status {status}",
    "killed": "killed by signal {signal}",
    "silent": "killed: it was silent",
    "memory": "killed: it passed its memory limit",
    "replaced": "replaced: its settings changed",
    "superseded": "ended: a newer arbiter has taken over",
    "ended": "ended: no longer configured",
    "finished": "finished",
    "not_started": "the fork failed",
    "slow_start": "killed: it did not start in time",
}


class ChildReport(msgspec.Struct):
    """A supervised process of a module."""

    name: Annotated[str, Meta(examples=["archivist"])]
    up: bool
    starts: Annotated[int, Meta(description="Times that it was started.", ge=0, examples=[1])]
    reason: Annotated[str, Meta(description='Why it last ended; "" while it never has.', examples=[""])] = ""

    @classmethod
    def of(cls, name: str, state: ChildState) -> "ChildReport":
        """Return the report of what the supervisor knows of a child."""
        reason = _ENDS.get(state.reason, state.reason).format(status=state.status, signal=-state.status)
        return cls(name, state.pid != 0, state.starts, reason)

    @property
    def is_missed(self) -> bool:
        """Whether it should run and does not."""
        return not self.up and self.reason != _ENDS["finished"]


class ModuleReport(msgspec.Struct):
    """One module."""

    name: Annotated[str, Meta(examples=["openapi"])]
    version: Annotated[str, Meta(examples=["0.1.0"])]
    state: Annotated[State, Meta(description="The worst state in any process.", examples=["ready"])]
    since: Annotated[str, Meta(description="RFC 3339.", examples=["2026-01-31T12:00:00.000+00:00"])]
    required: Annotated[bool, Meta(description="Whether the server is unready without it.", examples=[False])]
    requires: Annotated[list[str], Meta(description="Modules that are opened before it.", examples=[[]])]
    load_ms: Annotated[float, Meta(description="All phases of the slowest process.", ge=0, examples=[1.5])]
    reason: Annotated[str, Meta(description='Why it is not ready; "" when it is.', examples=[""])]
    phases: Annotated[dict[str, float], Meta(description="Milliseconds by phase.", examples=[{"open": 0.4}])]
    children: list[ChildReport]


class Declared(NamedTuple):
    """What the arbiter found out of a module before the fork. `reason` says why it was left out, else it is ""."""

    name: str
    version: str
    requires: tuple[str, ...]
    required: bool
    state: State
    since: float
    reason: str
    phases: Mapping[str, float]


class Report:
    """The report, as one process reads it."""

    def __init__(
        self,
        declared: Sequence[Declared],
        board: Board,
        children: Callable[[], Mapping[str, ChildState]] = dict,
    ) -> None:
        """`children()` returns every supervised child by name; `<module>-<name>` are those of modules."""
        self._declared = declared
        self._board = board
        self.child_states = children

    @property
    def required(self) -> list[str]:
        """The names of the required modules."""
        return [declared.name for declared in self._declared if declared.required]

    def modules(self) -> list[ModuleReport]:
        """Return every module that the configuration enables, in the order in which they are opened."""
        children = self.child_states()
        is_alive = cache(lambda writer: writer.alive)  # reads /proc: once for each process, not for each cell
        return [self._module(declared, children, is_alive) for declared in self._declared]

    def _module(
        self, declared: Declared, children: Mapping[str, ChildState], is_alive: Callable[[Identity], bool]
    ) -> ModuleReport:
        state, since, reason, phases = declared.state, declared.since, declared.reason, dict(declared.phases)
        if not reason:
            cells = [cell for _, cell in self._board.cells(declared.name) if is_alive(cell.writer)]
            if cells:
                worst = max(cells, key=lambda cell: (_SEVERITY.index(cell.state), sum(cell.phases.values())))
                state, since, reason = worst.state, worst.since, worst.reason
                phases |= worst.phases
        prefix = f"{declared.name}-"
        own = [
            ChildReport.of(name.removeprefix(prefix), child)
            for name, child in children.items()
            if name.startswith(prefix)
        ]
        missed = next((child for child in own if child.is_missed), None)
        if state == "ready" and missed is not None:
            state, reason = "degraded", f"child {missed.name} is down: {missed.reason}"
        return ModuleReport(
            declared.name,
            declared.version,
            state,
            datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds"),
            declared.required,
            list(declared.requires),
            round(sum(phases.values()), 3),
            reason,
            {phase: round(milliseconds, 3) for phase, milliseconds in phases.items()},
            own,
        )


NO_MODULES: Final = Report((), Board((), 0))


class ModulesCollector(Collector):
    """The report as metrics."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield the state of each module, and how long loading it took."""
        modules = self._report.modules()
        states = GaugeMetricFamily("mlsdm_module_state", "1 for the state of a module.", labels=["module", "state"])
        loads = GaugeMetricFamily("mlsdm_module_load_seconds", "Seconds that loading a module took.", labels=["module"])
        for module in modules:
            for state in STATES:
                states.add_metric([module.name, state], int(module.state == state))
            loads.add_metric([module.name], module.load_ms / 1e3)
        yield states
        yield loads
