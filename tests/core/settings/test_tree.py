"""A tree of settings: values by dotted key, and relations between settings."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from core.settings.config import Config, Resources
from core.settings.setting import describe
from core.settings.tree import build_tree, contradictions, settings_of, values_of


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A section within a section."""

    low: Annotated[int, describe("The lower end.", "items", ge=0, le=9)] = 1
    high: Annotated[int, describe("The upper end.", "items", ge=0, le=9)] = 2

    def contradictions(self) -> Iterator[str]:
        if not self.low < self.high:
            yield "{low} < {high}"


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """A section of a module."""

    size: Annotated[int, describe("The size.", "items", ge=0, le=99, restart="it is allocated once")] = 10
    pool: Pool = Pool()

    def contradictions(self) -> Iterator[str]:
        if self.pool.high > self.size:
            yield "{pool.high} ≤ {size}"


class TestValues:
    def test_keys_are_in_the_order_of_declaration(self) -> None:
        """Nested sections extend the key by their names."""
        keys = ["archive.size", "archive.pool.low", "archive.pool.high"]

        assert [setting.key for setting in settings_of(Archive, "archive.")] == keys
        assert values_of(Archive(), "archive.") == dict(zip(keys, (10, 1, 2), strict=True))

    def test_a_tree_is_built_from_its_values(self) -> None:
        """The two functions are inverse to each other."""
        config = Config(resources=Resources(shutdown_timeout=7))

        assert build_tree(Config, values_of(config)) == config
        assert build_tree(Archive, values_of(Archive(size=3), "a."), "a.") == Archive(size=3)

    def test_a_setting_has_what_its_annotation_says(self) -> None:
        """Range, unit, restart reason and variable."""
        [size, low, _] = settings_of(Archive, "archive.")

        assert (size.range, size.unit, size.restart_reason) == (
            "a whole number from 0 to 99",
            "items",
            "it is allocated once",
        )
        assert (low.variable, low.restart_reason) == ("MLSDM_ARCHIVE__POOL__LOW", "")


class TestContradictions:
    def test_the_sentence_has_all_settings_of_the_relation(self) -> None:
        """The problem's key is the first of them."""
        [problem] = contradictions(Config(resources=Resources(drain_period=30.0)))

        assert problem == (
            "resources.drain_period",
            (
                "resources.drain_period is 30.0, resources.shutdown_timeout is 30: "
                "expected resources.drain_period < resources.shutdown_timeout"
            ),
        )

    def test_every_section_is_judged(self) -> None:
        """The relations of a section come before those of the sections in it."""
        archive = Archive(size=3, pool=Pool(low=5, high=4))

        assert [problem.sentence for problem in contradictions(archive, "archive.")] == [
            "archive.pool.high is 4, archive.size is 3: expected archive.pool.high ≤ archive.size",
            "archive.pool.low is 5, archive.pool.high is 4: expected archive.pool.low < archive.pool.high",
        ]

    def test_a_refused_setting_is_not_judged(self) -> None:
        """The default that stands in for it says nothing about the operator's value."""
        config = Config(resources=Resources(drain_period=30.0))

        assert contradictions(config, "", {"resources.shutdown_timeout"}) == []
        assert contradictions(Config()) == []
