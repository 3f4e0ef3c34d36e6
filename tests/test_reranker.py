"""The reranker: Bradley-Terry's numbers, pooling, and a head that is never made anew."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs, masked_mean
from rerankjax.model.packing import PackConfig
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.model.training import OptimizerConfig, init_state, make_optimizer
from rerankjax.prompts.rows import shuffled_batches
from rerankjax.reranker.bradley_terry import (
    POOLINGS,
    RerankerConfig,
    bradley_terry,
    init_reranker,
    make_reranker_step,
    reranker_loss,
    score_rows,
)
from rerankjax.reranker.pair_batches import blocks_of, pair_batch
from rerankjax.run import checkpoint

MESH = make_mesh(devices=jax.devices()[:2])

P, C = 6, 8


@pytest.fixture
def reranker(tiny):
    return init_reranker(init_decoder(tiny, jax.random.key(0)), jax.random.key(1))


def rows_of(seed, batch=4, width=C, extra=0):
    """Rows of the same tokens whatever `width`, which adds padding on the right, and `extra`, on the left."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((batch, extra + P + width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i in range(batch):
        p, c = rng.integers(1, P + 1), rng.integers(1, C + 1)
        at = slice(extra + P - p, extra + P + c)
        tokens[i, at], mask[i, at] = rng.integers(2, 97, p + c), True
    return SequenceBatch(jnp.asarray(tokens), jnp.asarray(mask))


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 0.693147), (2.0, 0.126928), (-200.0, 200.0)])
def test_bradley_terry_of_a_margin(margin, expected):
    assert float(bradley_terry(jnp.float32(margin), jnp.float32(0))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_score_does_not_depend_on_the_padding_beside_it(tiny, reranker, pooling):
    plain = score_rows(tiny, pooling, reranker, rows_of(0), P)
    wider = score_rows(tiny, pooling, reranker, rows_of(0, width=C + 9), P)
    shifted = score_rows(tiny, pooling, reranker, rows_of(0, extra=5), P + 5)
    # Processors add in different orders, by how wide their vectors are: scores near 1 then differ by a few 1e-7 each.
    np.testing.assert_allclose(plain, wider, atol=5e-6)
    np.testing.assert_allclose(plain, shifted, atol=5e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_score_depends_on_every_real_token(tiny, reranker, pooling):
    rows = rows_of(0, batch=1)
    score = jax.jit(lambda tokens: score_rows(tiny, pooling, reranker, SequenceBatch(tokens, rows.mask), P)[0])
    for i in np.flatnonzero(rows.mask[0]):
        assert float(score(rows.tokens.at[0, i].set(1))) != float(score(rows.tokens))


def test_last_pools_the_last_real_token_not_the_last_that_is_no_padding_id(tiny, reranker):
    """A real token that has the padding's id counts: masks decide, not ids."""
    rows = rows_of(0, batch=1)
    end = int(np.flatnonzero(rows.mask[0])[-1])
    with_pad_id = SequenceBatch(rows.tokens.at[0, end].set(0), rows.mask)
    cut = SequenceBatch(rows.tokens, rows.mask.at[0, end].set(False))
    scores = [float(score_rows(tiny, "last", reranker, r, P)[0]) for r in (with_pad_id, cut)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)


def pairs_of(seed, batch=4):
    """Pairs as items that share their prompt, and the same as rows of their own: chosen, rejected."""
    chosen, other = rows_of(seed, batch), rows_of(seed + 1000, batch)
    rejected = SequenceBatch(
        *(jnp.concatenate([a[:, :P], b[:, P:]], axis=1) for a, b in zip(chosen, other, strict=True))
    )

    def texts(rows, start, end):
        return [t[start:end][m[start:end]].tolist() for t, m in zip(*map(np.asarray, rows), strict=True)]

    completions = zip(texts(chosen, P, P + C), texts(rejected, P, P + C), strict=True)
    return list(zip(texts(chosen, 0, P), completions, strict=True)), chosen, rejected


def packed(pairs):
    """All in one part, and the counts."""
    (part,), counts = pair_batch(pairs, PackConfig.from_batch_size(len(pairs), 1, P, C, 2))
    return jax.device_put((part, counts))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_that_share_their_prompt_have_the_loss_and_gradient_of_rows_of_their_own(tiny, reranker, pooling):
    pairs, chosen, rejected = pairs_of(0)

    def apart(params):
        scores = (score_rows(tiny, pooling, params, rows, P) for rows in (chosen, rejected))
        log_probs, _ = completion_log_probs(tiny, params["decoder"], chosen, P)
        return jnp.mean(bradley_terry(*scores)) - 0.5 * masked_mean(log_probs, chosen.mask[:, P:])

    with jax.default_matmul_precision("highest"):
        config = RerankerConfig(pooling, 0.5)
        shared = jax.jit(jax.value_and_grad(lambda params: reranker_loss(tiny, config, params, *packed(pairs))[0]))
        loss, gradient = shared(reranker)
        expected, expected_gradient = jax.jit(jax.value_and_grad(apart))(reranker)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert largest > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * largest), gradient, expected_gradient)


def test_completions_in_several_pairs_are_read_once_and_change_no_loss_or_gradient(tiny, reranker):
    """Six pairs of three prompts, one of them twice, in parts of two rows, against each pair in a batch of its own."""
    (ask, (a, b)), (other, (c, d)), (third, (e, f)) = pairs_of(0, 3)[0]
    pairs = [(ask, (a, b)), (other, (c, d)), (ask, (a, [7, 8])), (third, (e, f)), (ask, ([7, 8], b)), (other, (c, d))]
    config, sizes = RerankerConfig("last", 0.5), PackConfig.from_batch_size(4, 2, P, 2 * C, 2)
    parts, counts = jax.device_put(pair_batch(pairs, sizes))
    assert counts == (6, sum(len(chosen) for _, (chosen, _) in pairs))
    assert sum(int(part.packed.real.sum()) for part in parts) == 7  # a, b and [7, 8]; c and d; e and f
    assert sorted(int(n) for part in parts for n in part.wins.ravel() if n) == [1, 1, 1, 1, 2]

    def loss(params, part, counts):
        return reranker_loss(tiny, config, params, part, counts)[0]

    with jax.default_matmul_precision("highest"):
        graded = jax.jit(jax.value_and_grad(loss))
        shared = [graded(reranker, part, counts) for part in parts]
        apart = [graded(reranker, packed([pair])[0], counts) for pair in pairs]
    total, expected = (jax.tree.map(lambda *a: sum(a), *graded) for graded in (shared, apart))
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected[1]))
    assert largest > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * max(1, largest)), total, expected)


def test_pairs_of_a_prompt_stay_in_one_batch():
    pairs = [([prompt], ([1], [2])) for prompt in (5, 6, 5, 5, 7, 6)]
    assert blocks_of(pairs, 1) == [[i] for i in range(6)]
    assert blocks_of(pairs, 2) == [[0, 2], [1, 5], [3], [4]]
    blocks = blocks_of(pairs, 8)
    assert blocks == [[0, 2, 3], [1, 5], [4]]
    epochs = np.concatenate(list(shuffled_batches(6, 4, 30, [0], blocks))).reshape(20, 6)
    assert {tuple(epoch.tolist()) for epoch in epochs} == {
        tuple(itertools.chain.from_iterable(order)) for order in itertools.permutations(blocks)
    }
    single = [np.concatenate(list(shuffled_batches(6, 4, 3, [0], b))) for b in (None, blocks_of(pairs, 1))]
    np.testing.assert_array_equal(*single)


def test_a_group_that_no_row_holds_is_split(tiny, reranker):
    """All pairs of 4 + 4 completions of one prompt, of which a row holds four: they are half as long as allowed."""
    texts = [[i] * C for i in range(2, 10)]
    pairs = [([1] * P, (a, b)) for a in texts[:4] for b in texts[4:]]
    parts, counts = pair_batch(pairs, PackConfig.from_batch_size(2, 1, P, 2 * C, 2))
    assert counts.sequences == sum(part.wins.sum() for part in parts) == 16
    for part in parts:
        for row, wins in zip(part.packed.last, part.wins, strict=True):
            chosen, rejected = np.nonzero(wins)
            assert part.packed.tokens[0].size == P + 4 * C
            assert (row[[*chosen, *rejected]] > 0).all()
    # A prompt stands in a row with three completions or more, so it is read less than once for each pair.
    assert sum(int(part.packed.real.sum()) for part in parts) < 2 * len(pairs)


def test_the_loss_is_the_mean_over_pairs_plus_the_weighted_lm_loss(tiny, reranker):
    pairs, chosen, rejected = pairs_of(0)
    config = RerankerConfig("mean", 0.0)
    scores = [score_rows(tiny, "mean", reranker, rows, P) for rows in (chosen, rejected)]
    margin = np.asarray(scores[0] - scores[1])
    expected = np.mean(np.log1p(np.exp(-margin)))
    loss, metrics = reranker_loss(tiny, config, reranker, *packed(pairs))
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(margin > 0))
    both, metrics = reranker_loss(tiny, dataclasses.replace(config, lm_coef=0.5), reranker, *packed(pairs))
    assert float(both) == pytest.approx(expected + 0.5 * float(metrics["lm_loss"]), abs=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_training_learns_which_of_two_tokens_is_better(tiny, reranker, pooling):
    config = RerankerConfig(pooling, 0.0)
    optimizer = OptimizerConfig(3e-3, steps=30)
    mesh = MESH
    step = make_reranker_step(tiny, config, optimizer, mesh)
    start = jax.jit(lambda p: init_state(p, make_optimizer(optimizer)), out_shardings=replicated(mesh))
    state = start(jax.tree.map(jnp.copy, reranker))
    for i in range(30):
        pairs, _, _ = pairs_of(i, batch=16)
        pairs = [(prompt, ([40, *a[1:]], [50, *b[1:]])) for prompt, (a, b) in pairs]
        state, metrics = step(state, None, *pair_batch(pairs, PackConfig.from_batch_size(16, 1, P, C, 2)))
    assert metrics["accuracy"] == 1.0
    assert metrics["pair_loss"] < 0.3


def test_the_head_survives_saving(tiny, reranker, tmp_path):
    checkpoint.save(tmp_path / "reranker", reranker)
    restored = checkpoint.restore(tmp_path / "reranker", checkpoint.abstract(reranker, MESH))
    jax.tree.map(np.testing.assert_array_equal, restored, reranker)


@pytest.mark.parametrize(
    ("pooling", "lm_coef", "said"), [("first", 0.0, 'pooling = "first"'), ("mean", -1.0, "lm_coef")]
)
def test_impossible_settings_are_refused(pooling, lm_coef, said):
    with pytest.raises(ValueError, match=said):
        RerankerConfig(pooling, lm_coef)
