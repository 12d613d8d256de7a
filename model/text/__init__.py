"""Text <-> token ids, chat templates, grammars, and the process that works on them. No torch."""
