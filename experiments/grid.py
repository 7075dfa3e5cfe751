"""The paper's grid: 3 sizes x sparse/dense x CL/KD/CL+KD under one compute budget (arXiv 2502.15526).

python experiments/grid.py                     the embedded default, on a laptop
python experiments/grid.py --ladder llama3 --collection DIR --gpu --workers 8 --storage s3://...
"""

from raylab.cli.experiment import run_experiment
from raylab.experiment.grid import Grid
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.ladders import PICO
from raylab.experiment.objectives import CL, CL_KD, KD

GRID = Grid(
    ladder=PICO,
    collection="scifact",
    heads=(SPARSE, DENSE),
    objectives=(CL, KD, CL_KD),
    seeds=(0,),
)

if __name__ == "__main__":
    raise SystemExit(run_experiment(__doc__ or "", GRID))
