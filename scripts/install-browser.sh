#!/bin/sh
# The page is tested in a real browser. Debian's is installed where that can be done without asking.
set -eu
here=$(dirname "$0")

for browser in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$browser" >/dev/null 2>&1 && exit 0
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing chromium for the browser tests ..."
    "$here/apt-get.sh" update
    "$here/apt-get.sh" install -y --no-install-recommends chromium
else
    echo "The browser tests need Chromium or Chrome: please install one" \
        "(Debian: sudo apt-get install chromium) or name yours in TICKERTAPE_TEST_BROWSER." >&2
    [ -n "${TICKERTAPE_TEST_BROWSER:-}" ]
fi
