"""Benchmarks: this project beside others and beside what the machine can do. See README.md."""
