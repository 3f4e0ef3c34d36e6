"""tpu/: SkyPilot and XPK, in versions that `setup.sh` installs, read what we give them; bash runs what they would."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCHERS = Path(sys.prefix) / "launchers" / "bin"
README = (ROOT / "tpu" / "README.md").read_text()
TRAIN = "rerankjax train --config=configs/paper.py:6.7b --workdir=gs://my-bucket/6.7b --distributed"


PROGRAM = """#!/bin/bash
trap 'exit 75' TERM
echo "$$ $SKYPILOT_NODE_RANK: $*"
while true; do sleep .1; done
"""


def launcher(name, *arguments, home, **options):
    """The finished tool, which finds no account at any cloud and tells nobody that it ran."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TELEMETRY_ENABLED": "false"}
    words = [str(LAUNCHERS / name), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment, **options)


def commands_of_readme(program):
    """The arguments that it gives to the program, as bash splits them."""
    lines = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[len(program.split()) :] for line in lines if line.startswith(program)]


def ends_as_the_program(script, directory, **environment):
    """Runs a host's commands, with a program that takes SIGTERM as ours does, until SIGTERM comes.

    Returns the process ID of the commands, what the program said, and the commands' exit code.
    """
    (directory / "tpu").mkdir()
    (directory / "tpu" / "host.sh").write_text("mkdir -p .venv/bin && mv program .venv/bin/rerankjax")
    (directory / "program").write_text(PROGRAM)
    (directory / "program").chmod(0o755)
    environment["PATH"] = os.environ["PATH"]
    done = subprocess.Popen(["bash", "-c", script], cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)
    said = next(line for line in done.stdout if "train" in line)
    done.send_signal(signal.SIGTERM)
    done.communicate(timeout=60)
    return done.pid, said, done.returncode


@pytest.mark.parametrize(("number", "hosts"), [(0, 4), (1, 2)])
def test_the_dry_run_shows_the_command_on_every_host(tmp_path, number, hosts):
    launches = commands_of_readme("python tpu/dry_run.py jobs launch") + commands_of_readme("sky jobs launch")
    arguments = launches[number]
    shown = launcher("python", "tpu/dry_run.py", "jobs", "launch", *arguments, home=tmp_path, cwd=ROOT).stdout
    (command,) = (word.removeprefix("COMMAND=") for word in arguments if word.startswith("COMMAND="))
    assert command.startswith("rerankjax train --config=configs/paper.py:6.7b --workdir=gs://")
    for host in range(hosts):
        assert f"host {host} of {hosts}:\nbash tpu/host.sh\n" in shown
    assert shown.count(f'\neval "exec {command}"') == hosts
    assert "'recover_on_exit_codes': [75]" in shown
    assert ("'use_spot': True" in shown) == ("--use-spot" in arguments)


def test_hosts_are_those_of_the_readme():
    spec = importlib.util.spec_from_file_location("dry_run", ROOT / "tpu" / "dry_run.py")
    dry_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dry_run)
    rows = re.findall(r"\| (tpu-\S+) \| \S+ \| (\d+) \|", README)
    assert len(rows) == 5
    for name, hosts in rows:
        assert dry_run.hosts_of(name) == int(hosts), name


def test_a_host_of_skypilot_ends_as_the_program_does(tmp_path):
    task = yaml.safe_load((ROOT / "tpu" / "sky.yaml").read_text())
    command = "rerankjax train '--config.seeds=(0, 1)' --process_id=$SKYPILOT_NODE_RANK"
    script = f"{task['setup']} && {task['run']}"
    pid, said, code = ends_as_the_program(script, tmp_path, COMMAND=command, SKYPILOT_NODE_RANK="3")
    assert said == f"{pid} 3: train --config.seeds=(0, 1) --process_id=3\n"  # in the place of bash
    assert code == 75


def test_xpk_makes_a_jobset_of_the_readmes_command(tmp_path):
    (arguments,) = commands_of_readme("xpk workload create")
    manifest = tmp_path / "jobset.yaml"
    options = ("--dry-run", "--skip-validation", f"--output-manifest-file={manifest}")
    arguments = [argument.replace("$checkout", str(tmp_path)) for argument in arguments]
    launcher("xpk", "workload", "create", *arguments, *options, home=tmp_path)
    jobset = yaml.safe_load(manifest.read_text())
    assert (jobset["kind"], jobset["spec"]["failurePolicy"]["maxRestarts"]) == ("JobSet", 20)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["operator"] == "NotIn"
    assert {75, 137} <= set(rule["onExitCodes"]["values"])
    assert 1 not in rule["onExitCodes"]["values"]
    assert job["parallelism"] == job["completions"] == 4  # one pod on each host
    (container,) = job["template"]["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True}  # for the sandbox
    *shell, script = container["command"]
    assert shell == ["bash", "-c"]
    _, said, code = ends_as_the_program(script, tmp_path)
    assert f": {TRAIN.removeprefix('rerankjax ')}\n" in said
    assert code == 75


def test_shellcheck_finds_nothing():
    scripts = [ROOT / "tpu" / "host.sh", ROOT / "setup.sh", ROOT / ".ci" / "run"]
    shellcheck = Path(sys.prefix) / "bin" / "shellcheck"
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
