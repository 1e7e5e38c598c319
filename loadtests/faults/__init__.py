"""Faults: what may happen to a running server, done to it on purpose, and whether its promises held.

One module for each fault. Each starts the real server, does its worst many times, and tells in figures what came of it
(`fault.Outcome`). `python -m loadtests.faults` runs them and fails when a promise was broken; the tests run each of
them a few times.
"""
