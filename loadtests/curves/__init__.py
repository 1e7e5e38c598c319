"""How cost and latency grow. loadtests/bench measures one load and one size; these programs vary them.

    python -m loadtests.curves.latency     latency at half and at 80 % of capacity
    python -m loadtests.curves.growth      cost by capacity, dimension and payload, beside the memory's limit

Both print a table, write a JSON document and draw pictures into docs/pictures; docs/performance.md explains them.
`--drawn DOCUMENT` draws an earlier run again.

    open_loop.py open_loop.c       the open-loop client and its schedule
    instant_server.c               a server that answers at once, against which the client is checked
    memory_read.py memory_read.c   the time to read a number of bytes
    native_store.py                the native core without a server
    c_program.py picture.py        compiles C programs; draws SVG
"""
