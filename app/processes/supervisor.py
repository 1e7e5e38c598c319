"""The supervisor of the controller, in the arbiter: spawns it, respawns it, ends it, and knows when to leave it be.

The controller is a child of the arbiter, but not one that Gunicorn knows: Gunicorn would reap it without a word. So the
arbiter's own reaping calls `reap` first, and its main loop calls `watch` once a second or oftener. A dead controller is
respawned on SIGCHLD, within milliseconds; one that is silent for a second by the arbiter's own looks is killed; one
that left because a newer arbiter's has taken over stays away while that arbiter lives.

Nothing here raises: an exception in the arbiter's loop would end the server and with it every memory. What cannot be
done now is tried again at the next look.
"""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from app.telemetry import tracing_setup
from core.controller.controller import SUPERSEDED, Controller, run
from core.settings.config import Config
from shm import process
from shm.block import Block
from shm.errors import StoreError
from shm.process import NOBODY, Identity
from shm.store import Store

SILENCE_SECONDS: Final = 1.0
# What the time between two looks counts for at most; they are a second apart, or less. When everything was frozen, the
# arbiter was too, and hears of its children's stops and deaths all at once: many looks, in no time, at a controller
# that has not had its turn yet.
LOOK_SECONDS_MAX: Final = 0.6
SPAWNS: Final = 5  # at once, within SPAWNS_SECONDS: one that cannot live must not keep a processor busy with forks
SPAWNS_SECONDS: Final = 1.0
SIGNING_SECONDS: Final = 5.0  # from taking its epoch until the newer controller's first vitals name its arbiter
FORM_SECONDS_MAX: Final = 5.0

log = logging.getLogger("mlsdm.server")


class Supervisor:
    """Keeps one controller on a block.

    `release` is called in the child: it closes what only the arbiter may hold. `on_taken_back` is called when this
    arbiter has taken the controller back from a newer arbiter that has gone.
    """

    def __init__(
        self, block: Block, config: Callable[[], Config], release: Callable[[], None], on_taken_back: Callable[[], None]
    ) -> None:
        self._block = block
        self._config = config
        self._release = release
        self._on_taken_back = on_taken_back
        self._me = process.identify_self()  # now, and not when there may be no descriptor to look it up with
        self._controller = NOBODY
        self._observability = config().observability
        self._spawned_at: deque[float] = deque(maxlen=SPAWNS)
        self._beat: tuple[int, float] = (0, 0.0)  # the last one seen, and for how many seconds, by looks
        self._looked_at = 0.0
        self.superseded = False
        self._superseded_at = 0.0

    def spawn(self) -> None:
        """Fork a controller; when the machine cannot, the next look tries again."""
        self._spawned_at.append(time.monotonic())
        try:
            pid = os.fork()
        except OSError as error:
            log.error("cannot start a controller: %s", error)
            return
        if pid == 0:
            status, spans = 1, None
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._release()
                config = self._config()
                spans = tracing_setup.start_tracing(config, self._block.boot_id, "controller")
                status = run(self._block, config, self._me, spans.wrap_steps if spans else _as_it_is)
            except BaseException:
                log.exception("controller pid=%d leaves", os.getpid())
            finally:
                if spans is not None:
                    spans.close()
                os._exit(status)
        self._controller = Identity(pid, process.identify(pid).started)
        self._observability = self._config().observability
        self._beat, self._looked_at = (0, 0.0), self._spawned_at[-1]
        self.superseded = False

    def _may_spawn(self) -> bool:
        return len(self._spawned_at) < SPAWNS or time.monotonic() - self._spawned_at[0] >= SPAWNS_SECONDS

    def wait_until_formed(self) -> bool:
        """Wait until the first state is formed, so that ready means ready; False when it is not in time."""
        store, deadline = Store(self._block), time.monotonic() + FORM_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                store.state()
            except StoreError:
                time.sleep(0.002)
            else:
                return True
        return False

    def reap(self, respawn: bool) -> None:
        """Notice that the controller has died, and respawn it unless it was superseded or the server is stopping."""
        if self._controller == NOBODY:
            return
        try:
            pid, status = os.waitpid(self._controller.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._controller.pid, 0
        if pid == 0:
            return
        self._controller = NOBODY
        if not respawn:
            return
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == SUPERSEDED:
            self.superseded = True
            self._superseded_at = time.monotonic()
            log.info("the controller of a newer arbiter has taken over")
            return
        log.warning("controller pid=%d died (status %d) and is respawned", pid, status)
        if self._may_spawn():
            self.spawn()

    def watch(self) -> None:
        """Kill a controller that is silent; spawn one where there is none and none is to be expected.

        Calls `on_taken_back` when this arbiter takes the controller back from a newer one that has gone.
        """
        vitals = self._block.region("vitals")
        if self._controller == NOBODY:
            newer = Identity(int(vitals.arbiter_pid), int(vitals.arbiter_started))
            unsigned = newer == self._me and time.monotonic() - self._superseded_at < SIGNING_SECONDS
            if self.superseded and (unsigned or (newer.alive and newer != self._me)):
                return
            if not self._may_spawn():
                return
            taken_back = self.superseded
            self.spawn()
            if taken_back:
                self._on_taken_back()
            return
        if not self._controller.started:  # there was no descriptor to look it up with
            self._controller = Identity(self._controller.pid, process.identify(self._controller.pid).started)
        now = time.monotonic()
        beat, silent_seconds = self._beat
        silent_seconds += min(now - self._looked_at, LOOK_SECONDS_MAX)
        self._looked_at = now
        if int(vitals.heartbeat_ns) != beat:
            self._beat = (int(vitals.heartbeat_ns), 0.0)
            return
        self._beat = (beat, silent_seconds)
        if silent_seconds > SILENCE_SECONDS:
            log.error("controller pid=%d is silent and is killed", self._controller.pid)
            process.kill(self._controller)
            self._beat = (0, 0.0)

    def reload(self) -> None:
        """Replace a controller that logs in another way than is configured now; nothing else of the configuration
        reaches it otherwise than through the block.
        """
        if self._controller != NOBODY and self._config().observability != self._observability:
            self.end()
            self.spawn()

    def end(self) -> None:
        """End the controller, in order if it can."""
        controller, self._controller = self._controller, NOBODY  # its death is no news to `reap`
        if not controller.alive:
            return
        os.kill(controller.pid, signal.SIGTERM)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and os.waitpid(controller.pid, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        process.kill(controller)


def _as_it_is(_controller: Controller) -> None:
    """Nobody watches this controller."""
