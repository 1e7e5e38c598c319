"""What the operating system says of processes, memory and processors."""
