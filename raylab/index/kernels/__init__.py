"""Compiled kernels of exact search, and the order of hits that all of them keep."""
