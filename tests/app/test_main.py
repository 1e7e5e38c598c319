"""How the application says in which way a request is answered."""

import pytest

from app.httpd.application import IN_PIECES, IN_TURN, INLINE, POOL
from app.main import Application


@pytest.mark.parametrize("path", ["{}", "/{}", "//{}"])
def test_head_is_answered_in_the_way_of_get(path: str) -> None:
    """What takes long for GET takes long for HEAD, however many slashes lead; other methods and paths do not."""
    application = Application()
    application._ways = {
        ("GET", "/slow"): POOL,
        ("POST", "/slow"): POOL,
        ("GET", "/long"): IN_PIECES,
        ("GET", "/heavy"): IN_TURN,
    }
    asked = [
        ("GET", "/slow"), ("HEAD", "/slow"), ("POST", "/slow"), ("GET", "/long"), ("HEAD", "/long"), ("POST", "/long"),
        ("HEAD", "/heavy"), ("POST", "/heavy"), ("HEAD", "/quick"), ("HEAD", "/long/"),
    ]  # fmt: skip

    assert [application.way_of(method, path.format(plain)) for method, plain in asked] == [
        POOL,
        POOL,
        POOL,
        IN_PIECES,
        IN_PIECES,
        INLINE,
        IN_TURN,
        INLINE,
        INLINE,
        INLINE,
    ]
