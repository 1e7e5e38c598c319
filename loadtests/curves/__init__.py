"""The curves: how cost and waiting grow, where the yardstick (loadtests/bench) knows one load and one size.

    python -m loadtests.curves.latency     how long an answer takes at half and at 80 % of capacity
    python -m loadtests.curves.growth      cost against capacity, dimension and payload, beside the memory's limit

Both print a table, write a JSON document and draw pictures into docs/pictures; docs/performance.md says what they show.
With `--drawn DOCUMENT` they draw what was measured before.

    paced.py paced.c     the client of an open loop, and the schedule it keeps
    at_once.c            what the client is held against: a server that answers at once
    reading.py reading.c what reading so many bytes costs at least
    inside.py            the native core without a server: a block of any size, filled
    compiled.py          C programs, built when they are run
    picture.py           pictures that change only where the figures do
"""
