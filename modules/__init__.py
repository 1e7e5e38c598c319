"""Modules of the platform; `app.lifecycle.loader` finds them by name."""
