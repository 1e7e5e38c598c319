"""One noun, one file: the resources of the HTTP API."""
