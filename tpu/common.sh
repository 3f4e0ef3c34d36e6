# shellcheck shell=bash
# Sourced by the other scripts: arguments, every check of them, and commands that --dry-run prints instead of runs.
# Nothing is created before all arguments of a command have passed.
# shellcheck disable=SC2034 # much here is read by those scripts only


root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=$(basename "$0")
PREEMPTED=75 # EX_TEMPFAIL: the program saved its state on SIGTERM; started again, it goes on

project='' zone='' name='' topology='' config='' workdir=''
spot=0 dry_run=0 keep=0 purge=0
to='' worker=0 runtime='' valid_until=12h max_restarts=20 poll=30
overrides=()

# Bad arguments end here, before anything was done: exit code 2.
refuse() {
  printf '%s: %s\n' "$program" "$1" >&2
  exit 2
}

fail() {
  printf '%s: %s\n' "$program" "$1" >&2
  exit 1
}

say() { [ "$dry_run" = 1 ] || printf '%s: %s\n' "$program" "$1" >&2; }

quoted() { # the words as a shell reads them back
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  printf '%s' "${words[*]}"
}

# Printed commands go to 3, so that they are seen where a query's answer is captured too.
exec 3>&1
run() {
  if [ "$dry_run" = 1 ]; then
    quoted "$@" >&3
    echo >&3
  else
    "$@"
  fi
}

# ask ANSWER COMMAND...: the query's output, tried five times as a connection may fail; ANSWER under --dry-run.
ask() {
  local answer=$1 attempt
  shift
  if [ "$dry_run" = 1 ]; then
    run "$@"
    printf '%s\n' "$answer"
    return
  fi
  for attempt in 1 2 3 4 5; do
    "$@" && return
    [ "$attempt" = 5 ] || sleep "$poll"
  done
  return 1
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  refuse "bash $BASH_VERSION is too old: 4.4 is needed; macOS: brew install bash"

# The table of slices that the TPU API and XPK both know, the type's default shape for each size.
# Sizes count chips (v5e, v6e) or TensorCores, two a chip (v4, v5p).
declare -A shapes=(
  [v4]='2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16'
  [v5e]='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
  [v5p]='2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16'
  [v6e]='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
)
declare -A prefixes=([v4]=v4 [v5e]=v5litepod [v5p]=v5p [v6e]=v6e)
declare -A runtimes=(
  [v4]=tpu-ubuntu2204-base [v5e]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e
)

parse() { # every flag may be given to every command, so that one list of them serves for all
  local argument value
  while [ $# -gt 0 ]; do
    argument=$1 value=${1#*=}
    shift
    case $argument in
    --project=*) project=$value ;;
    --zone=*) zone=$value ;;
    --name=*) name=$value ;;
    --topology=*) topology=$value ;;
    --config=*) config=$value ;;
    --workdir=*) workdir=$value ;;
    --to=*) to=$value ;;
    --worker=*) worker=$value ;;
    --runtime-version=*) runtime=$value ;;
    --valid-until=*) valid_until=$value ;;
    --max-restarts=*) max_restarts=$value ;;
    --poll-seconds=*) poll=$value ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --purge-workdir) purge=1 ;;
    --dry-run) dry_run=1 ;;
    --)
      overrides=("$@")
      break
      ;;
    --config.*) refuse "argument $argument: fields of the config come last, after --" ;;
    --*=*) refuse "argument $argument is unknown: $program help lists them" ;;
    --*) refuse "argument $argument is unknown or lacks a value: write --name=VALUE; $program help lists them" ;;
    *) refuse "argument '$argument' is no flag: write --name=VALUE; $program help lists them" ;;
    esac
  done
  check_form
}

check_form() { # what was given must be well formed, needed by this command or not
  local override
  matches --project "$project" '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' \
    "a project's id is 6 to 30 lower-case letters, digits and hyphens; gcloud projects list shows yours"
  matches --zone "$zone" '[a-z]+-[a-z]+[0-9]+-([a-z]|ai[0-9]+[a-z])' \
    'a zone is written like us-west4-a; gcloud compute tpus locations list shows those with TPUs'
  matches --name "$name" '[a-z]([a-z0-9-]{0,26}[a-z0-9])?' \
    'use up to 28 lower-case letters, digits and hyphens, a letter first and no hyphen last'
  matches --workdir "$workdir" 'gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)+' \
    "give gs://BUCKET/PATH: the machines' own disks go with them, and several hosts share none"
  matches --worker "$worker" '[0-9]+|all' 'give a number from 0, or all'
  matches --runtime-version "$runtime" '[a-z0-9][a-z0-9.-]*' 'give the name of a TPU software version'
  matches --valid-until "$valid_until" '[1-9][0-9]*[mhd]' 'give a duration such as 90m, 12h or 2d'
  matches --max-restarts "$max_restarts" '[0-9]+' 'give a whole number'
  matches --poll-seconds "$poll" '[0-9]+(\.[0-9]+)?' 'give seconds between two looks'
  if [ -n "$topology" ]; then check_topology; fi
  if [ -n "$config" ]; then check_config; fi
  for override in "${overrides[@]}"; do
    [[ $override =~ ^--config\.[A-Za-z_][A-Za-z0-9_.]*=.*$ ]] ||
      refuse "argument $override after --: only fields of the config come here, as --config.ppo.kl_coef=0.1"
  done
}

matches() { # FLAG VALUE PATTERN REMEDY
  [ -z "$2" ] || [[ $2 =~ ^($3)$ ]] || refuse "argument $1=$2: $4"
}

check_topology() { # sets accelerator and software from --topology
  local generation=${topology%%:*} shape=${topology#*:} chips
  [ -n "${shapes[$generation]:-}" ] ||
    refuse "argument --topology=$topology: no TPU is called '$generation'; use v4, v5e, v5p or v6e, as in v5e:4x4"
  [[ " ${shapes[$generation]} " == *" $shape "* ]] ||
    refuse "argument --topology=$topology: $generation comes in the shapes ${shapes[$generation]}; use one of these"
  chips=$((${shape//x/*}))
  case $generation in v4 | v5p) chips=$((2 * chips)) ;; esac
  accelerator=${prefixes[$generation]}-$chips
  software=${runtime:-${runtimes[$generation]}}
}

check_config() { # NAME.py or NAME.py:VARIANT, from the project's root, as the workers will have it
  local file=${config%%:*}
  [[ $config =~ ^[A-Za-z0-9_][A-Za-z0-9_./-]*\.py(:[A-Za-z0-9_.-]+)?$ ]] ||
    refuse "argument --config=$config: give a file below the project's root, such as configs/mini.py:full"
  [ -f "$root/$file" ] ||
    refuse "argument --config=$config: there is no $file in $root; existing ones: $(cd "$root" && echo configs/*.py)"
  git -C "$root" cat-file -e "HEAD:$file" 2>/dev/null ||
    refuse "argument --config=$config: $file is not committed, and machines get the last commit; git add and commit it"
}

need() { # the flags that this command cannot do without
  local flag
  for flag in "$@"; do
    [ -n "${!flag}" ] || refuse "argument --$flag is missing: give --$flag=VALUE; $program help shows an example"
  done
}

need_programs() {
  local wanted
  [ "$dry_run" = 0 ] || return 0
  for wanted in "$@"; do
    command -v "$wanted" >/dev/null || refuse "$wanted is not on PATH: install it as tpu/README.md says under 'Once'"
  done
}

# APIs, the bucket, and leave for the machines to write to it. Safe to run again.
prepare() { # APIS...
  need project zone workdir
  local bucket number account role
  bucket=$(cut -d/ -f1-3 <<<"$workdir")
  run gcloud services enable "$@" storage.googleapis.com "--project=$project"
  if [ "$dry_run" = 1 ] || ! gcloud storage buckets describe "$bucket" '--format=value(name)' >/dev/null 2>&1; then
    # Without soft deletion: what is deleted costs nothing more.
    run gcloud storage buckets create "$bucket" "--project=$project" "--location=${zone%-*}" \
      --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0
  fi
  number=$(ask PROJECT_NUMBER gcloud projects describe "$project" '--format=value(projectNumber)') ||
    fail "project $project cannot be read: see above"
  account=serviceAccount:$number-compute@developer.gserviceaccount.com
  for role in storage.objectAdmin storage.legacyBucketReader; do
    run gcloud storage buckets add-iam-policy-binding "$bucket" "--member=$account" "--role=roles/$role"
  done
}

fetch() {
  need name workdir
  local folder=${to:-runs/$name}
  run mkdir -p "$folder"
  # XLA's cache is for the machines only.
  run gcloud storage rsync --recursive '--exclude=^compiled/.*' "$workdir" "$folder"
  say "results: $folder"
}

end_storage() { # the last of a deletion: results go only where that was asked for
  if [ "$purge" = 1 ]; then
    run gcloud storage rm --recursive "$workdir"
  else
    say 'results in the bucket are kept, and cost; --purge-workdir removes --workdir'
  fi
}

warn_of_changes() {
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] ||
    say 'machines get the last commit: your uncommitted changes are not in it'
}

program_arguments() { quoted "--config=$config" "--workdir=$workdir" "${overrides[@]}"; }

help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
