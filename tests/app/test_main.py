"""How the application says in which way a request is answered."""

import falcon
import pytest

from app.httpd.application import IN_PIECES, INLINE, POOL
from app.main import Application, _bare


class _Route:
    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Answer nothing."""


@pytest.mark.parametrize("path", ["/a/b", "//a/b", "///a/b", "a/b", "/a/b/", "//a/b//", "/a//b", "/", "//", "/a"])
def test_bare_path_is_the_one_that_the_router_finds(path: str) -> None:
    """`way_of` finds a route for exactly those paths for which the router finds one."""
    api = falcon.App()
    api.add_route("/a/b", _Route())
    found = api._router.find(path)

    assert (found is not None) == (_bare(path) == "/a/b")


@pytest.mark.parametrize("path", ["{}", "/{}", "//{}"])
def test_head_is_answered_in_the_way_of_get(path: str) -> None:
    """What takes long for GET takes long for HEAD, however many slashes lead; other methods and paths do not."""
    application = Application()
    application._ways = {("GET", "/slow"): POOL, ("POST", "/slow"): POOL, ("GET", "/long"): IN_PIECES}
    asked = [
        ("GET", "/slow"), ("HEAD", "/slow"), ("POST", "/slow"), ("GET", "/long"), ("HEAD", "/long"), ("POST", "/long"),
        ("HEAD", "/quick"), ("HEAD", "/long/"),
    ]  # fmt: skip

    assert [application.way_of(method, path.format(plain)) for method, plain in asked] == [
        POOL,
        POOL,
        POOL,
        IN_PIECES,
        IN_PIECES,
        INLINE,
        INLINE,
        INLINE,
    ]
