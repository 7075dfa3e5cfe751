"""Collections, the passage store, teacher scores, training batches. Nothing here imports ray."""
