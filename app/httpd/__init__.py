"""An HTTP/1.1 server on Gunicorn and uvloop. Knows nothing of memories; imports `core.limits` only."""
