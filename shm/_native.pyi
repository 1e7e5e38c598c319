# cffi modules carry no types. What touches them (block.py, store.py, and casts of log entries) gives types to the rest.
from typing import Any

ffi: Any
lib: Any
