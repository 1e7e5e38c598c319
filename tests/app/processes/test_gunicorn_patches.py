"""Gunicorn's arbiter goes on where it would give up. With real servers: tests/loadtests/faults/test_reload.py."""

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from app.processes.gunicorn_patches import keep_at_reload, stay_at_upgrade


def test_an_arbiter_that_cannot_start_the_next_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    """USR2 on a machine that cannot fork, or has no program to run any more, is said and otherwise changes nothing."""

    def no_fork() -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    def no_program() -> None:
        arbiter.child = os.fork()
        if arbiter.child == 0:
            raise FileNotFoundError(errno.ENOENT, "no such program")

    for reexec, reason in ((no_fork, "no more processes"), (no_program, "")):
        arbiter = SimpleNamespace(reexec=reexec, child=0)
        stay_at_upgrade(arbiter)
        arbiter.reexec()
        assert reason in caplog.text
    assert os.waitstatus_to_exitcode(os.waitpid(arbiter.child, 0)[1]) == 1


def test_settings_that_cannot_be_read_again_are_kept() -> None:
    """A broken gunicorn.conf.py at HUP: Gunicorn forgets its settings and exits, here it does neither."""

    def broken() -> None:
        application.cfg = "none"
        sys.exit(1)

    application = SimpleNamespace(cfg="those in force", reload=broken)
    keep_at_reload(application)

    application.reload()

    assert application.cfg == "those in force"
