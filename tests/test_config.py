"""Configs: a run that cannot work is refused before it starts, with the field, its value and the remedy."""

import json
import re
import runpy
from pathlib import Path

import pytest

from rerankjax.loop.config import ConfigError, ExperimentConfig
from rerankjax.loop.models import RERANKER, open_model
from rerankjax.loop.resolve import RENAMED, resolve
from rerankjax.model.pretrained import write_config
from rerankjax.run.rundir import open_run

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = {
    "mini": ("demo", "full", "smoke", "languages"),
    "own": ("completion", "chat", "trial", "chat,trial"),
    "paper": ("1.3b", "6.7b", "33b"),
    "smollm2": ("lists", "mbpp", "full"),
}
DROP = object()


def get_config(arg="demo", file="mini"):
    return runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](arg)


def changed(fields, arg="demo", file="mini"):
    """A config's tree with some fields set, by their dotted names, or dropped."""
    tree = json.loads(get_config(arg, file).to_json())
    for field, value in fields.items():
        *path, last = field.split(".")
        section = tree
        for name in path:
            section = section[name]
        if value is DROP:
            del section[last]
        else:
            section[last] = value
    return tree


@pytest.mark.parametrize(("file", "arg"), [(file, arg) for file, args in VARIANTS.items() for arg in args])
def test_every_variant_resolves(file, arg):
    own = {"generator.checkpoint": "somewhere"} if file == "own" else {}
    assert isinstance(resolve(changed(own, arg, file), devices=1), ExperimentConfig)


@pytest.mark.parametrize("file", VARIANTS)
def test_an_unknown_variant_is_refused_by_name(file):
    with pytest.raises(ValueError, match=rf"{file}.py:fulll is unknown: use (one|some) of {VARIANTS[file][0]}, "):
        get_config("fulll", file)


def test_own_config_asks_for_a_checkpoint():
    with pytest.raises(ConfigError, match=r"config.generator.checkpoint = '': give a checkpoint, or a shape"):
        resolve(get_config("trial", "own"), devices=1)


def test_a_run_keeps_the_type_of_products_that_it_began_with(tmp_path, monkeypatch):
    """It may resume on a machine where another type would be the fastest."""
    base = tmp_path / "base"
    base.mkdir()
    write_config(base, resolve(get_config(), devices=1).generator.shape, "ForCausalLM")
    reranker = {"checkpoint": str(base), "compute_dtype": "auto"}
    config = resolve(changed({"reranker": reranker}), devices=1)

    def opened_where(fastest, run):
        monkeypatch.setattr("rerankjax.loop.config.fastest_dtype", lambda: fastest)
        with open_run(tmp_path / run, config) as root:
            return open_model(config, RERANKER, root, 0, ()).shape.compute_dtype

    assert [opened_where(fastest, "run") for fastest in ("bfloat16", "")] == ["bfloat16", "bfloat16"]
    assert opened_where("", "another") == ""


def test_a_locked_config_refuses_fields_it_does_not_have():
    config = get_config().lock()
    with pytest.raises((AttributeError, KeyError), match="kl_coeff"):
        config.ppo.kl_coeff = 0.1


FIRST = {"pairs": "sampled", "ppo": True}
TEST = {"sources": ["synthetic"], "samples": 4}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        # What a value may be.
        ("ppo.kl_coef", "high", "config.ppo.kl_coef = 'high' has type str: give a value of type float"),
        ("sft.optimizer.steps", 2.5, "config.sft.optimizer.steps = 2.5 has type float: give a value of type int"),
        ("sft.enabled", 1, "config.sft.enabled = 1 has type int: give a value of type bool"),
        ("problems", 5, "config.problems = 5 is not a section: give the fields of ProblemsConfig"),
        ("iterations", 5, "config.iterations = 5 is not a section: give one section per name"),
        ("iterations.hard", "hard", "config.iterations.hard = 'hard' is not a section"),
        ("problems.train", 3000, r"config.problems.train = 3000 is not a tuple: write it as \(a, b\)"),
        ("problems.train", "p.jsonl", r"config.problems.train = 'p.jsonl' is not a tuple"),
        ("seeds", [0, "b"], r"config.seeds\[1\] = 'b' has type str: give a value of type int"),
        ("seeds", [0, 0], r"config.seeds = \(0, 0\): give at least one seed, and each seed once"),
        ("seeds", [], r"config.seeds = \(\): give at least one seed"),
        ("log_prob_weights", [], r"config.log_prob_weights = \(\): give at least one"),
        ("ppo.kl_coef", -0.1, "config.ppo.kl_coef = -0.1 is negative"),
        ("max_prompt_length", 0, "config.max_prompt_length = 0: use 1 or more"),
        ("candidates.train", 0, "config.candidates.train = 0: use 1 or more"),
        ("candidates.train_problems", -1, "config.candidates.train_problems = -1: use 0 or more"),
        ("mining.later_pairs", 0, "config.mining.later_pairs = 0: use 1 or more"),
        ("mining.pairs_together", 0, "config.mining.pairs_together = 0: use 1 or more"),
        ("mining.hard_fraction", 1.5, r"config.mining.hard_fraction = 1.5: use a fraction above 0, up to 1"),
        ("mining.new_fraction", 0, "config.mining.new_fraction = 0.0: use a fraction above 0"),
        ("early_stopping.every", 0, "config.early_stopping.every = 0: use 1 or more"),
        ("early_stopping.criterion", "best", "config.early_stopping.criterion = 'best': use 'pass_rate' or 'reranked'"),
        ("checkpoints.keep", 0, "config.checkpoints.keep = 0: use 1 or more"),
        ("lora.rank", -1, "config.lora.rank = -1 is negative"),
        ("lora.targets", ["lm_head"], "config.lora.targets = .*: lm_head is unknown"),
        ("sandbox.engine", "cloud", 'config.sandbox.engine = "cloud" is unknown: use one of local, ray'),
        ("sandbox.workers", 0, "config.sandbox.workers = 0: use 1 or more"),
        ("sampling.top_p", 0.9, "config.sampling.top_p = 0.9: PPO needs samples of the full distribution; use 1.0"),
        ("sampling.top_k", 5, "config.sampling.top_k = 5: PPO needs samples of the full distribution; use 0"),
        ("sampling.temperature", 0.0, "config.sampling.temperature = 0.0: PPO cannot explore with greedy samples"),
        # The mesh and what its devices share: two devices here.
        ("mesh.data", 3, "config.mesh.data = 3, .* do not fill 2 devices"),
        (
            "ppo.rollouts_in_flight",
            3,
            "config.ppo.rollouts_in_flight = 3: not a positive multiple of the 2 devices.*use 4",
        ),
        ("candidates.prompts_in_flight", 0, "config.candidates.prompts_in_flight = 0: .* use 2"),
        ("sft.batch_size", 0, "config.sft.batch_size = 0: use 1 or more"),
        # Models.
        ("generator.shape.num_key_value_heads", 3, "config.generator.shape.num_key_value_heads = 3 does not divide"),
        (
            "generator.shape.max_position_embeddings",
            52,
            "config.generator.shape.max_position_embeddings = 52: .* use 53 or more",
        ),
        ("generator.shape.remat", "full", "config.generator.shape.remat = 'full': set remat outside of shape"),
        ("generator.shape", None, "config.generator.checkpoint = '': give a checkpoint, or a shape to train"),
        (
            "generator.checkpoint",
            "here",
            "config.generator.checkpoint = 'here': a shape is given too; give only one of",
        ),
        ("generator.dtype", "float99", "config.generator.dtype = 'float99': "),
        ("generator.remat", "some", "config.generator.remat = 'some' is unknown: use one of 'none', 'full', 'dots'"),
        ("generator.attention", "flash", "config.generator.attention = 'flash' is unknown: use one of 'auto', "),
        (
            "generator.compute_dtype",
            "int8",
            "config.generator.compute_dtype = 'int8' is unknown: use one of 'auto', '', ",
        ),
        ("generator.unroll", 4, "config.generator.unroll = 4: use 1 to num_hidden_layers = 3"),
        ("reranker.pooling", "first", 'config.reranker.pooling = "first" is unknown: use one of last, mean'),
        ("reranker.lm_coef", -1.0, "config.reranker.lm_coef = -1.0"),
        ("reranker.remat", "full", "config.reranker.remat = 'full': .* set generator.remat"),
        ("sft.enabled", False, "config.sft.enabled = False: a generator from scratch needs SFT"),
        ("ppo.reward", "minimum", "config.ppo.reward = 'minimum': it combines the scores of several rerankers; set"),
        ("reranker.members", 0, "config.reranker.members = 0: use 1 or more"),
        # Problems.
        (
            "problems.synthetic.languages",
            ["py", "rs"],
            r"config.problems.synthetic.languages = \('py', 'rs'\): give one",
        ),
        ("problems.synthetic.test", 0, "config.problems.synthetic.test = 0: use 1 or more"),
        ("problems.synthetic.steps", (), r"config.problems.synthetic.steps = \(\): use numbers of 1 or more"),
        ("problems.synthetic", None, "config.problems.train = synthetic: set the sizes in problems.synthetic"),
        ("problems.train", [], r"config.problems.train = \(\): give at least one source"),
        ("problems.train", ["held_out"], "config.problems.train = held_out: only an evaluation set can use it"),
        (
            "problems.train",
            [{"source": "p", "languages": ["py", "py"]}],
            r"config.problems.train\[0\].languages = .*once",
        ),
        (
            "problems.train",
            [{"source": "p.jsonl", "benchmark": "APPS"}],
            r"config.problems.train\[0\].benchmark = 'APPS': use one of MultiPL-E, .*, or '' for rerankjax's format",
        ),
        ("problems.train", [{"path": "p"}], r"config.problems.train\[0\].path is unknown: .* has benchmark, config"),
        ("problems.dev", [], "config.problems.dev_problems = 0: PPO's early stopping needs dev problems"),
        ("problems.max_train", -1, "config.problems.max_train = -1: use 0 or more"),
        ("problems.decontamination_ngram", 2, "config.problems.decontamination_ngram = 2: use 3 or more, or 0"),
        # Prompts.
        ("prompts.style", "ask", 'config.prompts.style = "ask" is unknown: use one of completion, chat'),
        ("prompts.shots", ["synthetic"], "config.prompts.shots = synthetic: shots come from a file or a dataset"),
        (
            "evaluation.test.prompts",
            {"style": "chat", "shots": ["held_out"]},
            "config.evaluation.test.prompts.shots = held_out: shots come from a file",
        ),
        # Evaluation sets.
        ("evaluation", {}, "config.evaluation = {}: give at least one set of problems"),
        ("evaluation.test.sources", [], r"config.evaluation.test.sources = \(\): give at least one"),
        (
            "evaluation.test.sources",
            ["held_out"],
            "config.evaluation.test.sources = held_out: .* problems.test_problems must be 1 or more",
        ),
        ("evaluation.test.samples", 0, "config.evaluation.test.samples = 0: use 1 or more"),
        ("evaluation.test.max_problems", -1, "config.evaluation.test.max_problems = -1: use 0 or more"),
        ("evaluation.test.max_prompt_length", 41, "max_position_embeddings = 64: .* = 65 .* use 66 or more"),
        ("evaluation.test.csharp_lists", "fixed", "csharp_lists = fixed: use as-shipped or repaired"),
        (
            "evaluation.dev",
            TEST,
            r"config.evaluation.dev = \.\.\.: the name is reserved for a training split .* rename the set",
        ),
        ("evaluation.corpus", TEST, r"config.evaluation.corpus = \.\.\.: .* another file; rename the set"),
        ("evaluation.a/b", TEST, r"config.evaluation.a/b = \.\.\.: the name is also a directory name"),
        # Iterations.
        (
            "iterations.other",
            FIRST,
            r"config.iterations = \['first', 'other'\]: exactly one iteration needs an empty `after`",
        ),
        ("iterations.first.after", "hard", r"config.iterations = \[\]: exactly one iteration needs an empty `after`"),
        ("iterations.first.pairs", "hard", "config.iterations.first.pairs = 'hard': use one of sampled"),
        (
            "iterations.hard.pairs",
            "sampled",
            "config.iterations.hard.pairs = 'sampled': use one of same_data, random, ",
        ),
        (
            "iterations.hard.after",
            "frist",
            "config.iterations.hard.after = 'frist': unknown; use one of first, ",
        ),
        ("iterations.hard.after", "hard", "config.iterations.hard.after = 'hard': these iterations form a cycle"),
        ("iterations.first.ppo", False, "config.iterations.hard.after = 'first': this iteration trains no policy"),
        ("iterations.first.run", False, "config.iterations.hard.after = 'first': .* set its ppo and run to True"),
        ("iterations.hard.after", "random", "config.iterations.hard.after = 'random': this iteration trains no policy"),
        (
            "iterations.sft",
            FIRST | {"pairs": "hard", "after": "first"},
            r"config.iterations.sft = \.\.\.: .* rename the iteration",
        ),
        (
            "iterations.a-b",
            FIRST | {"after": "first"},
            r"config.iterations.a-b = \.\.\.: the name is also a directory name",
        ),
    ],
)
def test_what_cannot_run_is_named_with_its_remedy(field, value, said):
    with pytest.raises(ConfigError, match=said) as error:
        resolve(changed({field: value}), devices=2)
    assert "\n" not in str(error.value)


def test_a_mesh_that_would_split_heads_is_refused_before_any_work():
    with pytest.raises(ConfigError, match=r"config.mesh.tensor = 4 does not divide .*_heads = 2: use 1 or 2"):
        resolve(changed({"mesh.tensor": 4}), devices=4)


def test_a_circle_of_iterations_is_refused():
    circle = {"iterations.random.after": "hard", "iterations.hard.after": "random"}
    with pytest.raises(ConfigError, match="these iterations form a cycle"):
        resolve(changed(circle), devices=1)


def test_missing_and_unknown_fields_are_named():
    with pytest.raises(ConfigError, match=re.escape("config.ppo.kl_coef is missing: give it a value")):
        resolve(changed({"ppo.kl_coef": DROP}), devices=1)
    with pytest.raises(ConfigError, match=re.escape("config.ppo.kl_cof is unknown: config.ppo has batch_size")):
        resolve(changed({"ppo.kl_cof": 0.1}), devices=1)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_field_is_refused_with_a_name_that_there_is(old, new):
    with pytest.raises(ConfigError, match=re.escape(f"config.{old} is now called {new}")):
        resolve(changed({old: 1}), devices=1)
    section = get_config()
    for name in new.replace("iterations.NAME", "iterations.first").replace("NAME", "test").split("."):
        section = section[name]


def test_iterations_run_behind_the_one_that_they_mine():
    third = {"pairs": "self_training", "ppo": True, "after": "hard"}
    left_out = {"pairs": "random", "ppo": True, "after": "hard", "run": False}
    tree = changed(
        {
            "iterations.same_data.run": True,
            "iterations.random.run": True,
            "iterations.hard.ppo": True,
            "iterations.again": third,
            "iterations.never": left_out,
        }
    )
    config = resolve(tree, devices=1)
    assert config.first_iteration == "first"
    assert [name for name, _ in config.later_iterations()] == ["same_data", "random", "hard", "self_training", "again"]
    assert [config.depth_of(name) for name in ("first", "hard", "again")] == [1, 2, 3]


@pytest.mark.parametrize("file", ["paper", "own"])
def test_a_run_may_only_evaluate(file):
    fields = {"iterations": {}, "sft.enabled": False, "problems.train": [], "problems.dev_problems": 0}
    fields |= {"generator.checkpoint": "somewhere", "evaluation.test": TEST | {"sources": ["test.jsonl"]}}
    config = resolve(changed(fields, {"paper": "6.7b", "own": "trial"}[file], file), devices=1)
    assert config.first_iteration is None
    assert config.later_iterations() == []


@pytest.mark.parametrize(
    ("fields", "evaluated"),
    [
        ({}, True),
        ({"sft.evaluate_before": False}, False),
        ({"sft.enabled": False}, False),  # the first iteration starts from the checkpoint, and so evaluates it
        ({"sft.enabled": False, "iterations": {}}, True),
        ({"iterations": {}, "sft.evaluate_before": False}, False),
    ],
)
def test_the_checkpoint_alone_is_evaluated_where_no_later_system_is_the_same(fields, evaluated):
    config = resolve(changed({"generator.checkpoint": "somewhere"} | fields, "trial", "own"), devices=1)
    assert config.evaluates_checkpoint == evaluated
    assert not resolve(get_config(), devices=1).evaluates_checkpoint  # a model from scratch
