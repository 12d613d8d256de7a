"""The tokenizer alone: `python -m model.tokenizer_process MODEL`, for texts that take long.

Frames of messages.py come in on stdin, a LongText each; the answer to each is a frame of token
ids, 32 bits each. When stdin closes, the process is gone.

A process and no thread, because this one leaves the processor to whoever wants it: a thread that
does so keeps the interpreter lock while it waits.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO, Final

from model.loading.checkpoint import open_checkpoint
from model.messages import LENGTH, id_array, long_text_decoder
from model.tokenizer import Tokenizer

_NICEST: Final = 19


def serve(tokenizer: Tokenizer, texts: BinaryIO, ids: BinaryIO) -> None:
    """One text after the other, until no more come."""
    while head := texts.read(LENGTH.size):
        (length,) = LENGTH.unpack(head)
        asked = long_text_decoder.decode(texts.read(length))
        answer = id_array(
            tokenizer.encode(
                asked.text,
                add_special_tokens=asked.add_special_tokens,
                parse_special=asked.parse_special,
            )
        ).tobytes()
        ids.write(LENGTH.pack(len(answer)))
        ids.write(answer)
        ids.flush()


def _step_back() -> None:
    """Behind everybody else: on Linux so far that whoever wakes up has the processor at once."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(_NICEST)


def main(model: Path) -> None:
    # A signal to the whole group is the API process's to handle: its pipe closes when it is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _step_back()
    with contextlib.suppress(BrokenPipeError):
        serve(open_checkpoint(model).tokenizer(), sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
