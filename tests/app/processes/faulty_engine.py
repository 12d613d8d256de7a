"""The engine of bench/api.py with faults: `python -m tests.app.processes.faulty_engine FD`.

At SIGUSR1 it sends what is no report. If there is a file named by STOP_AT_LOAD, it removes the file
and stops before it says that it is ready.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from bench.api import FakeEngine

if __name__ == "__main__":
    peer = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGUSR1, lambda *_: peer.sendall(bytes(64)))
    stop_at = Path(os.environ.get("STOP_AT_LOAD", "/nonexistent"))
    if stop_at.exists():
        stop_at.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    FakeEngine(peer, pace=1000).run()
