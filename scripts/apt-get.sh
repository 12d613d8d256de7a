#!/bin/sh
# apt-get, which waits while another one (a machine's first start, unattended upgrades) holds a lock.
# apt itself can wait for dpkg's lock only, not for those of its lists and of its archives.
set -eu

log=$(mktemp)
trap 'rm -f "$log"' EXIT
tries=120 # of 5 seconds each
while ! LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$log" 2>&1; do
    if [ "$tries" = 0 ] || ! grep -Eq 'Could not get lock|Unable to (acquire|lock)' "$log"; then
        cat "$log" >&2
        exit 1
    fi
    [ "$tries" = 120 ] && echo "Another process holds apt's lock; waiting up to 10 minutes ..." >&2
    tries=$((tries - 1))
    sleep 5
done
