"""What table1.py and mbpp.py run: the rows' configs, and the tiny models and problems of --smoke."""

import ast
import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.paper_config import ProblemSource
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import init_decoder
from rerankjax.problems.family import make_family
from rerankjax.problems.jsonl import read_rows, write_text
from rerankjax.problems.kinds import FINALS, STEPS
from rerankjax.problems.languages import LANGUAGES
from rerankjax.problems.problem import write_problems
from rerankjax.prompts.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
CONFIGS = {
    **{
        f"{size}-{how}": f"deepseek_{size.replace('.', '_')}.py:{how}"
        for size in ("1.3b", "6.7b", "33b")
        for how in ("greedy", "sampled")
    },
    "1.3b+6.7b": "ranker_1_3b.py",
    "6.7b+6.7b": "ranker_6_7b.py",
    "hard-negatives": "hard_negatives.py",
    "self-training": "self_training.py",
}


def load_row(
    name: str,
    models: Sequence[str] = (),
    problems: Path | None = None,
    settings: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """The config of a row of `table.paper.RUNS`, changed by --smoke, --model, --problems and --set, in this order.

    Raises:
        ConfigError: one of these is not as it should be.
    """
    file, _, arg = CONFIGS[name].partition(":")
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), ROOT / "configs" / "paper" / file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ConfigDict = module.get_config(*[arg] * bool(arg))
    fields = dict(changes or {})
    elsewhere = dict(part.partition("=")[::2] for part in models)
    sizes = [model["size"] for model in config.models]
    for size in elsewhere.keys() - set(sizes):
        raise ConfigError(f"--model {size}: there is no such size; use one of {', '.join(sizes)}, as 6.7b=FOLDER")
    if elsewhere:
        given = fields.get("models", config.models)
        fields["models"] = tuple(
            {"size": m["size"], "checkpoint": elsewhere[m["size"]]} if m["size"] in elsewhere else m for m in given
        )
    if problems is not None:
        fields |= local_problems(problems)
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as field=value, as ppo.kl_coef=0.1")
        try:
            fields[field] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            fields[field] = value
    for field, value in fields.items():
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"config.{field} = {value!r}: {error}") from error
    return config


def local_problems(folder: Path) -> dict[str, Any]:
    """The fields by which MultiPL-E, and HumanEval if a file of it is there, are read from a folder.

    Raises:
        ConfigError: a language's file is not there.
    """
    fields: dict[str, Any] = {}
    for language in LANGUAGES:
        if not (folder / f"humaneval-{language}.jsonl").is_file():
            raise ConfigError(f"--problems {folder}: there is no humaneval-{language}.jsonl in it")
    _, first = next(read_rows(folder / "humaneval-py.jsonl"))
    benchmarks = {"python": "HumanEval" if "entry_point" in first else "MultiPL-E", "multipl_e": "MultiPL-E"}
    for section, benchmark in benchmarks.items():
        source = {"source": f"{folder}/humaneval-{{language}}.jsonl", "benchmark": benchmark}
        fields |= {f"evaluation.{section}.{name}": value for name, value in _whole(source).items()}
    return fields


def _whole(source: Mapping[str, str]) -> dict[str, str]:
    return {"config": "", "split": "", "revision": ""} | dict(source)


# Of the loop, all stages, as small as they can be and have something to do.
SMOKE: dict[str, Any] = {
    "dtype": "float32",
    "compute_dtype": "",
    "problems.languages": ("py", "cpp"),
    "problems.train": 12,
    "problems.dev": 2,
    "evaluation.problems": 2,
    "evaluation.samples": 4,
    "max_prompt_length": 192,
    "sampling.max_completion_length": 48,
    "sft.batch_size": 4,
    "sft.optimizer": {"learning_rate": 1e-2, "steps": 100, "warmup_steps": 1, "microbatches": 1},
    "candidates.train": 6,
    "candidates.batch_size": 2,
    "reranker_training.batch_size": 4,
    "reranker_training.optimizer": {"learning_rate": 1e-3, "steps": 3, "warmup_steps": 0, "microbatches": 1},
    "retraining.batch_size": 4,
    "retraining.optimizer": {"learning_rate": 1e-3, "steps": 3, "warmup_steps": 0, "microbatches": 1},
    "mining.pairs": 12,
    "mining.grown_pairs": 12,
    "ppo.iterations": 2,
    "ppo.batch_size": 4,
    "ppo.minibatches": 2,
    "ppo.microbatches": 1,
    "early_stopping.every": 2,
    "lora.rank": 4,
    "sandbox.workers": 2,
    "checkpoints.steps": 100,
    "checkpoints.iterations": 10,
}
SHAPES = {"1.3b": (32, 2, 4, 4), "6.7b": (48, 2, 4, 4), "33b": (64, 3, 8, 2)}  # width, layers, heads, key-value heads
# DeepSeek-Coder's turns.
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n"
    "{% else %}### Response:\n{{ m['content'] }}\n<|eos|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def smoke_inputs(workdir: Path, problems: Path | None) -> dict[str, Any]:
    """Makes checkpoints and problems in `workdir`, if they are not there; returns what they change in a row's config.

    problems: MultiPL-E's folder. Without it, see table1.py.
    """
    folder = workdir / "smoke"
    beside = ROOT.parent / "shared" / "data" / "multipl_e"
    if problems is None and beside.is_dir():
        problems = beside
    fields = dict(SMOKE)
    if problems is None:
        try:
            texts = _prompts_of_hub()
        except ConfigError as error:
            print(f"No --problems, and: {error}\nSo these are made-up problems in MultiPL-E's shape, not MultiPL-E's.")
            problems = folder / "made-up"
            write_made_up(problems)
    if problems is not None:
        fields |= local_problems(problems)
        files = [problems / f"humaneval-{language}.jsonl" for language in LANGUAGES]
        texts = [row["prompt"] for file in files for _, row in read_rows(file)]
    training, mbpp = folder / "contests.jsonl", folder / "mbpp.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(training, "".join(json.dumps(_contest(i)) + "\n" for i in range(16)))
    write_text(mbpp, "".join(json.dumps(_mbpp(i)) + "\n" for i in (2, 3, 4, 11, 12)))
    fields["problems.sources"] = ({"source": str(training), "benchmark": "CodeContests", "split": "train"},)
    for section in ("mbpp", "mbpp_shots"):
        source = _whole({"source": str(mbpp), "benchmark": "MBPP"})
        fields |= {f"evaluation.{section}.{name}": value for name, value in source.items()}
    contests = [_contest(i) for i in range(16)]
    texts = [*texts[:: max(1, len(texts) // 64)], *(c["description"] + c["solutions"]["solution"][0] for c in contests)]
    tokenizer = train_tokenizer(texts, 700)
    tokenizer.chat_template = CHAT
    fields["models"] = tuple(
        {"size": size, "checkpoint": str(_checkpoint(folder / f"random-weights-{size}", size, tokenizer))}
        for size in SHAPES
    )
    return fields


def _prompts_of_hub() -> list[str]:
    evaluation = load_row("1.3b-greedy").evaluation
    sources = {language: evaluation.python if language == "py" else evaluation.multipl_e for language in LANGUAGES}
    found = {language: ProblemSource(**source.to_dict()).load(language) for language, source in sources.items()}
    return [problem.prompt for problems in found.values() for problem in problems]


def _checkpoint(path: Path, size: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    if not (path / "config.json").is_file():  # which is written last
        width, layers, heads, key_value_heads = SHAPES[size]
        # A vocabulary larger than the tokenizer's, untied, and RoPE scaled linearly: as DeepSeek-Coder's.
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
        # As drawn, logits are near zero, and adapters, which leave this alone, could not make a model end its answer.
        params["lm_head"]["kernel"] *= 25.0
        weights.save(path, config, params, tokenizer)
    return path


def _contest(i: int) -> dict[str, Any]:
    """A row in CodeContests' shape: add, or multiply by, a number."""
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
    """The same two problems in each language: of kinds that all have words for."""
    folder.mkdir(parents=True, exist_ok=True)
    steps, finals = (
        [kind for kind in kinds if all(kind.name in form.idioms for form in LANGUAGES.values())]
        for kinds in (STEPS, FINALS)
    )
    for language in LANGUAGES:
        family = make_family(0, 1, 1, 2, steps=steps, finals=finals, languages=(language,))
        # Without the digest, which is of the language too: translations of a problem have one name.
        made = [dataclasses.replace(problem, name=problem.name.rpartition("_")[0]) for problem in family.test]
        write_problems(folder / f"humaneval-{language}.jsonl", made)
