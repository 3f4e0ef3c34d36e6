#!/usr/bin/env bash
# Everything a fresh Debian 12 machine needs to run and test the project: system packages, a virtual environment,
# the pinned Python packages. Safe to run again: what is there already is left alone.
# usage: setup.sh VENV [PYTHON]
set -euo pipefail
cd "$(dirname "$0")"
venv=${1:?usage: setup.sh VENV [PYTHON]}
python=${2:-python3}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
  echo "setup: $("$python" --version 2>&1) is not supported: Python 3.11 to 3.13 is; name one with make PYTHON=..." >&2
  exit 1
}

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
/sbin/ldconfig -p | grep libseccomp.so.2 >/dev/null || missing+=(libseccomp2)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "setup: missing system packages. Run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --constraint constraints.txt --editable '.[dev]'
