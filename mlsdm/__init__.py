"""The `mlsdm` command: what an operator types. It may import app, core and shm; nothing imports it.

`command.py` has the table of subcommands; `commands/` has one file per subcommand, each with `add_arguments` and `run`.
`block_snapshot.py` reads a live block for `stat`; `replaying/` holds the parts of `replay`.
"""
