"""Sequences packed end to end: nothing lost, nothing that sees its neighbours, little padding, one shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.model.attention import attend_blocks, attend_splash
from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs, packed_log_probs
from rerankjax.model.packing import CUTS, PackConfig, pack, real_fraction
from rerankjax.model.segments import Segments, attend_segments, needed_blocks
from rerankjax.prompts.rows import pad_rows
from rerankjax.reranker.bradley_terry import POOLINGS, init_reranker, packed_scores, score_rows

P, C = 9, 7


@pytest.fixture(autouse=True)
def _no_sequence_is_short(monkeypatch):
    monkeypatch.setattr("rerankjax.model.packing.SHORT", 0)


def items_of(count, each=1, seed=0, prompt=P, completion=C):
    """Prompts and completions of 1 to so many tokens."""
    rng = np.random.default_rng(seed)

    def text(most):
        return rng.integers(2, 97, rng.integers(1, most + 1)).tolist()

    return [(text(prompt), [text(completion) for _ in range(each)]) for _ in range(count)]


@pytest.mark.parametrize("long_rows", [False, True])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_every_token_is_there_once_and_where_it_says(each, long_rows):
    items = items_of(40, each)
    parts, sources = pack(items, PackConfig.from_batch_size(16, 4, P, C, each, long_rows=long_rows))
    assert len({part.tokens.shape for part in (parts if long_rows else parts[:-1])}) == 1
    found = {}
    for part, source in zip(parts, sources, strict=True):
        for row, sequences in enumerate(part.sequence):
            for target in np.flatnonzero(part.mask[row]):
                place = part.target_place[row, target]
                key = int(source.item[row, target]), int(source.token[row, target]), part.completion[row, target] % each
                assert key not in found
                found[key] = part.tokens[row, place]
                assert sequences[place] == sequences[part.before[row, target]]
                assert part.positions[row, part.before[row, target]] == part.positions[row, place] - 1
            for sequence in range(1, sequences.max() + 1):
                prompt = (sequences == sequence) & (0 if part.branch is None else part.branch[row] == 0)
                assert part.branch is None or part.tokens[row][prompt].tolist() in [text for text, _ in items]
    expected = {
        (i, t, n): token
        for i, (_, texts) in enumerate(items)
        for n, text in enumerate(texts)
        for t, token in enumerate(text)
    }
    assert found == expected
    real = sum(len(prompt) + sum(map(len, texts)) for prompt, texts in items)
    assert real_fraction(parts) == real / sum(part.tokens.size for part in parts)


def test_the_last_microbatch_is_as_small_as_its_rows_allow():
    sizes = PackConfig.from_batch_size(16, 2, P, C, shards=2)  # 8 rows, 4 in each of two shards
    assert [sizes.parts(n) for n in (1, 3, 5, 8, 9, 20)] == [[2], [4], [8], [8], [8, 2], [8, 8, 4]]
    uneven = PackConfig.from_batch_size(14, 1, P, C, shards=2)  # a shard has no half row
    assert [uneven.parts(n) for n in (3, 5, 8, 9, 15)] == [[4], [8], [8], [14], [14, 4]]
    for count, shapes in ((0, [8]), (2, [2]), (20, [8, 8, 4])):
        longest = [([2] * P, [[3] * C])] * count
        assert [len(part.tokens) for part in pack(longest, sizes)[0]] == shapes


def test_long_rows_are_level_and_cut():
    sizes = PackConfig.from_batch_size(16, 2, P, C, shards=2, long_rows=True)  # two rows of four of the longest
    assert (sizes.rows, sizes.length, sizes.targets, sizes.cuts) == (2, 4 * (P + C), 4 * (P + C), CUTS)

    def shapes(*lengths):
        return [
            (*part.tokens.shape, part.mask.shape[1])
            for part in pack([([2] * p, [[3] * c]) for p, c in lengths], sizes)[0]
        ]

    assert shapes() == [(2, 64, 64)]
    assert shapes(*[(P, C)] * 8) == [(2, 64, 32)]
    assert shapes(*[(P, C)] * 9) == [(2, 48, 24)] * 2  # not one of 64 and one of 16
    assert shapes((9, 7), (9, 6), (5, 1)) == [(2, 24, 8)]  # 16 tokens in one row, 21 in the other
    assert shapes((1, 2)) == [(2, 8, 8)]


@pytest.mark.parametrize("long_rows", [False, True])
def test_lengths_like_mbpps_leave_little_padding(long_rows):
    """Lengths as real_model's: three fifths of a row of the longest are padding, packed below a fifth, or a tenth."""
    rng = np.random.default_rng(0)
    lengths = zip(
        np.clip(rng.lognormal(4.8, 0.45, 512), 1, 380).astype(int),
        np.clip(rng.lognormal(3.9, 0.7, 512), 1, 237).astype(int),
        strict=True,
    )
    items = [([2] * p, [[3] * c]) for p, c in lengths]
    sizes = PackConfig.from_batch_size(32, 8, 380, 237, long_rows=long_rows)
    of_batches = [pack(items[i : i + 32], sizes)[0] for i in range(0, 512, 32)]
    assert real_fraction([part for parts in of_batches for part in parts]) > (0.9 if long_rows else 0.8)
    padded = sum(len(p) + len(c) for p, (c,) in items) / (512 * (380 + 237))
    assert padded < 0.4


def test_log_probabilities_are_those_of_padded_rows(tiny):
    params, items = init_decoder(tiny, jax.random.key(0)), items_of(24)
    rows = SequenceBatch(*pad_rows([p for p, _ in items], [c for _, (c,) in items], P, C, 0))
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(lambda p, rows: completion_log_probs(tiny, p, rows, P, 0.7)[0])(params, rows)
        found = jax.jit(lambda p, part: packed_log_probs(tiny, p, part, 0.7)[0])
        parts, sources = pack(items, PackConfig.from_batch_size(8, 2, P, C))
        assert len(parts) > 1
        for part, source in zip(parts, sources, strict=True):
            log_probs = found(params, part)
            own = np.asarray(expected)[source.item, source.token]
            np.testing.assert_allclose(log_probs, np.where(part.mask, own, 0), atol=2e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_those_of_rows_of_their_own(tiny, pooling):
    reranker, items = init_reranker(init_decoder(tiny, jax.random.key(0)), jax.random.key(1)), items_of(12, 3)
    texts = [(prompt, text) for prompt, completions in items for text in completions]
    rows = SequenceBatch(*pad_rows([p for p, _ in texts], [c for _, c in texts], P, C, 0))
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(lambda p, rows: score_rows(tiny, pooling, p, rows, P))(reranker, rows))
        found = jax.jit(lambda p, part: packed_scores(tiny, pooling, p, part))
        parts, sources = pack(items, PackConfig.from_batch_size(12, 3, P, C, 3))
        for part, source in zip(parts, sources, strict=True):
            scores = np.asarray(found(reranker, part))
            for row, target in zip(*np.nonzero(part.mask), strict=True):
                number = part.completion[row, target]
                text = 3 * source.item[row, target] + number % 3
                assert scores[row, number] == pytest.approx(expected[text], abs=2e-6)


@pytest.mark.parametrize("kernel", [attend_blocks, attend_segments])
@pytest.mark.parametrize("branches", [False, True])
def test_a_token_sees_its_own_sequence_alone(branches, kernel):
    """Blocks of queries against each sequence by itself; the sequences are longer than a block."""
    rng = np.random.default_rng(0)
    lengths = [150, 90, 40]
    q, k, v = (jnp.asarray(rng.normal(size=(1, 2, 300, 8)), jnp.float32) for _ in range(3))
    sequence = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.zeros(20, int)])[None]
    branch = np.concatenate([np.repeat([0, 1, 2], [n - 20, 10, 10]) for n in lengths] + [np.zeros(20, int)])[None]
    attend = jax.jit(attend_blocks)
    out = jax.jit(kernel)(q, k, v, Segments(jnp.asarray(sequence), jnp.asarray(branch) if branches else None))
    assert np.isfinite(out).all()
    for number in (1, 2, 3):
        for which in (1, 2) if branches else (None,):
            own = sequence[0] == number
            if branches:
                own &= (branch[0] == 0) | (branch[0] == which)
            part = [a[:, :, own] for a in (q, k, v)]
            expected = attend(*part, jnp.ones((1, own.sum()), bool))
            np.testing.assert_allclose(out[:, :, own], expected, atol=1e-6)


def row_of(lengths, size):
    """The sequence and branch of each token: sequences of a prompt and two completions, each a third; then padding."""
    pieces = [np.repeat([0, 1, 2], [n - 2 * (n // 3), n // 3, n // 3]) for n in lengths]
    sequence = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return tuple(np.pad(a, (0, size - sum(lengths))) for a in (sequence, np.concatenate([*pieces, []])))


def layout(rows, size, branches):
    sequence, branch = (jnp.asarray(np.stack(a), jnp.int32) for a in zip(*(row_of(r, size) for r in rows), strict=True))
    return Segments(sequence, branch if branches else None)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_skipping_blocks_changes_neither_results_nor_gradients(branches, dtype, tolerance):
    segments = layout([[150], [3, 60, 1, 80], [], [64, 64, 22]], 150, branches)
    q, k, v, weights = (
        jax.random.normal(jax.random.key(i), (4, heads, 150, 8), dtype) for i, heads in enumerate((4, 2, 2, 4))
    )

    def of(kernel):
        def total(q, k, v):
            y = jnp.where(segments.sequence[:, None, :, None] > 0, kernel(q, k, v, segments), 0)
            return jnp.sum((weights * y).astype(jnp.float32)), y

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for found, expected in zip(*map(jax.tree.leaves, (of(attend_segments), of(attend_blocks))), strict=True):
        expected = np.asarray(expected, np.float32)
        assert np.isfinite(np.asarray(found, np.float32)).all()
        np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=tolerance * np.abs(expected).max())


def test_blocks_that_no_query_sees_are_skipped():
    def needed(*rows, branches=False):
        keys, number = needed_blocks(layout(rows, 120, branches), 4)  # of 30 tokens
        return [[sorted(k[:n].tolist()) for k, n in zip(*row, strict=True)] for row in zip(keys, number, strict=True)]

    assert needed([120]) == [[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]]
    assert needed([30, 30, 30, 30], []) == [[[0], [1], [2], [3]]] * 2  # padding: itself
    assert needed([15, 30, 45]) == [[[0], [0, 1], [1, 2], [3]]]
    # A prompt and two completions of 40 tokens: the second does not see the block that has the first alone.
    assert needed([120], branches=True) == [[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]]
    assert needed([90, 30], branches=True) == [[[0], [0, 1], [0, 2], [3]]]


def test_splash_sees_what_blocks_see():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 2, 256, 128)), jnp.float32) for _ in range(3))
    sequence = jnp.asarray(np.sort(rng.integers(1, 5, (2, 256))))
    with jax.default_matmul_precision("highest"):
        blocks, splash = jax.jit(attend_blocks)(q, k, v, Segments(sequence)), attend_splash(q, k, v, sequence)
    np.testing.assert_allclose(splash, blocks, atol=2e-5)


def test_what_fits_no_row_is_refused():
    sizes = PackConfig.from_batch_size(1, 1, P, C)
    most = 3 * C // 2
    with pytest.raises(
        ValueError, match=rf"item 1 has 3 \+ {most + 1} tokens, but a row fits {P + C}, and {most} of completions"
    ):
        pack([([1], [[2]]), ([1] * 3, [[2] * (most + 1)])], sizes)
    with pytest.raises(ValueError, match="item 0 has an empty prompt or completion"):
        pack([([1], [[]])], sizes)
    parts, _ = pack([], dataclasses.replace(sizes, rows=2))
    assert real_fraction(parts) == 0
