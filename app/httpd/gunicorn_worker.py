"""The worker: one Gunicorn worker process, an event loop and the application on it.

Life, in order: the arbiter forks; privileges are dropped and the parent's death is tied to ours; the application is
loaded; `open(worker)` of the application runs, if it has one (it may set `worker.occupancy`); connections are
accepted; on SIGTERM, at max_requests or when the reloader saw a change, the worker drains; `close()` of the
application runs; the process exits with 0.

Owns: the process (signals, heartbeat, exit status) and the order of these steps. What happens on a socket is
`app.httpd.connection`, who gets it is `app.httpd.acceptor`.

Invariants.
- Nothing is ever raised from a signal: an exception at an arbitrary instruction may leave half-written state behind a
  cleanly released lock. Signals arrive through the loop; while the application is still being loaded they have the
  kernel's default effect, which is to end a worker that holds nothing yet.
- The heartbeat comes from the loop, so a loop that stands still is seen by the arbiter. Its SIGABRT then ends the
  process in C, after `faulthandler` has written to stderr where every thread stood; Gunicorn's worker_abort hook
  would need the interpreter and is not called.
- Once any worker of this server has booted, none exits with status 3 or 4: the arbiter halts the whole server on
  these, and with it every memory. A worker that cannot boot then logs why, waits a moment and exits with 1, to be
  tried again. The very first ones may fail loudly, so that a broken deployment says so at once.
- A worker does not outlive its arbiter: the kernel kills it (PR_SET_PDEATHSIG), and the heartbeat looks, for the case
  that the arbiter was gone before that was set.

Draining: no connection is accepted any more, every answer says `Connection: close`, connections silent for a second
are closed, requests being read or answered are finished, for at most graceful_timeout. A connection that was used
within the last second gets that second to bring one more request, because a busy client's next request may already be
on its way and would be lost.
"""

import asyncio
import ctypes
import faulthandler
import gc
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import uvloop
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]  # gunicorn carries no types
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from app.httpd.acceptor import Acceptor, Occupancy, SingleWorker
from app.httpd.heap_trim import HeapTrim
from app.httpd.worker_state import WorkerState

BEAT_SECONDS: Final = 0.25
BOOT_BACKOFF_SECONDS: Final = 0.5
# PERF: with Python's own 700, 10, 10 the coming and going of thousands of connections has all of them looked at again
# and again: 20 to 150 ms at a time, every other second, in which nobody is served. Connections and requests are freed
# without the collector (`Message.close`); for the odd cycle it is enough to look at the young, and rarely at the old.
GC_THRESHOLDS: Final = (2_000, 100, 100)
_HANDLED: Final = frozenset({signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1})
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

# One byte shared by the arbiter and all its workers, because the arbiter imports this module before it forks: 1 once
# a worker has booted. An arbiter started by USR2 is a new program and begins at 0; if its first workers fail, it
# halts and the old one lives on.
_booted = mmap.mmap(-1, 1)


class EventedWorker(Worker):  # type: ignore[misc]  # the base class is untyped
    """A Gunicorn worker that calls its WSGI application inline on a uvloop event loop."""

    #: Says whether any worker of this server has booted before; a composition root that knows better may replace it.
    booted_before: Callable[[], bool] = staticmethod(lambda: _booted[0] == 1)

    #: The counts by which workers share connections; the application's `open(worker)` may set it on the instance.
    occupancy: Occupancy

    loop: asyncio.AbstractEventLoop
    service: WorkerState

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.occupancy = SingleWorker()
        self._acceptor: Acceptor | None = None
        self._heap_trim = HeapTrim()
        self._drain_until: float | None = None

    @property
    def nr(self) -> int:
        """Requests handed to the application so far; Gunicorn's own name for it."""
        return self.service.served if "service" in self.__dict__ else 0

    @nr.setter
    def nr(self, value: int) -> None:
        """The base class starts its count here; the service keeps it."""

    # -- boot --------------------------------------------------------------------------------------------------------

    def init_process(self) -> None:
        """Boot and serve. Returns when the worker has drained; exits with 1 when it could not boot (see the essay)."""
        try:
            super().init_process()
        except BaseException as error:
            halts = isinstance(error, Exception) or (isinstance(error, SystemExit) and error.code in {3, 4})
            if not halts or not self.booted_before():
                raise
            self.log.exception("Worker failed; it will be replaced")
            time.sleep(BOOT_BACKOFF_SECONDS)  # the arbiter replaces it at once, so the wait has to be here
            sys.exit(1)

    def init_signals(self) -> None:
        """Called by the base class after privileges are dropped and before the application is loaded."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a log rotation must not kill a worker that is booting
        # The arbiter forks with them blocked, so that none meets a handler that is not ours: now it may take effect.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
        faulthandler.enable()
        # Here and not earlier, because a change of credentials clears it (prctl(2)).
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.ppid:
            os._exit(1)  # the arbiter died before the line above

    def run(self) -> None:
        """Serve until drained."""
        self.booted = False  # until the application is open; the base class was hasty
        loop = self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(self._failed)
        # From here on signals wait for the loop, so that what `open` takes is given back. They have to be blocked,
        # because uvloop loses what arrives between the registration of a handler and its first turn.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, _HANDLED)
        self._listen_to_signals()
        self._call("open", self)
        self.service = WorkerState(
            self.wsgi,
            loop,
            self.log.error_log,  # the logger itself: Gunicorn's wrapper has no levels to ask for
            scheme="https" if self.cfg.is_ssl else "http",
            served_max=self.max_requests if self.cfg.max_requests else 0,
            retire=self._retire,
        )
        listeners = [listener.sock for listener in self.sockets]
        self._acceptor = Acceptor(self.service, listeners, self.occupancy, self.cfg.worker_connections, self._tls())
        self.booted = True
        _booted[0] = 1
        gc.freeze()  # what exists now lives as long as the worker
        gc.set_threshold(*GC_THRESHOLDS)
        self._beat()
        self._acceptor.start()
        try:
            loop.run_forever()
        finally:
            self._end()

    def _tls(self) -> Any:
        if not self.cfg.is_ssl:
            return None
        context = ssl_context(self.cfg)
        context.set_alpn_protocols(["http/1.1"])  # whatever http_protocols says, nothing else is spoken here
        return context

    def _listen_to_signals(self) -> None:
        self.loop.add_signal_handler(signal.SIGTERM, self._terminate)
        self.loop.add_signal_handler(signal.SIGQUIT, self._quit)
        self.loop.add_signal_handler(signal.SIGINT, self._quit)
        self.loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        # The base class's reloader runs in a thread of its own: it clears `alive` and writes a byte here.
        self.loop.add_reader(self.PIPE[0], self._reloaded)

    # -- the beat ----------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Four times a second: tell the arbiter, look at deadlines, let the application do its periodic work."""
        self.loop.call_later(BEAT_SECONDS, self._beat)
        self.notify()
        if os.getppid() != self.ppid:
            self.log.warning("The arbiter is gone; worker %s ends", self.pid)
            self.loop.stop()
        self.service.tick()
        self.service.deadline_sweep.start_sweep()
        self._heap_trim.trim_if_due(self.loop.time())
        if self._drain_until is not None:
            self._look_at_drain()
        self._call("on_beat")

    def _call(self, name: str, *arguments: object) -> None:
        method = getattr(self.wsgi, name, None)
        if method is not None:
            method(*arguments)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.log.error("%s", context.get("message"), exc_info=context.get("exception"))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _terminate(self) -> None:
        """SIGTERM: serve what waits in the backlog too, because a server that stops has nobody else for it."""
        if self._drain_until is None and self._acceptor is not None:
            self._acceptor.accept_waiting()
        self._drain()

    def _retire(self) -> None:
        """max_requests is reached, in the middle of a request: it and all later ones say so to their clients."""
        self.log.info("Worker %s has served %d requests and is replaced", self.pid, self.nr)
        self.service.draining = True
        self.loop.call_soon(self._drain)

    def _reloaded(self) -> None:
        os.read(self.PIPE[0], 64)
        self._drain()

    def _drain(self) -> None:
        if self._drain_until is not None:
            return
        assert self._acceptor is not None
        self.alive = False
        self.service.draining = True
        self._drain_until = self.loop.time() + self.cfg.graceful_timeout
        self._acceptor.stop()
        self.service.deadline_sweep.start_sweep()
        self._look_at_drain()

    def _look_at_drain(self) -> None:
        assert self._acceptor is not None
        assert self._drain_until is not None
        left = self._acceptor.open_count
        if left and self.loop.time() >= self._drain_until:
            self.log.warning("%d connections did not end within %d s", left, self.cfg.graceful_timeout)
            left = 0
        if not left:
            self.loop.stop()

    def _quit(self) -> None:
        """SIGQUIT and SIGINT: now."""
        self.alive = False
        self.cfg.worker_int(self)
        self.loop.stop()

    def _end(self) -> None:
        assert self._acceptor is not None
        self._acceptor.stop()
        idle = self.service.close()
        self._call("close")
        if not idle:
            # A route on the pool has not returned, and the interpreter would wait for it for ever.
            self.log.warning("A request on the thread pool did not end; worker %s leaves without it", self.pid)
            os._exit(1)
