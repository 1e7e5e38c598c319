"""The trace: the record of one operation, step by step, from which its answer is judged."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.simulation.player import Operation


class Words(NamedTuple):
    """The emergency fields of the vitals, and the pid of the controller that wrote them."""

    in_force: int
    overruled: int
    since_ns: int
    signer: int  # pid


@dataclass
class Step:
    """One move of the process that carries out an operation."""

    contended: bool  # another process held the lock before it
    held: bool  # its own process held the lock before it
    words: Words  # before it
    causes: int  # causes of an emergency that existed before it
    causes_after: int | None = None  # None until the step was looked at
    made: list[int] = field(default_factory=list)  # positions that it entered
    beat: int | None = None  # the heartbeat that it wrote


@dataclass
class Trace:
    """One operation, its steps, and the commands that were pending after each step of any process."""

    operation: Operation
    began: int  # position
    commands: int  # carried out before it began
    pendings: list[Any]
    steps: list[Step] = field(default_factory=list)

    @property
    def made(self) -> list[int]:
        """The positions that it entered."""
        return [position for step in self.steps for position in step.made]

    @property
    def contended(self) -> bool:
        """Whether another process held the lock before any step."""
        return any(step.contended for step in self.steps)

    @property
    def in_force(self) -> list[int]:
        """The reasons in force before each step."""
        return [step.words.in_force for step in self.steps]

    @property
    def in_force_under_lock(self) -> list[int]:
        """The reasons in force before each step since its process last had to take the lock."""
        taken = max(number for number, step in enumerate(self.steps) if number == 0 or not step.held)
        return self.in_force[taken:]

    @property
    def causes(self) -> list[int]:
        """The causes of an emergency before and after each step."""
        moments = [causes for step in self.steps for causes in (step.causes, step.causes_after)]
        return [causes for causes in moments if causes is not None]

    @property
    def words(self) -> list[Words]:
        """The emergency fields before each step."""
        return [step.words for step in self.steps]

    @property
    def beats(self) -> list[int]:
        """The heartbeats that it wrote."""
        return [step.beat for step in self.steps if step.beat is not None]
