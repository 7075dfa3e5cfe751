"""raylab: a distributed laboratory on Ray for the scaling of retrieval models."""

__version__ = "0.1.0"
