"""One file for each model family: which files are of it, and how its config is read."""
