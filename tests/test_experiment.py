"""Configs: a run that cannot work is refused before it starts, with the field, its value and the remedy."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from rerankjax.loop.experiment import ConfigError, Experiment, resolve

MINI = Path(__file__).parents[1] / "configs" / "mini.py"


def get_config(arg="demo"):
    spec = importlib.util.spec_from_file_location("mini", MINI)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


@pytest.mark.parametrize("arg", ["demo", "full", "smoke", "languages"])
def test_every_variant_resolves(arg):
    assert isinstance(resolve(get_config(arg), devices=1), Experiment)


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mini.py:fulll is unknown: use one of demo, full"):
        get_config("fulll")


def test_a_locked_config_refuses_fields_it_does_not_have():
    config = get_config().lock()
    with pytest.raises((AttributeError, KeyError), match="kl_coeff"):
        config.ppo.kl_coeff = 0.1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ppo.kl_coef", "high", "config.ppo.kl_coef = 'high' is str: give a float"),
        ("sft.optimizer.steps", 2.5, "config.sft.optimizer.steps = 2.5 is float: give a int"),
        ("ppo.kl_coef", -0.1, "config.ppo.kl_coef = -0.1 is negative"),
        ("reranker.pooling", "first", 'config.reranker.pooling = "first" is unknown: use one of last, mean'),
        ("model.num_key_value_heads", 3, "config.model.num_key_value_heads = 3 does not divide"),
        ("model.max_position_embeddings", 32, "config.model.max_position_embeddings = 32: .* raise it to 53"),
        ("sft.batch_size", 127, "config.sft.batch_size = 127: not a positive multiple of the 2 devices.* use 128"),
        ("ppo.minibatches", 256, r"config.ppo.batch_size / minibatches = 1: .* use 2"),
        ("ppo.batch_size", 8192, "config.ppo.batch_size = 8192: .*problems.train = 3000"),
        ("sampling.top_p", 0.9, "config.sampling.top_p = 0.9: "),
        ("sampling.temperature", 0.0, "config.sampling.temperature = 0.0: "),
        ("candidates.test", 0, "config.candidates.test = 0: use 1 or more"),
        ("candidates.train_problems", 3001, "config.candidates.train_problems = 3001: .* problems.train = 3000"),
        ("mining.hard_share", 1.5, "config.mining.hard_share = 1.5: "),
        ("seeds", (0, 0), r"config.seeds = \(0, 0\): give different seeds"),
        ("seeds", 0, r"config.seeds = 0 is no tuple"),
        ("seeds", (0, "b"), r"config.seeds\[1\] = 'b' is str: give a int"),
        ("arms", ("hardest",), "config.arms = hardest: unknown"),
        ("ppo_arms", ("hard",), "config.ppo_arms = hard: its reranker is not trained"),
        ("lora.rank", -1, "config.lora.rank = -1 is negative"),
        ("lora.targets", ("lm_head",), "config.lora.targets = .*: lm_head is no projection"),
        ("problems", 5, "config.problems = 5 is no section"),
        (
            "problems.languages",
            ("py", "rs"),
            r"config.problems.languages = \('py', 'rs'\): give one or more of py, cpp, ",
        ),
    ],
)
def test_what_cannot_run_is_named_with_its_remedy(field, value, said):
    config = get_config().unlock()
    config.arms = ("self_training",)
    config.ppo_arms = ()
    tree = json.loads(config.to_json())
    *path, last = field.split(".")
    section = tree
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ConfigError, match=said):
        resolve(tree, devices=2)


def test_missing_and_unknown_fields_are_named():
    tree = json.loads(get_config().to_json())
    del tree["ppo"]["kl_coef"]
    with pytest.raises(ConfigError, match=re.escape("config.ppo.kl_coef is missing")):
        resolve(tree, devices=1)
    tree["ppo"]["kl_coef"] = tree["ppo"]["kl_cof"] = 0.1
    with pytest.raises(ConfigError, match=re.escape("config.ppo.kl_cof is unknown: config.ppo has batch_size")):
        resolve(tree, devices=1)
