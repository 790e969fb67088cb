"""Benchmarks: this project beside what a Django team has without it, on the same servers, alternately in one run."""
