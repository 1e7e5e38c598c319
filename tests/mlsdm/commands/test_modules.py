"""`mlsdm modules` and a URL that names no server. With one: tests/app/lifecycle/test_live_modules.py."""

import argparse

import pytest

from mlsdm.commands.modules import add_arguments


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://[::1",
     "http://a@127.0.0.1", "http://127.0.0.1?x=1", "http://127.0.0.1:80 "],
)  # fmt: skip
def test_a_url_without_a_server_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked: a port above 65,535 would be taken modulo 65,536."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--url", url])

    assert ended.value.code == 2
    expected = f"the URL {url!r} cannot be used: expected http://HOST[:PORT] or https://HOST[:PORT]"
    assert capsys.readouterr().err.endswith(f"argument --url: {expected}\n")
