"""How fast, beside whom, and how near to the machine's limit: ``python -m benchmarks`` (never part of the tests).

A benchmark is a module ``bench_*`` with one function ``rows(bench)`` that yields :class:`benchmarks.harness.Row`; what
it is measured against stands in ``benchmarks.peers``. Sides are alternated in one process and must first agree on the
result. Each benchmark's rows are written as soon as they are there, so that the whole can be run in pieces.
"""
