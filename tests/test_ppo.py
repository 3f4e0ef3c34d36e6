"""PPO: worked numbers, and a test for each known fault of public implementations (see docs/design.md, "Sources")."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.candidates.engine import EngineConfig, Prompt, make_engine
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs
from rerankjax.model.packing import PackConfig, pack
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.model.training import init_state, make_optimizer, start_state
from rerankjax.policy.advantages import adapt_kl_coef, gae, token_rewards, whiten
from rerankjax.policy.ppo import (
    PPOBatch,
    PPOConfig,
    Reward,
    init_policy,
    normalised_scores,
    policy_loss,
    ppo_loss,
    value_loss,
)
from rerankjax.policy.ppo_step import Drawn, make_ppo_programs, make_ppo_step
from rerankjax.prompts.rows import pad_rows
from rerankjax.reranker.bradley_terry import init_reranker, score_rows

P, C, B = 6, 8, 8
PPO = PPOConfig(iterations=2, batch_size=B, learning_rate=1e-3, epochs=2, minibatches=2, kl_coef=0.1)
ALL = jnp.ones((1, 3), bool)


def test_gae_of_worked_numbers():
    advantages, returns = gae(jnp.array([[0.0, 0, 1]]), jnp.array([[0.5, 0.4, 0.3]]), ALL, 1.0, 0.95)
    np.testing.assert_allclose(advantages[0], [0.43675, 0.565, 0.7], atol=1e-6)
    np.testing.assert_allclose(returns[0], [0.93675, 0.965, 1.0], atol=1e-6)
    np.testing.assert_allclose(whiten(advantages, ALL)[0], [-1.214143, -0.020934, 1.235077], atol=1e-5)


def test_gae_ends_with_the_row_whatever_stands_behind_it():
    padded = jnp.array([[True, True, True, False, False]])
    rewards, values = jnp.array([[0.0, 0, 1, 9, 9]]), jnp.array([[0.5, 0.4, 0.3, 9, 9]])
    advantages, returns = gae(rewards, values, padded, 1.0, 0.95)
    np.testing.assert_allclose(advantages[0], [0.43675, 0.565, 0.7, 0, 0], atol=1e-6)
    np.testing.assert_allclose(returns[0], [0.93675, 0.965, 1.0, 0, 0], atol=1e-6)


def test_gae_discounts_by_gamma_and_lambda():
    # delta = [0 + .5 * .4 - .5, 1 - .4]; A_0 = delta_0 + .5 * .5 * delta_1.
    advantages, _ = gae(jnp.array([[0.0, 1]]), jnp.array([[0.5, 0.4]]), jnp.ones((1, 2), bool), 0.5, 0.5)
    np.testing.assert_allclose(advantages[0], [-0.3 + 0.25 * 0.6, 0.6], atol=1e-6)


def test_whitening_spans_the_whole_batch_and_skips_padding():
    x = jnp.array([[1.0, 2, 100], [3, 4, 100]])
    mask = jnp.array([[True, True, False]] * 2)
    np.testing.assert_allclose(whiten(x, mask)[:, :2], (np.array([[1, 2], [3, 4]]) - 2.5) / np.sqrt(1.25), atol=1e-5)
    assert (whiten(x, mask)[:, 2] == 0).all()
    kept = whiten(x, mask, keep_mean=True)[:, :2]
    assert float(kept.mean()) == pytest.approx(2.5, abs=1e-5)


def test_whitening_is_not_done_per_device():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) + np.arange(8, dtype=np.float32)[:, None]
    mask = np.ones((8, 3), bool)
    shard = jax.sharding.NamedSharding(make_mesh(devices=jax.devices()[:2]), jax.sharding.PartitionSpec("data"))
    split = jax.jit(whiten)(jax.device_put(x, shard), jax.device_put(mask, shard))
    assert len(split.sharding.device_set) > 1
    np.testing.assert_allclose(split, (x - x.mean()) / x.std(), atol=1e-5)


@pytest.mark.parametrize(("kl", "expected"), [(7.2, 0.151536), (50.0, 0.151536), (4.8, 0.148464), (0.0, 0.148464)])
def test_adaptive_kl_clips_its_error(kl, expected):
    assert float(adapt_kl_coef(jnp.float32(0.15), jnp.float32(kl), 6.0, 10_000.0, 512)) == pytest.approx(expected, 1e-5)


def test_score_is_added_at_the_last_real_token_and_kl_at_each():
    mask = jnp.array([[True, True, False], [True, True, True]])
    log_ratios = jnp.array([[0.5, -1.0, 7.0], [0.0, 0.0, 2.0]])
    rewards = token_rewards(jnp.array([3.0, -2.0]), log_ratios, mask, jnp.float32(0.1))
    np.testing.assert_allclose(rewards, [[-0.05, 3.1, 0], [0, 0, -2.2]], atol=1e-6)


def test_integer_scores_are_not_truncated():
    rewards = token_rewards(jnp.array([1]), jnp.array([[5.0]]), jnp.ones((1, 1), bool), jnp.float32(0.1))
    assert rewards.dtype == jnp.float32
    assert float(rewards[0, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, -1.2), (-1.0, 1.5)])
def test_policy_loss_of_ratio_one_and_a_half(advantage, expected):
    assert float(policy_loss(jnp.log(1.5), jnp.float32(advantage), 0.2)) == pytest.approx(expected, 1e-5)


def test_value_loss_takes_the_larger_error():
    # The value moved .5 past the old one, .4 from the return: its own error is the larger, half of .16.
    def loss(returns):
        return float(value_loss(jnp.float32(1.0), jnp.float32(0.5), jnp.float32(returns), 0.2))

    assert loss(0.6) == pytest.approx(0.08, 1e-5)
    # Moved toward the return but held back: the clipped error is the larger.
    assert loss(1.0) == pytest.approx(0.5 * 0.3**2, 1e-5)


def test_scores_are_normalised_clipped_and_replaced_where_the_text_was_cut():
    reward = Reward((), jnp.array([2.0]), jnp.array([0.5]))
    finished = jnp.array([True, True, False])
    out = normalised_scores(PPO, jnp.array([[3.0, 90.0, 3.0]]), reward, finished)
    np.testing.assert_allclose(out, [2.0, 5.0, -1.0])


def test_a_reward_that_combines_rerankers_by_hand():
    # In standard deviations: 2, 1, 9 under the first and 0, 3, 9 under the second; the last completion was cut.
    reward = Reward((), jnp.array([2.0, 0.0]), jnp.array([0.5, 1.0]))
    scores, finished = jnp.array([[3.0, 2.5, 6.5], [0.0, 3.0, 9.0]]), jnp.array([True, True, False])

    def score(**fields):
        return normalised_scores(dataclasses.replace(PPO, **fields), scores, reward, finished).tolist()

    assert score(reward="mean") == [1.0, 2.0, -1.0]
    assert score(reward="minimum") == [0.0, 1.0, -1.0]
    assert score(reward="lower_bound", reward_spread=0.5) == [0.5, 1.5, -1.0]  # spreads 1 and 1
    with pytest.raises(ValueError, match="reward = 'median' is unknown: use one of reranker, mean, minimum, lower_b"):
        dataclasses.replace(PPO, reward="median")


@pytest.fixture
def setting(tiny):
    """A policy, its reference, a reranker, far enough from uniform to matter; prompts, and a stop table."""
    trunk = jax.tree.map(lambda a: a * 2, init_decoder(tiny, jax.random.key(0)))
    reward = Reward((init_reranker(trunk, jax.random.key(1)),), jnp.zeros(1), jnp.ones(1))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 97, rng.integers(3, P + 1)).tolist() for _ in range(B)]
    # An automaton that says a stop string was met after C tokens, whatever they are: scores are then the reranker's.
    stops = np.repeat(np.minimum(np.arange(C + 1) + 1, C)[:, None], 97, axis=1).astype(np.int32)
    return trunk, reward, prompts, stops


def drawn_by(tiny, policy, prompts, stops, key, temperature=1.0, mesh=None):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    engine = make_engine(
        tiny, SamplingConfig(temperature, 1.0, C), EngineConfig(min(64, len(prompts)), 1, P), 1, 0, mesh
    )
    numbered = [Prompt(ids, i) for i, ids in enumerate(prompts)]
    samples = sorted(engine.stream(policy, numbered, samples=1, key=key, stops=stops))
    return [Drawn(s.tokens.tolist(), s.finished) for s in samples]


def iterate(tiny, setting, ppo=PPO, temperature=1.0, iterations=1, devices=1, policy=None):
    trunk, reward, prompts, stops = setting
    mesh = make_mesh(devices=jax.devices()[:devices])
    step = make_ppo_step(make_ppo_programs(tiny, "mean", temperature, ppo, P, C, mesh), ppo, mesh)
    optimizer = make_optimizer(ppo.optimizer)
    start = jax.jit(lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer), out_shardings=replicated(mesh))
    state, kl_coef, history = start(init_policy(policy or trunk)), jnp.float32(ppo.kl_coef), []
    for i in range(iterations):
        draw_key, key = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        drawn = drawn_by(tiny, state.params["decoder"], prompts, stops, draw_key, temperature, mesh)
        state, kl_coef, metrics = step(state, None, trunk, reward, prompts, drawn, key, kl_coef)
        history.append(jax.device_get(metrics))
    return state, history


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_ratio_is_exactly_one_and_later_ones_are_not(tiny, setting, temperature):
    """Holds only if sampling, old log-probabilities and update share parameters, masks, positions and temperature."""
    _, history = iterate(tiny, setting, temperature=temperature, iterations=2)
    for metrics in history:
        assert metrics["first_ratio_deviation"] == 0.0
        assert metrics["last_ratio_deviation"] > 0.0


def test_policy_starts_without_divergence_from_the_reference(tiny, setting):
    _, history = iterate(tiny, setting, temperature=0.7, iterations=2)
    assert abs(history[0]["kl"]) < 1e-5
    assert abs(history[1]["kl"]) > 1e-4


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    items = [(rng.integers(2, 97, P).tolist(), [rng.integers(2, 97, rng.integers(2, C)).tolist()]) for _ in range(B)]
    (part,), _ = pack(items, PackConfig.from_batch_size(B, 1, P, C))
    figures = [np.where(part.mask, rng.normal(size=part.mask.shape), 0).astype(np.float32) for _ in range(4)]
    return jax.device_put(PPOBatch(part, figures[0] - 3, *figures[1:]))


def test_clips_bind_against_the_old_policy(tiny, setting):
    """Old log-probabilities are the rollout's: were they computed anew in each update, no clip would ever bind."""
    _, metrics = ppo_loss(tiny, PPO, init_policy(setting[0]), batch_of(), 1.0)
    assert metrics["clip_fraction"] > 0.5


def test_the_update_is_blind_to_padding(tiny, setting):
    policy, batch = init_policy(setting[0]), batch_of()
    packed = batch.packed
    noisy = batch._replace(
        packed=packed._replace(tokens=jnp.where(packed.sequence == 0, 5, packed.tokens)),
        old_log_probs=jnp.where(packed.mask, batch.old_log_probs, -50.0),
        advantages=jnp.where(packed.mask, batch.advantages, 100.0),
        returns=jnp.where(packed.mask, batch.returns, 100.0),
    )
    assert (packed.sequence == 0).any()
    first, second = (ppo_loss(tiny, PPO, policy, b, 1.0) for b in (batch, noisy))
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
    assert first[1]["ratio_deviation"] == second[1]["ratio_deviation"]


def test_temperature_divides_the_logits_of_the_update(tiny, setting):
    policy = init_policy(setting[0])
    first, second = (ppo_loss(tiny, PPO, policy, batch_of(), t)[1]["ratio_deviation"] for t in (1.0, 0.7))
    assert abs(float(first - second)) > 1e-3


def test_every_epoch_and_iteration_has_an_order_of_its_own(tiny, setting, monkeypatch):
    seen = []
    shuffle = jax.random.permutation

    def spy(key, n):
        order = shuffle(key, n)
        jax.debug.callback(lambda o: seen.append(tuple(map(int, o))), order)
        return order

    monkeypatch.setattr(jax.random, "permutation", spy)
    make_ppo_step.cache_clear()
    iterate(tiny, setting, iterations=2)
    make_ppo_step.cache_clear()
    assert len(seen) == 4  # two epochs in each of two iterations
    assert len(set(seen)) == 4
    assert all(sorted(order) == list(range(B)) for order in seen)


@pytest.mark.long
def test_the_penalty_alone_pulls_a_policy_back_to_its_reference(tiny, setting):
    """From a policy that was moved away, and with a reranker that is indifferent, by the last ones' mean."""
    trunk, reward, prompts, stops = setting
    leaves, tree = jax.tree.flatten(trunk)
    moved = [a + 0.3 * jnp.std(a) * jax.random.normal(jax.random.key(i), a.shape) for i, a in enumerate(leaves)]
    apart = (trunk, reward._replace(std=jnp.full(1, 1e9)), 64 * prompts, stops)
    kl = {}
    for beta in (0.0, 1.0):
        ppo = dataclasses.replace(PPO, iterations=20, batch_size=512, kl_coef=beta, learning_rate=3e-3)
        _, history = iterate(tiny, apart, ppo, iterations=20, policy=jax.tree.unflatten(tree, moved))
        kl[beta] = [float(m["kl"]) for m in history]
    assert kl[0.0][0] == kl[1.0][0] > 1.0
    assert np.mean(kl[1.0][-5:]) < 0.9 * kl[1.0][0]
    assert np.mean(kl[1.0][-5:]) < 0.7 * np.mean(kl[0.0][-5:])


def test_ppo_raises_the_score(tiny, setting):
    trunk, reward, prompts, stops = setting
    steps = dataclasses.replace(PPO, iterations=30, batch_size=8 * B, learning_rate=2e-2, kl_coef=0.0)
    _, history = iterate(tiny, (trunk, reward, 8 * prompts, stops), steps, iterations=30)
    scores = [m["score"] for m in history]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.5


def test_figures_of_an_iteration_are_those_of_padded_rows(tiny, setting):
    """Old log-probabilities, the reference's and the scores find their way from packed rows to their completions."""
    trunk, reward, prompts, stops = setting
    policy = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), trunk)
    mesh = make_mesh(devices=jax.devices()[:1])
    drawn = drawn_by(tiny, policy, prompts, stops, jax.random.key(3))
    drawn[2] = drawn[2]._replace(finished=False)
    step = make_ppo_step(make_ppo_programs(tiny, "mean", 0.7, PPO, P, C, mesh), PPO, mesh)
    state = start_state(init_policy(policy), PPO.optimizer, mesh)
    _, _, metrics = step(state, None, trunk, reward, prompts, drawn, jax.random.key(0), jnp.float32(0.1))
    rows = jax.device_put(SequenceBatch(*pad_rows(prompts, [d.tokens for d in drawn], P, C, 0)))
    own, other = (np.asarray(completion_log_probs(tiny, params, rows, P, 0.7)[0]) for params in (policy, trunk))
    assert float(metrics["kl"]) == pytest.approx((own - other).sum(1).mean(), abs=1e-4)
    scores = np.array(score_rows(tiny, "mean", *reward.params, rows, P))
    scores[2] = PPO.missing_eos_penalty
    assert float(metrics["score"]) == pytest.approx(scores.mean(), abs=1e-5)
    assert float(metrics["length"]) == np.mean([len(d.tokens) for d in drawn])


def test_a_reranker_of_another_shape_rewards(tiny, setting):
    """The score of what PPO drew is the one that the reranker gives to padded rows."""
    larger = dataclasses.replace(
        tiny, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=6
    )
    trunk, _, prompts, stops = setting
    reranker = init_reranker(init_decoder(larger, jax.random.key(1)), jax.random.key(2))
    drawn = drawn_by(tiny, trunk, prompts, stops, jax.random.key(3))
    mesh = make_mesh(devices=jax.devices()[:1])
    programs = make_ppo_programs(tiny, "last", 1.0, PPO, P, C, mesh, reward_config=larger)
    items = [(prompt, [d.tokens]) for prompt, d in zip(prompts, drawn, strict=True)]
    rows = jax.device_put(SequenceBatch(*pad_rows(prompts, [d.tokens for d in drawn], P, C, 0)))
    expected = score_rows(larger, "last", reranker, rows, P)
    found = np.zeros(B)
    for part, source in zip(*pack(items, programs.sizes), strict=True):
        scores = programs.score(reranker, part)
        for row, target in zip(*np.nonzero(part.mask), strict=True):
            found[source.item[row, target]] = scores[row, part.completion[row, target]]
    assert np.std(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sharded_iteration_equals_single_device(tiny, setting):
    """Losses and what decides them, by less after an update: Adam magnifies gradients near zero."""
    with jax.default_matmul_precision("highest"):
        (_, split), (_, whole) = (iterate(tiny, setting, iterations=2, devices=n) for n in (2, 1))
    for a, b, atol in zip(split, whole, (5e-6, 5e-5), strict=True):
        for name in ("loss", "policy_loss", "value_loss", "kl", "score", "length"):
            np.testing.assert_allclose(a[name], b[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("bad", [{"minibatches": 3}, {"kl_coef": -0.1}, {"epochs": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(PPO, **bad)
