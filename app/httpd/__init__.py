"""An HTTP/1.1 server on Gunicorn and uvloop. Imports only `core.limits`; has no code about memories."""
