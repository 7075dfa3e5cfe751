"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
