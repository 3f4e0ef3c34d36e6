"""However a mesh splits them, the three trainers, sampling and scoring are the functions they are on one device."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rerankjax.candidates.engine import Engine, EngineConfig, Prompt
from rerankjax.candidates.sampling import SamplingConfig, make_sampler
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch
from rerankjax.model.packing import PackConfig, pack
from rerankjax.model.sharding import (
    MeshConfig,
    Rules,
    by_row,
    make_mesh,
    on_mesh,
    replicated_parameters,
    shardings_of,
)
from rerankjax.model.training import Counts, OptimizerConfig, batch_of, start_state
from rerankjax.policy.ppo import PPOBatch, PPOConfig, init_policy, ppo_loss
from rerankjax.policy.ppo_step import make_ppo_programs
from rerankjax.policy.sft import make_sft_step, sft_loss
from rerankjax.reranker.bradley_terry import RerankerConfig, init_reranker, make_reranker_step, reranker_loss
from rerankjax.reranker.pair_batches import pair_batch
from rerankjax.reranker.rerank import score_packed

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
B, P, C = 16, 6, 10
RERANKER = RerankerConfig("mean", 0.5)
OPTIMIZER = OptimizerConfig(1e-3, steps=10, max_grad_norm=1e9)  # unclipped, as `trained` reads gradients
PPO = PPOConfig(iterations=10, batch_size=B, learning_rate=1e-3, epochs=1, minibatches=1, kl_coef=0.1)
MESHES = {
    "8x1x1": MeshConfig(8),
    "1x8x1": MeshConfig(1, fsdp=8),
    "2x2x2": MeshConfig(2, fsdp=2, tensor=2),
    "1x4x2": MeshConfig(1, fsdp=4, tensor=2),
    "sequence": MeshConfig(2, fsdp=2, sequence=2),
}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def trunk():
    """With embeddings as large as trained ones: from .02 the first norm's gradient is 50 times what it is then."""
    params = init_decoder(CONFIG, jax.random.key(0))
    return params | {"embed_tokens": {"embedding": params["embed_tokens"]["embedding"] * 25}}


def uneven(rng, rows, length, least):
    return np.arange(length) < rng.integers(least, length + 1, rows)[:, None]


def texts():
    """Rows, and two completions behind each prompt with their mask."""
    rng = np.random.default_rng(1)
    tokens = functools.partial(rng.integers, 2, CONFIG.vocab_size, dtype=np.int32)
    rows = SequenceBatch(
        tokens((B, P + C)), np.concatenate([uneven(rng, B, P, 1)[:, ::-1], uneven(rng, B, C, 1)], axis=1)
    )
    return rows, tokens((2 * B, C)), uneven(rng, 2 * B, C, 1)


def packable(trainer, microbatches):
    """(items, sizes) of SFT or of the reranker."""
    rows, completions, mask = texts()
    prompts = [tokens[real].tolist() for tokens, real in zip(rows.tokens[:, :P], rows.mask[:, :P], strict=True)]
    if trainer == "sft":
        completions, mask = rows.tokens[:, P:], rows.mask[:, P:]
    found = [tokens[real].tolist() for tokens, real in zip(completions, mask, strict=True)]
    each = len(found) // B
    items = [(prompt, found[each * i : each * (i + 1)]) for i, prompt in enumerate(prompts)]
    # A row for each device.
    return items, PackConfig.from_batch_size(B, microbatches, P, C, each, shards=B // microbatches)


def problem(trainer):
    """(parameters, arguments, loss(parameters, batch), update(mesh)) of a trainer; of the arguments the first is the
    batch, or its only part."""
    if trainer == "sft":
        return (
            trunk(),
            batch_of(*packable("sft", 1)),
            lambda params, parts: sft_loss(CONFIG, params, parts[0]),
            lambda mesh: make_sft_step(CONFIG, OPTIMIZER, mesh),
        )
    if trainer == "reranker":
        return (
            init_reranker(trunk(), jax.random.key(1)),
            (pairs := pair_batch(*packable("reranker", 1))),
            lambda params, parts: reranker_loss(CONFIG, RERANKER, params, parts[0], jax.device_put(pairs[1]))[0],
            lambda mesh: make_reranker_step(CONFIG, RERANKER, OPTIMIZER, mesh),
        )
    policy = init_policy(trunk())
    policy["value"] = jax.random.normal(jax.random.key(2), policy["value"].shape)
    return (
        policy,
        ppo_batch(1),
        lambda params, parts: ppo_loss(CONFIG, PPO, params, parts[0], 1.0)[0],
        lambda mesh: make_ppo_programs(CONFIG, "mean", 1.0, PPO, P, C, mesh).update,
    )


def ppo_batch(microbatches):
    """(parts, counts), each completion token's figures the same however many parts there are."""
    items, sizes = packable("sft", microbatches)
    figures = np.random.default_rng(2).normal(size=(4, B, C)).astype(np.float32)
    figures[0] = figures[0] / 10 - 4
    parts, sources = pack(items, sizes)
    batch = [
        PPOBatch(part, *(np.where(part.mask, f[source.item, source.token], 0) for f in figures))
        for part, source in zip(parts, sources, strict=True)
    ]
    return batch, Counts.from_parts(parts, 1)


@functools.cache
def trained(trainer, mesh_name, steps=5):
    """Losses of the first steps, the first gradient, and the state they end in."""
    params, batch, _, update = problem(trainer)
    mesh = make_mesh(MESHES[mesh_name]) if mesh_name else make_mesh(devices=jax.devices()[:1])
    state = start_state(params, OPTIMIZER, mesh)
    step, losses, moments = update(mesh), [], []
    for _ in range(steps):
        state, metrics = step(state, None, *batch)
        losses.append(float(metrics["loss"]))
        moments.append(jax.device_get(state.opt_state[1][0].mu))
    gradient = jax.tree.map(lambda mu: mu / (1 - 0.9), moments[0])  # Adam's first moment after one step, undone
    return losses, gradient, state, mesh


@pytest.mark.parametrize(
    ("trainer", "mesh_name"),
    [
        *itertools.product(["sft", "reranker", "ppo"], ["1x8x1", "2x2x2"]),
        ("sft", "sequence"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in itertools.product(["sft", "reranker", "ppo"], ["8x1x1", "1x4x2"])
        ),
    ],
)
def test_losses_and_gradients_are_those_of_one_device(trainer, mesh_name):
    losses, gradient, state, mesh = trained(trainer, mesh_name)
    one_losses, one_gradient, *_ = trained(trainer, None)
    np.testing.assert_allclose(losses, one_losses, rtol=1e-6, atol=1e-6)
    assert losses[0] != losses[-1]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), gradient, one_gradient)

    # What is split, is: parameters, and the optimiser's moments as they are.
    adam = state.opt_state[1][0]
    for tree in (state.params, adam.mu, adam.nu):
        for array, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings_of(tree, mesh)), strict=True):
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
    kernel = adam.mu["decoder"]["layers"] if trainer != "sft" else adam.mu["layers"]
    kernel = kernel["q_proj"]["kernel"]
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert kernel.addressable_shards[0].data.size * split == kernel.size


@pytest.mark.parametrize("trainer", ["sft", "reranker", "ppo"])
def test_microbatches_change_no_gradient(trainer):
    """Completions differ in length: were microbatches averaged, short ones would weigh more."""
    params, batch, loss, _ = problem(trainer)
    whole = jax.jit(jax.grad(loss))(params, batch[0])
    batches = {"sft": batch_of, "reranker": pair_batch}
    batch = parts, counts = jax.device_put(
        ppo_batch(4) if trainer == "ppo" else batches[trainer](*packable(trainer, 4))
    )
    assert len(parts) > 1
    shares = {
        "sft": lambda p, part: sft_loss(CONFIG, p, part, counts.tokens),
        "reranker": lambda p, part: reranker_loss(CONFIG, RERANKER, p, part, counts)[0],
        "ppo": lambda p, part: ppo_loss(CONFIG, PPO, p, part, 1.0, counts.tokens)[0],
    }[trainer]
    share = jax.jit(jax.grad(shares))
    summed = jax.tree.map(lambda *g: sum(g), *(share(params, part) for part in parts))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), summed, whole)
    mesh = make_mesh(MeshConfig(2, fsdp=2, tensor=2))
    optimizer = dataclasses.replace(OPTIMIZER, microbatches=4)
    ppo = dataclasses.replace(PPO, microbatches=4)
    update = {
        "sft": lambda: make_sft_step(CONFIG, optimizer, mesh),
        "reranker": lambda: make_reranker_step(CONFIG, RERANKER, optimizer, mesh),
        "ppo": lambda: make_ppo_programs(CONFIG, "mean", 1.0, ppo, P, C, mesh).update,
    }[trainer]()
    state = start_state(params, optimizer, mesh)
    losses = []
    for _ in range(5):
        state, metrics = update(state, None, *batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, trained(trainer, None)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mesh_name", ["1x8x1", "2x2x2"])
def test_samples_and_scores_are_those_of_one_device(mesh_name):
    params = trunk()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, CONFIG.vocab_size, n).tolist() for n in rng.integers(1, P + 1, 8)]
    sampling = SamplingConfig(1.0, 0.9, C)
    stops = np.zeros((1, CONFIG.vocab_size), np.int32)
    stops = np.concatenate([stops, stops])

    def tokens(mesh):
        engine = Engine(CONFIG, sampling, EngineConfig(8, 2, P), eos=1, pad=0, mesh=mesh)
        placed = jax.device_put(params, shardings_of(params, mesh))
        numbered = [Prompt(ids, i) for i, ids in enumerate(prompts)]
        drawn = engine.stream(placed, numbered, samples=2, key=jax.random.key(3), stops=stops)
        return {(s.prompt, s.sample): s.tokens.tolist() for s in drawn}

    def batched(mesh):
        sampler = make_sampler(CONFIG, sampling, 2, 1, 0, mesh)
        placed = jax.device_put(params, shardings_of(params, mesh))
        rows = np.stack([np.pad(ids, (P - len(ids), 0)) for ids in prompts]).astype(np.int32)
        mask = np.stack([np.arange(P) >= P - len(ids) for ids in prompts])
        return np.asarray(sampler(placed, rows, mask, jax.random.key(4), np.arange(8, dtype=np.uint32), stops).tokens)

    def scores(mesh):
        reranker = init_reranker(params, jax.random.key(1))
        (packed,), _ = pack(*packable("reranker", 1))
        score = jax.jit(
            on_mesh(mesh, functools.partial(score_packed, CONFIG, "mean")),
            in_shardings=(shardings_of(reranker, mesh), by_row(mesh)),
        )
        return np.where(packed.real, score(reranker, packed), 0)

    mesh, one = make_mesh(MESHES[mesh_name]), make_mesh(devices=jax.devices()[:1])
    assert tokens(mesh) == tokens(one)
    np.testing.assert_array_equal(batched(mesh), batched(one))
    np.testing.assert_allclose(scores(mesh), scores(one), atol=1e-5)


def test_a_mesh_fills_its_devices_or_says_why_not():
    assert MeshConfig(fsdp=2, tensor=2).shape(8) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    with pytest.raises(ValueError, match=r"data = 3, fsdp = 2.* do not fill 8 devices"):
        MeshConfig(3, fsdp=2).shape(8)
    with pytest.raises(ValueError, match=r"fsdp = 16.* do not fill 8 devices"):
        MeshConfig(fsdp=16).shape(8)
    with pytest.raises(ValueError, match="tensor = 0"):
        MeshConfig(tensor=0)


def test_a_mesh_that_would_split_a_head_is_refused_with_what_would_not():
    for tensor, heads in [(1, 3), (3, 3), (2, 8), (1, 1)]:
        MeshConfig(tensor=tensor).check_heads(heads)
    for tensor, heads, remedy in [(2, 3, "use 1 or 3,"), (4, 6, "use 1 or 2 or 3 or 6,"), (8, 4, "use 1 or 2 or 4,")]:
        with pytest.raises(ValueError, match=f"tensor = {tensor} does not divide .* = {heads}: {remedy}"):
            MeshConfig(tensor=tensor).check_heads(heads)


def test_rules_that_split_an_array_twice_over_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"q_proj/kernel.*'fsdp' would split .* twice"):
        Rules(heads=("fsdp",))
    with pytest.raises(ValueError, match=r"activations.*'data' would split .* twice"):
        Rules(length=("data",))
    with pytest.raises(ValueError, match="'model' is not a mesh axis"):
        Rules(mlp=("model",))


def test_it_says_what_it_replicates():
    mesh = make_mesh(MeshConfig(2, fsdp=2, tensor=2))
    params = trunk()
    assert set(replicated_parameters(params, mesh)) == {
        "layers/input_layernorm/scale",
        "layers/post_attention_layernorm/scale",
        "norm/scale",
    }
    odd = params | {"lm_head": {"kernel": jnp.zeros((32, 97))}}  # 97 is split by nothing
    assert "lm_head/kernel" in replicated_parameters(odd, mesh)
    assert shardings_of(params, mesh)["layers"]["o_proj"]["kernel"].spec == PartitionSpec(None, ("tensor",), ("fsdp",))
