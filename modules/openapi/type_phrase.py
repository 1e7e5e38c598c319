"""Type phrase: a schema in a few words for people: `integer 1 … 100`, `array of Found`, `"wake" or "sleep"`."""

import json
from collections.abc import Mapping
from typing import Any

from modules.openapi.html import Markup, element, joined, link, listed

Node = Mapping[str, Any]


def phrase(schema: Node) -> Markup:
    """Return a type in a few words; a type with a name as a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return link(f"type-{name}", name)
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return listed([element("code", json.dumps(value)) for value in values], "or")
    if "oneOf" in schema:
        return listed([phrase(choice) for choice in schema["oneOf"]], "or")
    kind = schema.get("type")
    if kind == "array":
        count = length(schema, "minItems", "maxItems")
        return joined("array of ", *((count, " × ") if count else ()), phrase(schema["items"]))
    if kind == "object":
        values = schema.get("additionalProperties")
        return joined("object of ", phrase(values)) if values else Markup("object")
    if "contentEncoding" in schema:
        return joined(f"string in {schema['contentEncoding']}")
    size = length(schema, "minLength", "maxLength")
    return joined(kind or "any value", _range(schema), *((" of length ", size) if size else ()))


def length(schema: Node, least: str, most: str) -> str:
    """Return the bounds of a length: `8`, `1 … 1,000`, or "" if there are none."""
    low, high = schema.get(least), schema.get(most)
    if low is None or high is None:
        return ""
    return f"{low:,}" if low == high else f"{low:,}\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}{high:,}"


def default_of(schema: Node) -> Markup:
    """Return a sentence about the default, if there is one."""
    if "default" not in schema:
        return Markup()
    return joined(" Default ", element("code", json.dumps(schema["default"])), ".")


def _range(schema: Node) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']}, up to {high:,}"
    if low is None:
        return ""
    return (
        f" from {low:,}"
        if high is None or high >= 1 << 53
        else f"\N{NO-BREAK SPACE}{low:,}\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}{high:,}"
    )
