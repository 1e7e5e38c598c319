"""Schemas: the types of the code as JSON Schema 2020-12, and examples made from them.

msgspec describes a type as it would decode it. Four things are made exact here, for every type: a member of a response
that may be None is left out if it is (`omit_defaults`), so it is optional and never null, and all others are always
present; a vector has the dimension of this server; names are not repeated as titles; and where values are listed
(`enum`, `const`), their type is named, because generators of clients do not infer it.

An example is assembled from the `examples` of the members, so it always has the shape of its type. Tests send each one.
"""

from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from core.limits import VECTOR_NORM

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/"
_VALUES: Final = frozenset({"default", "examples", "enum", "const"})  # members that hold values, not schemas
_JSON_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string"}
_NULL: Final = {"type": "null"}


class Schemas:
    """The schemas that one document refers to. `components` grows as types are described."""

    def __init__(self, dimension: int) -> None:
        self.components: dict[str, Schema] = {"Vector": _vector(dimension)}

    def of_request(self, annotation: Any) -> Schema:
        """Return the schema of what a client sends."""
        schema, components = _described(annotation)
        self.components |= {name: _tidy(component) for name, component in components.items()}
        return schema

    def of_answer(self, annotation: Any) -> Schema:
        """Return the schema of what the server answers."""
        schema, components = _described(annotation)
        self.components |= {name: _sent(_tidy(component)) for name, component in components.items()}
        return schema

    def resolve(self, schema: Schema) -> Schema:
        """Return the schema that a reference points to; any other schema as it is."""
        return self.components[schema["$ref"].removeprefix(_REF)] if "$ref" in schema else schema

    def example(self, schema: Schema) -> Any:
        """Return an example: the schema's own, or one made of the examples of its members."""
        if "examples" in schema:
            return schema["examples"][0]
        narrower = schema.get("properties", {}) if "$ref" in schema else {}
        schema = self.resolve(schema)
        if narrower:
            schema = schema | {"properties": schema["properties"] | narrower}
        for key in ("default", "const"):
            if key in schema:
                return schema[key]
        for key in ("examples", "enum"):
            if key in schema:
                return schema[key][0]
        if schema.get("type") == "array":
            return [self.example(schema["items"])]
        if schema.get("type") == "object":
            return {
                name: self.example(member)
                for name, member in schema["properties"].items()
                if name in schema.get("required", ()) or "examples" in member
            }
        return schema.get("type") == "boolean"


def _described(annotation: Any) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a type, and those of the types with names that it refers to, with a type for every value."""
    (schema,), components = msgspec.json.schema_components((annotation,), ref_template=_REF + "{name}")
    typed: tuple[Schema, dict[str, Schema]] = _typed((schema, components))
    return typed


def _typed(node: Any) -> Any:
    """Return a piece of schemas in which listed values have a type; one value alone is a `const`."""
    if isinstance(node, list | tuple):
        return type(node)(map(_typed, node))
    if not isinstance(node, dict):
        return node
    node = {key: member if key in _VALUES else _typed(member) for key, member in node.items()}
    if isinstance(node.get("enum"), list) and len(node["enum"]) == 1:
        node["const"] = node.pop("enum")[0]
    values = node.get("enum", [node["const"]] if "const" in node else [])
    if isinstance(values, list) and values and "type" not in node:
        (kind,) = {_JSON_TYPES[type(value)] for value in values}
        node["type"] = kind
    return node


def ref(name: str) -> Schema:
    """Return a reference to a schema by its name."""
    return {"$ref": _REF + name}


def _vector(dimension: int) -> Schema:
    encoded = b64encode(bytes(4 * dimension)).decode()
    digits = len(encoded.rstrip("="))
    limit = VECTOR_NORM.value  # of the norm, so of each element, too
    return {
        "description": (
            f"{dimension} numbers, finite as float32 and of a norm of at most {limit:,}; or, shorter, the base64 of "
            "them as little-endian float32. In msgpack also those bytes as bin."
        ),
        "oneOf": [
            {
                "type": "array",
                "items": {"type": "number", "minimum": -limit, "maximum": limit},
                "minItems": dimension,
                "maxItems": dimension,
            },
            {
                "type": "string",
                "contentEncoding": "base64",
                "pattern": f"^[A-Za-z0-9+/]{{{digits}}}{'=' * (len(encoded) - digits)}$",
            },
        ],
        "examples": [[*range(1, dimension + 1)]],
    }


def _tidy(component: Schema) -> Schema:
    """Return a component without its title (the name again) and without the line breaks of its docstring.

    `python -OO` removes docstrings: then there is no description.
    """
    tidied = {key: value for key, value in component.items() if key != "title" and value != []}
    if "description" in component:
        tidied["description"] = " ".join(component["description"].split())
    return tidied


def _sent(component: Schema) -> Schema:
    """Return a component of a response: members that may be None are optional, all others required."""
    properties = component["properties"]
    optional = set(_optional(properties))
    exact = {
        name: _without_null(member["anyOf"])
        if name in optional
        else {k: v for k, v in member.items() if k != "default"}
        | ({"examples": [member["default"]]} if "default" in member else {})
        for name, member in properties.items()
    }
    return component | {"properties": exact, "required": [name for name in properties if name not in optional]}


def _optional(properties: dict[str, Schema]) -> Iterator[str]:
    for name, member in properties.items():
        if _NULL in member.get("anyOf", ()) and member.get("default", ...) is None:
            yield name


def _without_null(choices: list[Schema]) -> Schema:
    (left,) = [choice for choice in choices if choice != _NULL]
    return left
