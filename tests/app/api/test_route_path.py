"""Paths as the router sees them."""

import falcon
import pytest

from app.api.route_path import route_path


class _Route:
    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Answer nothing."""


@pytest.mark.parametrize("path", ["/a/b", "//a/b", "///a/b", "a/b", "/a/b/", "//a/b//", "/a//b", "/", "//", "/a"])
def test_the_path_is_the_one_that_the_router_finds(path: str) -> None:
    """A route is found for exactly those paths for which the router finds one."""
    api = falcon.App()
    api.add_route("/a/b", _Route())
    found = api._router.find(path)

    assert (found is not None) == (route_path(path) == "/a/b")
