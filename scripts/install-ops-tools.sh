#!/bin/sh
# What is in deploy/ is checked by the programs that read it. Debian's are installed where that can be
# done without asking. None of them is started: the tests do that themselves, on sockets of their own.
set -eu
here=$(dirname "$0")

wanted=""
for pair in promtool:prometheus nginx:nginx redis-server:redis-server systemd-analyze:systemd; do
    # nginx lies where only root's PATH leads.
    PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || wanted="$wanted ${pair#*:}"
done
[ -n "$wanted" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing$wanted for the tests of deploy/ ..."
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then # Debian asks it whether a package may start its service
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    "$here/apt-get.sh" update
    # shellcheck disable=SC2086 # one word a package
    "$here/apt-get.sh" install -y --no-install-recommends $wanted
    # Nor shall they start with the machine. What was there before is left as it was.
    for package in $wanted; do
        [ "$package" = systemd ] || systemctl disable --quiet "$package" 2>/dev/null || true
    done
else
    echo "Without$wanted (Debian: sudo apt-get install$wanted) some of deploy/ is not tested." >&2
fi
