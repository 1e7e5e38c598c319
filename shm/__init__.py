"""The bytes: the shared block, its lock and the native critical section.

This package deals with offsets, locks and processes. It contains no HTTP, and of the governor only the arithmetic that
runs while the lock is held. It imports nothing else of this project. Read `layout` first: it describes every shared
byte; `native/api.h` describes every native function.
"""
