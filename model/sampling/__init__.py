"""Logits -> one token for each sequence."""
