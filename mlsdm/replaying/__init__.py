"""The parts of `mlsdm replay`: recording, connection, ledger, progress, plot."""
