"""The scripts of tpu/: --dry-run prints the exact commands, bad arguments are refused before any, and runs go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHERE = "--project=my-project --zone=us-west4-a"
NAMED = ["--project=my-project", "--zone=us-west4-a", "--name=mini"]
ALL = [*NAMED, "--topology=v5e:4x4", "--config=configs/mini.py:full", "--workdir=gs://my-bucket/mini"]
LOOK = f"gcloud compute tpus queued-resources list {WHERE} '--format=value(name.basename(),state.state)'"
START = f"gcloud compute tpus tpu-vm ssh mini --worker=all {WHERE} '--command=bash rerankjax/tpu/worker.sh start --config=configs/mini.py:full --workdir=gs://my-bucket/mini'"

# Stands for gcloud and everything else that acts outside: notes its arguments, and answers as replies.json says. That
# holds (pattern, answers): a call whose line has the pattern takes the next answer, (code, text); the last one stays.
FAKE = f"""#!{sys.executable} -IS
import json, os, pathlib, sys
home = pathlib.Path(os.environ["FAKE"])
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(home / "calls", "a") as calls:
    calls.write(line + "\\n")
replies = json.loads((home / "replies.json").read_text())
for pattern, answers in replies:
    if pattern in line:
        code, text = answers.pop(0) if len(answers) > 1 else answers[0]
        (home / "replies.json").write_text(json.dumps(replies))
        sys.stdout.write(text)
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository with the scripts and a config, all committed."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tpu", root / "tpu")
    shutil.copy(ROOT / "setup.sh", root)
    (root / "configs").mkdir()
    (root / "configs" / "mini.py").write_text("")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *arguments], check=True)
    (root / "configs" / "new.py").write_text("")  # there, but not committed
    return root


@pytest.fixture
def call(project, tmp_path):
    """call(script, *arguments, replies=...): the finished process, and the lines that the fake programs noted.

    The PATH holds what the scripts need and the fakes, nothing else: a real gcloud is out of reach.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    ordinary = "awk basename bash cat cut dirname env git grep gzip hostname id mkdir mktemp rm sed sleep tar"
    for tool in ordinary.split():
        (tools / tool).symlink_to(shutil.which(tool))
    for tool in ("gcloud", "kubectl", "sudo", "systemctl", "xpk"):
        (tools / tool).write_text(FAKE)
        (tools / tool).chmod(0o755)

    def call(script, *arguments, replies=()):
        (tmp_path / "replies.json").write_text(json.dumps(replies))
        environment = {"PATH": str(tools), "HOME": "/home/me", "USER": "me", "FAKE": str(tmp_path), "LC_ALL": "C"}
        done = subprocess.run(
            ["bash", project / "tpu" / script, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, lines

    return call


def plain(command):
    """A printed command as the fake notes it: without the shell's quotes."""
    return command.replace("'", "")


# What each command prints with ALL and --dry-run. AT: project and zone; ROOT: the project's directory.
DRY = r"""$ vm.sh prepare
gcloud services enable tpu.googleapis.com storage.googleapis.com --project=my-project
gcloud storage buckets create gs://my-bucket --project=my-project --location=us-west4 --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0
gcloud projects describe my-project '--format=value(projectNumber)'
gcloud storage buckets add-iam-policy-binding gs://my-bucket --member=serviceAccount:PROJECT_NUMBER-compute@developer.gserviceaccount.com --role=roles/storage.objectAdmin
gcloud storage buckets add-iam-policy-binding gs://my-bucket --member=serviceAccount:PROJECT_NUMBER-compute@developer.gserviceaccount.com --role=roles/storage.legacyBucketReader
$ vm.sh create
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=12h
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
$ vm.sh create --spot --valid-until=2d --topology=v5p:2x2x1
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v5p-8 --runtime-version=v2-alpha-tpuv5 --valid-until-duration=2d --spot
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
$ vm.sh create --topology=v4:2x2x4
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --valid-until-duration=12h
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
$ vm.sh create --topology=v6e:1x1
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v6e-1 --runtime-version=v2-alpha-tpuv6e --valid-until-duration=12h
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
$ vm.sh create --runtime-version=my-image
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v5litepod-16 --runtime-version=my-image --valid-until-duration=12h
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
$ vm.sh setup
git -C ROOT archive --format=tar.gz --prefix=rerankjax/ --output=rerankjax.tar.gz HEAD
gcloud compute tpus tpu-vm scp rerankjax.tar.gz mini:rerankjax.tar.gz --worker=all AT
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=rm -rf rerankjax/rerankjax && tar -xzf rerankjax.tar.gz && bash rerankjax/tpu/worker.sh setup'
$ vm.sh launch
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=bash rerankjax/tpu/worker.sh start --config=configs/mini.py:full --workdir=gs://my-bucket/mini'
$ vm.sh launch -- --config.seeds=(0,1)
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=bash rerankjax/tpu/worker.sh start --config=configs/mini.py:full --workdir=gs://my-bucket/mini '\''--config.seeds=(0,1)'\'''
$ vm.sh status
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=bash rerankjax/tpu/worker.sh state'
$ vm.sh logs --worker=3
gcloud compute tpus tpu-vm ssh mini --worker=3 AT '--command=bash rerankjax/tpu/worker.sh logs'
$ vm.sh fetch
mkdir -p runs/mini
gcloud storage rsync --recursive '--exclude=^compiled/.*' gs://my-bucket/mini runs/mini
$ vm.sh delete
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus queued-resources delete mini --force --quiet AT
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus tpu-vm list AT '--format=value(name.basename(),state)'
$ vm.sh delete --purge-workdir
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus queued-resources delete mini --force --quiet AT
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus tpu-vm list AT '--format=value(name.basename(),state)'
gcloud storage rm --recursive gs://my-bucket/mini
$ vm.sh run --spot
git -C ROOT archive --format=tar.gz --prefix=rerankjax/ --output=rerankjax.tar.gz HEAD
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus queued-resources create mini --node-id=mini AT --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=12h --spot
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus tpu-vm scp rerankjax.tar.gz mini:rerankjax.tar.gz --worker=all AT
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=rm -rf rerankjax/rerankjax && tar -xzf rerankjax.tar.gz && bash rerankjax/tpu/worker.sh setup'
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=bash rerankjax/tpu/worker.sh start --config=configs/mini.py:full --workdir=gs://my-bucket/mini'
gcloud compute tpus tpu-vm ssh mini --worker=all AT '--command=bash rerankjax/tpu/worker.sh state'
mkdir -p runs/mini
gcloud storage rsync --recursive '--exclude=^compiled/.*' gs://my-bucket/mini runs/mini
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus queued-resources delete mini --force --quiet AT
gcloud compute tpus queued-resources list AT '--format=value(name.basename(),state.state)'
gcloud compute tpus tpu-vm list AT '--format=value(name.basename(),state)'
$ gke.sh prepare
gcloud services enable container.googleapis.com artifactregistry.googleapis.com storage.googleapis.com --project=my-project
gcloud storage buckets create gs://my-bucket --project=my-project --location=us-west4 --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0
gcloud projects describe my-project '--format=value(projectNumber)'
gcloud storage buckets add-iam-policy-binding gs://my-bucket --member=serviceAccount:PROJECT_NUMBER-compute@developer.gserviceaccount.com --role=roles/storage.objectAdmin
gcloud storage buckets add-iam-policy-binding gs://my-bucket --member=serviceAccount:PROJECT_NUMBER-compute@developer.gserviceaccount.com --role=roles/storage.legacyBucketReader
$ gke.sh create
xpk cluster create --cluster=mini --tpu-type=v5litepod-16 --num-slices=1 --on-demand AT --default-pool-cpu-num-nodes=2
$ gke.sh create --spot
xpk cluster create --cluster=mini --tpu-type=v5litepod-16 --num-slices=1 --spot AT --default-pool-cpu-num-nodes=2
$ gke.sh launch --max-restarts=7 -- --config.seeds=(0,1)
mkdir -p rerankjax
git -C ROOT archive --format=tar --output=rerankjax.tar HEAD
tar -xf rerankjax.tar -C rerankjax
xpk workload create --cluster=mini --workload=mini --tpu-type=v5litepod-16 --num-slices=1 AT --base-docker-image=python:3.12-bookworm --script-dir=rerankjax --max-restarts=7 --restart-on-exit-codes=75 --termination-grace-period-seconds=120 '--command=exec bash tpu/worker.sh container --config=configs/mini.py:full --workdir=gs://my-bucket/mini '\''--config.seeds=(0,1)'\'''
$ gke.sh status
gcloud container clusters get-credentials mini --project=my-project --region=us-west4
kubectl get jobset mini --output=custom-columns=NAME:.metadata.name,STATE:.status.terminalState,RESTARTS:.status.restarts
kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=mini --output=wide
$ gke.sh logs
gcloud container clusters get-credentials mini --project=my-project --region=us-west4
kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=mini,batch.kubernetes.io/job-completion-index=0 --container=jax-tpu --follow --tail=-1 --prefix --max-log-requests=1000
$ gke.sh stop
xpk workload delete --cluster=mini --workload=mini --force AT
$ gke.sh fetch --to=here
mkdir -p here
gcloud storage rsync --recursive '--exclude=^compiled/.*' gs://my-bucket/mini here
$ gke.sh delete --purge-workdir
xpk workload delete --cluster=mini --workload=mini --force AT
xpk cluster delete --cluster=mini --force AT
gcloud artifacts docker images delete us-docker.pkg.dev/my-project/gcr.io/me-runner --delete-tags --quiet
gcloud container clusters list --filter=name=mini '--format=value(name)' --project=my-project
gcloud compute instances list --filter=labels.goog-k8s-cluster-name=mini '--format=value(name)' --project=my-project
gcloud compute disks list --filter=labels.goog-k8s-cluster-name=mini '--format=value(name)' --project=my-project
gcloud storage rm --recursive gs://my-bucket/mini
"""


def test_dry_run_prints_the_exact_commands_and_runs_none(call, project):
    cases = DRY.replace(" AT", f" {WHERE}").replace("ROOT", str(project)).split("$ ")[1:]
    assert len(cases) == 24
    for case in cases:
        (script, command, *arguments), expected = case.splitlines()[0].split(), case.splitlines()[1:]
        done, calls = call(script, command, *ALL, "--dry-run", *arguments)
        assert done.stdout.splitlines() == expected, case
        assert (done.returncode, done.stderr, calls) == (0, "", [])


def test_fields_reach_the_worker_as_they_were_given(call):
    """Through this machine's shell, ssh's string and the worker's shell: what the last one splits is what was typed."""
    fields = ["--config.arms=('hard', \"it's\")", "--config.a=$HOME `id` \\ *"]
    done, calls = call("vm.sh", "launch", *ALL, "--", *fields)
    assert done.returncode == 0, done.stderr
    remote = calls[0].split("--command=", 1)[1]
    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {remote}"], capture_output=True, text=True, check=True)
    assert read.stdout.splitlines()[-2:] == fields


WORKER = {
    "setup": [
        "sudo apt-get -qq -o DPkg::Lock::Timeout=600 update",
        "sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install "
        "--no-install-recommends bubblewrap libseccomp2 python3-venv",
        "python3 -m venv .uv",
        ".uv/bin/python -m pip install --quiet --disable-pip-version-check uv==UV",
        ".uv/bin/uv python install --quiet 3.12",
        "./setup.sh .venv 3.12",
        ".venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'",
        ".venv/bin/python -c 'from rerankjax import sandbox; sandbox.check()'",
    ],
    "start": [
        "sudo systemd-run --quiet --unit=rerankjax --uid=USER --working-directory=ROOT --setenv=HOME=/home/me "
        "--setenv=PYTHONUNBUFFERED=1 --remain-after-exit --property=KillMode=mixed --property=TimeoutStopSec=120 "
        "ROOT/.venv/bin/python experiments/selftrain.py --distributed --config=c.py --workdir=gs://bucket/x"
    ],
    "state": ["systemctl show rerankjax --property=LoadState,ActiveState,SubState,ExecMainCode,ExecMainStatus"],
    "logs": ["sudo journalctl --unit=rerankjax --output=cat --lines=all --follow"],
    "tail": ["sudo journalctl --unit=rerankjax --output=cat --lines=100 --no-pager"],
}


@pytest.mark.parametrize("command", WORKER)
def test_dry_run_on_a_worker_prints_the_exact_commands_and_runs_none(call, project, command):
    me = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    uv = (ROOT / "setup.sh").read_text().split("uv==")[1].split()[0]
    flags = ["--config=c.py", "--workdir=gs://bucket/x"] if command == "start" else []
    done, calls = call("worker.sh", "--dry-run", command, *flags)
    expected = [line.replace("ROOT", str(project)).replace("USER", me).replace("UV", uv) for line in WORKER[command]]
    assert done.stdout.splitlines() == expected
    assert calls == []


REFUSED = [
    ([], "argument --project is missing"),
    (["--project=my-project"], "argument --zone is missing"),
    (NAMED[:2], "argument --name is missing: give --name=VALUE"),
    (NAMED, "argument --topology is missing"),
    ([*NAMED, "--topology=v5e:4x4"], "argument --config is missing"),
    ([*NAMED, "--topology=v5e:4x4", "--config=configs/mini.py"], "argument --workdir is missing"),
    ([*ALL, "--project=My Project"], "argument --project=My Project: a project's id is"),
    ([*ALL, "--zone=us-west4"], "argument --zone=us-west4: a zone is written like us-west4-a"),
    ([*ALL, "--zone=us-west4-a\nx"], "a zone is written like us-west4-a"),
    ([*ALL, "--name=Mini"], "argument --name=Mini: use up to 28 lower-case letters"),
    ([*ALL, "--name=" + 29 * "m"], "use up to 28 lower-case letters"),
    ([*ALL, "--topology=v7e:4x4"], "argument --topology=v7e:4x4: no TPU is called 'v7e'; use v4, v5e, v5p or v6e"),
    ([*ALL, "--topology=v5litepod-16"], "no TPU is called 'v5litepod-16'"),
    ([*ALL, "--topology=v5e:4x5"], "--topology=v5e:4x5: v5e comes in the shapes 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
    ([*ALL, "--topology=v5p:4x4"], "v5p comes in the shapes 2x2x1"),
    ([*ALL, "--topology=v5e"], "argument --topology=v5e: v5e comes in the shapes"),
    ([*ALL, "--config=configs/none.py"], "argument --config=configs/none.py: there is no configs/none.py in"),
    ([*ALL, "--config=configs/new.py"], "configs/new.py is not committed, and machines get the last commit"),
    ([*ALL, "--config=/etc/passwd"], "argument --config=/etc/passwd: give a file below the project's root"),
    ([*ALL, "--workdir=runs/mini"], "argument --workdir=runs/mini: give gs://BUCKET/PATH"),
    ([*ALL, "--workdir=gs://my-bucket"], "argument --workdir=gs://my-bucket: give gs://BUCKET/PATH"),
    ([*ALL, "--workdir=gs://my-bucket/a/"], "give gs://BUCKET/PATH"),
    ([*ALL, "--workdir=gs://my-bucket/*"], "give gs://BUCKET/PATH"),
    ([*ALL, "--workdir=gs://my-bucket/../other"], "give gs://BUCKET/PATH"),
    ([*ALL, "--worker=first"], "argument --worker=first: give a number from 0, or all"),
    ([*ALL, "--valid-until=soon"], "argument --valid-until=soon: give a duration such as 90m"),
    ([*ALL, "--max-restarts=-1"], "argument --max-restarts=-1: give a whole number"),
    ([*ALL, "--poll-seconds=x"], "argument --poll-seconds=x: give seconds"),
    ([*ALL, "--colour=red"], "argument --colour=red is unknown"),
    ([*ALL, "--topology"], "argument --topology is unknown or lacks a value: write --name=VALUE"),
    ([*ALL, "mini"], "argument 'mini' is no flag"),
    ([*ALL, "--config.ppo.kl_coef=0.1"], "fields of the config come last, after --"),
    ([*ALL, "--", "--workdir=/tmp"], "argument --workdir=/tmp after --: only fields of the config come here"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["", "dry"])
def test_bad_arguments_are_refused_before_anything_is_done(call, arguments, said, dry_run):
    done, calls = call("vm.sh", "run", *dry_run, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1 + said.count("\n") + sum(a.count("\n") for a in arguments)
    assert (done.stdout, calls) == ("", [])


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("vm.sh", ["reboot", *ALL], "command 'reboot' is unknown: prepare, run, create"),
        ("gke.sh", ["run", *ALL], "command 'run' is unknown: prepare, create, launch"),
        ("gke.sh", ["create", *ALL, "--topology=v5e:2x2"], "XPK has no v5e slice below 2x4; use v5e:2x4, or vm.sh"),
        ("gke.sh", ["launch", *ALL, "--workdir=/data/run"], "argument --workdir=/data/run: give gs://BUCKET/PATH"),
        ("gke.sh", ["launch", *NAMED, "--topology=v5e:4x4"], "argument --config is missing"),
        ("gke.sh", ["delete", *NAMED, "--purge-workdir"], "argument --workdir is missing"),
        ("vm.sh", ["delete", *NAMED, "--purge-workdir"], "argument --workdir is missing"),
        ("worker.sh", ["dance"], "command 'dance' is unknown"),
    ],
)
def test_other_scripts_and_commands_refuse_as_well(call, script, arguments, said):
    done, calls = call(script, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert (done.stdout, calls) == ("", [])


def test_a_missing_gcloud_is_named(call, tmp_path):
    (tmp_path / "bin" / "gcloud").unlink()
    done, _ = call("vm.sh", "create", *ALL)
    assert done.returncode == 2
    assert "gcloud is not on PATH: install it as tpu/README.md says" in done.stderr


FAST = [*ALL, "--poll-seconds=0.01"]
LIST, NODE = "queued-resources list", "tpu-vm list"


def kinds(calls):
    """What the calls of gcloud were, in short, polling left out."""
    names = {
        "queued-resources create": "create", "queued-resources delete": "delete", "tpu-vm scp": "copy",
        "worker.sh setup": "setup", "worker.sh start": "start", "worker.sh tail": "tail", "storage rsync": "fetch",
        "storage rm": "purge",
    }  # fmt: skip
    return [names[n] for line in calls for n in names if n in line]


def test_a_run_waits_for_machines_watches_fetches_and_deletes(call):
    replies = [
        (LIST, [(0, ""), (1, "no network"), (0, "other ACTIVE\nmini WAITING_FOR_RESOURCES\n"),
                (0, "mini PROVISIONING\n"), (0, "mini ACTIVE\n"), (0, "mini ACTIVE\n"), (0, "other ACTIVE\n")]),
        (NODE, [(0, "")]),
        ("worker.sh state", [(0, "absent\n"), (0, "running\nexited 0\n"), (0, "exited 0\nexited 0\n")]),
    ]  # fmt: skip
    done, calls = call("vm.sh", "run", *FAST, "--spot", replies=replies)
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["create", "copy", "setup", "start", "fetch", "delete"]
    assert [line.split()[-1] for line in calls if "resources create" in line] == ["--spot"]
    assert plain(START) in calls
    assert "mini: WAITING_FOR_RESOURCES" in done.stderr
    assert "not touched, under other names in us-west4-a (queued-resources): other" in done.stderr
    assert "no machine called mini is left in us-west4-a" in done.stderr


def test_a_preempted_run_is_created_and_launched_again(call):
    """Its machines vanish without a word; the program says 75 and they are suspended; it says 75 and they stay."""
    active, gone = (0, "mini ACTIVE\n"), (0, "mini SUSPENDED\n")
    replies = [
        (LIST, [
            (0, ""), active,  # absent: created; there
            active,  # silent workers: still ACTIVE ...
            gone,  # back at the top: SUSPENDED
            gone, (0, ""),  # deleted, verified
            active,  # created again; there
            gone,  # after exit code 75
            gone, gone, (0, ""),  # the top again: deleted, verified
            active,  # created again; there
            active,  # after 75, this time the machines stay
            active, active,  # the top: not created; there
            active, (0, ""),  # the end: deleted, verified
        ]),
        (NODE, [(0, "mini PREEMPTED\n"), (0, ""), (0, ""), (0, "mini READY\n"), (0, "")]),
        ("worker.sh state", [
            (255, ""), (255, ""),  # new machines; then silent
            (0, "absent\n"), (0, "exited 75\nrunning\n"), (0, "exited 75\nexited 75\n"),
            (0, "absent\n"), (0, "exited 75\nexited 0\n"),
            (0, "exited 75\nexited 0\n"), (0, "exited 0\nexited 0\n"),
        ]),
    ]  # fmt: skip
    done, calls = call("vm.sh", "run", *FAST, "--spot", replies=replies)
    assert done.returncode == 0, done.stderr
    once = ["copy", "setup", "start"]
    preempted = ["create", *once, "delete"]
    assert kinds(calls) == [*preempted, *preempted, "create", *once, *once, "fetch", "delete"]
    copies = {line for line in calls if "tpu-vm scp" in line}
    assert len(copies) == 1  # the code that it began with


def test_a_program_that_fails_is_quoted_and_leaves_no_machines(call):
    replies = [
        (LIST, [(0, ""), (0, "mini ACTIVE\n"), (0, "mini ACTIVE\n"), (0, "")]),
        ("worker.sh state", [(0, "absent\n"), (0, "exited 75\nexited 1\n")]),
        ("worker.sh tail", [(0, "Traceback: a fault\n")]),
    ]
    done, calls = call("vm.sh", "run", *FAST, replies=replies)
    assert done.returncode == 1
    assert kinds(calls) == ["create", "copy", "setup", "start", "tail", "fetch", "delete"]
    assert "Traceback: a fault" in done.stdout
    assert "the program ended with exit code 1: its last words are above" in done.stderr


def test_restarts_have_an_end_that_says_what_costs(call):
    replies = [
        (LIST, [(0, "mini ACTIVE\n")]),
        (NODE, [(0, "mini READY\n")]),
        ("worker.sh state", [(0, "exited 75\n")]),
    ]
    done, calls = call("vm.sh", "run", *FAST, "--max-restarts=2", replies=replies)
    assert done.returncode == 1
    assert kinds(calls).count("start") == 3
    assert "preempted more than --max-restarts=2 times. To end it:" in done.stderr
    assert f"vm.sh delete {WHERE} --name=mini" in done.stderr


def test_the_same_command_comes_back_to_a_program_at_work(call):
    replies = [
        (LIST, [(0, "mini ACTIVE\n"), (0, "mini ACTIVE\n"), (0, "mini ACTIVE\n"), (0, "")]),
        ("worker.sh state", [(0, "running\n"), (0, "running\n"), (0, "exited 0\n")]),
    ]
    done, calls = call("vm.sh", "run", *FAST, "--keep", replies=replies)
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["fetch"]
    assert "the machines are still there and cost:" in done.stderr


@pytest.mark.parametrize(("command", "before"), [("run", [(0, "")]), ("create", [])])
def test_machines_that_never_come_are_no_preemption(call, command, before):
    done, calls = call("vm.sh", command, *FAST, replies=[(LIST, [*before, (0, "mini FAILED\n")])])
    assert done.returncode == 1
    assert kinds(calls) == ["create"]
    assert "quota or capacity is lacking, or --valid-until=12h is over" in done.stderr


def test_a_query_that_fails_is_tried_again_and_then_ends_the_run_without_touching_machines(call):
    done, calls = call("vm.sh", "run", *FAST, replies=[(LIST, [(1, "")])])
    assert done.returncode == 1
    assert calls == [plain(LOOK)] * 5
    assert "cannot be listed: see above. Machines that are there go on and cost" in done.stderr


def test_a_deletion_is_verified(call):
    replies = [(LIST, [(0, "mini ACTIVE\n"), (0, "")]), (NODE, [(0, "mini DELETING\n")])]
    done, calls = call("vm.sh", "delete", *FAST, "--purge-workdir", replies=replies)
    assert done.returncode == 1
    assert kinds(calls) == ["delete"]  # results are not removed while machines may still write them
    assert "mini is still there (tpu-vm, DELETING) and may cost: delete again in a few minutes" in done.stderr
    done, calls = call("vm.sh", "delete", *FAST, "--purge-workdir", replies=[(LIST, [(0, "")]), (NODE, [(0, "")])])
    assert done.returncode == 0
    assert kinds(calls) == ["purge"]  # nothing there to delete


def test_a_cluster_s_deletion_is_verified_whatever_fails_on_the_way(call):
    replies = [("xpk", [(1, "")]), ("artifacts", [(1, "")]), ("disks list", [(0, "pvc-1\npvc-2\n")])]
    done, calls = call("gke.sh", "delete", *FAST, "--purge-workdir", replies=replies)
    assert done.returncode == 1
    assert "still there, and costs (disks): pvc-1 pvc-2" in done.stderr
    assert kinds(calls) == []


def test_an_existing_bucket_is_not_made_again(call):
    replies = [("buckets describe", [(0, "my-bucket\n")]), ("projects describe", [(0, "1234\n")])]
    done, calls = call("vm.sh", "prepare", *FAST, replies=replies)
    assert done.returncode == 0, done.stderr
    assert not [line for line in calls if "buckets create" in line]
    assert sum("--member=serviceAccount:1234-compute@developer.gserviceaccount.com" in line for line in calls) == 2


def service(load="loaded", active="active", sub="running", code=0, status=0):
    shown = f"LoadState={load}\nActiveState={active}\nSubState={sub}\nExecMainCode={code}\nExecMainStatus={status}\n"
    return [("systemctl show", [(0, shown)])]


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        (service(), "running"),
        (service(active="deactivating", sub="stop-sigterm"), "running"),
        (service(sub="exited", code=1), "exited 0"),
        (service(active="failed", sub="failed", code=1, status=75), "exited 75"),
        (service(active="failed", sub="failed", code=2, status=9), "exited 137"),
        (service(load="not-found", active="inactive", sub="dead"), "absent"),
    ],
)
def test_a_worker_tells_the_state_of_its_program(call, replies, said):
    done, _ = call("worker.sh", "state", replies=replies)
    assert done.stdout == f"{said}\n"


def test_a_worker_starts_no_second_program_and_clears_an_ended_one(call):
    done, calls = call("worker.sh", "start", "--config=c.py", replies=service())
    assert done.returncode == 1
    assert "is at work on" in done.stderr
    assert not [line for line in calls if "systemd-run" in line]
    done, calls = call("worker.sh", "start", "--config=c.py", replies=service(active="failed", code=1, status=75))
    assert done.returncode == 0, done.stderr
    assert [line.split()[1:3] for line in calls if line.startswith("sudo")] == [
        ["systemctl", "stop"],
        ["systemctl", "reset-failed"],
        ["systemd-run", "--quiet"],
    ]


def test_shellcheck_finds_nothing():
    program = Path(sys.executable).with_name("shellcheck")
    scripts = [str(path.relative_to(ROOT)) for path in (*sorted(ROOT.glob("tpu/*.sh")), ROOT / "setup.sh")]
    assert len(scripts) == 5
    done = subprocess.run([program, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    for script in scripts:
        assert script == "tpu/common.sh" or os.access(ROOT / script, os.X_OK)
