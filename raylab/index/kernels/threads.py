"""Blocks of queries side by side; the kernels and the matrix products release the GIL."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def run_blocks(
    search: Callable[[slice], None], n_queries: int, block: int, threads: int = 1
) -> None:
    """Call ``search`` with slices that cover ``range(n_queries)``, ``threads`` at a time.

    A slice holds at most ``block`` queries. Raises the first error of a call, and ValueError for
    fewer threads than 1.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    size = max(1, min(block, -(-n_queries // threads)))
    slices = [slice(start, start + size) for start in range(0, n_queries, size)]
    if threads == 1:
        for part in slices:
            search(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(search, part) for part in slices]:
            done.result()
