"""A user's own model and problems: one command from a checkpoint and a JSONL file to a report."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rerankjax.loop.config import ConfigError
from rerankjax.loop.problem_sets import open_problems
from rerankjax.loop.resolve import resolve
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.ensembles import ENSEMBLES

ROOT = Path(__file__).parents[1]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TASKS = ("add", "subtract", "multiply", "join", "repeat")


def problems():
    """Ten problems in two languages: functions to complete, with a solution each, and stop tokens of their own."""
    rows = []
    for number, task in enumerate(TASKS):
        rows.append(
            {
                "name": f"{task} in Python",
                "language": "py",
                "prompt": f"def {task}_{number}(x):\n",
                "tests": f"assert {task}_{number}(2) == {2 + number}",
                "stop_tokens": ["\ndef", "\nassert"],
                "solution": f"    return x + {number}\n",
            }
        )
        rows.append(
            {
                "name": f"{task} in Bash",
                "language": "sh",
                "prompt": f"Write a program that prints {number} {task}",
                "tests": "",
                "stop_tokens": [],
                "cases": [{"stdin": "", "expected_output": f"{number}\n"}],
                "standalone": True,
                "solution": f"echo {number}",
            }
        )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of a tiny random Qwen2 with a chat template, and the file of problems."""
    folder = tmp_path_factory.mktemp("own")
    shape = ModelConfig(512, 32, 48, 2, 4, 2, 8, 1024, model_type="qwen2")
    tokenizer = train_tokenizer([row["prompt"] + row["solution"] for row in problems()] * 2, 300)
    tokenizer.chat_template = CHAT
    tokenizer.pad_token = tokenizer.eos_token  # as SmolLM2's and many others': the export gets padding of its own
    weights.save(folder / "qwen2", shape, init_decoder(shape, jax.random.key(0)), tokenizer)
    return folder / "qwen2", write(folder / "problems.jsonl", problems())


def train(workdir, arg, checkpoint, file):
    """One command with four flags."""
    flags = f"--config=configs/own.py:{arg}", f"--workdir={workdir}"
    flags += f"--config.generator.checkpoint={checkpoint}", f"--config.problems.train={file}"
    return subprocess.run(
        [sys.executable, "-m", "rerankjax", "train", *flags],
        cwd=ROOT,
        # Tiny programs run seldom: what LLVM would gain in them takes many times longer to find.
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["RERANKJAX_TESTS_XLA_FLAGS"]},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize("arg", ["trial", "chat,trial"])
def test_four_flags_lead_from_a_checkpoint_and_problems_to_a_report(own, tmp_path, arg):
    done = train(tmp_path, arg, *own)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    systems = [row["system"] for row in found["systems"]]
    assert systems == ["base", "sft", "ppo", "self_training", *(f"ppo/{way}" for way in ENSEMBLES)]
    assert found["problems"] == [2]  # held out
    held_out = [json.loads(line)["name"] for line in (tmp_path / "seed0/problems/test.jsonl").open()]
    trained = [json.loads(line)["name"] for line in (tmp_path / "seed0/problems/train.jsonl").open()]
    assert len(held_out) == 2
    assert not set(held_out) & set(trained)
    pairs = [json.loads(line) for line in (tmp_path / "seed0/rerankers/first/pairs.jsonl").open()]
    assert {pair["problem"] for pair in pairs} <= set(trained)
    assert "<svg" in (tmp_path / "report.html").read_text()
    exported = json.loads((tmp_path / "seed0/export/config.json").read_text())
    assert exported["pad_token_id"] != exported["eos_token_id"]
    assert "rank with the exported reranker" in done.stdout


def config_of(arg, file):
    spec = importlib.util.spec_from_file_location("own", ROOT / "configs" / "own.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    config.generator.checkpoint = "/nowhere"  # no model is looked for before the problems are read
    config.problems.train = (str(file),)
    return resolve(config, 1)


def broken(kind):
    rows = problems()
    text = [json.dumps(row) for row in rows]
    match kind:
        case "cut off":
            text[3] = text[3][:40]
        case "missing":
            text[4] = json.dumps({k: v for k, v in rows[4].items() if k != "tests"})
        case "type":
            text[2] = json.dumps(rows[2] | {"prompt": 5})
        case "language":
            text[6] = json.dumps(rows[6] | {"language": "rust"})
        case "twice":
            text[9] = json.dumps(rows[9] | {"name": rows[1]["name"]})
        case "untested":
            text[5] = json.dumps(rows[5] | {"cases": []})
        case "benchmark":
            text[0] = json.dumps(rows[0] | {"benchmark": "HumanEval"})
    return "\n".join(text) + "\n"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut off", "problems.jsonl, row 4: not JSON"),
        ("missing", "problems.jsonl, row 5: field 'tests' is missing"),
        ("type", "problems.jsonl, row 3: field 'prompt' must be str, got 5"),
        ("language", "problems.jsonl, row 7: field 'language' is 'rust'"),
        ("twice", "problems.jsonl, row 10: field 'name' repeats 'add in Bash'"),
        ("untested", "problems.jsonl, row 6: fields 'tests' and 'cases' are empty"),
        ("benchmark", "'add in Python' is from the benchmark HumanEval"),
    ],
)
def test_broken_problems_are_one_line_before_any_model(tmp_path, kind, said):
    file = tmp_path / "problems.jsonl"
    file.write_text(broken(kind))
    with pytest.raises(ConfigError) as error:
        open_problems(config_of("chat,trial", file), 0, tmp_path / "run")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/seed0/models").exists()


def test_the_command_ends_in_that_line(own, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(broken("missing"))
    done = train(tmp_path / "run", "trial", own[0], file)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rerankjax train: config.problems.train: ")
    assert "problems.jsonl, row 5: field 'tests' is missing" in last
    assert "Traceback" not in done.stderr
