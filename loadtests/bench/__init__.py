"""The yardstick: what a request costs this server, and what it would cost to do nothing with it.

    make bench
    python -m loadtests.bench --check --data vectors.npz

A row is a side that is measured and a side that it is held against, measured in turn (A B A B …), so that a machine
that slows down slows both. What is compared is the processor time of all processes of a server per request, the
steadiest figure that there is; requests per second and latencies stand beside it. docs/benchmarks.md explains every
row.

    rows.py        which side is held against which: the table that this program exists for
    goals.py       what each row has to reach
    servers.py     servers under measurement: the product in its variants, the floor, brute force, peers
    peers.py       servers of other people, each in an environment of its own
    floor.py brute.py unmetered.py    applications that run in the worker class of the product
    vectors.py     the vectors: given ones, or a synthetic set
    traffic.py     requests as bytes, made before anything is measured
    wrk.py         the client
    processor.py   which core, and how much of it was used
    rounds.py      one row: rounds, medians, spread; whether every answer was a good one
    contention.py  how long sections wait for the lock, at most
    report.py      the table and the JSON document
"""
