"""Training without Ray: the loop, the DeepSpeed engine, losses, MNTP, fine-tuning, pre-training."""
