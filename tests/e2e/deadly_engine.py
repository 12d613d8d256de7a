"""The engine process, but requests with certain seeds hurt it. The server's command line starts it:

    python -m tests.e2e.deadly_engine serve ...

DEADLY ends the process by a segmentation fault at its fourth token, SPOILT makes the model give NaN
for that row, there.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from model.sampling.logits import Logits
from model.scheduling.scheduler import Chunk

DEADLY, SPOILT = 666, 667
AT = 3  # tokens there are


def _struck(chunks: Sequence[Chunk], seed: int) -> list[int]:
    """Which of the rows that sample belong to such a request, at that place."""
    sampling = [chunk.sequence for chunk in chunks if chunk.samples]
    return [
        row
        for row, request in enumerate(sampling)
        if request.params.seed == seed and request.num_output == AT
    ]


def engine(fd: int) -> None:
    import torch

    from model import process
    from model.decoder.runner import TorchRunner

    run = TorchRunner.run

    def hurt(
        self: TorchRunner, chunks: Sequence[Chunk], copies: Sequence[tuple[int, int]] = ()
    ) -> Logits:
        if _struck(chunks, DEADLY):
            os.kill(os.getpid(), signal.SIGSEGV)
        logits = run(self, chunks, copies)
        spoilt = _struck(chunks, SPOILT)
        with torch.inference_mode():
            logits.rows[spoilt] = float("nan")
        finite = [ok and row not in spoilt for row, ok in enumerate(logits.finite)]
        return replace(logits, finite=finite)

    TorchRunner.run = hurt  # type: ignore[method-assign]
    process.main(fd)


def serve() -> None:
    from app import cli
    from app.processes.engine_client import EngineClient

    EngineClient.command = (sys.executable, "-m", "tests.e2e.deadly_engine")
    cli.main()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        engine(int(sys.argv[1]))
    else:
        serve()
