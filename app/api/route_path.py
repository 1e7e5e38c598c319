"""Route path: the path of a request, or the template of a route, as the router sees it."""


def route_path(path: str) -> str:
    """Return `path` with one leading slash: more count as one. A slash at the end makes another path."""
    return "/" + path.lstrip("/")
