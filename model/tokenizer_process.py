"""The tokenizer alone: `python -m model.tokenizer_process MODEL FD`, for texts that take long.

Frames of messages.py come in on the socket FD, a LongText each; the answer to each is a frame of
token ids, 32 bits each. When the other end closes, the process is gone.

A process and no thread, because this one leaves the processor to whoever wants it: a thread that
does so keeps the interpreter lock while it waits.
"""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from model.loading.checkpoint import open_checkpoint
from model.messages import LENGTH, Unpacker, id_array, long_text_decoder
from model.tokenizer import Tokenizer

_NICEST: Final = 19


def serve(tokenizer: Tokenizer, peer: socket.socket) -> None:
    """One text after the other, until no more come."""
    unpacker = Unpacker()
    while data := peer.recv(1 << 20):
        for body in unpacker.feed(data):
            asked = long_text_decoder.decode(body)
            ids = tokenizer.encode(
                asked.text,
                add_special_tokens=asked.add_special_tokens,
                parse_special=asked.parse_special,
            )
            answer = id_array(ids).tobytes()
            peer.sendall(LENGTH.pack(len(answer)) + answer)


def _step_back() -> None:
    """Behind everybody else: on Linux so far that whoever wakes up has the processor at once."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(_NICEST)


def main(model: Path, fd: int) -> None:
    # A signal to the whole group is the API process's to handle: it closes the socket when done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _step_back()
    with contextlib.suppress(ConnectionError):
        serve(open_checkpoint(model).tokenizer(), socket.socket(fileno=fd))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
