"""The members that the server and its applications add to the WSGI environ of a request.

PEP 3333 defines the other members. No client can set one of these: a header field becomes HTTP_*, CONTENT_TYPE or
CONTENT_LENGTH (`app.httpd.wsgi_environ`), and these keys contain a dot.

Perf: reading a member through a constant takes 27 ns; through a literal in another module than the writer's, 37
ns. With the constant, the key is the same string object, so the dictionary does not compare text (Python 3.11, warm).
"""

from typing import Final

# | constant | type | written by | read by |
# |---|---|---|---|
# | RECEIVED_NS | int | `request_parser`, when the request is complete | latency histogram, spans, request log |
# | REQUEST_ID | str | `request_names`, at the end of the head | answers, log lines, audit log, spans |
# | TRACE | request_names.TraceContext | `request_names`; spans replace it by their own | answers, log lines, spans |
# | BODY_RESERVED | int | `connection`, for a large body | `connection`, when the request ends |
# | HEADER_LINES | str | quotas, idempotent replays | `wsgi_call`, for the head of the answer |
# | REFUSAL_LINES | str | `on_refusal` of the application | `connection` and `wsgi_call`, for a refusal of their own |
# | ADDRESS | str | gate, where proxies are configured | log lines, audit log |
# | CLIENT | api.access Client | gate | quotas, idempotency keys, log lines, audit log |
# | CHARGE | api.access Charge | quotas | quotas, when a request is refused |
# | RAISED | Exception | fast path, and `wants_body` of app.main | fast path, which raises it again inside Falcon |

RECEIVED_NS: Final = "mlsdm.received_ns"  # time.monotonic_ns() at which the request was complete
REQUEST_ID: Final = "mlsdm.request_id"  # the client's X-Request-ID, or one that was made
TRACE: Final = "mlsdm.trace"  # absent without a valid traceparent
BODY_RESERVED: Final = "mlsdm.reserved"  # bytes of its body that are counted in the worker's budget
HEADER_LINES: Final = "mlsdm.lines"  # finished header lines, each with its CRLF, made of constants and numbers only
REFUSAL_LINES: Final = "mlsdm.refusal_lines"  # finished header lines, as above
ADDRESS: Final = "mlsdm.address"  # of the client, as trusted proxies report it; absent without them: REMOTE_ADDR
CLIENT: Final = "mlsdm.client"  # who sent the request; absent until a client was identified
CHARGE: Final = "mlsdm.charge"  # the account that was charged, and how many tokens
RAISED: Final = "mlsdm.raised"  # why the request is refused before it reaches its route
