"""The plan of a grid as rows of text: what `--dry-run` and `raylab plan` print."""

from __future__ import annotations

from raylab.planning.devices import Device, device_hours
from raylab.planning.memory import Load
from raylab.planning.memory_fit import Fitting, fit
from raylab.planning.node_needs import NodeNeeds
from raylab.planning.plan import GridPlan
from raylab.planning.storage_bytes import StoragePlan


def plan_rows(
    plan: GridPlan,
    device: Device,
    price_per_hour: float,
    workers: int,
    encoders: int | None = None,
) -> list[dict[str, str]]:
    """The plan as rows of text: what `--dry-run` prints.

    Args:
        price_per_hour: of one device.
        workers: devices that train a cell.
        encoders: devices that encode; None: as many.
    """

    told = any(part.tuning for part in plan.cells)

    def row(
        name: str, flops: float, devices: int, texts: dict[str, str], executed: float | None = None
    ) -> dict[str, str]:
        hours = device_hours(flops if executed is None else executed, device)
        return {
            "cell": name,
            **({"recipe": texts.get("recipe", "")} if told else {}),
            "steps": texts.get("steps", ""),
            "tokens": texts.get("tokens", ""),
            "real tokens": texts.get("real tokens", ""),
            "FLOPs": f"{flops:.3g}",
            "memory a worker": texts.get("memory a worker", ""),
            "fits": texts.get("fits", ""),
            "device hours": f"{hours:.3g}",
            "wall hours": f"{hours / devices:.3g}",
            "price": f"{hours * price_per_hour:,.2f}",
        }

    def amounts(
        steps: int, tokens: float, real_tokens: float, load: Load, about: str = ""
    ) -> dict[str, str]:
        fitting = fit(load, device.memory_bytes)
        return {
            "steps": f"{about}{steps:,}",
            "tokens": f"{tokens:.3g}",
            "real tokens": f"{real_tokens:.3g}",
            "memory a worker": f"{fitting.needed_bytes / 2**30:.2f} GiB",
            "fits": _fits(fitting),
        }

    rows = []
    for part in plan.cells:
        about = "~" if part.estimated else ""
        texts = amounts(part.steps, part.tokens, part.real_tokens, part.load, about)
        texts["recipe"] = part.tuning or ""
        rows.append(row(part.cell, part.flops, workers, texts, part.executed_flops))
    for mntp in plan.adaptations:
        texts = amounts(mntp.steps, mntp.tokens, mntp.tokens, mntp.load)
        rows.append(row(f"mntp-{mntp.name}", mntp.flops, workers, texts))
    for part in plan.evaluations:
        name, devices = f"{part.name} x {part.systems}", encoders or workers
        tokens = {"real tokens": f"{part.tokens:.3g}"}
        rows.append(row(f"encode {name}", part.encode_flops, devices, tokens))
        rows.append(row(f"search {name}", part.search_flops, devices, {}))
    return rows


def stored_rows(storage: StoragePlan) -> list[dict[str, str]]:
    """What a grid stores, as rows of text: each stage, and all."""
    rows = [
        {
            "stored": stage.stage,
            "bytes": size(stage.stored),
            "with --no-index": size(stage.without_index),
        }
        for stage in storage.stages
    ]
    whole = {
        "stored": "in all",
        "bytes": size(storage.stored),
        "with --no-index": size(storage.without_index),
    }
    return [*rows, whole]


def storage_notes(storage: StoragePlan, untrained_share: float = 0.5) -> list[str]:
    """Sentences on what is stored: checkpoints that go again, the terms that are planned with, and who takes most.

    Args:
        untrained_share: of all, from which on untrained systems are told of.
    """
    notes = [f"while runs train, their checkpoints take {size(storage.training)} more"]
    if storage.terms is not None:
        trained, untrained = storage.terms
        told = f"sparse systems are planned with {trained:,.0f} terms a passage"
        if untrained != trained:
            told += f" once trained (assumed without Top-K) and {untrained:,.0f} untrained"
        notes.append(told)
    if storage.untrained > untrained_share * storage.stored:
        notes.append(
            f"{size(storage.untrained)} of it are embeddings and indexes of untrained sparse systems, which without "
            "Top-K keep most of the vocabulary: --top-k-query 40 --top-k-passage 400, or --no-index"
        )
    return notes


def node_notes(node: NodeNeeds) -> list[str]:
    """Sentences on the disk and memory of a node."""
    disk = f"a node's disk: {size(node.disk)} (base models {size(node.models)}, copies of tokens and groups "
    disk += f"{size(node.data)}, checkpoints {size(node.checkpoints)})"
    if node.copied:
        disk += f"; and all nodes together {size(node.copied)} of copied embeddings and indexes (none with "
        disk += "--no-index; a full disk drops the oldest)"
    memory = (
        f"memory of a process beside its device and its libraries: an encoder {size(node.encoder)}, "
        f"a search {size(node.searcher)}, a scan (--no-index) {size(node.scanner)}; "
        f"Ray's object store sorts up to {size(node.objects)}, over all nodes"
    )
    return [disk, memory]


def size(bytes_: float) -> str:
    """Bytes in a decimal unit, to three digits."""
    for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= divisor:
            return (
                f"{bytes_ / divisor:.3g} {unit}"
                if bytes_ < 999.5 * divisor
                else f"{bytes_ / divisor:,.0f} {unit}"
            )
    return f"{bytes_:.0f} B"


def _fits(fitting: Fitting) -> str:
    if fitting.fits:
        return "yes"
    return f"no: {fitting.options}" if fitting.options else "no"
