#!/usr/bin/env bash
# Cloud TPU machines through queued resources: from nothing to a running experiment, and back to no cost.
# usage: vm.sh COMMAND --project=P --zone=Z --name=N ... [--dry-run]      (--dry-run prints the commands and runs none)
#
#   prepare  enables the APIs, makes the bucket of --workdir, lets the machines write to it    --workdir
#   run      all below: creates, sets up, launches, watches; after a preemption again; then
#            fetches and deletes. Started again, it goes on where things stand     --topology --config --workdir
#   create   asks for the machines, waits for them     --topology [--spot] [--valid-until=12h] [--runtime-version=V]
#   setup    this project's last commit onto every worker, and all that it needs
#   launch   starts the program on every worker; it outlives this terminal   --config --workdir [-- --config.X=Y]
#   status   the machines' state, and the program's on every worker
#   logs     what the program says, as it says it      [--worker=0|1|...|all]
#   fetch    the results, from the bucket              --workdir [--to=runs/NAME]
#   delete   the machines; then looks whether anything is left that costs    [--workdir --purge-workdir]
#
# run also takes --keep (delete nothing at the end), --max-restarts=20 and --poll-seconds=30.
# example: vm.sh run --project=my-project --zone=us-west4-a --name=mini --spot --topology=v5e:2x2 \
#            --config=configs/mini.py:full --workdir=gs://my-bucket/mini

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WORKER='bash rerankjax/tpu/worker.sh' # on a worker, from its home

on_workers() { # WORKERS COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "--worker=$1" "${where[@]}" "--command=$2"
}

# Sets `state` to that of what is called $name, or to ABSENT. Listed, not described: so an absent one is told from a
# query that failed. Never called in $(): its `fail` must end the script.
look() { # queued-resources|tpu-vm ANSWER, the answer for --dry-run
  local field=state listed
  if [ "$1" = queued-resources ]; then field=state.state; fi
  listed=$(ask "$name $2" gcloud compute tpus "$1" list "${where[@]}" "--format=value(name.basename(),$field)") ||
    fail "the $1 of $zone cannot be listed: see above. Machines that are there go on and cost"
  state=$(awk -v name="$name" '$1 == name { found = $2 } END { print found ? found : "ABSENT" }' <<<"$listed")
  others=$(awk -v name="$name" '$1 != "" && $1 != name { printf "%s ", $1 }' <<<"$listed")
}

machines_are_there() { # a spot machine may be gone while its queued resource is still ACTIVE
  look queued-resources ACTIVE
  [ "$state" = ACTIVE ] || return 1
  look tpu-vm READY
  [ "$state" = READY ]
}

request() {
  local tier=()
  if [ "$spot" = 1 ]; then tier=(--spot); fi
  run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$accelerator" "--runtime-version=$software" "--valid-until-duration=$valid_until" "${tier[@]}"
}

await_machines() { # 1 if they were taken away before they were ready
  local was=''
  while :; do
    look queued-resources ACTIVE
    [ "$state" = "$was" ] || say "$name: $state"
    case $state in
    ACTIVE) return 0 ;;
    SUSPENDING | SUSPENDED | DELETING | ABSENT) return 1 ;;
    FAILED) fail "no machines came: quota or capacity is lacking, or --valid-until=$valid_until is over. The reason:
  gcloud compute tpus queued-resources describe $(quoted "$name" "${where[@]}")
Then $(delete_command), and try another --zone, --topology or tier" ;;
    esac
    was=$state
    sleep "$poll"
  done
}

create() {
  need topology
  request
  await_machines || fail "$name is $state: $(delete_command), and create it again"
}

pack() { # once, so that a run that is resumed goes on with the code that it began with
  archive=rerankjax.tar.gz
  if [ "$dry_run" = 0 ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    archive=$scratch/$archive
  fi
  warn_of_changes
  run git -C "$root" archive --format=tar.gz --prefix=rerankjax/ "--output=$archive" HEAD
}

setup() {
  [ -n "${archive:-}" ] || pack
  run gcloud compute tpus tpu-vm scp "$archive" "$name:rerankjax.tar.gz" --worker=all "${where[@]}" &&
    on_workers all "rm -rf rerankjax/rerankjax && tar -xzf rerankjax.tar.gz && $WORKER setup"
}

launch() {
  need config workdir
  on_workers all "$WORKER start $(program_arguments)"
}

# Sets `state` to what the program does, over all workers: running, finished, again (preempted, or not started since the
# machine booted) or failed CODE. 1 if a worker does not answer.
look_at_program() {
  local said
  said=$(on_workers all "$WORKER state") || return 1
  if [ "$dry_run" = 1 ]; then said='exited 0'; fi
  state=$(awk -v preempted="$PREEMPTED" '
    $1 == "running" { running = 1 }
    $1 == "absent" || $1 == "exited" && $2 == preempted { again = 1 }
    $1 == "exited" && $2 != 0 && $2 != preempted { failed = $2 }
    $1 == "exited" { exited = 1 }
    END {
      if (running) print "running"
      else if (failed) print "failed " failed
      else if (again) print "again"
      else if (exited) print "finished"
      else exit 1
    }' <<<"$said")
}

watch_program() { # sets `outcome`, once it is finished, again, lost or failed CODE
  local silent=0
  while :; do
    if look_at_program; then
      silent=0
      outcome=$state
      [ "$outcome" = running ] || break
    elif ! machines_are_there; then
      outcome=lost
      return
    elif [ $((silent += 1)) -ge 5 ]; then
      fail "the workers of $name do not answer though they are READY. They go on and cost: $(delete_command)"
    fi
    sleep "$poll"
  done
  # A preempted program says 75; its machine may be on its way out.
  if [ "$outcome" = again ] && ! machines_are_there; then outcome=lost; fi
}

run_experiment() {
  need topology config workdir
  local restarts=0
  pack
  say "if this terminal ends, the machines go on and cost: start the same command again, or $(delete_command)"
  while :; do
    look queued-resources ABSENT
    case $state in
    ABSENT) request ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      delete_machines
      request
      ;;
    esac
    outcome=lost # a preemption in the midst of what follows
    if await_machines; then
      if [ "$dry_run" = 0 ] && look_at_program && [ "$state" = running ]; then
        watch_program # this terminal came back to a program at work
      elif setup && launch; then
        watch_program
      elif machines_are_there; then
        fail "the machines are there but setup or launch failed, see above. They cost: $(delete_command)"
      fi
    fi
    case $outcome in finished | failed*) break ;; esac
    [ $((restarts += 1)) -le "$max_restarts" ] ||
      fail "preempted more than --max-restarts=$max_restarts times. To end it: $(delete_command)"
    say "$name: $outcome; started again for the ${restarts}. of at most $max_restarts times"
    sleep "$poll"
  done
  if [ "$outcome" != finished ]; then on_workers all "$WORKER tail" || true; fi
  fetch || say "the results could not be fetched; they are in $workdir"
  if [ "$keep" = 1 ]; then say "the machines are still there and cost: $(delete_command)"; else delete_machines; fi
  [ "$outcome" = finished ] || fail "the program ended with exit code ${outcome#failed }: its last words are above"
}

delete_command() { quoted "$0" delete "${where[@]}" "--name=$name"; }

delete_machines() { # and verifies it
  local kind left=0
  look queued-resources ACTIVE
  if [ "$state" != ABSENT ]; then
    run gcloud compute tpus queued-resources delete "$name" --force --quiet "${where[@]}" || true # looked at below
  fi
  for kind in queued-resources tpu-vm; do
    look "$kind" ''
    if [ -n "$others" ]; then say "not touched, under other names in $zone ($kind): $others"; fi
    if [ "$state" != ABSENT ] && [ "$dry_run" = 0 ]; then
      say "$name is still there ($kind, $state) and may cost: delete again in a few minutes"
      left=1
    fi
  done
  [ "$left" = 0 ] || exit 1
  say "no machine called $name is left in $zone"
}

delete() {
  if [ "$purge" = 1 ]; then need workdir; fi
  delete_machines
  end_storage
}

status() {
  look queued-resources ACTIVE
  say "$name: $state"
  [ "$state" = ABSENT ] || on_workers all "$WORKER state"
}

logs() { on_workers "$worker" "$WORKER logs"; }

command=${1:-help}
case $command in
prepare | create | setup | launch | status | logs | fetch | delete) ;;
run) command=run_experiment ;;
help | --help | -h) help && exit ;;
*) refuse "command '$command' is unknown: prepare, run, create, setup, launch, status, logs, fetch, delete or help" ;;
esac
parse "${@:2}"
need project zone name
where=("--project=$project" "--zone=$zone")
need_programs gcloud git awk
case $command in prepare) prepare tpu.googleapis.com ;; *) "$command" ;; esac
