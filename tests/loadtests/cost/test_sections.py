"""Lengths of sections: the program measures each kind on a small store."""

import pytest

from loadtests.cost.sections import REBUILD, Bench, main
from testing.eventually import eventually


def test_each_kind_of_section_is_measured() -> None:
    """Each call enters the section, and its length is a time; under writes the other process may take the sample."""
    bench = Bench(capacity=100, dimension=16, payload_size=64)

    shortest = {kind.name: min(eventually(lambda: bench.measure(kind, 5))) for kind in bench.kinds()}  # noqa: B023

    assert {name for name, length in shortest.items() if length <= 0} == set()
    assert REBUILD in shortest


def test_the_rebuild_is_a_rebuild() -> None:
    """What the program measures under that name makes index and lists again, once for each call."""
    bench = Bench(capacity=100, dimension=16, payload_size=64)
    [rebuild] = [kind for kind in bench.kinds() if kind.name == REBUILD]

    bench.measure(rebuild, 3)

    assert bench.formed.block.region("lock").rebuilds == 3


def test_too_few_calls_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no percentile of nothing."""
    with pytest.raises(SystemExit):
        main(["--times", "0"])

    assert "--times is 0: expected 1 or more" in capsys.readouterr().err
