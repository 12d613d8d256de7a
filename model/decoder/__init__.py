"""The mathematics of the model, in torch."""
