"""What each part of the recipe is worth: MNTP, both directions, hard negatives, FLOPS weights, the teacher.

The FLOPS weights trade quality against sparsity: the report shows both. Another teacher is another run:
`--teacher MODEL`.

python experiments/ablations.py --storage lab-ablations
"""

from raylab.cli.experiment import run_experiment
from raylab.experiment.grid import Grid
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL, KD
from raylab.experiment.variants import ablation_variants

GRID = Grid(
    ladder=PICO,
    collection="scifact",
    sizes=("pico-1x96",),
    objectives=(CL, KD),
    variants=ablation_variants(),
)

if __name__ == "__main__":
    raise SystemExit(run_experiment(__doc__ or "", GRID))
