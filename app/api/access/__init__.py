"""Who may call what, how often, and what may be repeated."""
