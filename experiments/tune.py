"""Learning rates by size, head and objective, tuned on validation queries; the winners become a recipe file.

python experiments/tune.py --storage lab-tune --out tuned.toml
python experiments/tune.py --storage lab-tune --out tuned.toml --sizes pico-1x64,pico-1x384 --budget 3epochs
python experiments/grid.py --recipe tuned.toml                    a grid with them; its plan says tuned or transferred

Each rate starts with a part of the budget, and the better part of a cell's rates goes on to a larger one. Stopped, the
same command goes on.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

import raylab
from raylab.experiment.execution import Execution
from raylab.experiment.grid import Grid
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import find_ladder
from raylab.experiment.objectives import OBJECTIVES
from raylab.experiment.recipe_file import recipe_text
from raylab.pipeline.tuning import Halving, tune
from raylab.planning.contract import parse_budget

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", default="lab-tune")
    parser.add_argument("--out", type=Path, required=True, help="the recipe file to write")
    parser.add_argument("--ladder", default="pico")
    parser.add_argument("--recipe", default="pico", help="the recipe that is tuned, by its name")
    parser.add_argument("--collection", default="scifact")
    parser.add_argument("--sizes", default="", help="by commas; empty: the ladder's default")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--objectives", default="cl")
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES))
    parser.add_argument("--shares", default="0.25,1", help="of the budget, a round each")
    parser.add_argument("--budget", help="as of raylab run; not given: the ladder's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    return parser.parse_args()


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    chosen = options()
    budget = parse_budget(chosen.budget)
    grid = Grid(
        find_ladder(chosen.ladder),
        chosen.collection,
        budget_flops=budget.flops,
        epochs=budget.epochs,
        sizes=tuple(size for size in chosen.sizes.split(",") if size),
        heads=tuple(HEADS[name] for name in chosen.heads.split(",")),
        objectives=tuple(OBJECTIVES[name] for name in chosen.objectives.split(",")),
        seeds=tuple(range(chosen.seeds)),
    )
    execution = dataclasses.replace(Execution(), storage=chosen.storage, use_gpu=chosen.gpu)
    halving = Halving(numbers(chosen.rates), numbers(chosen.shares))
    winners = tune(
        grid, halving, execution, lambda one, where: raylab.run(one, where, "lines").results()
    )
    about = f"Made by: {shlex.join(['python', 'experiments/tune.py', *sys.argv[1:]])}"
    text = recipe_text(chosen.recipe, [winner.tuned() for winner in winners], about)
    chosen.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
