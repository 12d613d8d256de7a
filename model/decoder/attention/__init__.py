"""How the rows of a step see the KV cache: one file for each way, `base` for what they share."""
