"""The course: the record of one operation, step by step, from which its answer is judged."""

from typing import Any, NamedTuple

from tests.simulation.player import Operation


class Course(NamedTuple):
    """One operation. The lists have an item for each of its own steps, unless they say otherwise."""

    operation: Operation
    began: int  # position
    commands: int  # that had been carried out when it began
    made: list[int]  # positions that it entered
    contended: list[bool]  # whether another one held the lock
    pendings: list[Any]  # commands that were pending, after each step of anybody
    words: list[int]  # reasons of an emergency in force
    under_lock: list[int]  # of these, those since its process last had to take the lock
    causes: list[int]  # of an emergency, that there were: before each step and after it
    signed: list[Any]  # what the vitals said of an emergency before it moved, and who
    beats: list[int]  # heartbeats that it wrote
