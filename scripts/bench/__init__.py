"""The benchmarks: docs/benchmarks.md tells what they measure and how to repeat them."""
