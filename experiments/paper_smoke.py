"""configs/paper.py on tiny random models of the same family, with problems made for them: does everything run?

`table1.py --smoke` makes the inputs and starts the runs. To start one run by itself, once the inputs exist:

    rerankjax train --config=experiments/paper_smoke.py:6.7b,runs/table1-smoke/inputs --workdir=runs/table1-smoke/6.7b
"""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from rerankjax.model import weights
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import init_decoder
from rerankjax.problems.family import make_family
from rerankjax.problems.jsonl import read_rows, write_text
from rerankjax.problems.kinds import FINALS, STEPS
from rerankjax.problems.languages import SYNTAX
from rerankjax.problems.problem import write_problems
from rerankjax.prompts.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
SHAPES = {"1.3b": (32, 2, 4, 4), "6.7b": (48, 2, 4, 4), "33b": (64, 3, 8, 2)}  # width, layers, heads, key-value heads
# DeepSeek-Coder's turns.
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n"
    "{% else %}### Response:\n{{ m['content'] }}\n<|eos|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
# All stages of the loop, as small as possible while each still has work.
SMALL: dict[str, Any] = {
    "max_prompt_length": 192,
    "sampling.max_completion_length": 48,
    "problems.dev_problems": 2,
    "problems.max_train": 12,
    "sft.batch_size": 4,
    "sft.optimizer": {"learning_rate": 1e-2, "steps": 60, "warmup_steps": 1, "microbatches": 1},
    "candidates": {"train": 6, "dev": 4, "prompts_in_flight": 4},
    "reranker_training.batch_size": 4,
    "reranker_training.optimizer": {"learning_rate": 1e-3, "steps": 3, "warmup_steps": 0, "microbatches": 1},
    "retraining.batch_size": 4,
    "retraining.optimizer": {"learning_rate": 1e-3, "steps": 3, "warmup_steps": 0, "microbatches": 1},
    "mining": {"pairs": 12, "later_pairs": 12},
    "ppo": {"iterations": 2, "batch_size": 4, "minibatches": 1, "microbatches": 1},
    "early_stopping.every": 2,
    "lora.rank": 4,
    "sandbox.workers": 2,
    "checkpoints": {"steps": 40, "iterations": 1},
}


def get_config(arg: str) -> ConfigDict:
    """`arg`: the run, a comma and the folder that `make_inputs` filled."""
    size, _, folder = arg.partition(",")
    inputs = Path(folder)
    config: ConfigDict = runpy.run_path(str(ROOT / "configs" / "paper.py"))["get_config"](size)
    for field, value in SMALL.items():
        *path, last = field.split(".")
        section = config
        for name in path:
            section = section[name]
        if isinstance(value, dict):
            section[last].update(value)
        else:
            section[last] = value
    for model in (config.generator, config.reranker):
        if model.get("checkpoint"):
            width = "1.3b" if "1.3b" in model.checkpoint else "6.7b" if "6.7b" in model.checkpoint else "33b"
            model.update({"checkpoint": str(inputs / width), "revision": ""})
            model.update({"dtype": "float32", "compute_dtype": "", "remat": "none"})
    contests = {"source": str(inputs / "contests.jsonl"), "benchmark": "CodeContests", "split": "train"}
    if size != "33b":
        config.problems.train = (contests | {"languages": ("py", "cpp")},)
    mbpp = {"source": str(inputs / "mbpp.jsonl"), "benchmark": "MBPP"}
    config.evaluation.mbpp.sources = (mbpp | {"split": "test"},)
    config.evaluation.mbpp.prompts.shots = (mbpp | {"split": "prompt"},)
    config.evaluation.multipl_e.sources = tuple(json.loads((inputs / "multipl_e.json").read_text(encoding="utf-8")))
    for evaluation in config.evaluation.values():
        evaluation.update({"samples": 4, "max_problems": 2})
        evaluation.sampling.max_completion_length = 48
    return config


def make_inputs(folder: Path, problems: Path | None) -> None:
    """Fills the folder with the checkpoints and problems that are missing.

    problems: a folder with humaneval-LANGUAGE.jsonl; None for synthetic problems in MultiPL-E's format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if problems is None:
        problems = folder / "made-up"
        write_made_up(problems)
    sources, texts = [], []
    for language in SYNTAX:
        rows = [row for _, row in read_rows(problems / f"humaneval-{language}.jsonl")]
        benchmark = "HumanEval" if "entry_point" in rows[0] else "MultiPL-E"
        sources.append({"source": str(problems / f"humaneval-{language}.jsonl"), "benchmark": benchmark})
        texts += [row["prompt"] for row in rows]
    write_text(folder / "multipl_e.json", json.dumps(sources))
    contests = [_contest(i) for i in range(16)]
    write_text(folder / "contests.jsonl", "".join(json.dumps(row) + "\n" for row in contests))
    write_text(folder / "mbpp.jsonl", "".join(json.dumps(_mbpp(i)) + "\n" for i in (2, 3, 4, 11, 12)))
    texts = [*texts[:: max(1, len(texts) // 64)], *(c["description"] + c["solutions"]["solution"][0] for c in contests)]
    tokenizer = train_tokenizer(texts, 700)
    tokenizer.chat_template = CHAT
    for size in SHAPES:
        _write_checkpoint(folder / size, size, tokenizer)


def _write_checkpoint(path: Path, size: str, tokenizer: PreTrainedTokenizerFast) -> None:
    if (path / "config.json").is_file():  # config.json is written last
        return
    width, layers, heads, key_value_heads = SHAPES[size]
    # As in DeepSeek-Coder: a vocabulary larger than the tokenizer's, untied embeddings, and RoPE scaled linearly.
    config = ModelConfig(
        768,
        width,
        2 * width,
        layers,
        heads,
        key_value_heads,
        width // heads,
        4096,
        rope_theta=100_000.0,
        rope_scaling=RopeScaling("linear", 4.0),
        tie_word_embeddings=False,
    )
    params = init_decoder(config, jax.random.key(len(size)))
    # At initialisation logits are near zero. Adapters do not train the head, so they could not end an answer.
    params["lm_head"]["kernel"] *= 25.0
    weights.save(path, config, params, tokenizer)


def _contest(i: int) -> dict[str, Any]:
    """A row in CodeContests' format: add, or multiply by, a number."""
    sign = "+*"[i % 4 // 2]
    inputs = ["3\n", "-2\n"]
    empty: dict[str, list[str]] = {"input": [], "output": []}
    k = i + 2
    python = f"print(int(input()) {sign} {k})"
    cpp = f"#include <iostream>\nint main() {{ int x; std::cin >> x; std::cout << x {sign} {k}; }}"
    outputs = [f"{int(x) + k if sign == '+' else int(x) * k}\n" for x in inputs]
    return {
        "name": f"smoke {i}",
        "source": 0,
        "description": f"Read a number x, print x {sign} {k}.\n",
        "public_tests": {"input": inputs, "output": outputs},
        "private_tests": empty,
        "generated_tests": empty,
        "solutions": {"language": [3, 2], "solution": [python, cpp]},
    }


def _mbpp(task_id: int) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "text": f"Write a function that gives {task_id} times its argument.",
        "code": f"def times(x):\n    return {task_id} * x",
        "test_setup_code": "",
        "test_list": [f"assert times(2) == {2 * task_id}"],
    }


def write_made_up(folder: Path) -> None:
    """The same two problems in each language, of kinds that all languages can express."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, finals = (
        [kind for kind in kinds if all(kind.name in form.idioms for form in SYNTAX.values())]
        for kinds in (STEPS, FINALS)
    )
    for language in SYNTAX:
        family = make_family(0, 1, 1, 2, steps=steps, finals=finals, languages=(language,))
        # The digest depends on the language; without it, translations of a problem have the same name.
        made = [dataclasses.replace(problem, name=problem.name.rpartition("_")[0]) for problem in family.test]
        write_problems(folder / f"humaneval-{language}.jsonl", made)
