"""A law of one's own in a file of its own: the loss for the FLOPs that training spent."""

from raylab.scaling import Law

COMPUTE = Law("compute", "(A/C)^a + d", ("A", "a", "d"), ("C",))
