"""The processes around the workers: supervised children, Gunicorn's arbiter, shared counts."""
