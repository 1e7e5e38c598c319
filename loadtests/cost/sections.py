"""Lengths of the sections: how long each native call holds the lock: `python -m loadtests.cost.sections`.

    python -m loadtests.cost.sections --check
    python -m loadtests.cost.sections --dimension 1536 --payload 16384

One process makes every call that enters the section, on a full store, `--times` times. The lock record measures one
section of 64 (`lock_hold_ns` of a row); this program sets its counter before each call so that the next section is
measured. Of a call that enters the section several times the first one counts. Recalls are also made while another
process admits without pause.

The machine stops any process now and then, also in the section: the longest of some thousands belongs to the machine.
So the bound holds for p99. With --check the exit status is 1 if a p99 is above it; the rebuild of the caches is exempt.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from core.namespaces import Policy, Terms
from core.phases import phase_masks
from core.regime import Regime, RhythmSettings
from core.settings.config import Config
from loadtests.bench import report, vectors
from shm.event import Event, NamespaceId
from shm.layout import Layout
from shm.recall import Recall
from shm.records import changed_of, new_idempotency_hash, new_vitals
from shm.store import ROWS_PER_READ
from testing.block_fixture import Formed, begin, end

BOUND_US: Final = 20.0
SAMPLED: Final = 64  # sections of which one is measured
CALLS_MAX: Final = 20  # for each section that is to be measured: under writes the other process takes most samples
TERMS: Final = Terms(policy=Policy(Regime.of(Config()).governor))
REBUILD: Final = "rebuild of the caches"
_EVER: Final = 1 << 40


class Kind(NamedTuple):
    """A kind of section: its name, the call number `i` that enters it, and what has to happen before that call."""

    name: str
    call: Callable[[int], object]
    prepare: Callable[[int], object] = lambda _: None


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cost.sections", description="Measure how long each native call holds the lock."
    )
    parser.add_argument("--times", type=int, default=2_000, help="calls of each kind (default 2,000)")
    parser.add_argument("--capacity", type=int, default=20_000, help="memories (default 20,000)")
    parser.add_argument("--dimension", type=int, default=384, help="of the vectors (default 384)")
    parser.add_argument("--payload", type=int, default=1024, help="bytes of each payload (default 1,024)")
    parser.add_argument("--check", action="store_true", help=f"fail if a p99 is above {BOUND_US:g} µs")
    args = parser.parse_args(arguments)
    if args.times < 1:
        parser.error(f"--times is {args.times}: expected 1 or more")
    bench = Bench(args.capacity, args.dimension, args.payload)
    print(f"{report.machine()}; {args.capacity:,} × {args.dimension}, payloads of {args.payload:,} bytes\n")
    print("| section | measured | p50 µs | p99 µs | max µs |\n|---|---:|---:|---:|---:|")
    above = []
    for kind in bench.kinds():
        lengths = np.sort(bench.measure(kind, 20 if kind.name == REBUILD else args.times))
        p50, p99 = np.percentile(lengths, (50, 99))
        print(f"| {kind.name} | {len(lengths):,} | {p50:.2f} | {p99:.2f} | {lengths[-1]:.1f} |", flush=True)
        if p99 > BOUND_US and kind.name != REBUILD:
            above.append(kind.name)
    if above:
        print(f"\nabove {BOUND_US:g} µs: {', '.join(above)}")
    return 1 if above and args.check else 0


class Bench:
    """A full store, of which this process owns row 0 and is the controller."""

    def __init__(self, capacity: int, dimension: int, payload_size: int) -> None:
        regime = Regime.of(Config(dimension=dimension))._replace(rhythm=RhythmSettings(3, 3, True, False))
        layout = Layout(dimension, capacity, payload_size, 65_536, 2, 32_768)
        self.formed, self.regime = Formed(layout, regime), regime
        self.store, self.now = self.formed.store, self.formed.now
        self.vectors = [vector.astype("<f4").tobytes() for vector in _memories(dimension)]
        self.payload = b"x" * payload_size
        self.recall = Recall(self.formed.block)
        self.newest = 0
        created = changed_of(self.store.create_namespace(self.now(), TERMS.to_record("measured")))
        self.namespace = NamespaceId(created.namespace, created.terms.generation)
        for number in range(capacity):
            self.admit(number)

    def measure(self, kind: Kind, times: int) -> list[float]:
        """Return the lengths in µs of `times` sections, fewer if another process takes nearly all samples."""
        lock, row = self.formed.block.region("lock"), self.formed.block.region("rows", 0)
        lengths = []
        for i in range(CALLS_MAX * times):
            kind.prepare(i)
            lock.acquisitions += SAMPLED - 1 - lock.acquisitions % SAMPLED
            count, total = row.lock_holds, row.lock_hold_ns
            kind.call(i)
            if row.lock_holds == count + 1:  # not if another process was faster
                lengths.append((row.lock_hold_ns - total) / 1000)
            if len(lengths) == times:
                break
        return lengths

    def kinds(self) -> Iterator[Kind]:
        """Yield each kind of section. The store is full before each call of the first ones."""
        store, now, vectors, block = self.store, self.now, self.vectors, self.formed.block
        yield Kind("event, accepted, evicts", self.admit)
        yield Kind("event, accepted, no payload", lambda i: self.admit(i, payload=b""))
        yield Kind("event, rejected", lambda i: store.admit(now(), 0.0, vectors[i % len(vectors)], self.payload))
        yield Kind("event with a key", lambda i: self.admit(i, key=i + 1))
        yield Kind("event with a key, repeated", lambda i: self.admit(i, key=i + 1))
        yield Kind("event that supersedes", self._supersede)
        yield Kind("update of a payload", lambda _: store.update(now(), self.newest, self.payload))
        yield Kind("deletion", lambda _: store.forget(now(), self.newest), prepare=self.admit)
        epoch = self.formed.epoch
        yield Kind("tick, awake or asleep", lambda _: store.tick(now(), epoch))
        yield Kind("command, posted", self._post, prepare=self._carry_out)
        yield Kind("command, carried out", self._carry_out, prepare=self._post)
        vitals = new_vitals()
        yield Kind("vitals", lambda _: store.write_vitals(epoch, vitals))
        yield Kind("repair of a slot", lambda i: store.repair_slot(i % block.layout.slots))
        yield Kind("check of 32 links", lambda i: store.repair_links(32 * i % (block.layout.slots - 32), 32))
        yield Kind("memory that is not lost", lambda _: store.lose(now(), self.newest), prepare=self.admit)
        yield Kind(f"check of {ROWS_PER_READ} namespaces", lambda _: store.repair_namespaces(0, ROWS_PER_READ))
        yield Kind("namespace, changed", lambda _: store.change_namespace(now(), self.namespace, TERMS.to_record()))
        yield Kind("event of an own governor", self._admit_own)
        yield Kind("repair of a chain", lambda i: store.repair_chain(i % block.layout.receipt_capacity))
        for k in (10, 100):
            yield Kind(f"recall, {k} matches", partial(self.nearest, k, False))
            yield Kind(f"recall, {k} matches with all", partial(self.nearest, k, True))
        writer = begin(self._write)
        time.sleep(0.1)
        for k in (10, 100):
            yield Kind(f"recall, {k} matches with all, under writes", partial(self.nearest, k, True))
        end(writer)
        yield Kind(REBUILD, self._rebuild)

    def admit(self, number: int, payload: bytes | None = None, key: int = 0) -> None:
        """Admit an event that is accepted."""
        hashed = (new_idempotency_hash((key, key), 1),) if key else ()
        given = self.payload if payload is None else payload
        decided = self.store.admit(self.now(), 1.0, self.vectors[number % len(self.vectors)], given, *hashed)
        self.newest = max(self.newest, decided.memory_id)

    def nearest(self, k: int, is_whole: bool, number: int) -> None:
        """Recall the k nearest to one of the vectors, with or without payloads and vectors."""
        vector = self.vectors[number % len(self.vectors)]
        self.recall.nearest(vector, k, phase_masks("any", 0.15), payloads=is_whole, vectors=is_whole)

    def _supersede(self, number: int) -> None:
        vector = self.vectors[number % len(self.vectors)]
        self.newest = self.store.supersede(self.now(), self.newest, 1.0, vector, self.payload).memory_id

    def _admit_own(self, number: int) -> None:
        vector = self.vectors[number % len(self.vectors)]
        self.store.admit_event(self.now(), Event(1.0, vector, self.payload, namespace=self.namespace))

    def _post(self, _: int) -> None:
        if not self.store.command_pending():
            self.store.post_command("configure", self.regime.to_record())

    def _carry_out(self, _: int) -> None:
        self.store.apply_command(self.now(), self.formed.epoch)

    def _write(self) -> None:
        self.formed.be(1)
        for number in range(_EVER):
            self.admit(number)

    def _rebuild(self, _: int) -> None:
        self.formed.block.region("lock").caches |= 1
        self.store.write_vitals(self.formed.epoch, new_vitals())


def _memories(dimension: int) -> vectors.Floats:
    """Return float32[n, dimension]: the vectors of the benchmark, or random ones where the dimension is another."""
    if dimension == vectors.DIMENSION:
        return vectors.synthetic().memories
    return np.random.default_rng(1).standard_normal((4_096, dimension)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
