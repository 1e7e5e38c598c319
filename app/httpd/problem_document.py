"""Problem document (RFC 9457): the JSON of every refusal and error, of the server's own and of what it serves.

The connection renders its refusals with it. Routes get it from app/main.py, because app/api does not import the server.
"""

import json
from typing import Final

_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


def problem_document(status: str, code: str, detail: str, members: bytes = b"") -> bytes:
    """Return a problem document as JSON in UTF-8.

    `status` is the HTTP status with its phrase, which becomes the title. `members` are further members as JSON, such as
    `"field":"body"`, separated by commas and without braces.
    """
    number, _, title = status.partition(" ")
    document = (
        f'{{"type":"about:blank","title":{_encode(title)},"status":{number},'
        f'"code":{_encode(code)},"detail":{_encode(detail)}'
    )
    return document.encode() + (b"," + members if members else b"") + b"}"
