"""Exact retrieval: dense (faiss), sparse (inverted), BM25, and the merge of their shards.

Every index here answers ``search(queries, k) -> (ids [Q, k], scores [Q, k])`` under one contract:

- hits are ordered by score descending, then passage id ascending (as strings, by code point);
- what is missing (a collection smaller than ``k``, no overlapping term) has id ``""`` and score
  ``-inf`` and comes last;
- ids and scores do not depend on how the collection was cut into shards or queries into batches.

``topk.merge_topk`` joins the answers of several shards into the answer of their union.
"""
