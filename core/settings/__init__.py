"""The configuration: its shape, its ranges, and the documents it is read from."""
