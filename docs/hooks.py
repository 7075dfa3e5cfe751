"""What mkdocs makes from the code while it builds the site, so that it cannot go stale.

A page asks for it by a comment on a line of its own:

    <!-- generated: columns of Result -->      the columns of a table, from `raylab.storage.tables`
    <!-- generated: commands -->               every command with its options, from `raylab.cli.main`
    <!-- generated: heads and objectives -->   those of the package
    <!-- generated: ladders -->                those of the package
    <!-- generated: benchmarks -->             the collections known by name
    <!-- generated: devices -->                what a plan can be for
    <!-- generated: differences -->            between the recipes `paper-as-run` and `paper`, and why
    <!-- generated: laws -->                   the scaling laws
    <!-- generated: metrics -->                what Prometheus is told
    <!-- included: benchmarks/README.md -->    a file of the repository, without its title
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"^<!-- (generated|included): (.+?) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """The page with what its comments ask for in their place.

    Raises:
        KeyError: nothing of that name can be made.
    """

    def made(mark: re.Match[str]) -> str:
        kind, name = mark.groups()
        return included(name) if kind == "included" else GENERATED[name]()

    return _MARK.sub(made, markdown)


def included(path: str) -> str:
    """A file of the repository without its title; its relative links become the names of files."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return _LINK.sub(r"\1 (`\2`)", re.sub(r"\A# .*\n+", "", text))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in lines)
    return "\n".join(f"| {line} |" for line in cells) + "\n"


# ------------------------------------------------------------------------------------- columns


def columns_of(row: type) -> str:
    """The columns of a table: name, type, whether it may be empty, meaning."""
    from raylab.storage.tables import column_types

    types, hints = column_types(row), get_type_hints(row)
    rows = [
        (
            f"`{field.name}`",
            types[field.name].__name__,
            "yes" if NoneType in get_args(hints[field.name]) else "",
            field.metadata["doc"],
        )
        for field in dataclasses.fields(row)
    ]
    return table(("column", "type", "may be empty", "meaning"), rows)


def result_columns() -> str:
    from raylab.storage.tables import Result

    return columns_of(Result)


def query_value_columns() -> str:
    from raylab.storage.tables import QueryValue

    return columns_of(QueryValue)


def ledger_columns() -> str:
    from raylab.storage.tables import LedgerRow

    return columns_of(LedgerRow)


def curve_columns() -> str:
    from raylab.storage.tables import CurvePoint

    return columns_of(CurvePoint)


# ------------------------------------------------------------------------------------ commands


def commands() -> str:
    """Every command of `raylab`: what it does, its arguments, its options."""
    return "\n".join(_command(path, command) for path, command in command_tree())


def command_tree() -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names, command) of every command that does something, in the order of the help."""
    from typer.main import get_command

    from raylab.cli.main import app

    def below(path: tuple[str, ...], group: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below((*path, name), command)
            else:
                yield (*path, name), command

    yield from below((), get_command(app))


def _command(path: tuple[str, ...], command: Any) -> str:
    arguments = [parameter for parameter in command.params if not _is_option(parameter)]
    options = [parameter for parameter in command.params if _is_option(parameter)]
    usage = " ".join(["raylab", *path, *map(_shown_argument, arguments), "[OPTIONS]"])
    parts = [f"## raylab {' '.join(path)}", f"```\n{usage}\n```", (command.help or "").strip()]
    if arguments:
        rows = [(f"`{_name(one)}`", _help(one)) for one in arguments]
        parts.append(table(("argument", "meaning"), rows))
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or "", []).append(option)
    for panel, members in panels.items():
        if panel:
            parts.append(f"**{panel}**")
        rows = [(_flags(one), _kind(one), _default(one), _help(one)) for one in members]
        parts.append(table(("option", "takes", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _shown_argument(argument: Any) -> str:
    name = _name(argument) + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    return " / ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def _kind(option: Any) -> str:
    if option.is_flag or option.is_bool_flag:
        return ""
    if option.metavar:
        return option.metavar
    kind = option.type_descriptor.annotation
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " or ".join(choices)
    name = str((choices[0] if choices else kind).__name__)
    return {"str": "text", "int": "number", "float": "number", "Path": "path"}.get(name, name)


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    if shown in (None, "", False, []) or callable(shown):
        return ""
    return f"`{shown}`"


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split())


# -------------------------------------------------------------------------- what the package has


def heads_and_objectives() -> str:
    from raylab.experiment.heads import HEADS
    from raylab.experiment.objectives import OBJECTIVES

    heads = [(f"`{h.name}`", h.representation, f"`{h.pooling}`") for h in HEADS.values()]
    objectives = [
        (
            f"`{o.name}`",
            "yes" if o.needs_teacher else "no",
            "all passages of the step" if o.in_batch else "the passages listed for the query",
            f"`{o.loss}`",
        )
        for o in OBJECTIVES.values()
    ]
    return "\n".join(
        [
            table(("head", "representation", "pooling"), heads),
            table(("objective", "needs a teacher", "a query is compared with", "loss"), objectives),
        ]
    )


def differences() -> str:
    from raylab.experiment.paper import WHY
    from raylab.experiment.paper import differences as between

    values: dict[str, dict[tuple[str, str], list[str]]] = {}
    for where, field, ran, ours in between():
        pair = _shown_value(ran), _shown_value(ours)
        values.setdefault(field, {}).setdefault(pair, []).append(where)
    rows = [
        (f"`{field}`", ", ".join(_without_heads(places)), ran, ours, WHY[field])
        for field, pairs in values.items()
        for (ran, ours), places in pairs.items()
    ]
    return table(("field", "of", "as it ran", "recipe `paper`", "why"), rows)


def _shown_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _without_heads(places: list[str]) -> list[str]:
    """`1b cl` for both `1b cl sparse` and `1b cl dense`."""
    return list(dict.fromkeys(re.sub(r" (sparse|dense)$", "", place) for place in places))


def ladders() -> str:
    from raylab.experiment.ladders import LADDERS

    rows = [
        (
            f"`{ladder.name}`",
            ", ".join(backbone.name for backbone in ladder.backbones),
            ", ".join(backbone.name for backbone in ladder.select()),
            f"{ladder.recipe.budget_flops:g}",
            ", ".join(dict.fromkeys(backbone.compute_dtype for backbone in ladder.backbones)),
        )
        for ladder in LADDERS.values()
    ]
    return table(("ladder", "sizes", "default", "budget of a cell, FLOPs", "computes in"), rows)


def benchmarks() -> str:
    from raylab.data.registry import BENCHMARKS

    rows = [
        (
            f"`{benchmark.name}`",
            name,
            " ".join(split.protocol.measures),
            str(split.protocol.run_depth),
            "yes" if split.graded else "",
            "yes" if split.protocol.drop_own_document else "",
        )
        for benchmark in BENCHMARKS.values()
        for name, split in benchmark.splits.items()
    ]
    return table(
        ("collection", "split", "measures", "hits a query", "graded", "queries are passages"), rows
    )


def devices() -> str:
    from raylab.planning.devices import DEVICES

    rows = [
        (
            f"`{device.name}`",
            f"{device.peak_flops:.3g}",
            f"{device.memory_bytes / 2**30:g} GiB",
            f"{device.efficiency:.0%}",
        )
        for device in DEVICES.values()
    ]
    return table(("device", "peak FLOP/s", "memory", "share of the peak that is hoped for"), rows)


def laws() -> str:
    from raylab.scaling.laws import LAWS

    rows = [
        (f"`{law.name}`", f"`{law.formula}`", ", ".join(law.covariates), ", ".join(law.parameters))
        for law in LAWS.values()
    ]
    return table(("law", "loss", "of", "parameters"), rows)


def metrics() -> str:
    from raylab.live.metrics import METRICS

    rows = [
        (f"`{metric.exported}`", metric.kind, ", ".join(metric.labels), metric.doc)
        for metric in METRICS.values()
    ]
    return table(("metric", "kind", "labels", "meaning"), rows)


GENERATED = {
    "columns of Result": result_columns,
    "columns of QueryValue": query_value_columns,
    "columns of LedgerRow": ledger_columns,
    "columns of CurvePoint": curve_columns,
    "commands": commands,
    "heads and objectives": heads_and_objectives,
    "differences": differences,
    "ladders": ladders,
    "benchmarks": benchmarks,
    "devices": devices,
    "laws": laws,
    "metrics": metrics,
}
