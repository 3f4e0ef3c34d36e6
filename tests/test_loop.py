"""The whole loop, small: it ends in a report, and kills do not change what it ends in."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet
import pytest

from rerankjax.model import weights
from rerankjax.pairs.data import DataSource, read_data
from rerankjax.reranker.ensembles import ENSEMBLES
from rerankjax.results.selection import ALL_RULES

ROOT = Path(__file__).parents[1]


def start(workdir, *overrides):
    command = [sys.executable, "-m", "rerankjax", "train", "--config=configs/mini.py:smoke", f"--workdir={workdir}"]
    # Tiny programs run seldom: what LLVM would gain in them takes many times longer to find.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["RERANKJAX_TESTS_XLA_FLAGS"]}
    return subprocess.Popen(
        [*command, *overrides], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone: its directory, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, finish(start(workdir))


def artifacts(workdir):
    """Everything a run ends in that must not depend on how it got there: figures, arrays, samples, verdicts, pairs."""
    results = json.loads((workdir / "results.json").read_text())
    for cost in (cost for one in results["evaluations"] for cost in one["costs"]):  # the clock alone may differ
        for name in [name for name in cost if name.endswith("seconds")]:
            seconds = cost.pop(name)
            assert seconds is None or seconds > 0
    found = {"results.json": results}
    for path in sorted(workdir.glob("seed*/*/*/checkpoint")):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path)
        for key, array in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{path.relative_to(workdir)}{jax.tree_util.keystr(key)}"] = np.asarray(array).tobytes()
    for path in sorted(workdir.glob("seed*/[cg]*/*/candidates.parquet")):  # candidates, and greedy ones
        columns = pyarrow.parquet.read_table(path).to_pydict()
        found |= {f"{path.relative_to(workdir)}:{name}": column for name, column in columns.items()}
    bytewise = (
        "rerankers/*/pairs.jsonl",
        "*/*/metrics.jsonl",
        "scores/*/*/scores.npy",
        "log_probs/*/*/log_probs.npy",
        "outputs/*/[!s]*",
        "export/[!s]*",
        "models/*/model.json",
    )
    bytewise += ("problems/*.jsonl",)
    for pattern in (f"seed*/{name}" for name in bytewise):
        found |= {str(path.relative_to(workdir)): path.read_bytes() for path in sorted(workdir.glob(pattern))}
    return found


def test_a_run_ends_in_a_table_and_a_report_with_every_system(whole):
    workdir, output = whole
    for said in ("SFT, reranker 1", "self-training", "Fraction of held-out problems solved", "report.html"):
        assert said in output
    page = (workdir / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained: nothing to fetch
    (found,) = json.loads((workdir / "results.json").read_text())["evaluations"]
    systems = [row["system"] for row in found["systems"]]
    ensembles = [f"{policy}/{way}" for policy in ("ppo", "ppo2-self_training") for way in ENSEMBLES]
    iterations = ["sft", "ppo", "same_data", "random", "hard", "self_training", "self_training+ppo"]
    assert systems == iterations + ensembles
    assert {row["rule"] for row in found["figures"]} == set(ALL_RULES)
    assert {row["system"] for row in found["dev"]} == set(systems)
    assert {row["system"] for row in found["divergences"]} == set(systems)
    assert "Best on the dev split" in output
    for title in ("ppo, scores of reranker hard on test", "sft, log-probabilities under sft on test"):
        assert re.search(rf"^seed 0: {title}: (\d+)/\1 candidates, .*done in", output, re.MULTILINE), title


def test_the_sft_model_has_no_distance_from_itself_and_policies_have_one(whole):
    (found,) = json.loads((whole[0] / "results.json").read_text())["evaluations"]
    of = {row["system"]: row["value"] for row in found["divergences"] if row["rule"] == "random"}
    assert of["sft"] == 0.0
    own, sft = (np.load(whole[0] / f"seed0/log_probs/{name}/ppo-test/log_probs.npy") for name in ("ppo", "sft"))
    assert of["ppo"] == pytest.approx((own - sft).mean(), abs=1e-5)
    # Where the sampled tokens are those of their text, which a model of a hundred steps need not write, the
    # log-probabilities that are asked for again are those that the completions were sampled with.
    rows = pyarrow.parquet.read_table(whole[0] / "seed0" / "candidates" / "ppo-test" / "candidates.parquet").to_pylist()
    sampled = np.array([row["log_probability"] * row["length"] for row in rows])
    assert np.isclose(own, sampled, atol=1e-3).mean() > 0.5


def test_the_command_it_prints_ranks_as_the_loop_scored(whole):
    workdir, output = whole
    command = shlex.split(output.rsplit("rank with the exported reranker: ", 1)[1])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    scores = np.load(workdir / "seed0" / "scores" / "self_training" / "ppo2-self_training-test" / "scores.npy")
    np.testing.assert_allclose(np.ravel([row["scores"] for row in rows]), scores, atol=1e-5)
    examples = [json.loads(line) for line in (workdir / "seed0" / "export" / "examples.jsonl").open()]
    assert [row["best"] for row in rows] == [
        e["candidates"][row["ranking"][0]] for e, row in zip(examples, rows, strict=True)
    ]
    assert [sum(e["passed"]) for e in examples] == [
        sum(v == "passed" for v in verdicts_of(workdir, e["name"])) for e in examples
    ]


def verdicts_of(workdir, problem):
    path = workdir / "seed0" / "candidates" / "ppo2-self_training-test" / "candidates.parquet"
    return [row["verdict"] for row in pyarrow.parquet.read_table(path).to_pylist() if row["problem"] == problem]


def test_a_policy_is_exported_with_its_labelled_samples(whole, tmp_path):
    workdir, _ = whole
    command = [sys.executable, "-m", "rerankjax", "export", "--config=configs/mini.py:smoke", f"--workdir={workdir}"]

    def export(*flags):
        return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = export("--policy=ppo", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    policy = workdir / "seed0/policies/ppo/checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        trained = checkpointer.restore(policy)
    _, params = weights.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    rows = read_data([DataSource(str(tmp_path / "out/samples/test.jsonl"))])
    table = pyarrow.parquet.read_table(workdir / "seed0/candidates/ppo-test/candidates.parquet").to_pylist()
    labels = [(text, passed) for row in rows for text, passed in zip(row.candidates, row.passed, strict=True)]
    assert labels == [(c["completion"], c["verdict"] == "passed") for c in table]
    greedy = pyarrow.parquet.read_table(workdir / "seed0/greedy/ppo-test/candidates.parquet").to_pylist()
    assert [row.greedy for row in rows] == [c["verdict"] == "passed" for c in greedy]
    assert read_data([DataSource(str(tmp_path / "out/samples/train.jsonl"))])[0].greedy is None

    refused = export("--policy=best", f"--output={tmp_path / 'other'}")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith("has the policies ppo, ppo2-self_training, sft")
    assert not (tmp_path / "other").exists()


def test_first_ratios_of_the_whole_run_are_exactly_one(whole):
    rows = [json.loads(line) for p in whole[0].glob("seed*/policies/ppo*/metrics.jsonl") for line in p.open()]
    deviations = [row["first_ratio_deviation"] for row in rows if "first_ratio_deviation" in row]
    assert len(deviations) == 4  # two iterations of two policies
    assert deviations == [0.0] * 4


@pytest.mark.long
@pytest.mark.parametrize("most", [2, 10])
def test_kills_at_random_moments_change_nothing(whole, tmp_path, most, moments):
    """SIGKILL again and again: the run ends in the figures and the checkpoint bytes of the one that was left alone."""
    expected = artifacts(whole[0])
    kills = runs = 0
    while kills < most:  # a run that ends between two kills is compared, and the next one begins
        runs += 1
        workdir = tmp_path / f"run{runs}"
        while True:
            process = start(workdir)
            try:
                output, _ = process.communicate(timeout=moments.uniform(3, 15) if kills < most else 600)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        assert process.returncode == 0, output[-4000:]
        got = artifacts(workdir)
        assert expected.keys() == got.keys()
        assert [name for name in expected if expected[name] != got[name]] == []


@pytest.mark.long
def test_a_run_in_a_bucket_ends_in_the_same_figures(whole, tmp_path):
    """Killed on the way, and its machine lost: what it had put into the bucket is all that the next one has."""
    store = tmp_path / "store"
    process = start(f"file://{store}")
    while not (store / "seed0" / "rerankers" / "first" / "stage.json").exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (store / "lock").unlink()  # a minute later it would be taken over
    sft = (store / "seed0" / "policies" / "sft" / "stage.json").stat().st_mtime_ns
    output = finish(start(f"file://{store}"))
    assert (store / "seed0" / "policies" / "sft" / "stage.json").stat().st_mtime_ns == sft
    expected, got = artifacts(whole[0]), artifacts(store)
    assert expected.keys() == got.keys()
    assert [name for name in expected if expected[name] != got[name]] == []
    assert f"report: {store}/report.html" in output
    assert "<svg" in (store / "report.html").read_text()
    assert f"# in a folder with a copy of {store}/seed0/export" in output
    assert not (store / "lock").exists()


@pytest.mark.long
def test_the_reranker_has_its_members_mean_weights_and_ppo_can_follow_their_minimum(whole, tmp_path):
    changes = [f"--config.iterations.{name}.run=False" for name in ("same_data", "random", "self_training")]
    members = "--config.reranker.members=2", "--config.ppo.reward=minimum", "--config.iterations.hard.ppo=False"
    finish(start(tmp_path, f"--reuse={whole[0]}", *members, *changes))

    def params(stage):
        with ocp.StandardCheckpointer() as checkpointer:
            return jax.tree.map(np.asarray, checkpointer.restore(tmp_path / f"seed0/rerankers/{stage}/checkpoint"))

    first, second, mean = params("first-1"), params("first-2"), params("first")
    assert not np.array_equal(first["score"], second["score"])
    jax.tree.map(lambda a, b, m: np.testing.assert_allclose((a + b) / 2, m, rtol=1e-6), first, second, mean)
    pairs = [(tmp_path / f"seed0/rerankers/hard-{member}/pairs.jsonl").read_text() for member in (1, 2)]
    assert pairs[0] != pairs[1]
    inputs = json.loads((tmp_path / "seed0/policies/ppo/stage.json").read_text())["inputs"]
    assert {"seed0/scores/first-1/sft-train", "seed0/scores/first-2/sft-train"} <= inputs.keys()
    (found,) = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    assert "PPO, minimum of 4 rerankers" in {row["label"] for row in found["systems"]}


@pytest.mark.long
def test_a_run_with_adapters_trains_nothing_else(whole, tmp_path):
    """Rerankers and policies are adapters over the SFT model, in the checkpoints too."""
    changes = [f"--config.iterations.{name}.run=False" for name in ("same_data", "random", "self_training")]
    said = finish(start(tmp_path, f"--reuse={whole[0]}", "--config.lora.rank=2", *changes))
    assert (
        "11 stages are taken" in said
    )  # problems, generator, SFT; its samples, greedy answers, outputs, log-probabilities
    for path in tmp_path.glob("seed0/*/*/checkpoint"):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path)
        decoder = tree.get("decoder", tree)
        found = {key for name in decoder["layers"] for key in decoder["layers"][name]}
        assert found == ({"kernel", "scale"} if path.parent.name == "sft" else {"lora_a", "lora_b"})
        assert decoder.keys() == ({"layers", "embed_tokens", "norm"} if path.parent.name == "sft" else {"layers"})
    assert {p.parent.name for p in tmp_path.glob("seed0/*/*/checkpoint")} == {"sft", "ppo", "first", "hard"}
    rows = [json.loads(line) for line in (tmp_path / "seed0/policies/ppo/metrics.jsonl").open()]
    assert [row["first_ratio_deviation"] for row in rows[1:]] == [0.0] * 2


def test_a_finished_run_starts_again_in_no_time_and_says_the_same(whole):
    workdir, output = whole
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("seed*/**/stage.json")}
    again = finish(start(workdir))
    assert {p: p.stat().st_mtime_ns for p in workdir.glob("seed*/**/stage.json")} == before
    assert again.split("Fraction of held-out")[1] == output.split("Fraction of held-out")[1]


@pytest.mark.long
def test_another_config_in_the_directory_is_refused_with_the_difference(whole):
    process = start(whole[0], "--config.ppo.kl_coef=0.2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "ppo.kl_coef: 0.15 -> 0.2" in output
    assert "Traceback" not in output
