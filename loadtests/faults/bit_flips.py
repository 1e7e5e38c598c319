"""Bits of a running server's block are flipped from outside, one at a time; every reader must notice.

- Header, every bit: opening the block fails, and the controller restores the header.
- The word of the epoch, every bit: the controller writes nothing more, its successor makes the word whole, and events
  are decided meanwhile.
- Committed state, commit word, bytes of the levels: no state is returned, no event is decided, and the server is
  unready but live, until the bit is restored.
- Sampled log entries, receipts and chain heads: no page and no answer is built on them, and no event is decided again.
- Sampled links: the memory is found in spite of it, and the index is built again.
- Sampled memories (line, code, shadow, vector, payload): a read reports it, no recall finds it, and within a minute the
  scrub enters it as lost, counts and logs it.
- Sampled marks of slots: what lives is not reported gone, what was deleted does not return, and within a minute the
  scrub repairs and counts the mark.

Not covered: the other words of the lock and those of the tallies, which change in place without a check.
The rhythm is stepped by events, so that nothing else changes the state.
"""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from loadtests.faults.fault import FaultOptions, Outcome
from shm.block import Block, BlockError, find_blocks
from shm.layout import RECORDS, Region, offsets
from shm.numpy_views import view
from testing.eventually import eventually
from testing.live_server import LiveServer

DIMENSION: Final = 64
ENVIRON: Final = {
    "WORKERS": "2",
    "MLSDM_DIMENSION": str(DIMENSION),
    "MLSDM_CAPACITY": "2000",
    "MLSDM_PAYLOAD_SIZE_MAX": "64",
    "MLSDM_LOG_CAPACITY": "4096",
    "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events",
}
MEMORIES: Final = 1000  # in the block; half of them are sampled in full
RECEIPTS: Final = 100
MARKS: Final = 100  # half of them of memories that live
SCRUB_SECONDS_MAX: Final = 60.0
RECOVERY_SECONDS_MAX: Final = 90.0  # includes the cooldown of an emergency
GUARDED: Final = {  # the bytes of a memory that its checksum covers
    "slots": [*range(112), *range(120, 128)],
    "codes": range(12),
    "shadow": range(DIMENSION),
    "vectors": range(4 * DIMENSION),
    "payloads": range(40),
}
_SIZE: Final = {record.name: record.size for record in RECORDS}


def _offset_of(name: str, field: str) -> int:
    return next(
        offset
        for record in RECORDS
        if record.name == name
        for member, offset in offsets(record)
        if member.name == field
    )


MARK: Final = _offset_of("slot", "mark")
EPOCH: Final = _offset_of("lock", "epoch")


def bit_flips(options: FaultOptions) -> Outcome:
    """Flip bits; none may be accepted in silence."""
    server = LiveServer(options.directory, dict(ENVIRON))
    try:
        server.start()
        return BitFlips(server, options).run()
    finally:
        server.kill()


class BitFlips:
    """The flips of one server. `counts` has the flips by kind, `broken` those that went unnoticed."""

    def __init__(self, server: LiveServer, options: FaultOptions) -> None:
        self.server = server
        self.options = options
        self.random: random.Random = options.random()
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.vectors = np.random.default_rng(options.seed).standard_normal((MEMORIES, DIMENSION)).astype(np.float32)
        _, link = next(iter(find_blocks(server.pid)))
        self.block = Block.open(os.open(link, os.O_RDWR), writable=True)
        self.connection = server.connect()
        self.filled = 0

    def run(self) -> Outcome:
        """Flip everything, and let the server recover."""
        self.fill(MEMORIES)
        self.header()
        self.epoch()
        self.state()
        self.levels()
        self.log()
        self.receipts()
        self.heads()
        self.links()
        figures = {"lost within, s": self.scrub_memories(self.options.scaled(MEMORIES // 2))}
        figures["marks right within, s"] = self.repair_marks(self.options.scaled(MARKS))
        began = time.monotonic()
        try:
            eventually(lambda: self._event(0) == 200, RECOVERY_SECONDS_MAX)
            figures["recovered within, s"] = time.monotonic() - began
        except AssertionError:
            self.broken.append(f"did not recover: {self._get('/health/readiness')[1]}")
        self.close()
        count = sum(self.counts.values())
        return Outcome(count, {**self.counts, "unnoticed": len(self.broken), **figures}, self.broken[:20])

    def close(self) -> None:
        """Close the connection and the block."""
        self.connection.close()
        self.block.close()

    def fill(self, memories: int) -> None:
        """Post `memories` accepted events, each with an idempotency key."""
        self.filled = memories
        for number in range(memories):
            status = self._event(number, **{"Idempotency-Key": f"key-{number}"})
            assert status == 200, f"event {number} was answered {status}"

    # -- what stands once ----------------------------------------------------------------------------------------------

    def header(self) -> None:
        """Flip bits of the header; each is put right before the next."""
        whole, before = self.block.header, int(self.block.region("vitals").mended)
        flipped = list(self._sample(8 * len(whole)))
        for bit in flipped:
            self._flip("header", 0, bit)
            try:
                self.server.block()
                if not self._is_header(whole):  # unless the controller has repaired it already
                    self._unnoticed("header: the block was opened", bit)
            except BlockError:
                pass
            eventually(lambda: self._is_header(whole))
        eventually(lambda: self.block.region("vitals").mended == before + len(flipped))

    def _is_header(self, whole: bytes) -> bool:
        return self.block.memory[: len(whole)] == whole

    def epoch(self) -> None:
        """Flip bits of the epoch; each controller that dies of one is replaced."""
        for bit in self._sample(64):
            epoch = self.block.epoch
            self._flip("lock", EPOCH, bit)
            if self._event(0) != 200:
                self.broken.append(f"no event was decided with bit {bit} of the epoch flipped")
            try:
                eventually(lambda epoch=epoch: self._is_succeeded(epoch), RECOVERY_SECONDS_MAX)  # type: ignore[misc]
            except AssertionError:
                self._unnoticed("lock: the epoch,", bit)

    def _is_succeeded(self, epoch: int) -> bool:
        return not self.block.is_epoch_damaged and self.block.epoch == epoch + 1

    def state(self) -> None:
        """Flip bits of the committed state and of the commit word."""
        position = self.block.position
        base = (position & 1) * _SIZE["state"]
        for bit in self._sample(8 * _SIZE["state"]):
            with self._flipped("states", base, bit):
                self.expect_refusal("states", bit, "/state")
        for bit in range(64):
            with self._flipped("commit", 0, bit):
                self.expect_refusal("commit", bit, "/state")
        if position != self.block.position:
            self.broken.append(f"events were decided meanwhile: {self.block.position - position}")
        with self._flipped("states", base, self.random.randrange(8 * _SIZE["state"])):
            _, ready = self._get("/health/readiness")
            if ready["checks"]["memory_manager"]["healthy"]:
                self.broken.append("readiness does not name the memory")
            if self._get("/health/liveness")[0] != 200:
                self.broken.append("liveness failed")

    def levels(self) -> None:
        """Flip a bit of bytes of the committed levels."""
        region = self._region("levels")
        base = int(self.block.region("states", self.block.position & 1).levels) * region.stride
        for byte in self._sample(region.stride):
            bit = 8 * byte + self.random.randrange(8)
            with self._flipped("levels", base, bit):
                self.expect_refusal("levels", bit, "/health/readiness")

    def expect_refusal(self, name: str, bit: int, path: str) -> None:
        """Ask with a bit flipped, and note it when something is given out or decided."""
        answers = [self._get(path)[0], self._event(0)]
        if answers != [503, 503]:
            self._unnoticed(f"{name}: {path} and an event were answered {answers},", bit)

    # -- what stands many times ----------------------------------------------------------------------------------------

    def log(self) -> None:
        """Flip bits of entries of the log."""
        newest = self.block.position
        for _ in range(self.options.scaled(RECEIPTS)):
            position = self.random.randint(newest - self.filled + 1, newest)
            bit = self.random.randrange(8 * _SIZE["entry"])
            with self._flipped("log", position % self.block.layout.log_capacity * _SIZE["entry"], bit):
                status, _ = self._get(f"/decisions?after={position - 1}&limit=1")
                if status != 503:
                    self._unnoticed(f"log: a page with {position} was answered {status},", bit)

    def receipts(self) -> None:
        """Flip bits of receipts."""
        position = self.block.position
        for _ in range(self.options.scaled(RECEIPTS)):
            number = self.random.randrange(self.filled)
            bit = self.random.randrange(8 * _SIZE["receipt"])
            places = self.block.layout.receipt_capacity + 1
            with self._flipped("receipts", (number + 1) % places * _SIZE["receipt"], bit):
                status = self._event(number, **{"Idempotency-Key": f"key-{number}"})
                if status != 503:
                    self._unnoticed(f"receipts: event {number} was answered {status},", bit)
        if position != self.block.position:
            self.broken.append(f"{self.block.position - position} events were decided again")

    def heads(self) -> None:
        """Flip bits of the heads under which receipts are found."""
        position = self.block.position
        words = view(self.block, "chains")
        used = [(8 * chain, int(word) % 2**48 - 1) for chain, word in enumerate(words.tolist()) if word]
        for base, number in self.random.sample(used, min(len(used), self.options.scaled(RECEIPTS))):
            bit = self.random.randrange(64)
            with self._flipped("chains", base, bit):
                status = self._event(number, **{"Idempotency-Key": f"key-{number}"})
                if status != 503:
                    self._unnoticed(f"chains: event {number} was answered {status},", bit)
        if position != self.block.position:
            self.broken.append(f"{self.block.position - position} events were decided again")

    def links(self) -> None:
        """Flip bits of the links through which memories are found; the next read puts each right."""
        lock, region = self.block.region("lock"), self._region("links")
        for memory_id in self.random.sample(range(1, self.filled + 1), self.options.scaled(RECEIPTS)):
            before, bit = int(lock.rebuilds), self.random.randrange(64)  # of the id, its first field
            self._flip("links", memory_id % region.count * region.stride, bit)
            status, rebuilds = self._get(f"/memories/{memory_id}")[0], lock.rebuilds - before
            if status != 200 or not rebuilds:
                self._unnoticed(f"links: memory {memory_id} was answered {status} with {rebuilds} rebuilds,", bit)

    def memories(self, count: int) -> list[int]:
        """Flip a bit in many memories, and leave it so; returns their ids."""
        chosen = self.random.sample(range(1, self.filled + 1), count)
        slots = self.block.layout.slots
        for memory_id in chosen:
            name = self.random.choice(list(GUARDED))
            bit = 8 * self.random.choice(GUARDED[name]) + self.random.randrange(8)
            self._flip(name, memory_id % slots * self._region(name).stride, bit)
            status, _ = self._get(f"/memories/{memory_id}")
            if status not in (503, 410):  # unless the scrub was faster
                self._unnoticed(f"{name}: memory {memory_id} was answered {status},", bit)
            query = {"vector": self.vectors[memory_id - 1].tolist(), "top_k": 1}
            status, found = self._request("POST", "/recall", query)
            if status == 200 and any(match["memory_id"] == memory_id for match in found["matches"]):
                self._unnoticed(f"{name}: a recall found memory {memory_id},", bit)
        return chosen

    def scrub_memories(self, count: int) -> float:
        """Wait for the scrub to lose `count` corrupt memories; returns the seconds since the first was flipped."""
        before, began = int(self.block.region("vitals").torn), time.monotonic()
        chosen = self.memories(count)
        left = set(chosen)

        def lost() -> bool:
            left.difference_update([i for i in left if self._get(f"/memories/{i}")[0] == 410])
            return not left

        try:
            eventually(lost, SCRUB_SECONDS_MAX)
        except AssertionError:
            self.broken.append(f"the scrub has not found {len(left)} memories, {sorted(left)[:5]} among them")
        seconds = time.monotonic() - began
        torn = int(self.block.region("vitals").torn) - before
        said = self.server.log.count("was corrupt and is lost")
        if (torn, said) != (count, count):
            self.broken.append(f"of {count} corrupt memories {torn} were counted and {said} logged")
        return seconds

    def marks(self, count: int) -> dict[int, int]:
        """Delete some memories, flip a bit in the marks of these and of others, and leave it so; returns what is to be
        answered for each, by its id.
        """
        # Event 0, memory 1, is sent again elsewhere, to see whether events are decided: a newer memory may equal it.
        living = [i for i in range(2, self.filled + 1) if self._get(f"/memories/{i}")[0] == 200]
        chosen = self.random.sample(living, min(count, len(living)))
        right = {memory_id: 200 if at % 2 else 410 for at, memory_id in enumerate(chosen)}
        slots = self.block.layout.slots
        for memory_id, expected in right.items():
            if expected == 410:
                self._request("DELETE", f"/memories/{memory_id}", None)
            bit = 8 * MARK + self.random.randrange(64)
            self._flip("slots", memory_id % slots * self._region("slots").stride, bit)
            status, _ = self._get(f"/memories/{memory_id}")
            if status not in (503, expected):
                self._unnoticed(f"mark: memory {memory_id}, of {expected}, was answered {status},", bit)
            query = {"vector": self.vectors[memory_id - 1].tolist(), "top_k": 1}
            status, found = self._request("POST", "/recall", query)
            recalls = status == 200 and any(match["memory_id"] == memory_id for match in found["matches"])
            if recalls != (expected == 200):
                self._unnoticed(f"mark: memory {memory_id}, of {expected}, was recalled: {recalls},", bit)
        return right

    def repair_marks(self, count: int) -> float:
        """Wait for the scrub to put `count` marks right; returns the seconds since the first was flipped."""
        before, began = int(self.block.region("vitals").mended), time.monotonic()
        right = self.marks(count)
        try:
            eventually(lambda: self.block.region("vitals").mended == before + len(right), SCRUB_SECONDS_MAX)
        except AssertionError:
            mended = int(self.block.region("vitals").mended) - before
            self.broken.append(f"of {len(right)} marks the scrub repaired {mended}")
        seconds = time.monotonic() - began
        for memory_id, expected in right.items():
            if (status := self._get(f"/memories/{memory_id}")[0]) != expected:
                self.broken.append(f"memory {memory_id} is answered {status} after all, expected {expected}")
        return seconds

    # -- flipping, and asking ------------------------------------------------------------------------------------------

    def _region(self, name: str) -> Region:
        return next(region for region in self.block.layout.regions() if region.name == name)

    def _sample(self, full: int) -> Iterator[int]:
        """Return a random sample of 0 … full − 1, scaled; all of them at full scale."""
        return iter(self.random.sample(range(full), min(full, self.options.scaled(full))))

    def _flip(self, name: str, base: int, bit: int) -> None:
        self.counts[name] += 1
        self._toggle(name, base, bit)

    def _toggle(self, name: str, base: int, bit: int) -> None:
        self.block.memory[self._region(name).offset + base + bit // 8] ^= 1 << bit % 8

    @contextmanager
    def _flipped(self, name: str, base: int, bit: int) -> Iterator[None]:
        self._flip(name, base, bit)
        try:
            yield
        finally:
            self._toggle(name, base, bit)

    def _unnoticed(self, what: str, bit: int) -> None:
        self.broken.append(f"{what} with bit {bit % 8} of byte {bit // 8} flipped, went unnoticed")

    def _get(self, path: str) -> tuple[int, Any]:
        return self._request("GET", path)

    def _event(self, number: int, **headers: str) -> int:
        """Send event `number` and return the status of its answer."""
        body = {
            "event_vector": self.vectors[number].tolist(),
            "moral_value": 1.0,
            "payload": {"n": f"{number:032d}"},
        }
        return self._request("POST", "/event", body, **headers)[0]

    def _request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request; returns the status and the document of its answer."""
        content = None if body is None else json.dumps(body).encode()
        if content:
            headers["Content-Type"] = "application/json"
        answer = self.server.request(method, path, content, headers, self.connection)
        return answer.status, answer.json
