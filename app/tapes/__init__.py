"""A generation is a log, its tape; connections only read it."""
