"""Faults: disturbances of a running server, done on purpose, and checks of its promises.

One module per fault. Each runs the real server, repeats the disturbance, and returns figures (`fault.Outcome`).
`python -m loadtests.faults` runs them and fails when a promise is broken; the tests run small versions.
"""
