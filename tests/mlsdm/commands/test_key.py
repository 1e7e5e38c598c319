"""`mlsdm key`: what it prints for a person and for a script, and that the server reads what it printed."""

import argparse
import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from core.access.key_file import read
from core.access.keys import Keyring, Role
from mlsdm.commands.key import add_arguments, run
from testing.eventually import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[3]


def key(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


def mlsdm(
    *words: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m mlsdm` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mlsdm", *words], stdout=stdout, stderr=stderr, text=True, cwd=ROOT,
        timeout=HANG_SECONDS,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A keys file as the documentation begins one."""
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n")
    path.chmod(0o600)
    return path


def test_appended_entries_accept_their_tokens(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Role, tier and expiry are those of the arguments; a script finds each token alone on stderr."""
    tokens = []
    for words in (["web"], ["ops", "--role", "admin", "--tier", "bulk", "--expires", "2999-01-01"], ["no"], ["1e5"]):
        assert key(*words) == 0
        out, err = capsys.readouterr()
        with file.open("a") as stream:
            stream.write(out)
        tokens.append(err.removesuffix("\n"))
    content = read(str(file), None)
    found = [Keyring(None, content.keys).identify(token, 0.0) for token in tokens]

    assert content.problems == []
    assert content.keys == found
    assert [found[:3] for found in content.keys] == [
        ("web", Role.WRITE, "standard"),
        ("ops", Role.ADMIN, "bulk"),
        ("no", Role.WRITE, "standard"),
        ("1e5", Role.WRITE, "standard"),
    ]
    assert tokens == [token.strip() for token in tokens]


def test_secrets_differ_and_fit_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    """A secret has 43 characters, 256 random bits; the entry does not contain it."""
    tokens = []
    for _ in range(20):
        key("web")
        out, err = capsys.readouterr()
        tokens.append(err.strip())
        id_, _, secret = err.strip().partition(".")
        assert (id_, len(secret)) == ("web", 43)
        assert secret.replace("-", "").replace("_", "").isalnum()
        assert secret not in out

    assert len(set(tokens)) == len(tokens)


def test_a_terminal_gets_the_token_in_a_sentence() -> None:
    """The token is on a line of its own, so that a double click selects it alone."""
    leader, follower = pty.openpty()
    ended = mlsdm("key", "web", stderr=follower)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while part := os.read(leader, 4096):
            shown += part
    os.close(leader)
    text = shown.decode().replace("\r\n", "\n")

    assert ended.returncode == 0
    assert text.startswith("\nThe token of web, shown only this once:\n\n  web.")
    assert ended.stdout.startswith("  - id: web\n    digest: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: ID"),
        (["web.secret"], "argument ID: id has '.' in it: expected 1 to 64 letters, digits, _ and -"),
        ([""], "argument ID: id is empty: expected 1 to 64 letters, digits, _ and -"),
        (["x" * 65], "argument ID: id has 65 characters: expected 1 to 64 letters, digits, _ and -"),
        (["API_KEY"], "argument ID: id is API_KEY, which is the key of the environment: expected 1 to 64 letters"),
        (["web", "--role", "root"], "argument --role: invalid choice: 'root' (choose from"),
        (["web", "--tier", "fast"], "argument --tier: invalid choice: 'fast' (choose from"),
        (["web", "--expires", "soon"], "argument --expires: expires is soon: expected a time with its offset"),
        (["web", "--expires", "2027-01-31T00:00:00"], "expires is 2027-01-31T00:00:00, which has no UTC offset"),
        (["web", "--expires", "1999-12-31"], "expires is 1999-12-31, which is past: expected a time in the future"),
    ],
)
def test_wrong_arguments_make_no_key(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentences are those of the keys file; the status is 2 and stdout is empty."""
    with pytest.raises(SystemExit) as ended:
        key(*words)
    out, err = capsys.readouterr()

    assert (ended.value.code, out) == (2, "")
    assert sentence in err


def test_help_shows_examples_and_arguments() -> None:
    """The help names every argument."""
    ended = mlsdm("key", "--help")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\nexamples:\n  echo keys: > keys.yaml\n  mlsdm key web >> keys.yaml\n" in ended.stdout
    for word in ("read,write,admin", "standard,high,bulk", "2027-01-31T00:00:00Z"):
        assert word in ended.stdout


def test_no_token_is_printed_when_the_entry_cannot_be_written() -> None:
    """A full disk is one sentence."""
    with open("/dev/full", "w") as full:
        ended = mlsdm("key", "web", stdout=full.fileno())

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("mlsdm: cannot write the output (No space left on device): ")


def test_a_token_goes_to_a_new_file_of_its_owner(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody else may read it, whatever the umask is; the terminal gets nothing of it."""
    path = tmp_path / "web.token"
    before = os.umask(0)
    try:
        assert key("web", "--token", str(path)) == 0
    finally:
        os.umask(before)
    out, err = capsys.readouterr()
    with file.open("a") as stream:
        stream.write(out)

    assert (path.stat().st_mode & 0o777, err) == (0o600, "")
    keyring = Keyring(None, read(str(file), None).keys)
    assert keyring.identify(path.read_text().removesuffix("\n"), 0.0) is not None


def test_a_token_replaces_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key whose token it holds would be lost; no entry is printed, and the error is."""
    path = tmp_path / "web.token"
    path.write_text("another")

    assert key("web", "--token", str(path)) == 1
    assert key("web", "--token", str(tmp_path / "missing" / "web.token")) == 1

    out, err = capsys.readouterr()
    assert (out, path.read_text()) == ("", "another")
    assert err == (
        f"mlsdm key: cannot write the token to {path}: File exists: nothing was made\n"
        f"mlsdm key: cannot write the token to {tmp_path}/missing/web.token: No such file or directory: "
        "nothing was made\n"
    )


def test_no_token_is_left_without_its_entry(tmp_path: Path) -> None:
    """The disk of the keys file is full."""
    path = tmp_path / "web.token"
    with Path("/dev/full").open("w") as full:
        ended = mlsdm("key", "web", "--token", str(path), stdout=full.fileno())

    assert ended.returncode == 1
    assert "cannot write the output" in ended.stderr
    assert not path.exists()
