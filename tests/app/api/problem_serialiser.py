"""The error serialiser that app/main.py gives to Falcon, without counting and auditing."""

import falcon

from app.api.problem import write_problem
from app.httpd.problem_document import problem_document


def serialise(_request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    """Write an error as a problem document."""
    write_problem(response, error, problem_document)
