"""Size against data at equal compute: several budgets x several sizes, sparse and dense, with CL.

A warm-up, a long stable phase and a short decay (WSD): one run of a size and head gives all its budgets,
each a decay from the stable phase they share.

The batches are the recipe's own, those of the grid: small ones cost up to a quarter of the quality (docs/log.md).

python experiments/isoflop.py --storage lab-isoflop                 the pico ladder, 5 sizes x 4 budgets
python experiments/isoflop.py --storage lab-isoflop --recipe tuned.toml             with experiments/tune.py's rates
python experiments/isoflop.py --ladder llama3 --budgets 5e18,1e19,2e19,4e19 --collection DIR --gpu --workers 8
"""

from raylab.cli.experiment import run_experiment
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL
from raylab.experiment.variants import budget_variants

GRID = Grid(
    ladder=PICO,
    collection="scifact",
    sizes=tuple(backbone.name for backbone in PICO.backbones),
    objectives=(CL,),
    variants=budget_variants((1e12, 3e12, 1e13, 3e13)),
)

if __name__ == "__main__":
    raise SystemExit(run_experiment(__doc__ or "", GRID))
