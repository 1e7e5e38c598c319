"""Gunicorn's arbiter, where it would give up or go wrong and every memory depends on its going on.

It has no hooks for these; so `harden_arbiter` replaces one method of its application, one of its own, and the clock
that it stops by. What it does about its children is wrapped in app/server.py, beside what that calls.

- Reload. Gunicorn exits when it cannot read gunicorn.conf.py again: no descriptors, or a file that was replaced by a
  broken one. It has thrown the settings before away by then.
- Upgrade. It ends when it cannot fork. And a fork that cannot become the next arbiter, because there is no such
  program any more, goes on as a second copy of this one and ends its workers.
- Stop. It waits for its last workers by the wall clock, and kills them in the middle of a request when that is set
  forwards meanwhile.
"""

import logging
import os
import time
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter  # type: ignore[import-untyped]  # gunicorn carries no types

log = logging.getLogger("mlsdm.server")


def harden_arbiter(arbiter: Any) -> None:
    """Have an arbiter go on where it would give up."""
    keep_at_reload(arbiter.app)
    stay_at_upgrade(arbiter)
    gunicorn.arbiter.time = SimpleNamespace(time=time.monotonic, monotonic=time.monotonic, sleep=time.sleep)


def keep_at_reload(application: Any) -> None:
    """Have Gunicorn's application keep its settings when it cannot read its own file."""
    reload = application.reload

    def reload_or_keep() -> None:
        kept = application.cfg
        try:
            reload()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the arbiter has to go on
            application.cfg = kept
            log.error("gunicorn.conf.py cannot be read, the old configuration stays: %s", error.__context__ or error)

    application.reload = reload_or_keep


def stay_at_upgrade(arbiter: Any) -> None:
    """Have an arbiter that cannot start the next one go on."""
    reexec = arbiter.reexec

    def reexec_or_stay() -> None:
        pid = os.getpid()
        try:
            reexec()
        except OSError as error:
            log.error("no new arbiter is started, the old one stays: %s", error)
            if os.getpid() != pid:  # the fork
                os._exit(1)

    arbiter.reexec = reexec_or_stay
