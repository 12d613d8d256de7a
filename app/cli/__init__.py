"""The command line: one file for each command, `terminal` for what they share.

Only what a command needs is imported, inside it: `tickertape generate --url ...` loads no torch.
"""

from app.cli.commands import app, main

__all__ = ["app", "main"]
