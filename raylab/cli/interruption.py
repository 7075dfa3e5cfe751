"""Ctrl-C and SIGTERM: the command stops at once, keeps what is finished, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_OF_SIGNAL = 128  # and the signal's number, as shells have it
_stopped_by: list[int] = []


def exit_status() -> int:
    """Of a command that a `KeyboardInterrupt` ended: of the signal behind it, SIGINT where none is known."""
    return EXIT_OF_SIGNAL + (_stopped_by[-1] if _stopped_by else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM say so and raise `KeyboardInterrupt` in the main thread; another ends the process.

    No exception of its own: Ray's waiting hands this one on, and no other. Where another thread calls, nothing
    changes: signals are the main thread's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def stop(number: int, frame: FrameType | None) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
        _stopped_by.append(number)
        name = signal.Signals(number).name
        print(
            f"\nstopped by {name}: what is finished is kept, and the same command goes on from there",
            file=sys.stderr,
            flush=True,
        )
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
