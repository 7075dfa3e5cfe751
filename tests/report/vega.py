"""A chart read back from the Vega-Lite that is stored of it, and from what Vega draws of that."""

import json
from functools import cached_property

import vl_convert

from raylab.report.charts.drawing import to_json


def walk(value):
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from walk(part)
    elif isinstance(value, list):
        for part in value:
            yield from walk(part)


class Figure:
    """`panels`: in reading order. `legend`: its keys, in their order."""

    def __init__(self, chart):
        self.spec = json.loads(to_json(chart))
        grid, legend = self.spec["hconcat"]
        self.columns = grid["columns"]
        self.legend = legend["data"]["values"]
        self.heading = legend["title"]["text"]
        # A panel without data of its own has those of the grid.
        self.panels = [Panel(self, grid | panel) for panel in grid["concat"]]

    def styles(self, channel):
        """What each label looks like in a channel: `color`, `strokeDash` or `shape`."""
        (style_of,) = {
            json.dumps(part[channel]["scale"])
            for part in walk(self.spec)
            if isinstance(part.get(channel), dict) and "scale" in part[channel]
        }
        scale = json.loads(style_of)
        return dict(zip(scale["domain"], scale["range"], strict=True))

    @property
    def hollow(self):
        """The labels whose marks are filled with white."""
        (fill,) = {
            json.dumps(part["fill"]["condition"])
            for part in walk(self.spec)
            if isinstance(part.get("fill"), dict)
        }
        condition = json.loads(fill)
        assert condition["value"] == "white"
        assert condition["test"]["field"] == "mark"
        return set(condition["test"]["oneOf"])

    @cached_property
    def scene(self):
        """What Vega draws, as a tree of marks."""
        return vl_convert.vegalite_to_scenegraph(self.spec)

    @property
    def drawn(self):
        """The marks of data that Vega draws: type and items of each group."""
        return [
            (part["marktype"], part["items"])
            for part in walk(self.scene)
            if "marktype" in part and part.get("role") == "mark"
        ]


class Panel:
    def __init__(self, figure, spec):
        self.figure, self.spec = figure, spec
        self.title = spec["title"]
        self.rows = spec["data"]["values"]

    def layer(self, mark):
        """The encoding of the layer that draws this mark."""
        (layer,) = [one for one in self.spec["layer"] if one["mark"]["type"] == mark]
        return layer["encoding"]

    def of(self, *roles):
        return [row for row in self.rows if row["role"] in roles]

    def series(self, *roles):
        """Rows by the label of their series, in the order drawn."""
        series = {}
        for row in self.of(*(roles or ("trained", "untrained"))):
            series.setdefault(row["series"], []).append(row)
        return series

    def looks(self):
        """Shape, fill and dash of each series of cells, and untrained ones."""
        shapes, dashes = self.figure.styles("shape"), self.figure.styles("strokeDash")
        lines = {key["mark"] for key in self.figure.legend if key["line"]}
        return [
            (shapes[x], x in self.figure.hollow, tuple(dashes[x]) if x in lines else None)
            for x in self.series()
        ]
