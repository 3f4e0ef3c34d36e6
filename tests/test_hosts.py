"""The loop on two processes: the run of one, whichever process is killed on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import test_train_reranker

from rerankjax.reranker.rerank import Reranker
from rerankjax.run.metrics import read_metrics
from rerankjax.run.recovery import EXIT_PREEMPTED
from rerankjax.run.rundir import recovery_of

ROOT = Path(__file__).parents[1]
MINI = ("--config=configs/mini.py:smoke", "--config.candidates.prompts_in_flight=8", "--config.ppo.minibatches=1")
MINI += tuple(f"--config.iterations.{name}.run=False" for name in ("same_data", "random", "self_training"))


def start(workdir, devices, *flags, program="train"):
    command = [sys.executable, "-m", "rerankjax", program, f"--workdir={workdir}"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",  # threads enough for the parts of two programs that wait for one another
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(workdir, *flags, **options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    flags = coordinator, "--num_processes=2", *flags
    return [start(workdir, 4, f"--process_id={i}", *flags, **options) for i in range(2)]


def wait_for(path, processes):
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


def samples(workdir, stage):
    rows = pyarrow.parquet.read_table(workdir / "seed0" / "candidates" / stage / "candidates.parquet").to_pylist()
    return [(row["problem"], row["sample"], row["completion"], row["verdict"]) for row in rows]


def metrics(workdir, stage):
    rows = (workdir / "seed0" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows]


def figures_of(workdir):
    return [row for one in json.loads((workdir / "results.json").read_text())["evaluations"] for row in one["figures"]]


@pytest.mark.long
def test_two_processes_one_of_them_killed_end_in_the_figures_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = start_two(two, *MINI)
    wait_for(two / "seed0" / "policies" / "sft" / "stage.json", (first, second))
    second.send_signal(signal.SIGKILL)
    second.communicate()
    output, _ = first.communicate(timeout=120)  # it ends by itself
    assert first.returncode != 0
    assert "stopped sending heartbeats" in output or "probably because another process ended" in output, output[-4000:]
    assert not (two / "results.json").exists()

    again = start_two(two, *MINI)
    outputs = [finish(process) for process in again]
    assert "report:" in outputs[0]
    assert "report:" not in outputs[1]  # the first alone speaks
    finish(start(one, 8, *MINI))

    for stage in ("sft-train", "sft-test", "ppo-train"):
        found, expected = samples(two, stage), samples(one, stage)
        assert [row[:2] for row in found] == [row[:2] for row in expected]
        # Sums across processes round otherwise, which may turn a sample; all but a few are the same.
        assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.9
    for stage in ("policies/sft", "rerankers/first", "policies/ppo", "rerankers/hard"):
        for a, b in zip(metrics(two, stage), metrics(one, stage), strict=True):
            assert a.keys() == b.keys()
            if "loss" in a:
                assert a["loss"] == pytest.approx(b["loss"], abs=2e-2), (stage, a["step"])
    figures, expected = (figures_of(run) for run in (two, one))
    assert [row["value"] for row in figures] == pytest.approx([row["value"] for row in expected], abs=0.1)


@pytest.mark.long
def test_two_processes_train_the_reranker_of_one(tmp_path):
    data = test_train_reranker.write(tmp_path / "a.jsonl", test_train_reranker.samples())
    flags = ["--config=configs/reranker.py:full,trial", "--config.max_length=64", "--config.batch_size=8"]
    flags += [f"--config.base={test_train_reranker.base(tmp_path / 'base')}", f"--config.data={data}"]
    outputs = [finish(p) for p in start_two(tmp_path / "two", *flags, program="train-reranker")]
    finish(start(tmp_path / "one", 8, *flags, program="train-reranker"))
    assert "rank with it" in outputs[0]
    assert "rank with it" not in outputs[1]  # the first alone speaks
    prompt, candidates = "def new(x):\n", ["    return x + 7\n", "    return x - 7\n"]
    two, one = (Reranker.from_pretrained(tmp_path / run / "export") for run in ("two", "one"))
    np.testing.assert_allclose(two.score(prompt, candidates), one.score(prompt, candidates), atol=2e-3)
    rows = [read_metrics(tmp_path / run / "training") for run in ("two", "one")]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], abs=1e-4)
    assert [row.get("dev_accuracy") for row in rows[0]] == [row.get("dev_accuracy") for row in rows[1]]


@pytest.mark.long
def test_sigterm_to_one_of_two_processes_stops_both_which_go_on(tmp_path):
    """JAX's preemption service makes them agree on a step, which both save."""
    stage = tmp_path / "seed0" / "policies" / "sft"
    both = start_two(tmp_path, *MINI)
    wait_for(recovery_of(stage) / "20", both)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == EXIT_PREEMPTED, output[-4000:]
    saved = max(int(path.name) for path in recovery_of(stage).iterdir())
    assert 20 < saved < 60
    again = start_two(tmp_path, *MINI)
    wait_for(stage / "stage.json", again)
    for process in again:
        process.kill()
        process.communicate()
    rows = metrics(tmp_path, "policies/sft")
    assert [row["step"] for row in rows] == list(range(1, 61))
