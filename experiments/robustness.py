"""Imperfect supervision: a share of the training positives and of the teacher's scores is wrong, 0 to 50 %.

The paper's claim (2502.15526) is that sparse retrievers stand it better than dense ones.

python experiments/robustness.py --storage lab-robustness --seeds 2
"""

from raylab.cli.experiment import run_experiment
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL, KD
from raylab.experiment.variants import corruption_variants

GRID = Grid(
    ladder=PICO,
    collection="scifact",
    sizes=("pico-1x96",),
    objectives=(CL, KD),
    variants=corruption_variants((0.0, 0.1, 0.25, 0.5)),
)

if __name__ == "__main__":
    raise SystemExit(run_experiment(__doc__ or "", GRID))
