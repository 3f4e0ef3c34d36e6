"""The decoder: what it must not see, what must not matter, and the numbers of its parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.model import likelihood
from rerankjax.model.attention import attend
from rerankjax.model.decoder import hidden_states, init_decoder, rotate, rotation_at, swiglu, to_logits
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs, masked_mean, token_log_probs
from rerankjax.model.packing import PackConfig
from rerankjax.model.sharding import make_mesh
from rerankjax.model.training import OptimizerConfig, apply_gradients, batch_of, init_state, make_optimizer
from rerankjax.policy.sft import make_sft_step

MESH = make_mesh(devices=jax.devices()[:2])


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, mask):
    return to_logits(config, params, hidden_states(config, params, tokens, mask))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, tiny):
    config = dataclasses.replace(tiny, tie_word_embeddings=request.param)
    return config, init_decoder(config, jax.random.key(0))


def test_a_token_sees_no_later_token(model):
    config, params = model
    tokens = np.arange(10)[None] + 3
    changed = tokens.copy()
    changed[0, 6:] = 1
    mask = np.ones_like(tokens, bool)
    before, after = (logits_of(config, params, t, mask) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_swiglu_and_its_gradient_are_those_of_silu_times_up_rounded_once(dtype, rounding):
    operands = [3 * jax.random.normal(jax.random.key(i), (20, 64)).astype(dtype) for i in range(2)]
    weight = jax.random.normal(jax.random.key(2), (20, 64)).astype(dtype)
    result, pull = jax.vjp(swiglu, *operands)
    exact, exact_pull = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, *(a.astype(jnp.float32) for a in operands))
    pairs = zip((result, *pull(weight)), (exact, *exact_pull(weight.astype(jnp.float32))), strict=True)
    for ours, expected in pairs:
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=rounding, atol=1e-6)


def test_padding_on_either_side_changes_nothing(model):
    config, params = model
    row = np.array([5, 9, 2, 7])
    alone = logits_of(config, params, row[None], np.ones((1, 4), bool))
    tokens = np.full((1, 11), 1)
    mask = np.zeros((1, 11), bool)
    tokens[0, 3:7], mask[0, 3:7] = row, True
    padded = logits_of(config, params, tokens, mask)[:, 3:7]
    np.testing.assert_allclose(padded, alone, atol=1e-6)


def test_untied_embeddings_have_a_head_of_their_own(tiny):
    untied = init_decoder(dataclasses.replace(tiny, tie_word_embeddings=False), jax.random.key(0))
    assert untied.keys() - init_decoder(tiny, jax.random.key(0)).keys() == {"lm_head"}


def test_rotation_turns_a_pair_by_its_position(tiny):
    config = dataclasses.replace(tiny, head_dim=2)
    x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    turned = rotate(x, rotation_at(config, jnp.array([[3]])))[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(3), np.sin(3)], atol=1e-6)


def test_rotation_makes_attention_depend_on_distance_alone(tiny):
    config = dataclasses.replace(tiny, rope_theta=100.0)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def dot(i, j):
        turned = [rotate(x, rotation_at(config, jnp.array([[place]]))) for x, place in ((q, i), (k, j))]
        return float(jnp.vdot(*turned))

    assert dot(5, 2) == pytest.approx(dot(25, 22), abs=1e-4)
    assert dot(5, 2) != pytest.approx(dot(5, 3), abs=1e-2)


def test_grouped_heads_equal_repeated_keys_and_values():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, h, 5, 8)) for i, h in enumerate((4, 2, 2)))
    mask = jnp.tril(jnp.ones((2, 5, 5), bool))
    repeated = attend(q, jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1), mask)
    np.testing.assert_allclose(attend(q, k, v, mask), repeated, atol=1e-6)


def test_completion_log_probs_are_the_log_softmax_before_each_token(tiny):
    params = init_decoder(tiny, jax.random.key(0))
    tokens = jnp.arange(12)[None] + 3
    mask = jnp.ones((1, 12), bool).at[0, 10:].set(False)
    log_probs, _ = completion_log_probs(tiny, params, SequenceBatch(tokens, mask), prompt_length=5, temperature=0.7)
    scaled = jax.nn.log_softmax(logits_of(tiny, params, tokens, mask) / 0.7)
    expected = [scaled[0, i - 1, tokens[0, i]] for i in range(5, 10)]
    np.testing.assert_allclose(log_probs[0, :5], expected, atol=1e-5)
    assert (log_probs[0, 5:] == 0).all()


def test_log_probs_in_blocks_are_those_of_the_whole(tiny, monkeypatch):
    params = init_decoder(tiny, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 11, tiny.hidden_size))
    tokens = jax.random.randint(jax.random.key(2), (3, 11), 0, tiny.vocab_size)

    def gradients():
        def total(params, hidden):
            return jnp.sum(token_log_probs(tiny, params, hidden, tokens, 0.7) ** 2)

        return jax.value_and_grad(total, argnums=(0, 1))(params, hidden)

    whole = gradients()
    monkeypatch.setattr(likelihood, "BLOCK", 3 * tiny.vocab_size * 4)  # 4 positions: the last block is not full
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients(), whole)


def test_a_step_holds_no_logits_of_all_positions(tiny):
    """The compiled SFT step's temporary memory, beside the size of [batch, length, vocabulary]."""
    config = dataclasses.replace(tiny, vocab_size=64_000)
    optimizer = OptimizerConfig(1e-3, steps=2)
    sizes = PackConfig.from_batch_size(8, 1, 1, 255)
    update = make_sft_step(config, optimizer, MESH)
    state = jax.eval_shape(
        lambda key: init_state(init_decoder(config, key), make_optimizer(optimizer)), jax.random.key(0)
    )
    (part,), counts = batch_of([([1], [[1] * 255])] * 8, sizes)
    memory = update.add.lower(state.params, state.params, None, part, counts).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * 8 * 255 * config.vocab_size * 4


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(jnp.array([3.0, 5.0]), jnp.array([False, True])) == 5
    assert masked_mean(jnp.array([jnp.inf, 5.0]), jnp.array([False, False])) == 0


@pytest.mark.parametrize(("gradient", "expected"), [(1e-6, 0.090909), (1e-2, 0.9990)])
def test_first_adam_step_with_epsilon_1e_5(gradient, expected):
    config = OptimizerConfig(1e-3, steps=1_000_000, schedule="linear", eps=1e-5)
    optimizer = make_optimizer(config)
    state = init_state({"w": jnp.zeros(1)}, optimizer)
    moved = apply_gradients(state, {"w": jnp.array([gradient])}, optimizer, MESH).params["w"][0]
    assert -moved / 1e-3 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_warms_up_to_its_peak_and_ends_near_zero(schedule):
    optimizer = make_optimizer(OptimizerConfig(1.0, steps=20, warmup_steps=4, schedule=schedule, max_grad_norm=1e9))
    state = init_state({"w": jnp.zeros(1)}, optimizer)
    sizes = []
    for _ in range(20):
        new = apply_gradients(state, {"w": jnp.ones(1)}, optimizer, MESH)
        sizes.append(float(state.params["w"][0] - new.params["w"][0]))
        state = new
    np.testing.assert_allclose(sizes[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-3)
    assert max(sizes) == pytest.approx(1.0, rel=1e-3)
    assert 0 < sizes[-1] < 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"head_dim": 7}, "head_dim = 7"),
        ({"unroll": 3}, "unroll = 3"),
    ],
)
def test_impossible_shapes_are_refused(tiny, change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(tiny, **change)
