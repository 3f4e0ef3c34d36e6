#!/usr/bin/env bash
# The same on Google Kubernetes Engine: XPK makes the cluster and, for each run, a JobSet with a pod on every TPU host.
# usage: gke.sh COMMAND --project=P --zone=Z --name=N ... [--dry-run]      (--dry-run prints the commands and runs none)
#
#   prepare  enables the APIs, makes the bucket of --workdir, lets the machines write to it    --workdir
#   create   the cluster N with one TPU slice          --topology [--spot]
#   launch   the JobSet N: an image of this project's last commit, the program on every host; Kubernetes starts it
#            again when it was preempted    --topology --config --workdir [--max-restarts=20] [-- --config.X=Y]
#   status   the JobSet's state and restarts, and its pods
#   logs     what the program says, as it says it      [--worker=0|1|...|all]
#   stop     deletes the JobSet; the cluster stays, and costs
#   fetch    the results, from the bucket              --workdir [--to=runs/NAME]
#   delete   JobSet, cluster and image; then looks whether anything is left that costs     [--workdir --purge-workdir]
#
# example: gke.sh launch --project=my-project --zone=us-west4-a --name=mini --topology=v5e:4x4 \
#            --config=configs/mini.py:full --workdir=gs://my-bucket/mini

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE=python:3.12-bookworm # Debian 12, which setup.sh knows

need_slice() {
  need topology
  case $topology in
  v5e:1x1 | v5e:2x2) refuse "argument --topology=$topology: XPK has no v5e slice below 2x4; use v5e:2x4, or vm.sh" ;;
  esac
}

create() {
  need_slice
  local tier=--on-demand
  if [ "$spot" = 1 ]; then tier=--spot; fi
  # Two machines without TPU for the schedulers: XPK's own choice is six.
  run xpk cluster create "--cluster=$name" "--tpu-type=$accelerator" --num-slices=1 "$tier" "${where[@]}" \
    --default-pool-cpu-num-nodes=2
}

launch() {
  need_slice
  need config workdir
  local source=rerankjax
  if [ "$dry_run" = 0 ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    source=$scratch/rerankjax
  fi
  warn_of_changes
  run mkdir -p "$source"
  run git -C "$root" archive --format=tar "--output=$source.tar" HEAD
  run tar -xf "$source.tar" -C "$source"
  # exec: XPK passes SIGTERM to the command it started, which must be the program.
  run xpk workload create "--cluster=$name" "--workload=$name" "--tpu-type=$accelerator" --num-slices=1 "${where[@]}" \
    "--base-docker-image=$IMAGE" "--script-dir=$source" "--max-restarts=$max_restarts" \
    "--restart-on-exit-codes=$PREEMPTED" --termination-grace-period-seconds=120 \
    "--command=exec bash tpu/worker.sh container $(program_arguments)"
}

credentials() {
  run gcloud container clusters get-credentials "$name" "--project=$project" "--region=$region"
}

status() {
  credentials
  local columns=NAME:.metadata.name,STATE:.status.terminalState,RESTARTS:.status.restarts
  run kubectl get jobset "$name" "--output=custom-columns=$columns"
  run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

logs() {
  local selector=jobset.sigs.k8s.io/jobset-name=$name
  if [ "$worker" != all ]; then selector+=,batch.kubernetes.io/job-completion-index=$worker; fi
  credentials
  run kubectl logs "--selector=$selector" --container=jax-tpu --follow --tail=-1 --prefix --max-log-requests=1000
}

stop() { run xpk workload delete "--cluster=$name" "--workload=$name" --force "${where[@]}"; }

left() { # WHAT COMMAND...: says what the query found
  local what=$1 found
  shift
  found=$(ask '' "$@" "--project=$project") || fail "the $what cannot be listed: see above"
  [ -z "$found" ] || {
    say "still there, and costs ($what): ${found//$'\n'/ }"
    remains=1
  }
}

delete() { # whatever fails on the way is found by the look at the end
  if [ "$purge" = 1 ]; then need workdir; fi
  local image=us-docker.pkg.dev/$project/gcr.io/${USER:-unknown}-runner # where XPK pushes gcr.io/PROJECT/USER-runner
  remains=0
  stop || true
  run xpk cluster delete "--cluster=$name" --force "${where[@]}" || true
  run gcloud artifacts docker images delete "$image" --delete-tags --quiet || true
  left cluster gcloud container clusters list "--filter=name=$name" '--format=value(name)'
  left machines gcloud compute instances list "--filter=labels.goog-k8s-cluster-name=$name" '--format=value(name)'
  left disks gcloud compute disks list "--filter=labels.goog-k8s-cluster-name=$name" '--format=value(name)'
  [ "$remains" = 0 ] || fail 'delete again in a few minutes'
  say "no cluster, machine or disk of $name is left"
  end_storage
}

command=${1:-help}
case $command in
prepare | create | launch | status | logs | stop | fetch | delete) ;;
help | --help | -h) help && exit ;;
*) refuse "command '$command' is unknown: prepare, create, launch, status, logs, stop, fetch, delete or help" ;;
esac
parse "${@:2}"
need project zone name
where=("--project=$project" "--zone=$zone")
region=${zone%-*}
need_programs gcloud git xpk kubectl
case $command in prepare) prepare container.googleapis.com artifactregistry.googleapis.com ;; *) "$command" ;; esac
