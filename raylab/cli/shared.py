"""Options that several commands share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

Storage = Annotated[str, typer.Option(help="a local folder or any fsspec address")]
Models = Annotated[str | None, typer.Option(help="folder with local copies of hub models")]
Gpu = Annotated[bool, typer.Option("--gpu", help="one GPU a worker")]
OnFault = Annotated[
    str,
    typer.Option(
        help="error: the first faulty record ends it; quarantine, or quarantine:KIND,...: it is set "
        "aside (raylab data ingest --help names the kinds)"
    ),
]

_WIDE = 10_000


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and in a file or a pipe as wide as they are."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)
