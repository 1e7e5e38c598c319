"""Gunicorn's configuration: `gunicorn -c gunicorn.conf.py app.main:app`. Executed at the start and again at every HUP.

Everything comes from `app.server`, which is imported once and keeps configuration, block and controller over reloads.
Every global whose name is a Gunicorn setting becomes that setting.
"""

from app.processes.early_stop import stop_at_sigterm

stop_at_sigterm()

from app.server import server  # noqa: E402 - it takes the most of a start

globals().update(server.gunicorn_settings())
