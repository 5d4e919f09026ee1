"""Readers of the licensed benchmarks' layouts, and of a folder of pairs."""
