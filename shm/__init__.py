"""Bytes: the shared block, its lock and the native critical section.

This package knows offsets, locks and processes. It knows nothing of HTTP, and of morals only the arithmetic that has to
run while the lock is held. It imports nothing of this project. Read `layout` first: it is the one description of every
shared byte.
"""
