"""Backbones, heads and the retriever they make. Nothing here imports ray."""
