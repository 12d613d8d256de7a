"""`make adversarial`: one client does its worst to a server, while another only reads a stream.

It prints what was sent, every violation with the recipe of its input, the slowest /health, the
worst ratio of the gaps between tokens, and memory. It fails where there is a violation.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.adversarial.run import Options, run
from tests.server import TICKERTAPE


def options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.adversarial", description=__doc__)
    parser.add_argument(
        "--server-command", type=Path, default=TICKERTAPE, help="another tickertape"
    )
    parser.add_argument("--bodies", type=int, default=5000, help="how many, at least")
    parser.add_argument("--seed", type=int, default=0, help="of which are chosen")
    parser.add_argument("--keys", action="store_true", help="two tenants, each with an API key")
    parser.add_argument("--only", default="", help="attempts and attacks whose name has this in it")
    parser.add_argument("--sample", action="store_true", help="the short form's bodies only")
    parser.add_argument("--no-attacks", action="store_true", help="single bodies only")
    parser.add_argument("--no-bodies", action="store_true", help="attacks only")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        right = run(options(), Path(folder))
        print(f"{time.monotonic() - began:.0f} s")
    sys.exit(0 if right else 1)
