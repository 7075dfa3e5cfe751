"""Shapes of the paper's models, and adapters, for tests of what a step needs."""

from raylab.experiment.config import Lora
from raylab.planning.flops import Shape

LLAMA_1B = Shape(16, 2048, 8192, 32, 8, 64, 128_256, tied=True)
LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128_256, tied=False)
DROPPING, PLAIN = Lora(rank=4, dropout=0.1), Lora(rank=4, dropout=0.0)
GIB = 2**30
