"""The dashboard that is shipped, as queries to a Prometheus."""

import json
import re
from pathlib import Path

MONITORING = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
BOARD = json.loads((MONITORING / "grafana-raylab.json").read_text())


def expressions() -> list[str]:
    """Of all panels, with every variable at "All"."""
    return [
        re.sub(r"\$\w+", ".*", target["expr"])
        for panel in BOARD["panels"]
        for target in panel["targets"]
    ]


def variables() -> dict[str, tuple[str, str]]:
    """The metric and the label that each variable of the board is filled from."""
    found = {}
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
            assert asked is not None
            found[variable["name"]] = asked.groups()
    return found


def metrics_of(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression asks for, and the labels that it selects them by."""
    return {
        name: set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selectors))
        for name, selectors in re.findall(r"(ray_\w+)\{([^}]*)\}", expression)
    }
