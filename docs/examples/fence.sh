#!/bin/sh
# An external fence for [fence] in the configuration of the witnesses: switches a machine off through its management board.
# Exits with 0 only once the board says that the power is off. Needs ipmitool, and a password in /etc/mainstay/ipmi.
set -eu

case "$MAINSTAY_NODE" in
    1) board=10.0.9.1 ;;
    2) board=10.0.9.2 ;;
    3) board=10.0.9.3 ;;
    *) echo "no board is known for node $MAINSTAY_NODE" >&2; exit 1 ;;
esac

ipmi() {
    ipmitool -I lanplus -H "$board" -U mainstay -f /etc/mainstay/ipmi chassis power "$@"
}

ipmi off
until ipmi status | grep -q 'is off'; do
    sleep 0.5
done
