"""What `mlsdm replay` is made of."""
