"""Adapters: what PEFT computes with one is computed here, and what is saved here PEFT loads."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rerankjax.model.decoder import hidden_states, to_logits
from rerankjax.model.likelihood import SequenceBatch
from rerankjax.model.lora import TARGETS, LoraConfig, attach, merge
from rerankjax.model.peft import load_adapter, save_adapter
from rerankjax.model.weights import load, load_reranker
from rerankjax.reranker.bradley_terry import score_rows

PAD, VOCAB = 0, 60
KINDS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}


def write_adapted(folder, model_type, task, targets=TARGETS, **options):
    """A base and an adapter over it, as PEFT writes them, every number of it drawn; and PEFT's own model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(model_type, **sizes, **heads, num_labels=1, pad_token_id=PAD)
    model = KINDS[task].from_config(config)
    draw(model, 0.2)
    model.save_pretrained(folder / "base")
    options = {"r": 4, "lora_alpha": 6} | options
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=list(targets), **options))
    draw(model, 0.2, "lora_", "score")
    model.save_pretrained(folder / "adapter")
    return model.eval()


def draw(model, std, *parts):
    for name, parameter in model.named_parameters():
        if not parts or any(part in name for part in parts):
            parameter.data.normal_(1.0 if "norm" in name else 0.0, std)


def torch_outputs(model):
    tokens, mask = rows()
    with torch.no_grad():
        ids = torch.from_numpy(tokens)
        return model(input_ids=ids, attention_mask=torch.from_numpy(mask).long()).logits.numpy()


def rows():
    draws = np.random.default_rng(0)
    mask = np.arange(9) < np.array([9, 4, 7])[:, None]
    return np.where(mask, draws.integers(1, VOCAB, mask.shape), PAD), mask


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, mask):
    return to_logits(config, params, hidden_states(config, params, tokens, mask))


def outputs(folder, task, merged):
    """(ours, where they count): logits of a causal model, scores of a reward model."""
    combine = merge if merged else lambda params: params
    tokens, mask = rows()
    if task == "CAUSAL_LM":
        config, base = load(folder / "base")
        lora, adapter, head = load_adapter(folder / "adapter", config)
        assert head is None
        return logits_of(config, combine(attach(base, adapter, lora)), tokens, mask), mask
    config, reward, _ = load_reranker(folder / "base")
    lora, adapter, head = load_adapter(folder / "adapter", config)
    params = {"decoder": combine(attach(reward["decoder"], adapter, lora)), "score": head}
    batch = SequenceBatch(jnp.asarray(tokens), jnp.asarray(mask))
    return score_rows(config, "last", params, batch, 0)[:, None], np.ones(3, bool)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_what_peft_computes_is_computed(tmp_path, model_type, task, merged):
    expected = torch_outputs(write_adapted(tmp_path, model_type, task))
    ours, counts = outputs(tmp_path, task, merged)
    np.testing.assert_allclose(ours[counts], expected[counts], atol=1e-4, rtol=1e-5)


def test_rank_stabilised_scale_and_fewer_targets(tmp_path):
    targets = ("v_proj", "down_proj")
    expected = torch_outputs(write_adapted(tmp_path, "llama", "CAUSAL_LM", targets, use_rslora=True))
    ours, counts = outputs(tmp_path, "CAUSAL_LM", merged=False)
    np.testing.assert_allclose(ours[counts], expected[counts], atol=1e-4, rtol=1e-5)
    assert load_adapter(tmp_path / "adapter", load(tmp_path / "base")[0])[0] == LoraConfig(4, 12.0, targets)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_peft_loads_what_is_saved(tmp_path, model_type, task):
    expected = torch_outputs(write_adapted(tmp_path, model_type, task))
    config = load(tmp_path / "base")[0] if task == "CAUSAL_LM" else load_reranker(tmp_path / "base")[0]
    lora, adapter, head = load_adapter(tmp_path / "adapter", config)
    save_adapter(tmp_path / "ours", config, lora, adapter, head, base_model_name_or_path=str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(KINDS[task].from_pretrained(tmp_path / "base"), tmp_path / "ours")
    np.testing.assert_array_equal(torch_outputs(model.eval()), expected)
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    with pytest.raises(FileExistsError, match="is not empty"):
        save_adapter(tmp_path / "ours", config, lora, adapter, head)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    write_adapted(folder, "llama", "CAUSAL_LM", ("q_proj", "up_proj"))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    return load(folder / "base")[0], config, load_file(folder / "adapter" / "adapter_model.safetensors")


def put(folder, fields, tensors):
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "drop", "tensors", "said"),
    [
        ({"peft_type": "IA3"}, [], {}, "peft_type = 'IA3' is not supported"),
        ({"use_dora": True}, [], {}, "use_dora = True is not supported"),
        ({"bias": "lora_only"}, [], {}, "bias = 'lora_only' is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, [], {}, "rank_pattern = {'q_proj': 2} is not supported"),
        ({"alpha_pattern": {"q_proj": 2}}, [], {}, "alpha_pattern = {'q_proj': 2} is not supported"),
        ({"layers_to_transform": [0]}, [], {}, "layers_to_transform = [0] is not supported"),
        ({"init_lora_weights": "pissa"}, [], {}, "init_lora_weights = 'pissa' is not supported"),
        ({"modules_to_save": ["lm_head"]}, [], {}, "modules_to_save = ['lm_head'] is not supported"),
        ({"a_later_idea": 1}, [], {}, "a_later_idea = 1 is not supported"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, [], {}, "target_modules has 'embed_tokens'"),
        ({"target_modules": ["q_proj", "o_proj"]}, [], {}, "layers.0.self_attn.o_proj.lora_A.weight (one of 4)"),
        ({"task_type": "SEQ_CLS"}, [], {}, "lacks base_model.model.score.weight"),
        ({"lora_alpha": 0}, [], {}, "alpha = 0.0"),
        ({"r": 8}, [], {}, "lora_A.weight has shape (4, 32), but the model and r = 8 need (8, 32)"),
        ({}, [Q], {}, f"lacks {Q}"),
        ({}, [], {Q.replace("1", "2"): torch.ones(4, 32)}, f"unexpected {Q.replace('1', '2')}"),
        ({}, [], {Q: torch.ones(4, 30)}, f"{Q} has shape (4, 30)"),
    ],
)
def test_what_is_not_supported_is_named(written, tmp_path, fields, drop, tensors, said):
    config, was, kept = written
    put(tmp_path, was | fields, {name: t for name, t in kept.items() if name not in drop} | tensors)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_adapter(tmp_path, config)
    assert str(tmp_path) in str(error.value)


def test_files_that_are_not_there_are_named(written, tmp_path):
    config, fields, tensors = written
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (put(tmp_path, fields, tensors) / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load_adapter(tmp_path, config)
