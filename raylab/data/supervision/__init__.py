"""Supervision: teacher files, scores, candidates, training groups and batches."""
