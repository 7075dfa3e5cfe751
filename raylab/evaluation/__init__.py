"""Evaluation: TREC runs and qrels, measures per query, intervals, benchmark protocols."""
