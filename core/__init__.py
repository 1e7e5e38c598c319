"""What the bytes of the block mean: governor, rhythm, levels, recall, configuration, limits, controller. No HTTP.

The governor, the rhythm and the cascade exist twice on purpose. Here they are pure Python that reads like the
specification; in shm/native/governor.c they run under the lock. `replay` applies the log of a live block to the
versions in this package and compares every number.
"""
