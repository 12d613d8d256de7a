"""A model on disk, opened without its weights. Free of torch."""
