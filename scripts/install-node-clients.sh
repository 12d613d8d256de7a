#!/bin/sh
# Clients in JavaScript are tested, too, where there is npm: tests/clients/node.
set -eu

if command -v npm >/dev/null 2>&1; then
    cd "$(dirname "$0")/../tests/clients/node"
    npm ci --loglevel=error --no-audit --no-fund --ignore-scripts
else
    echo "Without npm (Debian: sudo apt-get install npm) clients in JavaScript are not tested." >&2
fi
