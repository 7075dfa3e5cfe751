"""Retrieval: exact dense and sparse, BM25, faiss and Seismic, the merge of shards, export.

Every index here answers ``search(queries, k) -> (ids [Q, k], scores [Q, k])`` under one contract:

- hits are ordered by score descending, then passage id descending (as strings, by code point), as trec_eval orders;
- what is missing (a collection smaller than ``k``, no overlapping term) has id ``""`` and score
  ``-inf`` and comes last;
- of an exact index, ids and scores do not depend on shards, batches of queries, threads or devices.

``topk.merge_topk`` joins the answers of several shards into the answer of their union.
"""
