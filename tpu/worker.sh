#!/usr/bin/env bash
# What vm.sh and gke.sh have the workers do, on each of them.
# usage: worker.sh [--dry-run] COMMAND      (--dry-run prints the commands and runs none)
#
#   setup             a TPU VM: system packages, Python, this package with its [tpu] extra
#   start FLAGS...    a TPU VM: experiments/selftrain.py as a service of the machine, so that it outlives the ssh that
#                     starts it and gets SIGTERM, and time to save its state, when the machine is preempted
#   state             running; exited CODE; or absent: not started since the machine booted
#   logs, tail        what it says, as it says it; its last 100 lines
#   container FLAGS...  a container: setup as root, then the program in this process's place

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

SERVICE=rerankjax
PYTHON=3.12 # TPU VMs come with a Python that is too old

install() { # PYTHON: the package and what it needs, once bubblewrap is there
  run ./setup.sh .venv "$1"
  run .venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'
  run .venv/bin/python -c 'from rerankjax import sandbox; sandbox.check()'
}

setup() {
  local uv python
  uv=$(sed -n 's/.*\(uv==[0-9.]*\).*/\1/p' setup.sh)
  # The machine updates itself after its first boot: wait for the lock.
  run sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  run sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install --no-install-recommends \
    bubblewrap libseccomp2 python3-venv
  run python3 -m venv .uv
  run .uv/bin/python -m pip install --quiet --disable-pip-version-check "$uv"
  run .uv/bin/uv python install --quiet "$PYTHON"
  python=$PYTHON
  if [ "$dry_run" = 0 ]; then python=$(.uv/bin/uv python find --managed-python "$PYTHON"); fi
  install "$python"
}

start() {
  if [ "$dry_run" = 0 ]; then
    case $(state) in
    running)
      fail "the program is at work on $(hostname) already; stop it there: sudo systemctl stop $SERVICE"
      ;;
    exited*) # an ended service keeps its name until it is cleared
      sudo systemctl stop "$SERVICE"
      sudo systemctl reset-failed "$SERVICE" 2>/dev/null || true
      ;;
    esac
  fi
  # mixed: SIGTERM goes to the program alone, not to the boxes that its programs run in.
  run sudo systemd-run --quiet "--unit=$SERVICE" "--uid=$(id -un)" "--working-directory=$PWD" "--setenv=HOME=$HOME" \
    --setenv=PYTHONUNBUFFERED=1 --remain-after-exit --property=KillMode=mixed --property=TimeoutStopSec=120 \
    "$PWD/.venv/bin/python" experiments/selftrain.py --distributed "$@"
}

state() {
  local shown
  shown=$(run systemctl show "$SERVICE" --property=LoadState,ActiveState,SubState,ExecMainCode,ExecMainStatus)
  [ "$dry_run" = 1 ] || awk -F= '
    { value[$1] = $2 }
    END {
      # ExecMainCode: 1 it exited, with this status; 2 and 3 it was killed, by this signal.
      status = value["ExecMainStatus"] + (value["ExecMainCode"] > 1 ? 128 : 0)
      if (value["LoadState"] == "not-found" || value["ActiveState"] == "inactive") print "absent"
      else if (value["SubState"] == "exited" || value["ActiveState"] == "failed") print "exited " status
      else print "running"
    }' <<<"$shown"
}

container() {
  install "$(command -v python3)"
  run exec .venv/bin/python experiments/selftrain.py --distributed "$@"
}

if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
command=${1:-}
case $command in
setup | start | state | container) "$command" "${@:2}" ;;
logs) run sudo journalctl "--unit=$SERVICE" --output=cat --lines=all --follow ;;
tail) run sudo journalctl "--unit=$SERVICE" --output=cat --lines=100 --no-pager ;;
*) refuse "command '$command' is unknown: setup, start, state, logs, tail or container" ;;
esac
