"""The grammar of `server.cors_origins`."""

import pytest

from core.settings.config import Config, Server, cors_origins
from core.settings.origins import origins
from core.settings.setting import InvalidText


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("  ", set()),
        ("https://app.example", {"https://app.example"}),
        ("https://app.example, http://localhost:5173", {"https://app.example", "http://localhost:5173"}),
        ("HTTPS://App.Example", {"https://app.example"}),
        ("https://app.example:443,http://app.example:80", {"https://app.example", "http://app.example"}),
        ("http://app.example:443,http://app.example:08080", {"http://app.example:443", "http://app.example:8080"}),
        ("http://[::1]:3000", {"http://[::1]:3000"}),
        ("tauri://localhost", {"tauri://localhost"}),
    ],
)
def test_origins_are_as_browsers_send_them(text: str, expected: set[str]) -> None:
    """In lower case and without the default port of their scheme (RFC 6454 §6.2)."""

    assert origins(text) == expected
    assert cors_origins(Config(server=Server(cors_origins=text))) == expected


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("*", "has *, which is a pattern; every origin is named"),
        ("https://*.app.example", "has https://*.app.example, which is a pattern; every origin is named"),
        ("app.example", "has app.example, which is no origin"),
        ("https://app.example/", "has https://app.example/, which is no origin"),
        ("https://app.example/path", "has https://app.example/path, which is no origin"),
        ("https://user@app.example", "has https://user@app.example, which is no origin"),
        ("https://app.example:99999", "has https://app.example:99999, which is no origin"),
        ("https://", "has https://, which is no origin"),
        ("null", "has null, which is no origin"),
        ("https://app.example,", "has an empty item"),
        ("a, https://b.example, c", "has a, which is no origin; has c, which is no origin"),
        ("https://a.example\r\nX: y", "has 'https://a.example\\r\\nX: y', which is no origin"),
    ],
)
def test_what_is_no_origin_is_named(text: str, finding: str) -> None:
    """Every item that no browser would send, and every pattern."""
    with pytest.raises(InvalidText) as refused:
        origins(text)

    assert str(refused.value).replace("; has ", "; ") == finding.replace("; has ", "; ")
