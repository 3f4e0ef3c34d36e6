#!/usr/bin/env bash
# Sets up one host, from this checkout: system packages, Python, the package for its TPU or GPUs; then tries the sandbox.
# For Debian and Ubuntu, as a user who may use sudo, or as root in a container.
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
# A new machine updates itself: wait until it is done.
"${sudo[@]}" apt-get -qq -o DPkg::Lock::Timeout=600 update
"${sudo[@]}" apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends \
  bubblewrap libseccomp2 python3-venv >/dev/null

# The machine's own Python may be too old.
uv=$(sed -n 's/.*\(uv==[0-9.]*\).*/\1/p' setup.sh)
python3 -m venv .uv
.uv/bin/python -m pip install --quiet --disable-pip-version-check "$uv"
python=$(.uv/bin/uv python find '>=3.11,<3.14' || { .uv/bin/uv python install --quiet 3.12 && .uv/bin/uv python find 3.12; })
./setup.sh .venv "$python"

extra=tpu
! command -v nvidia-smi >/dev/null || extra=cuda
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable ".[$extra]"
.venv/bin/python -c 'from rerankjax import sandbox; sandbox.check()'
