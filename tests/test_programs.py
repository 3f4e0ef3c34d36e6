"""What preflight compiles is what a run calls: the same jitted functions, with arguments of the same shapes."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from configs.mini import get_config
from rerankjax.candidates import generate
from rerankjax.capacity import topology
from rerankjax.capacity.device_steps import every_step
from rerankjax.capacity.run_shapes import open_run
from rerankjax.loop import programs, stages, trainers
from rerankjax.loop.resolve import resolve
from rerankjax.loop.seed_run import open_seed
from rerankjax.loop.train import run_seed
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.problems.problem import Problem, write_problems
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker import rerank

PROBLEMS = tuple(
    Problem(f"p{i}", "py", f"def f{i}(x):\n", f"assert f{i}(1)", ("\ndef",), solution=f"    return x + {i}\n")
    for i in range(16)
)
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def two_models(directory: Path):
    """From scratch, of different shapes, trained whole."""
    config = small(directory)
    config.generator.shape = SHAPE
    config.reranker.update({"shape": SHAPE | {"hidden_size": 32, "num_hidden_layers": 2}, "attention": "xla"})
    return config


def adapters(directory: Path):
    """From a checkpoint that generator and reranker share, over which both are adapters."""
    config = small(directory)
    tokenizer = train_tokenizer([p.prompt + p.solution for p in PROBLEMS], SHAPE["vocab_size"])
    shape = ModelConfig(**SHAPE)
    weights.save(directory / "checkpoint", shape, init_decoder(shape, jax.random.key(0)), tokenizer)
    del config.generator.shape
    config.generator.update({"checkpoint": str(directory / "checkpoint"), "dtype": "bfloat16"})
    config.lora.update({"rank": 2, "targets": ("q_proj", "down_proj")})
    return config


def small(directory: Path):
    write_problems(directory / "problems.jsonl", PROBLEMS)
    config = get_config("smoke").unlock()
    config.generator.attention = "xla"
    config.problems = {"train": (str(directory / "problems.jsonl"),), "dev_problems": 4, "test_problems": 4}
    config.update({"max_prompt_length": 16, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}})
    config.sampling.max_completion_length = 12
    for training in (config.sft, config.reranker_training, config.retraining):
        training.update({"batch_size": 8, "optimizer": {"steps": 1, "warmup_steps": 0, "microbatches": 2}})
    config.retraining.batch_size = 4
    config.candidates.update({"train": 4, "dev": 4, "prompts_in_flight": 4})
    config.ppo.update({"iterations": 1, "batch_size": 8, "minibatches": 1, "epochs": 1})
    config.early_stopping.criterion = "reranked"
    config.selection.update({"execute": False, "ensembles": ()})
    config.iterations = {
        "first": {"pairs": "sampled", "ppo": True},
        "hard": {"pairs": "hard", "ppo": False, "after": "first"},
    }
    sampling = {"temperature": 0.8, "top_p": 0.9, "max_completion_length": 8}
    config.evaluation = {"test": {"sources": ("held_out",), "samples": 2, "sampling": sampling}}
    return config


def judged_in_turn(config, problems, candidates, *_, **__):
    """In the sandbox's place: every other sample of a problem passes. Texts are short, so that all are learned."""
    verdicts = "passed", "failed"
    return [dataclasses.replace(c, completion=f"x{c.sample}", verdict=verdicts[c.sample % 2]) for c in candidates]


@pytest.fixture
def calls(monkeypatch):
    """(function, arguments as shapes) of each call of a device program."""
    found = []

    def recorded(function):
        def call(*arguments):
            found.append((function, jax.tree.map(abstract, arguments)))
            return function(*arguments)

        return call

    def watch(module, name, wrapped):
        maker = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: wrapped(maker(*arguments)))

    def watched(owner, *names):
        for name in names if owner not in owners else ():
            monkeypatch.setattr(owner, name, recorded(getattr(owner, name)))
        owners.append(owner)
        return owner

    def recorded_ppo(made):
        watched(made.update, "add", "apply")
        fields = "reference", "score", "outputs"
        return made._replace(**{name: recorded(getattr(made, name)) for name in fields})

    owners = []
    watch(programs, "make_sft_step", lambda update: watched(update, "add", "apply"))
    watch(programs, "make_reranker_step", lambda update: watched(update, "add", "apply"))
    watch(programs, "make_ppo_programs", recorded_ppo)
    for module in (generate, trainers):
        watch(module, "make_engine", lambda engine: watched(engine, "read", "draw"))
    watch(rerank, "make_scorer", recorded)
    monkeypatch.setattr(stages, "execute", judged_in_turn)
    return found


def abstract(leaf):
    """As preflight gives it: a sharding where the array is held by it."""
    committed = isinstance(leaf, jax.Array) and leaf.committed
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if committed else None)


def same(one, other) -> bool:
    def alike(a, b) -> bool:
        if (a.shape, a.dtype, a.sharding is None) != (b.shape, b.dtype, b.sharding is None):
            return False
        return a.sharding is None or a.sharding.is_equivalent_to(b.sharding, len(a.shape))

    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(map(alike, jax.tree.leaves(one), jax.tree.leaves(other)))


def no_larger(one, other) -> bool:
    """Of two batches."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and all(x <= y for x, y in zip(a.shape, b.shape, strict=True)) for a, b in pairs)


@pytest.mark.parametrize("make", [pytest.param(two_models, marks=pytest.mark.long), adapters])
def test_preflight_compiles_what_a_run_calls(make, calls, monkeypatch, tmp_path):
    config = resolve(make(tmp_path), 8)
    run = open_seed(config, 0, tmp_path / "run", make_mesh(config.mesh))
    assert len(list(run_seed(run))) == 3 + bool(run.generator.folder)  # SFT, PPO and two rerankers ran
    monkeypatch.undo()
    rows = [json.loads(line) for line in (run.path("policies/ppo") / "metrics.jsonl").open()]
    assert [0 <= row["reranked"] <= 1 for row in rows] == [True, True]  # before the first iteration, and after it

    table, _ = generate.stops_of(run.tokenizer, [PROBLEMS[0].stop_tokens])
    vocabulary = programs.Vocabulary(
        run.tokenizer.eos_token_id, run.tokenizer.pad_token_id, tokens=table.shape[1], stop_states=table.shape[0]
    )
    steps = every_step(open_run(config, topology.find("cpu:8"), vocabulary))
    # Which of their arguments depend on the texts' lengths: from this on.
    batched = {"read prompts": 2, "scoring": 1, "log-probabilities": 1}
    for function, arguments in calls:
        candidates = [step for step in steps if step.program.function is function]
        assert candidates, f"preflight knows no {function}"
        kinds = {step.kind for step in candidates}
        found = [step for step in candidates if matches(step, arguments, batched)]
        assert found, (
            f"{kinds}: none is called with {arguments}; preflight has {[s.program.arguments for s in candidates]}"
        )
    for function in {function for function, _ in calls}:
        # A trainer's program is compiled once per shape, of which there are at most three: by the last part's rows.
        shapes = [arguments for called, arguments in calls if called is function]
        distinct = [a for i, a in enumerate(shapes) if not any(same(a, b) for b in shapes[:i])]
        kinds = {step.kind for step in steps if step.program.function is function}
        others = {"draw", *batched}  # of the engine and the scorer
        assert kinds & others or function._cache_size() == len(distinct) <= 3, kinds
    for step in steps:
        of_step = [arguments for function, arguments in calls if function is step.program.function]
        assert any(matches(step, arguments, batched) for arguments in of_step), f"{step.name} is never called so"


def matches(step, arguments, batched) -> bool:
    upto = batched.get(step.kind, len(arguments))
    given = step.program.arguments
    return same(arguments[:upto], given[:upto]) and no_larger(arguments[upto:], given[upto:])
