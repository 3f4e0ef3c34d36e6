"""Weights: what transformers computes is computed here, and what is saved here transformers loads."""

import functools
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import decode_step, hidden_states, init_decoder, prefill, to_logits, unstack
from rerankjax.model.likelihood import SequenceBatch
from rerankjax.model.pretrained import find_folder, read_config
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.model.weights import load, load_reranker, save, save_reranker
from rerankjax.prompts.tokenizer import load_tokenizer, train_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker, score_rows

MESH = make_mesh(devices=jax.devices()[:2])

PAD, VOCAB = 0, 300
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# The rotations of 8 pairs turn 10 to 0.0005 times in 64 tokens: llama3 keeps some, divides some, blends one.
FAMILIES = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "head_dim": 24}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}


def randomise(model):
    """Biases and norms too, which are 0 and 1 otherwise, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
    return model.eval()


@pytest.fixture(scope="session", params=FAMILIES)
def pair(request, tmp_path_factory):
    """One family's causal model and reward model, and the folders that transformers saved them to."""
    model_type, changes = FAMILIES[request.param]
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4 if request.param == "llama-linear" else 2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )
    folder = tmp_path_factory.mktemp(request.param)
    models = [
        randomise(kind.from_config(config)) for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification)
    ]
    for name, model in zip(("causal", "reward"), models, strict=True):
        model.save_pretrained(folder / name)
    return *models, folder


@pytest.fixture
def causal(tmp_path):
    """The folder of a tiny llama, free to be spoilt."""
    return write_llama(tmp_path / "causal")


def write_llama(folder, **changes):
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    config = AutoConfig.for_model("llama", **sizes, num_hidden_layers=2, num_attention_heads=2, **changes)
    randomise(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    return folder


def batch(side, lengths=(1, 7, 40, 23)):
    """Rows of different lengths, padded to the longest and by two more on `side`."""
    draws = np.random.default_rng(0)
    tokens = np.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in zip(tokens, lengths, strict=True):
        row[slice(0, length) if side == "right" else slice(len(row) - length, None)] = draws.integers(3, VOCAB, length)
    return tokens, tokens != PAD


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, mask):
    return to_logits(config, params, hidden_states(config, params, tokens, mask))


scores_of = jax.jit(score_rows, static_argnums=(0, 1, 4))
init = jax.jit(init_decoder, static_argnums=0)


def torch_logits(model, tokens, mask):
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.long))
    return out.logits.float().numpy()


@functools.partial(jax.jit, static_argnums=(0, 4))
def continue_greedily(config, params, tokens, mask, count):
    logits, caches = prefill(config, params, tokens, mask, count)
    layers = unstack(config, params["layers"])

    def step(carry, i):
        token = jnp.argmax(carry[0], axis=-1)
        seen = jnp.concatenate([mask, jnp.broadcast_to(jnp.arange(count) <= i, (len(mask), count))], axis=1)
        slot = tokens.shape[1] + i
        return decode_step(config, params, layers, token, mask.sum(1) + i, seen, carry[1], slot), token

    return jax.lax.scan(step, (logits, caches), jnp.arange(count))[1].T


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_transformers(pair, side):
    model, _, folder = pair
    tokens, mask = batch(side)
    logits = logits_of(*load(folder / "causal"), tokens, mask)
    expected = torch_logits(model, tokens, mask)
    assert np.ptp(expected[mask]) > 5
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)


def test_greedy_continuations_are_those_of_transformers(pair):
    model, _, folder = pair
    tokens, mask = batch("left")
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask, dtype=torch.long)}
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=20, eos_token_id=VOCAB + 1)[
        :, tokens.shape[1] :
    ]
    config, params = load(folder / "causal")
    np.testing.assert_array_equal(continue_greedily(config, params, tokens, mask, 20), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rewards_are_those_of_transformers(pair, side):
    _, model, folder = pair
    tokens, mask = batch(side)
    config, params, pooling = load_reranker(folder / "reward")
    scores = scores_of(config, pooling, params, SequenceBatch(tokens, mask), 0)
    np.testing.assert_allclose(scores, torch_logits(model, tokens, mask)[:, 0], atol=1e-5, rtol=1e-5)


def test_bfloat16_is_no_further_from_float32_than_that_of_transformers(pair):
    exact, _, folder = pair
    tokens, mask = batch("right")
    rounded = AutoModelForCausalLM.from_pretrained(folder / "causal", dtype=torch.bfloat16)
    expected = torch_logits(exact, tokens, mask)[mask]
    config, params = load(folder / "causal", dtype=jnp.bfloat16)
    logits = logits_of(config, params, tokens, mask)
    assert logits.dtype == jnp.bfloat16
    error, theirs = (
        np.sqrt(np.mean((np.asarray(x, np.float32)[mask] - expected) ** 2))
        for x in (logits, torch_logits(rounded, tokens, mask))
    )
    assert error < 1.2 * theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_file_bytes", [10**9, 10**5], ids=["one-file", "files"])
def test_transformers_loads_what_is_saved(pair, tmp_path, dtype, max_file_bytes):
    causal_model, reward_model, folder = pair
    config, params = load(folder / "causal", dtype=dtype)
    save(tmp_path / "causal", config, params, max_file_bytes=max_file_bytes)
    config, params, pooling = load_reranker(folder / "reward", dtype=dtype)
    to = {"pooling": pooling, "pad_token_id": PAD, "max_file_bytes": max_file_bytes}
    save_reranker(tmp_path / "reward", config, params, **to)
    assert (tmp_path / "causal" / "model.safetensors").exists() == (max_file_bytes == 10**9)
    for model, name in ((causal_model, "causal"), (reward_model, "reward")):
        kind = AutoModelForCausalLM if name == "causal" else AutoModelForSequenceClassification
        loaded, info = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
        assert type(loaded) is type(model)
        assert loaded.dtype == getattr(torch, dtype)
        assert loaded.config.architectures == [type(model).__name__]
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value.to(loaded.dtype)), key
        if dtype == "float32":
            rows = batch("left")
            np.testing.assert_array_equal(torch_logits(loaded, *rows), torch_logits(model, *rows))


def test_a_reranker_of_our_own_scores_the_same_in_transformers(tiny, tmp_path):
    params = init_reranker(init(tiny, jax.random.key(0)), jax.random.key(1))
    save_reranker(tmp_path, tiny, params, pooling="last", pad_token_id=PAD)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokens, mask = batch("left")
    tokens = tokens % tiny.vocab_size
    tokens[mask & (tokens == PAD)] = 1
    scores = scores_of(tiny, "last", params, SequenceBatch(tokens, mask), 0)
    np.testing.assert_allclose(scores, torch_logits(model, tokens, mask)[:, 0], atol=1e-5)
    config, again, pooling = load_reranker(tmp_path)
    assert (config, pooling) == (tiny, "last")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_mean_reranker_comes_back_here_and_never_silently_in_transformers(tiny, tmp_path):
    params = init_reranker(init(tiny, jax.random.key(0)), jax.random.key(1))
    save_reranker(tmp_path, tiny, params, pooling="mean", pad_token_id=PAD)
    config, again, pooling = load_reranker(tmp_path)
    assert (config, pooling) == (tiny, "mean")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert set(info["unexpected_keys"]) == {"mean_score.weight"}
    with pytest.raises(ValueError, match=r"unexpected mean_score\.weight: load a reward model with load_reranker"):
        load(tmp_path)
    edit_tensors(tmp_path, **{"score.weight": torch.ones(1, tiny.hidden_size)})
    with pytest.raises(ValueError, match=r"both score\.weight and mean_score\.weight"):
        load_reranker(tmp_path)


def test_sharded_files_hold_what_one_does(pair, tmp_path):
    model, _, folder = pair
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = (load(path)[1] for path in (folder / "causal", tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, many)


def test_each_device_gets_its_part(pair):
    folder = pair[-1] / "reward"
    mesh = MESH
    assert mesh.size == 2

    def halve(path, shape):
        """Another axis for each kind of parameter: layers', inputs, outputs."""
        axis = {"embedding": 0, "scale": 0, "bias": 1}.get(path[-1], 1 + path[-2].startswith("o"))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data") if shape[axis] % 2 == 0 else PartitionSpec())

    _, whole, _ = load_reranker(folder)
    _, halved, _ = load_reranker(folder, sharding=halve)
    _, copied, _ = load_reranker(folder, sharding=replicated(mesh))
    jax.tree.map(np.testing.assert_array_equal, whole, halved)
    jax.tree.map(np.testing.assert_array_equal, whole, copied)
    for name, axis in {"q_proj": 1, "o_proj": 2}.items():
        kernel = halved["decoder"]["layers"][name]["kernel"]
        shape = list(kernel.shape)
        shape[axis] //= 2
        assert [s.data.shape for s in kernel.addressable_shards] == [tuple(shape)] * 2
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(copied))


@pytest.mark.parametrize(
    ("old", "scaling"),
    [
        ({}, RopeScaling()),
        ({"type": "linear", "factor": 4}, RopeScaling("linear", 4.0)),
        ({"rope_type": "llama3", **LLAMA3}, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
    ],
)
def test_config_json_of_older_transformers_is_read(causal, old, scaling):
    was = read_config(causal)[0]
    fields = json.loads((causal / "config.json").read_text())
    del fields["rope_parameters"], fields["dtype"], fields["head_dim"]
    fields |= {"rope_theta": 12345.0, "rope_scaling": old or None, "torch_dtype": "float32"}
    (causal / "config.json").write_text(json.dumps(fields))
    config = load(causal)[0]
    assert config.rope_theta == 12345.0
    assert config.rope_scaling == scaling
    assert (config.head_dim, config.vocab_size) == (was.head_dim, was.vocab_size)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config = "),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 'rope_type = "dynamic"'),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}}, "factor = 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, "use_sliding_window = True"),
    ],
)
def test_what_is_not_supported_is_named(causal, changes, said):
    edit_config(causal, **changes)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load(causal)
    assert "config.json" in str(error.value)


def edit_tensors(folder, drop=(), **changes):
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if k not in drop} | changes
    save_file(tensors, path, metadata={"format": "pt"})


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("drop", "changes", "said"),
    [
        ([Q], {}, [Q, "lacks"]),
        (["lm_head.weight"], {}, ["lm_head.weight", "lacks"]),
        ([], {Q: torch.ones(16, 8)}, [Q, "model.safetensors", "(16, 8)", "(16, 16)"]),
        ([], {Q: torch.ones(16, 16, dtype=torch.int8)}, [Q, "model.safetensors", "I8"]),
        ([], {"model.layers.2.mlp.up_proj.weight": torch.ones(1)}, ["model.layers.2.mlp", "unexpected"]),
        ([], {"score.weight": torch.ones(1, 16)}, ["score.weight", "unexpected", "load_reranker"]),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(causal, drop, changes, said):
    edit_tensors(causal, drop, **changes)
    with pytest.raises(ValueError, match=re.escape(said[0])) as error:
        load(causal)
    assert [text for text in said if text not in str(error.value)] == []


def test_a_reward_head_is_never_made_up(causal):
    with pytest.raises(ValueError, match=r"lacks score\.weight, and missing tensors are not initialised"):
        load_reranker(causal)


def test_a_reward_model_of_two_labels_is_refused(causal):
    edit_tensors(causal, ["lm_head.weight"], **{"score.weight": torch.ones(2, 16)})
    with pytest.raises(ValueError, match="num_labels = 2"):
        load_reranker(causal)


def test_a_reward_model_may_keep_its_language_model_head(causal):
    head = load_file(causal / "model.safetensors")["lm_head.weight"]
    edit_tensors(causal, **{"score.weight": torch.ones(1, 16)})
    edit_config(causal, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    np.testing.assert_array_equal(load_reranker(causal)[1]["decoder"]["lm_head"]["kernel"].T, head)


def test_a_tied_head_may_be_saved_too_if_it_is_tied(tmp_path):
    folder = write_llama(tmp_path / "tied", tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as old checkpoints have them
    edit_tensors(folder, **{"lm_head.weight": embedding.clone()}, **frequencies)
    assert "lm_head" not in load(folder)[1]
    edit_tensors(folder, **{"lm_head.weight": embedding + 1})
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        load(folder)


def test_files_that_are_not_there_are_named(causal, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(causal).save_pretrained(tmp_path / "many", max_shard_size="5KB")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    spare = shutil.copytree(tmp_path / "many", tmp_path / "spare")
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=files[1].name):
        load(tmp_path / "many")
    kept = load_file(spare / files[1].name)
    name, _ = kept.popitem()
    save_file(kept, spare / files[1].name)
    with pytest.raises(ValueError, match=re.escape(f"{files[1].name} lacks {name}")):
        load(spare)
    (causal / "model.safetensors").rename(causal / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(causal)
    (causal / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(causal)
    for missing in (tmp_path / "missing", "./missing", "/missing/model", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            find_folder(missing)


def test_a_folder_is_loaded_without_the_network(causal, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(str(causal))


def test_what_transformers_cannot_score_is_not_saved(tiny, tmp_path):
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 300)
    params = init_reranker(init(tiny, jax.random.key(0)), jax.random.key(1))
    cases = {
        'pooling = "first"': {"pooling": "first", "pad_token_id": 0},
        "pad_token_id = 97": {"pooling": "last", "pad_token_id": 97},
        "end of text": {"pooling": "last", "pad_token_id": tokenizer.eos_token_id, "tokenizer": tokenizer},
    }
    for said, options in cases.items():
        with pytest.raises(ValueError, match=said):
            save_reranker(tmp_path / "new", tiny, params, **options)
        assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is not empty"):
        save(tmp_path, tiny, params["decoder"])


def test_the_tokenizer_keeps_its_chat_template_and_gives_its_tokens(tiny, tmp_path):
    code = "def f(x):\n\treturn x  # ok\n"
    tokenizer = train_tokenizer([code], 300)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    save(tmp_path, tiny, init(tiny, jax.random.key(0)), tokenizer)
    loaded = load_tokenizer(find_folder(tmp_path))
    chat = [{"role": "user", "content": code}]
    assert loaded.apply_chat_template(chat, tokenize=False) == f"<user>{code}"
    assert loaded.decode(loaded.encode(code)) == code
    saved = AutoConfig.from_pretrained(tmp_path)
    assert (saved.eos_token_id, saved.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_loading_peaks_at_little_more_than_the_checkpoint(tmp_path):
    benchmark = Path(__file__).parent.parent / "benchmarks" / "loading.py"
    write = runpy.run_path(str(benchmark))["write"]
    write(tmp_path / "tiny", 1, "bfloat16")
    size = write(tmp_path / "large", 300, "bfloat16")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 1
    command = [sys.executable, benchmark, "--measure", tmp_path]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
    assert 0.9 < peak / size < 1.3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: RopeScaling("yarn"), 'rope_type = "yarn"'),
        (lambda: RopeScaling("llama3", 8.0, 4.0, 4.0), "high_freq_factor = 4.0"),
        (lambda: ModelConfig(9, 8, 8, 1, 1, 1, 8, 9, model_type="bert"), 'model_type = "bert"'),
        (lambda: ModelConfig(9, 8, 8, 1, 1, 1, 8, 9, model_type="qwen2", attention_bias=True), "attention_bias = True"),
    ],
)
def test_impossible_configs_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        change()
