"""The subcommands of `mlsdm`, one file each."""
