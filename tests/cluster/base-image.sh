#!/bin/sh
# What stands for python:3.11-slim-bookworm where no registry of images can be reached: base-image.sh BASE.tar
# Debian 12 with its own Python, as a tree to be given to `docker import`. Root on Debian, with debootstrap.
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
trap 'exit 143' TERM
# the mirror that this machine is set up for, also where no list of it was fetched yet
mirror=$(apt-get indextargets --no-release-info --format '$(SITE)' 'Created-By: Packages' | sort | uniq -c | sort -rn |
  awk 'NR == 1 {print $2}')
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root" "$mirror" >&2
ln -sf python3 "$root/usr/bin/python"
rm -f "$root/usr/lib/python3.11/EXTERNALLY-MANAGED"
# the authorities that this machine trusts, and what pip is told of them
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
tar -C "$root" -c --exclude=./var/cache/apt/archives --exclude=./var/lib/apt/lists . >"$1.part"
mv "$1.part" "$1"
