"""The table of environ keys: each key has one constant, and nothing in the application spells a key itself."""

import re
from pathlib import Path

from app.httpd import request

APP = Path(request.__file__).parents[1]
KEYS = {name: value for name, value in vars(request).items() if name.isupper()}


def test_every_key_has_one_constant_and_one_row_in_the_table() -> None:
    """The table lists each constant, and no two constants are the same key."""
    source = Path(request.__file__).read_text(encoding="utf-8")
    rows = re.findall(r"^# \| ([A-Z_]+) \|", source, re.MULTILINE)

    assert sorted(rows) == sorted(KEYS)
    assert len(set(KEYS.values())) == len(KEYS)


def test_environ_keys_are_spelled_in_the_table_only() -> None:
    """No file of app/ indexes an environ with one of these keys as a literal."""
    spelled = re.compile(rf"environ(?:\[|\.\w+\()[\"'](?:{'|'.join(map(re.escape, KEYS.values()))})[\"']")

    offenders = [str(path) for path in APP.rglob("*.py") if spelled.search(path.read_text(encoding="utf-8"))]

    assert offenders == []
