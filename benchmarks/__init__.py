"""Benchmarks beside peers: ``python -m benchmarks`` makes every table of docs/performance.md."""
