"""The engine process, but requests with certain seeds hurt it. The server's command line starts it:

    python -m tests.e2e.crashing_engine serve ...

DEADLY ends the process by a segmentation fault at its fourth token, SPOILT makes the model give NaN
for that row, there.
"""

import os
import signal
import sys
from dataclasses import replace

from model.sampling.logits import Logits
from model.scheduling.forward_batch import ForwardBatch

DEADLY, SPOILT = 666, 667
AT = 3  # tokens there are


def _struck(batch: ForwardBatch, seed: int) -> list[int]:
    """Which of the rows that sample belong to such a request, at that place."""
    return [
        row
        for row, sequence in enumerate(batch.sampling)
        if sequence.params.seed == seed and sequence.num_output == AT
    ]


def engine(fd: int) -> None:
    import torch

    from model import process
    from model.decoder.runner import TorchRunner

    run = TorchRunner.run

    def hurt(self: TorchRunner, batch: ForwardBatch) -> Logits:
        if _struck(batch, DEADLY):
            os.kill(os.getpid(), signal.SIGSEGV)
        logits = run(self, batch)
        spoilt = _struck(batch, SPOILT)
        with torch.inference_mode():
            logits.rows[spoilt] = float("nan")
        finite = [ok and row not in spoilt for row, ok in enumerate(logits.finite)]
        return replace(logits, finite=finite)

    TorchRunner.run = hurt  # type: ignore[method-assign]
    process.main(fd)


def serve() -> None:
    from app import cli
    from app.processes.engine_client import EngineClient

    EngineClient.command = (sys.executable, "-m", "tests.e2e.crashing_engine")
    cli.main()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        engine(int(sys.argv[1]))
    else:
        serve()
