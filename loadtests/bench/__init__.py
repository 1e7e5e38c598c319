"""The benchmark: processor time per request of this server, against a floor that does nothing, and against peers.

    make bench
    python -m loadtests.bench --check --data vectors.npz

A row compares two sides, measured alternately, so that a slower machine slows both. The compared figure is the
processor time of all server processes per request, the steadiest there is. docs/benchmarks.md explains every row.

    rows.py goals.py comparison.py report.py    what is compared, what it must reach, one row's rounds, the output
    servers.py peers.py                         servers under measurement: the product's variants, the floor, peers
    floor.py brute.py unmetered.py              applications in the product's worker class
    vectors.py traffic.py wrk.py processor.py   vectors, requests as bytes, the client, cores and CPU clocks
    contention.py                               an upper bound of the wait for the lock
"""
