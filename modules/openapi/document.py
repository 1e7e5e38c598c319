"""Document: this API as OpenAPI 3.1.

Owns: nothing. Routes and methods come from the router, parameters, bodies, responses and refusals from each operation
(`app.api.operation`), types from the code (`modules.openapi.schema`), codes and their meanings from
`app.api.problem_codes`, limits from `core.limits`. The document is that of this server: vectors have its dimension, and
its rate limits are named.

Invariants: statuses are exact. An operation lists those that it can answer, each with its codes (`x-codes`). What the
connection may answer to any request (timeouts, framing, sizes) is the same everywhere and listed once, under
`components`. Roles are where OpenAPI 3.1 has a place for them: in the requirement of a security scheme. Generators of
clients understand the document: a type beside every `enum` and `const`, one type for all problems, and a code that is
any string, so that a client can read the answers of a later server.

Rejected: the codes of a status as a schema (generators make a type of every response, or leave it out); a file in the
repository, which would be wrong for every dimension but one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from app.api.codec.media_types import JSON
from app.api.operation import Octets, Operation, Parameter, Resource
from app.api.problem import PROBLEM_JSON, ProblemDocument
from app.api.problem_codes import CODES, CONNECTION, DEFERRED, GATE
from core.access.keys import Role
from core.limits import BODY_SIZE, REQUEST_ID_LENGTH_MAX
from core.settings.config import Config
from core.version import VERSION
from modules.openapi.introduction import GROUPS, introduction
from modules.openapi.schema import Schema, Schemas, ref

_TEXT: Final = {"type": "string"}
_SECONDS: Final = {"type": "integer", "minimum": 0}
_HEADERS: Final[Mapping[str, tuple[str, Schema]]] = {
    "X-Request-ID": (
        "Id of the request: the client's own if it is valid, otherwise one that the server made.",
        _TEXT | {"minLength": 1, "maxLength": REQUEST_ID_LENGTH_MAX},
    ),
    "Idempotency-Replayed": (
        "The response repeats the decision of an earlier request with the same key.",
        {"type": "string", "const": "true"},
    ),
    "RateLimit": (
        "r tokens remain; the bucket is full again in t seconds. Only with rate limits.",
        _TEXT | {"pattern": '^"[a-z]+";r=[0-9]+;t=[0-9]+$', "examples": ['"standard";r=9;t=1']},
    ),
    "RateLimit-Policy": (
        "The tier of the client: q tokens within w seconds. Only with rate limits.",
        _TEXT | {"pattern": '^"[a-z]+";q=[0-9]+;w=[0-9]+$', "examples": ['"standard";q=10;w=2']},
    ),
    "Retry-After": ("Seconds to wait before the next attempt.", _SECONDS | {"examples": [1]}),
    "WWW-Authenticate": ("How to send a key, and what is wrong with the key that was sent.", _TEXT),
}
_ALWAYS: Final = "X-Request-ID"
# What comes with a status, besides X-Request-ID: the field, and whether it always does.
_OF_STATUS: Final[Mapping[int, Mapping[str, bool]]] = {
    401: {"WWW-Authenticate": True},
    403: {"WWW-Authenticate": False},
    429: {"Retry-After": True, "RateLimit": True, "RateLimit-Policy": True},
    503: {"Retry-After": False},
}


class OpenApiDocument:
    """Makes the document of one server."""

    def __init__(self, routes: Mapping[str, Resource], config: Config) -> None:
        self._routes = routes
        self._config = config
        self._schemas = Schemas(config.dimension)
        self._schemas.components |= {"Problem": self._problem(), "Code": _code()}
        self._refusals: dict[tuple[int, tuple[str, ...]], str] = {}  # the names of responses, by status and codes

    def document(self) -> dict[str, Any]:
        """Return the document."""
        paths = {
            path: {
                method.lower(): self._operation(path, method, operation, _group_of(resource))
                for method, operation in resource.operations.items()
                if operation.documented
            }
            for path, resource in self._routes.items()
            if any(operation.documented for operation in resource.operations.values())
        }
        used = dict.fromkeys(_group_of(resource) for resource in self._routes.values())
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "mlsdm",
                "version": VERSION,
                "summary": "A governed memory server for AI applications.",
                "description": introduction(self._config),
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": GROUPS.get(name, "")} for name in used],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "The key as a token (RFC 6750)."},
                    "key": {
                        "type": "apiKey", "in": "header", "name": "X-API-Key",
                        "description": "The same key; leaves Authorization to a proxy.",
                    },
                },
                "headers": {name: _header(name, always=name == _ALWAYS) for name in _HEADERS},
                "responses": {name: _refusal(*about) for about, name in self._refusals.items()},
                "schemas": dict(sorted(self._schemas.components.items())),
            },
        }  # fmt: skip

    def _operation(self, path: str, method: str, operation: Operation, group: str) -> dict[str, Any]:
        words = [method.lower(), *path.replace("{", "").replace("}", "").strip("/").replace(".", "/").split("/")]
        written: dict[str, Any] = {
            "operationId": "_".join(words),
            "tags": [group],
            "summary": operation.summary.removesuffix("."),
            "description": _access(operation.role),
            "security": [{scheme: [operation.role.name.lower()]} for scheme in ("bearer", "key")]
            if operation.role
            else [],
        }
        if operation.parameters:
            written["parameters"] = [self._parameter(parameter) for parameter in operation.parameters]
        if operation.body:
            content = {media: self._body(body) for media, body in operation.body.items()}
            written["requestBody"] = {"required": True, "content": content}
        written["responses"] = self._responses(operation)
        return written

    def _parameter(self, parameter: Parameter) -> dict[str, Any]:
        return {
            "name": parameter.name,
            "in": parameter.place,
            "description": parameter.meaning,
            "required": parameter.required,
            "schema": self._schemas.of_request(parameter.type),
        }

    def _body(self, body: Any) -> dict[str, Any]:
        if isinstance(body, Octets):
            size = 4 * self._config.dimension + body.extra_size
            largest = min(size * body.count_max, BODY_SIZE.value)
            # OpenAPI 3.1.1 §4.7.14.3: lengths of unencoded bytes are in octets.
            octets = {"type": "string", "format": "binary"}  # the form that generators know, as of OpenAPI 3.0
            return {"schema": octets | {"description": body.meaning, "minLength": size, "maxLength": largest}}
        schema = self._schemas.of_request(body)
        return {"schema": schema, "example": self._schemas.example(schema)}

    def _responses(self, operation: Operation) -> dict[str, Any]:
        headers: dict[str, bool] = {}
        if CODES["rate_limit_exceeded"].status in {CODES[code].status for code in operation.refusals}:
            headers |= {"RateLimit": False, "RateLimit-Policy": False}
        if any(parameter.name == "Idempotency-Key" for parameter in operation.parameters):
            headers["Idempotency-Replayed"] = False
        answers = {200: operation.response, **operation.other_responses}
        responses: dict[int, Any] = {
            status: {
                "description": "Success." if status == 200 else "Not ready; the document lists the reasons.",
                "headers": _headers(headers),
                "content": self._content(answer),
            }
            for status, answer in answers.items()
        }
        deferred = DEFERRED if operation.deferred else ()
        for status, codes in _by_status((*CONNECTION, *_gate(operation.role), *deferred, *operation.refusals)):
            if status in responses:
                responses[status]["content"] |= _refusal(status, codes)["content"]
            else:
                responses[status] = {"$ref": f"#/components/responses/{self._name(status, codes)}"}
        return {str(status): responses[status] for status in sorted(responses)}

    def _content(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, str):
            return {answer: {"schema": _TEXT}}
        schema = self._schemas.of_answer(answer)
        return {JSON: {"schema": schema} | ({"example": self._schemas.example(schema)} if "$ref" in schema else {})}

    def _name(self, status: int, codes: tuple[str, ...]) -> str:
        """Return the name of the response for a status and its codes: the status, numbered from the second on."""
        alike = sum(known == status for known, _ in self._refusals)
        return self._refusals.setdefault((status, codes), f"{status}-{alike + 1}" if alike else str(status))

    def _problem(self) -> Schema:
        self._schemas.of_answer(ProblemDocument)
        problem = self._schemas.components.pop("ProblemDocument")
        return problem | {"properties": problem["properties"] | {"code": ref("Code")}}


def _code() -> Schema:
    """Return the schema of all codes, each with its meaning and its status; later versions may add codes."""
    codes = [{"code": code, "status": about.status, "meaning": about.meaning} for code, about in CODES.items()]
    return {"description": "Stable name of the problem, for programs.", "type": "string", "x-codes": codes,
            "examples": ["moral_value_out_of_range"]}  # fmt: skip


def _refusal(status: int, codes: tuple[str, ...]) -> dict[str, Any]:
    """Return the response for a status, and the codes that can come with it."""
    return {
        "description": "\n".join(f"- `{code}`: {CODES[code].meaning}" for code in codes),
        "headers": _headers(_OF_STATUS.get(status, {})),
        "content": {PROBLEM_JSON: {"schema": ref("Problem"), "x-codes": [*codes]}},
    }


def _headers(named: Mapping[str, bool]) -> dict[str, Any]:
    """Return the fields of an answer, and X-Request-ID."""
    return {_ALWAYS: {"$ref": f"#/components/headers/{_ALWAYS}"}} | {
        name: _header(name, always=True) if always else {"$ref": f"#/components/headers/{name}"}
        for name, always in named.items()
    }


def _header(name: str, *, always: bool) -> dict[str, Any]:
    meaning, schema = _HEADERS[name]
    return {"description": meaning, "required": always, "schema": schema}


def _by_status(codes: Iterable[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (status, codes) in order of status."""
    codes = dict.fromkeys(codes)  # of the gate and of the operation; each once
    for status in sorted({CODES[code].status for code in codes}):
        yield status, tuple(code for code in codes if CODES[code].status == status)


def _group_of(resource: Resource) -> str:
    """Return the group of a resource: the noun that its file is called after, or the module that it belongs to."""
    package, *rest = type(resource).__module__.split(".")
    noun = {"app": rest[-1:], "modules": rest[:1]}.get(package, [package])[0]
    return {"health": "probes", "metrics": "probes", "openapi": "documentation"}.get(noun, noun)


def _gate(role: Role | None) -> tuple[str, ...]:
    """Return the codes with which the gate refuses a client that may not call an operation."""
    if role is None:
        return ()
    return GATE if role == Role.READ else (*GATE, "forbidden")  # no key has less than the lowest role


def _access(role: Role | None) -> str:
    return f"Requires the role `{role.name.lower()}`." if role else "Open: requires no key, and reads none."
