"""The four states of a connection, and what each event does in them.

`app.httpd.connection` implements the table below. Besides the state, a connection has four conditions:

- `_request` is the request whose answer is made on the pool or in pieces, or is deferred.
- `writer.is_paused` is True while the client reads too slowly. While either of these two holds, nothing is answered, so
  neither occurs in READY.
- `_peer_ended` is True once the client has sent EOF. A half-closed connection is not possible on TLS, nor while an
  answer is deferred: when the client sends EOF, the connection closes.
- `_must_queue` belongs to one feed of the parser. It is True once a request of that feed was answered, and in every
  feed while the worker drains: then the requests that follow in the same feed are queued.
"""

from typing import Final

READY: Final = 0  # the next request is answered at once
QUEUEING: Final = 1  # a request waits, or its answer is being made: the next request is queued
CLOSING: Final = 2  # no further input is parsed; queued answers are still sent, and the last of them says close
LINGERING: Final = 3  # the last answer is written, or none will be; input is discarded until the client closes

# An empty cell: the event does nothing, or cannot occur. Losing the connection ends everything in every state.
#
# | event | READY | QUEUEING | CLOSING | LINGERING |
# |---|---|---|---|---|
# | bytes arrive | parse them | keep them; parse them in turn | discard | discard |
# | a request is complete | answer it; if that takes longer → QUEUEING | queue it; if it says close → CLOSING | | |
# | a request is refused | send the problem → LINGERING | queue the problem → CLOSING | | |
# | an answer with `Connection: close` is sent | → LINGERING | → LINGERING | → LINGERING | |
# | the client reads too slowly | → QUEUEING | | | |
# | the last waiting request is answered | | → READY | | |
# | the client has sent EOF | close | finish the answers, then close | finish the answers, then close | close |
# | the deadline is over (phase IDLE) | close | no deadline: the client waits for us | no deadline | abort |
# | the deadline is over (phase HEAD or BODY) | refuse with 408 | no deadline | no deadline | abort |
# | the write deadline is over | abort | abort | abort | abort |
