#!/usr/bin/env bash
# Installs what a fresh Debian 12 machine needs to run the project: system packages, a virtual environment and pinned
# Python packages. With "languages" it also installs what the tests need, and the toolchains of all eight languages that
# the sandbox runs. Safe to run again: existing installations are left alone.
# usage: setup.sh VENV [PYTHON [languages]]
set -euo pipefail
cd "$(dirname "$0")"
venv=${1:?usage: setup.sh VENV [PYTHON [languages]]}
python=${2:-python3}
languages=${3:-}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
  echo "setup: $("$python" --version 2>&1) is not supported: Python 3.11 to 3.13 is; name one with make PYTHON=..." >&2
  exit 1
}

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
/sbin/ldconfig -p | grep libseccomp.so.2 >/dev/null || missing+=(libseccomp2)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ "$languages" = languages ]; then
  # The package names fix the versions, or Debian 12 does: mono 6.8, mold 1.10, javatuples 1.2.
  for package in bc g++-12 mold php8.2-cli openjdk-17-jdk-headless libjavatuples-java mono-mcs mono-runtime \
    libmono-system-core4.0-cil libmono-system-numerics4.0-cil; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
fi
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
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --constraint constraints.txt \
  --editable ".${languages:+[dev]}"
if [ "$languages" = languages ]; then
  # torch is not among the dev packages: the right build differs by machine, and the tests need the CPU build.
  "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
  # PEFT and its dependencies, except torch: PEFT would choose its own build of torch.
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --constraint constraints.txt \
    --no-deps peft==0.21.2 accelerate==1.15.0 psutil
  # The tools that start runs on TPUs, for the tests of tpu/. The date pins their dependencies.
  "$venv/bin/uv" venv --quiet --allow-existing --python "$venv/bin/python" "$venv/launchers"
  "$venv/bin/uv" pip install --quiet --python "$venv/launchers/bin/python" --exclude-newer 2026-11-20 \
    --requirement tpu/requirements.txt
  "$venv/bin/python" -m rerankjax.sandbox.install
fi
