"""What is in force while a reload is tried. With real servers: test_server.py."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.lifecycle.plan import Plan
from app.processes.gunicorn_patches import Arbiter
from app.server import Server
from core.settings.config import Config
from testing.block_fixture import Formed


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a block and a configuration file, which has begun to reload another one."""
    file = tmp_path / "config.yaml"
    monkeypatch.setenv("CONFIG_PATH", str(file))
    formed, server = Formed(), Server()
    file.write_text("server: {workers: 1, deferred_max: 10}")
    server.configure()
    server.block, server.plan = formed.block, Plan([], {}, (), formed.block.layout.rows)
    file.write_text("server: {workers: 1, deferred_max: 20}")
    server.configure()
    assert not server.was_refused
    yield server
    formed.close()


def test_what_a_reload_has_read_is_in_force_when_it_is_committed(server: Server) -> None:
    """Until then only the new workers have it: a child that is respawned meanwhile gets what its siblings have."""
    assert (server.require()[1].config.server.deferred_max, server.in_force.config.server.deferred_max) == (20, 10)

    server.commit()

    assert server.in_force.config.server.deferred_max == 20


def test_a_child_that_is_respawned_while_a_reload_is_tried_gets_what_is_in_force(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would replace it if the reload were taken back, because what it declares has not changed."""
    configs: list[Callable[[], Config]] = []

    class Recorder:
        def __init__(self, _block: Any, _children: Any, config: Callable[[], Config], *_others: Any) -> None:
            configs.append(config)

        def spawn(self) -> bool:
            return False  # so that the start ends here

        def reload(self, _children: Any) -> None:
            """Do nothing."""

    monkeypatch.setattr("app.server.Supervisor", Recorder)
    monkeypatch.setattr("app.server.harden_arbiter", lambda *_arguments, **_options: None)
    with pytest.raises(SystemExit):
        server.when_ready(cast(Arbiter, SimpleNamespace()))
    gc.unfreeze()

    assert configs[0]().server.deferred_max == 10
    server.commit()
    assert configs[0]().server.deferred_max == 20


def test_a_reload_that_is_taken_back_leaves_nothing(server: Server) -> None:
    """New and old workers have the same again."""
    server.roll_back()

    assert (server.require()[1].config.server.deferred_max, server.in_force.config.server.deferred_max) == (10, 10)
