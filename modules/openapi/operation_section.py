"""Operation section: the part of the documentation page about one operation.

Everything is taken from the OpenAPI document; the code is not read. Each body has a command line that can be pasted,
with a short form for vectors: `seq` prints as many numbers as a vector has.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from modules.openapi.html import Markup, element, joined, link, listed, prose, table
from modules.openapi.type_phrase import default_of, length, phrase

Node = Mapping[str, Any]

ORIGIN: Final = "http://127.0.0.1:8000"  # in the examples, until a request has another Host
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_BYTES: Final = "application/octet-stream"
_LINE_LENGTH_MAX: Final = 90  # characters


class Articles:
    """Renders the operations of one document. `common` are the codes that every operation may answer."""

    def __init__(self, document: Node) -> None:
        self._schemas: Node = document["components"]["schemas"]
        self._responses: Node = document["components"]["responses"]
        vector = self._schemas["Vector"]["examples"][0]
        self._vector = json.dumps(vector)
        self._short = f"['$(seq -s, {len(vector)})']"  # leaves the quotes of the shell and enters them again
        self.common = set.intersection(*(set(self._codes(operation)) for _, _, operation in each(document)))

    def article(self, path: str, method: str, operation: Node) -> Markup:
        """Return the section of one operation."""
        security = operation["security"]
        access = security[0]["bearer"][0] if security else "open"
        return element(
            "article",
            element("h3", link(operation["operationId"], *signature(path, method)), _badge(access)),
            element("p", prose(operation["summary"] + "."), class_="summary"),
            *self._parameters(operation),
            *self._body(operation),
            *[element("pre", element("code", text), class_="shell") for text in self.commands(path, method, operation)],
            *self._answer(operation),
            *self._refusals(operation),
            id=operation["operationId"],
        )

    def commands(self, path: str, method: str, operation: Node) -> Iterator[str]:
        """Yield a command line for the operation, or for each of its bodies that a shell can write."""
        given: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}}
        for parameter in operation.get("parameters", ()):
            if examples := parameter["schema"].get("examples"):
                given[parameter["in"]][parameter["name"]] = str(examples[0])
        for name, value in given["path"].items():
            path = path.replace(f"{{{name}}}", value)
        query = "&".join(f"{name}={value}" for name, value in given["query"].items())
        url, full = ORIGIN + path, f"'{ORIGIN}{path}?{query}'" if query else ORIGIN + path
        key = ['-H "X-API-Key: $API_KEY"'] if operation["security"] else []
        content = operation.get("requestBody", {}).get("content", {})
        usual = "post" if content else "get"  # what curl does by itself
        verb = "" if method == usual else f" -X {method.upper()}"
        if not content:
            yield _lines(f"curl -s{verb} {full}", *key)
        if _JSON in content:
            body = json.dumps(content[_JSON]["example"]).replace("'", "'\\''").replace(self._vector, self._short)
            yield _lines(f"curl -s{verb} {url}", *key, f"-H 'Content-Type: {_JSON}'", f"-d '{body}'")
        if _BYTES in content:
            fields = [f"-H '{name}: {value}'" for name, value in {"Content-Type": _BYTES, **given["header"]}.items()]
            zeros = f"head -c {content[_BYTES]['schema']['minLength']} /dev/zero"
            yield _lines(f"{zeros} | curl -s{verb} {full}", *key, *fields, "--data-binary @-")

    def members(self, schema: Node) -> Markup:
        """Return the table of an object's members."""
        required = schema.get("required", ())
        rows = [
            (
                element("code", name),
                phrase(member),
                joined(
                    "" if name in required else element("i", "optional. "),
                    prose(self._meaning(member)),
                    default_of(member),
                ),
            )
            for name, member in schema["properties"].items()
        ]
        return table(("member", "type", "meaning"), rows)

    def _meaning(self, member: Node) -> str:
        """Return the description of a member, else that of its type."""
        described = self._schemas[member["$ref"].rpartition("/")[2]] if "$ref" in member else member
        return str(member.get("description") or described.get("description", ""))

    def _parameters(self, operation: Node) -> Iterator[Markup]:
        rows = [
            (element("code", parameter["name"]), parameter["in"], phrase(parameter["schema"]),
             prose(parameter["description"]))
            for parameter in operation.get("parameters", ())
        ]  # fmt: skip
        if rows:
            yield table(("parameter", "in", "type", "meaning"), rows)

    def _body(self, operation: Node) -> Iterator[Markup]:
        content = operation.get("requestBody", {}).get("content", {})
        rows = []
        for media, body in content.items():
            schema = body["schema"]
            of_bytes = media == _BYTES
            kind = joined(length(schema, "minLength", "maxLength"), " bytes") if of_bytes else phrase(schema)
            rows.append((element("code", media), kind, prose(schema["description"]) if of_bytes else ""))
        if rows:
            yield table(("body", "type", "meaning"), rows)
            named = content[_JSON]["schema"]
            yield self.members(self._schemas[named.get("items", named)["$ref"].rpartition("/")[2]])

    @staticmethod
    def _answer(operation: Node) -> Iterator[Markup]:
        response = operation["responses"]["200"]
        ((media, answer),) = response["content"].items()
        fields = [element("code", name) for name in response["headers"] if name != "X-Request-ID"]
        yield element(
            "p",
            element("b", "200"),
            " ",
            phrase(answer["schema"]) if media == _JSON else element("code", media),
            *((", with ", listed(fields)) if fields else ()),
        )
        if "example" in answer:
            example = json.dumps(answer["example"], indent=2, ensure_ascii=False)
            yield element("pre", element("code", example), class_="answer")

    def _refusals(self, operation: Node) -> Iterator[Markup]:
        own: dict[int, list[Markup]] = {}
        for code, status in self._codes(operation).items():
            if code not in self.common:
                own.setdefault(status, []).append(link(f"code-{code}", element("code", code)))
        if own:
            lines = [element("li", element("b", str(status)), " ", listed(codes)) for status, codes in own.items()]
            yield element("ul", *lines, class_="refusals")

    def _codes(self, operation: Node) -> dict[str, int]:
        """Return every code that an operation may answer with, and its status."""
        codes: dict[str, int] = {}
        for status, response in operation["responses"].items():
            resolved = self._responses[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
            if problem := resolved["content"].get(_PROBLEM):
                of_status = problem["x-codes"]
                codes |= dict.fromkeys(of_status, int(status))
        return codes


def each(document: Node) -> Iterator[tuple[str, str, Node]]:
    """Yield (path, method, operation) in the order of the document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def signature(path: str, method: str) -> tuple[Markup, Markup]:
    """Return method and path of an operation, each in its own colour."""
    return element("span", method.upper(), class_=f"method {method}"), element("code", path)


def _badge(access: str) -> Markup:
    return element("span", access if access == "open" else f"role {access}", class_=f"badge {access}")


def _lines(*parts: str) -> str:
    """Return a command: in one line if it is short, else with a line for each part."""
    line = " ".join(parts)
    return line if len(line) <= _LINE_LENGTH_MAX else " \\\n    ".join(parts)
