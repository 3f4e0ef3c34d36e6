"""LoRA: an adapter is the change of the weights that it says, and nothing but it is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.candidates.sampling import SamplingConfig, make_sampler
from rerankjax.candidates.stop import stop_table
from rerankjax.model.decoder import decode_step, hidden_states, init_decoder, packed_hidden_states, prefill, to_logits
from rerankjax.model.decoder import unstack as layers_of
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs, masked_mean, take_places
from rerankjax.model.lora import FULL, TARGETS, LoraConfig, attach, init_adapter, merge
from rerankjax.model.packing import PackConfig, pack
from rerankjax.model.sharding import make_mesh, replicated, row_shards
from rerankjax.model.training import OptimizerConfig, batch_of, init_state, make_optimizer
from rerankjax.policy.ppo import PPOConfig, Reward, init_policy
from rerankjax.policy.ppo_step import Drawn, make_ppo_programs, make_ppo_step
from rerankjax.policy.sft import make_sft_step
from rerankjax.reranker.bradley_terry import RerankerConfig, init_reranker, make_reranker_step
from rerankjax.reranker.pair_batches import pair_batch

MESH = make_mesh(devices=jax.devices()[:2])

LORA = LoraConfig(rank=3, alpha=5.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(2, 97, (4, 10)))
MASK = jnp.asarray(np.arange(10) >= np.array([0, 3, 1, 0])[:, None])


def with_noise(tree, key, std=0.1):
    leaves, structure = jax.tree.flatten(tree)
    drawn = [a + std * jax.random.normal(jax.random.fold_in(key, i), a.shape) for i, a in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


@pytest.fixture
def base(tiny):
    return with_noise(init_decoder(tiny, jax.random.key(0)), jax.random.key(1))


@pytest.fixture
def adapter(tiny):
    """One that changes something."""
    return with_noise(init_adapter(tiny, LORA, jax.random.key(2)), jax.random.key(3))


def logits_of(config, params, tokens=TOKENS, mask=MASK):
    return jax.jit(lambda p: to_logits(config, p, hidden_states(config, p, tokens, mask)))(params)


def test_a_new_adapter_changes_nothing(tiny, base):
    new = init_adapter(tiny, LORA, jax.random.key(0))
    np.testing.assert_array_equal(logits_of(tiny, attach(base, new, LORA)), logits_of(tiny, base))
    jax.tree.map(np.testing.assert_array_equal, merge(attach(base, new, LORA)), base)
    a = new["layers"]["down_proj"]["lora_a"]
    assert a.shape == (2, 48, 3)
    assert 0.9 * 48**-0.5 < float(jnp.abs(a).max()) <= 48**-0.5  # PEFT's: kaiming_uniform_(a=sqrt(5))


@pytest.mark.parametrize("changes", [{}, {"model_type": "qwen2"}, {"remat": "full"}], ids=["llama", "qwen2", "remat"])
@pytest.mark.parametrize("targets", [TARGETS, ("v_proj", "gate_proj")], ids=["all", "two"])
def test_attached_and_merged_give_the_same_logits(tiny, changes, targets):
    config = dataclasses.replace(tiny, **changes)
    lora = dataclasses.replace(LORA, targets=targets)
    base = with_noise(init_decoder(config, jax.random.key(0)), jax.random.key(1))
    adapter = with_noise(init_adapter(config, lora, jax.random.key(2)), jax.random.key(3))
    both = attach(base, adapter, lora)
    attached, merged = (logits_of(config, params) for params in (both, merge(both)))
    np.testing.assert_allclose(attached, merged, atol=2e-5)
    assert float(jnp.abs(merged - logits_of(config, base)).max()) > 0.1


def test_merging_is_w_plus_scale_a_b_in_float32(base, adapter):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), base)
    merged = merge(attach(half, adapter, LORA))
    for name in TARGETS:
        w = np.asarray(half["layers"][name]["kernel"], np.float64)
        a, b = (np.asarray(adapter["layers"][name][x], np.float64) for x in ("lora_a", "lora_b"))
        kernel = merged["layers"][name]["kernel"]
        assert kernel.dtype == jnp.bfloat16
        exact = w + 5 / 3 * a @ b
        np.testing.assert_allclose(np.asarray(kernel, np.float64), exact, rtol=2**-8, atol=1e-5)
    assert merged["embed_tokens"]["embedding"] is half["embed_tokens"]["embedding"]


def test_every_path_through_the_layers_is_adapted(tiny, base, adapter):
    """The scan, packed rows, and token by token with a cache, against the merged model's scan."""
    attached = attach(base, adapter, LORA)
    expected = logits_of(tiny, merge(attach(base, adapter, LORA)))
    items = [(row[real][:-4].tolist(), [row[-4:].tolist()]) for row, real in zip(TOKENS, MASK, strict=True)]
    for part, source in zip(*pack(items, PackConfig.from_batch_size(4, 1, 6, 4)), strict=True):
        part = jax.device_put(part)
        hidden = packed_hidden_states(tiny, attached, part)
        of_targets = to_logits(tiny, attached, take_places(hidden, part.target_place))[part.mask]
        item, token = source.item[part.mask], source.token[part.mask]
        np.testing.assert_allclose(of_targets, expected[item, 6 + token], atol=2e-5)
    logits, caches = prefill(tiny, attached, TOKENS[:, :6], MASK[:, :6], 4)
    for i in range(6, 10):
        np.testing.assert_allclose(logits, expected[:, i - 1], atol=2e-5)
        seen = MASK & (jnp.arange(10) <= i)[None]
        positions = MASK[:, :i].sum(1)
        layers = layers_of(tiny, attached["layers"])
        logits, caches = decode_step(tiny, attached, layers, TOKENS[:, i], positions, seen, caches, jnp.int32(i))
    np.testing.assert_allclose(logits, expected[:, 9], atol=2e-5)


def test_a_policy_samples_the_same_attached_and_merged(tiny, base, adapter):
    sampler = make_sampler(tiny, SamplingConfig(1.0, 1.0, 8), 2, 1, 0, MESH)
    stops = stop_table([""] * 97, ())
    ids = np.arange(4, dtype=np.uint32)
    attached, merged, plain = (
        sampler(params, TOKENS, MASK, jax.random.key(0), ids, stops).tokens
        for params in (attach(base, adapter, LORA), merge(attach(base, adapter, LORA)), base)
    )
    np.testing.assert_array_equal(attached, merged)
    assert (attached != plain).any()


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_the_gradient_is_that_of_the_weights_through_their_factors(tiny, base, adapter, remat):
    """For W + s A B: dA = s dW B^T and dB = s A^T dW, with dW the merged model's own."""
    config = dataclasses.replace(tiny, remat=remat)

    def loss(params):
        return jnp.mean(jnp.sin(logits_of(config, params)))

    with jax.default_matmul_precision("highest"):
        whole = jax.jit(jax.grad(loss))(merge(attach(base, adapter, LORA)))
        got = jax.jit(jax.grad(lambda a: loss(attach(base, a, LORA))))(adapter)
    assert jax.tree.structure(got) == jax.tree.structure(adapter)
    for name in TARGETS:
        dw, pair = whole["layers"][name]["kernel"], adapter["layers"][name]
        of_a = LORA.scale * dw @ pair["lora_b"].swapaxes(1, 2)
        of_b = LORA.scale * pair["lora_a"].swapaxes(1, 2) @ dw
        for ours, expected in ((got["layers"][name]["lora_a"], of_a), (got["layers"][name]["lora_b"], of_b)):
            np.testing.assert_allclose(ours, expected, atol=1e-5 * float(jnp.abs(expected).max()), rtol=1e-3)


def test_bfloat16_projections_are_kept_as_bits_and_give_the_gradient_of_recomputed_ones(tiny, base):
    """XLA on a CPU would keep a stack of bfloat16 arrays in float32."""
    tokens = jax.random.randint(jax.random.key(5), (3, 11), 0, tiny.vocab_size)
    mask = jnp.ones(tokens.shape, bool)

    def gradient(remat):
        config = dataclasses.replace(tiny, remat=remat, compute_dtype="bfloat16")
        return jax.jit(jax.grad(lambda p: jnp.mean(hidden_states(config, p, tokens, mask).astype(jnp.float32) ** 2)))

    stack = f"[{tiny.num_hidden_layers},3,11,{tiny.intermediate_size}]"
    compiled = gradient("dots").lower(base).compile().as_text()
    assert f"u16{stack}" in compiled
    assert f"f32{stack}" not in compiled
    for ours, expected in zip(
        jax.tree.leaves(gradient("dots")(base)), jax.tree.leaves(gradient("full")(base)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2**-8 * float(jnp.abs(expected).max()))


def test_attention_that_skips_is_computed_once_if_projections_are_kept(tiny, base):
    (packed,), _ = pack(
        [(range(1, 60), (range(1, 30),)), (range(1, 40), (range(1, 50),))], PackConfig(1, 192, 96, 4, 1)
    )

    def exponentials(remat):
        """The weights and their correction, read and, with "full", recomputed; the weights in the gradient."""
        config = dataclasses.replace(tiny, remat=remat, attention="skip", compute_dtype="bfloat16")
        gradient = jax.grad(lambda p, packed: jnp.sum(packed_hidden_states(config, p, packed).astype(jnp.float32)))
        return str(jax.make_jaxpr(gradient)(base, packed)).count(" = exp ")

    assert (exponentials("full"), exponentials("dots")) == (2 + 2 + 1, 2 + 1)


@pytest.mark.parametrize("change", [{"remat": "full"}, {"unroll": 2}])
def test_how_layers_are_run_changes_no_gradient(tiny, base, change):
    def gradient(config):
        def loss(params):
            return jnp.sum(jnp.sin(logits_of(config, params)))

        return jax.jit(jax.grad(loss))(base)

    plain, again = gradient(tiny), gradient(dataclasses.replace(tiny, **change))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=max(1e-5, 2e-6 * float(jnp.abs(a).max())), rtol=1e-4)


def test_a_bfloat16_base_takes_a_float32_adapter(tiny, base, adapter):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), base)

    def loss(a):
        logits = logits_of(tiny, attach(half, a, LORA))
        assert logits.dtype == jnp.bfloat16
        return jnp.mean(jnp.sin(logits.astype(jnp.float32)))

    gradients = jax.grad(loss)(adapter)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


def test_without_a_base_parameters_are_whole(base):
    assert attach(None, base, FULL) is base
    jax.tree.map(np.testing.assert_array_equal, merge(base), base)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"rank": -1}, "rank = -1"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"targets": ("q_proj", "lm_head")}, "lm_head is unknown: use some of q_proj"),
        ({"targets": ("q_proj", "q_proj")}, "each once"),
        ({"targets": ()}, "at least one"),
    ],
)
def test_impossible_adapters_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(LORA, **bad)


P, C, B = 6, 8, 4
PPO = PPOConfig(iterations=2, batch_size=B, learning_rate=1e-2, epochs=2, minibatches=2, kl_coef=0.1)


def shapes_of(tree):
    return jax.tree.map(lambda a: a.shape, tree)


def start(params, optimizer, mesh):
    make = jax.jit(lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer), out_shardings=replicated(mesh))
    return make(params)


def items(each):
    """Of the four rows' texts: a prompt with `each` of their completions behind it."""
    prompts = [tokens[real].tolist() for tokens, real in zip(TOKENS[:, :P], MASK[:, :P], strict=True)]
    found = [tokens[real].tolist() for tokens, real in zip(TOKENS[:, P:], MASK[:, P:], strict=True)]
    return [(prompts[i], found[each * i : each * (i + 1)]) for i in range(len(found) // each)]


def test_sft_trains_the_adapter_alone(tiny, base):
    config, mesh = OptimizerConfig(3e-2, steps=20), MESH
    step = make_sft_step(tiny, config, mesh, LORA)
    state = start(init_adapter(tiny, LORA, jax.random.key(0)), make_optimizer(config), mesh)
    before, rows = jax.tree.map(jnp.copy, base), SequenceBatch(TOKENS, MASK)
    losses = []
    for _ in range(20):
        state, metrics = step(
            state, base, *batch_of(items(1), PackConfig.from_batch_size(4, 1, P, C, shards=row_shards(mesh)))
        )
        losses.append(float(metrics["loss"]))
    expected = -masked_mean(completion_log_probs(tiny, before, rows, P)[0], rows.mask[:, P:])
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, base, before)
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.ndim]
    assert sum(m.size for m in moments) == 2 * sum(a.size for a in jax.tree.leaves(state.params))


def test_a_reranker_is_an_adapter_and_a_head(tiny, base):
    """Its first update's loss and head are those of full fine-tuning, for its trunk is the base still."""
    reranker, config, mesh = (
        RerankerConfig("mean", 0.5),
        OptimizerConfig(1e-2, steps=2),
        MESH,
    )
    whole = init_reranker(base, jax.random.key(5))
    params = whole | {"decoder": init_adapter(tiny, LORA, jax.random.key(6))}
    pairs = pair_batch(items(2), PackConfig.from_batch_size(2, 1, P, C, 2, row_shards(mesh)))
    optimizer = make_optimizer(dataclasses.replace(config, max_grad_norm=1e9))
    adapted, trained = (make_reranker_step(tiny, reranker, config, mesh, lora) for lora in (LORA, FULL))
    state, metrics = adapted(start(params, optimizer, mesh), base, *pairs)
    full, full_metrics = trained(start(whole, optimizer, mesh), None, *pairs)
    assert float(metrics["loss"]) == pytest.approx(float(full_metrics["loss"]), rel=1e-5)
    moved = state.params["score"] - whole["score"]
    np.testing.assert_allclose(moved, full.params["score"] - whole["score"], rtol=1e-2, atol=1e-4)
    assert shapes_of(state.params) == shapes_of(params)


def test_four_models_on_one_base(tiny, base, adapter):
    """PPO with policy, value, reference and reward over one base: its first ratio is 1, and the base stays."""
    config, mesh = dataclasses.replace(tiny, remat="full"), MESH
    reward = Reward((init_reranker(attach(base, adapter, LORA), jax.random.key(5)),), jnp.zeros(1), jnp.ones(1))
    before = jax.device_get(base)
    new = init_adapter(config, LORA, jax.random.key(6))
    state = start(init_policy(base) | {"decoder": new}, make_optimizer(PPO.optimizer), mesh)
    step = make_ppo_step(make_ppo_programs(config, "mean", 1.0, PPO, P, C, mesh, LORA), PPO, mesh)
    prompts, completions = zip(*items(1), strict=True)
    drawn = [Drawn(completion, True) for (completion,) in completions]
    kl_coef, history = jnp.float32(PPO.kl_coef), []
    for i in range(2):
        state, kl_coef, metrics = step(state, base, base, reward, prompts, drawn, jax.random.key(i), kl_coef)
        history.append(jax.device_get(metrics))
    for metrics in history:
        assert metrics["first_ratio_deviation"] == 0.0
        assert metrics["last_ratio_deviation"] > 0.0
    assert abs(history[0]["kl"]) < 1e-5
    assert abs(history[1]["kl"]) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, base, before)
    assert shapes_of(state.params) == {"decoder": shapes_of(new), "value": (tiny.hidden_size,)}
    for pair in state.params["decoder"]["layers"].values():
        assert (np.asarray(pair["lora_b"]) != 0).any()
