"""The card of a rung that was made from scratch: what it is, what it has seen, how well it fits, what made it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raylab.training.excerpts import Excerpts
from raylab.training.pretraining import Pretraining, Trained
from raylab.training.rungs import Rung


@dataclass(frozen=True)
class Provenance:
    """Where a ladder comes from: its text and its teacher with their licences, and the command that made it."""

    text: str
    text_license: str  # as the hub's metadata spell it
    teacher: str
    teacher_license: str
    excerpts: Excerpts
    command: str


def card(rung: Rung, config: Pretraining, trained: Trained, origin: Provenance) -> str:
    """The Markdown of a rung's README."""
    shape, phases = trained.shape, trained.phases
    steps = [
        f"{done.steps:,} steps of {phase.batch} documents, {done.steps * phase.batch / trained.documents:.1f} epochs"
        for phase, done in zip(config.phases, phases, strict=True)
    ]
    rows = {
        "text": f"{origin.text}: {trained.documents:,} documents, {trained.held_out} more held out; "
        "no query, claim, judgement or score of one",
        "teacher": f"{origin.teacher}, {origin.teacher_license}; its similarities were distilled",
        "excerpts of a document": f"`{origin.excerpts}`",
        "recipe": f"`{config}`",
        "phases": "; ".join(steps),
        "tokens": f"{trained.tokens:.3g} with padding, {trained.tokens / shape.parameters:.3g} a non-embedding "
        "parameter",
        "last batches' losses": ", ".join(f"{done.loss:.3f}" for done in phases),
        "FLOPs": f"{sum(done.flops for done in phases):.3g}",
        "seconds of its steps, one thread": f"{sum(done.seconds for done in phases):.0f}",
        "command": f"`{origin.command}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
license: {origin.text_license}
library_name: transformers
tags: [raylab, retrieval, bidirectional]
---
# {rung.name}

A bidirectional Llama of {shape.parameters:,} non-embedding parameters (and {shape.embedding_parameters:,} of tied
embeddings), one rung of raylab's pico ladder: {asdict(rung)}.

| | |
|---|---|
{table}

## Fit on the held-out documents

{_fit(trained)}

It starts experiments on a laptop. It is no model to deploy.
"""


def _fit(trained: Trained) -> str:
    """How the fit moved along each phase, as tables."""
    tables = []
    for place in range(len(trained.phases)):
        points = trained.fit(place)
        if not points:
            continue
        names = [name for name in points[-1] if name.startswith("held_out")]
        head = ["step", *(name.removeprefix("held_out_").replace("_", " ") for name in names)]
        lines = [" | ".join(head), " | ".join("---" for _ in head)]
        for point in points:
            values = [f"{point['step']:.0f}", *(f"{point[name]:.3f}" for name in names)]
            lines.append(" | ".join(values))
        tables.append(f"Phase {place + 1}:\n\n" + "\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(tables) or "It was not measured."
