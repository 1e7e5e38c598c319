"""The `mlsdm` command: what an operator types. It may import app, core and shm; nothing imports it.

Read `command` first: it is the table of commands. Each is a module with `add_arguments` and `run`; `snapshot` is what
`stat` sees, and `recording`, `client`, `ledger`, `progress` and `plot` are the nouns of `replay`.
"""
