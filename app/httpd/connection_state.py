"""The four states of a connection, and what each event does in them.

`app.httpd.connection` is this table. Not in a row: losing the connection ends everything in every state.

| event | READY | QUEUEING | CLOSING | LINGERING |
|---|---|---|---|---|
| bytes arrive | parse them | keep them; parse them in turn | discard | discard |
| a request is complete | answer it; if that takes longer → QUEUEING | queue it; if it says close → CLOSING | | |
| a request is refused | send the problem → LINGERING | queue the problem → CLOSING | | |
| an answer with `Connection: close` is sent | → LINGERING | → LINGERING | → LINGERING | |
| the client reads too slowly | → QUEUEING | | | |
| nothing waits any more | | → READY | | |
| the client has sent EOF | close | finish the answers, then close | the same | close |
| the deadline is over (phase IDLE) | close | none: the client waits for us | the same | abort |
| the deadline is over (phase HEAD or BODY) | refuse with 408 | none | none | abort |
| the write deadline is over | abort | abort | abort | abort |

Beside the state there are four conditions. `_request` is the request whose answer is made on the pool, in pieces, or is
deferred. `writer.is_paused` says that the client reads too slowly. While either holds nothing is answered, so neither
occurs in READY. `_peer_ended` says that the client has sent EOF. `_has_served` belongs to one feed of the parser:
a request of it was answered, and those that follow in the same feed are queued.

A half-closed connection is not possible on TLS, nor while an answer is deferred: when the client sends EOF, the
connection closes.
"""

from typing import Final

READY: Final = 0  # the next request is answered at once
QUEUEING: Final = 1  # something waits or is under way: the next request is queued
CLOSING: Final = 2  # no further input is parsed; queued answers are still to be sent, the last of which says close
LINGERING: Final = 3  # the last answer is written, or none will be; input is discarded until the client closes
