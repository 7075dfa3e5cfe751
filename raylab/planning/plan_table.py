"""The plan of a grid as rows of text: what `--dry-run` and `raylab plan` print."""

from __future__ import annotations

from raylab.planning.devices import Device, device_hours
from raylab.planning.memory import Load
from raylab.planning.memory_fit import Fitting, fit
from raylab.planning.plan import GridPlan


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

    def row(
        name: str, flops: float, devices: int, texts: dict[str, str], executed: float | None = None
    ) -> dict[str, str]:
        hours = device_hours(flops if executed is None else executed, device)
        return {
            "cell": name,
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
        rows.append(row(part.cell, part.flops, workers, texts, part.executed_flops))
    for mntp in plan.adaptations:
        texts = amounts(mntp.steps, mntp.tokens, mntp.tokens, mntp.load)
        rows.append(row(f"mntp-{mntp.name}", mntp.flops, workers, texts))
    for part in plan.evaluations:
        name, devices = f"{part.name} x {part.cells}", encoders or workers
        tokens = {"real tokens": f"{part.tokens:.3g}"}
        rows.append(row(f"encode {name}", part.encode_flops, devices, tokens))
        rows.append(row(f"search {name}", part.search_flops, devices, {}))
    return rows


def _fits(fitting: Fitting) -> str:
    if fitting.fits:
        return "yes"
    return f"no: {fitting.options}" if fitting.options else "no"
