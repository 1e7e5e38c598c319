"""The settings of the core: defaults, annotations and the values that each accepts."""

import math

import msgspec
import pytest

from core.settings import config
from core.settings.config import SETTINGS, Config
from core.settings.setting import Setting
from core.settings.tree import values_of
from core.startup import load


class TestLeaves:
    def test_defaults_are_the_prescribed_values(self) -> None:
        """The defaults are the values that the specification prescribes."""
        values = values_of(Config())

        assert tuple(values[key] for key in ("dimension", "capacity", "payload_size_max", "log_capacity")) == (
            384,
            20_000,
            1024,
            65_536,
        )
        assert msgspec.structs.astuple(Config().moral_filter) == (0.5, 0.3, 0.9, 0.05, 0.1, 0.05)
        assert msgspec.structs.astuple(Config().multi_level_memory) == (0.5, 0.1, 0.01, 1.2, 2.5, 0.45, 0.3, "norm")
        assert msgspec.structs.astuple(Config().cognitive_rhythm) == (8, 3, True, "time", 1.0)

    @pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
    def test_every_setting_is_described(self, setting: Setting) -> None:
        """Each setting has a sentence, a unit, a bounded range, and a default within it."""

        assert setting.description.endswith(".")
        assert setting.unit
        assert "None" not in setting.range
        assert setting.default == setting.validate(setting.default)

    @pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
    def test_numbers_refuse_other_types(self, setting: Setting) -> None:
        """NaN and the infinities are in no range, true is not a number, and 1.0 is not a whole number."""
        wrong: list[object] = [math.nan, math.inf, -math.inf, None, [], {}]
        wrong += [True, False, "1"] if setting.type in (int, float) else [1, 1.0]
        wrong += [float(setting.default)] if setting.type is int else []

        for value in wrong:
            with pytest.raises(ValueError):  # noqa: PT011  the message is msgspec's
                setting.validate(value)

    def test_a_config_is_immutable(self) -> None:
        """The tree is frozen at every depth."""
        loaded = load(None, {}).config

        with pytest.raises(AttributeError):
            loaded.capacity = 1  # type: ignore[misc]  # the assignment is the test
        with pytest.raises(AttributeError):
            loaded.server.port = 1  # type: ignore[misc]  # the assignment is the test


class TestDerived:
    def test_effective_is_the_whole_tree(self) -> None:
        """The logged tree converts back to the configuration."""
        effective = config.effective(Config())

        assert effective["security"]["rate_limiting"]["burst_capacity"] == 10
        assert msgspec.convert(effective, Config) == Config()
