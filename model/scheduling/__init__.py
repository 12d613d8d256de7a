"""Which sequence computes what in the next step. No tensors."""
