"""Sampling: the right distribution, from a key that is a sample's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rerankjax.candidates.sampling import SamplingConfig, choose, make_sampler, nucleus, sample, sample_keys
from rerankjax.candidates.stop import joined_table, stop_table, stops_of, truncate
from rerankjax.model.decoder import hidden_states, init_decoder, to_logits
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs
from rerankjax.model.sharding import make_mesh
from rerankjax.prompts.tokenizer import train_tokenizer

MESH = make_mesh(devices=jax.devices()[:2])

EOS, PAD, P, C = 1, 0, 6, 8
NO_STOPS = stop_table([""] * 97, ())


@pytest.fixture
def params(tiny):
    # Far from uniform, so that a wrong distribution shows.
    return jax.tree.map(lambda a: a * 2, init_decoder(tiny, jax.random.key(0)))


def draw(tiny, params, ids, *, temperature=1.0, top_p=1.0, samples=2, key=7, stops=NO_STOPS):
    rng = np.random.default_rng(0)
    every = rng.integers(2, 97, (64, P)).astype(np.int32)
    lengths = rng.integers(2, P + 1, 64)
    mask = np.arange(P) >= P - lengths[:, None]
    sampler = make_sampler(tiny, SamplingConfig(temperature, top_p, C), samples, EOS, PAD, MESH)
    ids = np.asarray(ids)
    out = sampler(params, every[ids], mask[ids], jax.random.key(key), ids.astype(np.uint32), stops)
    return jax.device_get(out), every[ids], mask[ids]


def test_a_sample_does_not_depend_on_its_batch(tiny, params):
    together, *_ = draw(tiny, params, range(8))
    for batch in ([3, 40], [50, 3, 12, 13], [9, 8, 7, 6, 5, 4, 3, 2]):
        apart, *_ = draw(tiny, params, batch)
        at = batch.index(3)
        np.testing.assert_array_equal(apart.tokens[2 * at : 2 * at + 2], together.tokens[6:8])


def test_samples_of_a_prompt_differ_and_follow_the_key(tiny, params):
    out, *_ = draw(tiny, params, range(8), samples=4)
    again, *_ = draw(tiny, params, range(8), samples=4)
    other, *_ = draw(tiny, params, range(8), samples=4, key=8)
    np.testing.assert_array_equal(out.tokens, again.tokens)
    assert (out.tokens != other.tokens).any()
    assert len({tuple(row) for row in out.tokens[:4]}) > 1


def test_more_samples_keep_the_first_ones(tiny, params):
    two, *_ = draw(tiny, params, range(4), samples=2)
    four, *_ = draw(tiny, params, range(4), samples=4)
    np.testing.assert_array_equal(two.tokens.reshape(4, 2, C), four.tokens.reshape(4, 4, C)[:, :2])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_those_of_a_whole_forward_pass(tiny, params, temperature):
    out, prompts, mask = draw(tiny, params, range(8), temperature=temperature)
    rows = SequenceBatch(
        jnp.concatenate([np.repeat(prompts, 2, 0), out.tokens], 1),
        jnp.concatenate([np.repeat(mask, 2, 0), out.mask], 1),
    )
    for got, at in ((out.log_probs, temperature), (out.raw_log_probs, 1.0)):
        expected, _ = completion_log_probs(tiny, params, rows, P, at)
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_greedy_takes_the_most_likely_token_of_a_whole_forward_pass(tiny, params):
    out, prompts, mask = draw(tiny, params, range(4), temperature=0.0, samples=1)
    tokens, seen = np.concatenate([prompts, out.tokens], 1), np.concatenate([mask, out.mask], 1)
    logits = jax.jit(lambda t, m: to_logits(tiny, params, hidden_states(tiny, params, t, m)))(tokens, seen)
    best = np.where(out.mask, np.argmax(logits[:, P - 1 : -1], -1), PAD)
    np.testing.assert_array_equal(out.tokens, best)


def test_nothing_follows_the_end_of_text(tiny, params):
    # An end-of-text token that is likely everywhere.
    out, *_ = draw(tiny, params, range(32), samples=8)
    ended = out.tokens == EOS
    assert ended.any()
    lengths = out.mask.sum(1)
    np.testing.assert_array_equal(out.mask, np.arange(C) < lengths[:, None])
    assert (out.tokens[~out.mask] == PAD).all()
    np.testing.assert_array_equal(out.finished, ended.any(1))
    assert all(row[n - 1] == EOS for row, n in zip(out.tokens[out.finished], lengths[out.finished], strict=True))
    assert (lengths[~out.finished] == C).all()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    uniform = (jnp.arange(10_000, dtype=jnp.float32) + 0.5) / 10_000
    token, log_prob, _ = choose(SamplingConfig(1.0, 1.0, C), jnp.tile(logits, (10_000, 1)), uniform)
    np.testing.assert_allclose(np.bincount(token) / 10_000, [0.5, 0.3, 0.15, 0.05], atol=1e-3)
    np.testing.assert_allclose(log_prob, logits[token], atol=1e-6)
    # 0.5 and 0.3 reach 0.7 together; they are then drawn in proportion.
    token, log_prob, raw = choose(SamplingConfig(1.0, 0.7, C), jnp.tile(logits, (10_000, 1)), uniform)
    np.testing.assert_allclose(np.bincount(token) / 10_000, [0.625, 0.375], atol=1e-3)
    np.testing.assert_allclose(log_prob[0], np.log(0.625), atol=1e-6)
    np.testing.assert_allclose(raw, logits[token], atol=1e-6)
    # Temperature 1/2 squares the probabilities.
    token, *_ = choose(SamplingConfig(0.5, 1.0, C), jnp.tile(logits, (10_000, 1)), uniform)
    squared = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(np.bincount(token) / 10_000, squared / squared.sum(), atol=1e-3)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_what_sorting_finds(top_p):
    rng = np.random.default_rng(0)
    peaked, flat = (rng.dirichlet(np.full(1000, concentration), 20) for concentration in (0.01, 5))
    probs = np.concatenate([peaked, flat]).astype(np.float32)  # the flat ones need more tokens than a CPU sorts
    for row, kept in zip(probs, np.asarray(nucleus(jnp.asarray(probs), top_p)), strict=True):
        descending = np.sort(row)[::-1]
        smallest = descending[np.searchsorted(np.cumsum(descending), top_p)]
        np.testing.assert_array_equal(kept, row >= smallest)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.8, 0, 0.95), (1.3, 5, 1.0), (0.7, 20, 0.6), (1.0, 500, 1.0)]
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    logits = 3 * np.random.default_rng(0).normal(size=(4, 700)).astype(np.float32)  # three blocks
    warped = torch.from_numpy(logits)
    for warp in (
        TemperatureLogitsWarper(temperature),
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ):
        warped = warp(None, warped)
    expected = torch.log_softmax(warped, -1).numpy()
    uniform = jnp.tile((jnp.arange(2000, dtype=jnp.float32) + 0.5) / 2000, 4)
    sampling = SamplingConfig(temperature, top_p, C, top_k)
    token, log_prob, raw = choose(sampling, jnp.repeat(logits, 2000, axis=0), uniform)
    token, log_prob, raw = (np.asarray(a).reshape(4, 2000) for a in (token, log_prob, raw))
    for row in range(4):
        np.testing.assert_allclose(log_prob[row], expected[row, token[row]], atol=1e-5)
        counts = np.bincount(token[row], minlength=700) / 2000
        np.testing.assert_allclose(counts, np.exp(expected[row]), atol=1e-3)
    np.testing.assert_allclose(
        raw, torch.log_softmax(torch.from_numpy(logits), -1).numpy()[np.arange(4)[:, None], token], atol=1e-5
    )


def test_a_uniform_just_below_one_draws_a_possible_token():
    logits = jnp.log(jnp.array([[0.6, 0.4, 1e-30, 1e-38]]))
    token, log_prob, _ = choose(
        SamplingConfig(1.0, 0.9, C), logits, jnp.array([np.nextafter(np.float32(1), np.float32(0))])
    )
    assert int(token[0]) == 1
    assert np.isfinite(log_prob).all()


@pytest.mark.parametrize("possible", [[0], [255], [256], [700], [3, 255, 256, 600]])
def test_only_possible_tokens_are_drawn_in_whichever_block_they_are(possible):
    logits = np.full((9, 701), -np.inf, np.float32)
    logits[:, possible] = np.log(np.arange(1, len(possible) + 1))
    uniform = np.append(np.linspace(0, 1, 8, endpoint=False), np.nextafter(np.float32(1), np.float32(0)))
    token, log_prob, raw = choose(SamplingConfig(1.0, 1.0, C), jnp.asarray(logits), jnp.asarray(uniform, jnp.float32))
    steps = np.cumsum(np.arange(1, len(possible) + 1)) / sum(range(1, len(possible) + 1))
    np.testing.assert_array_equal(token, np.array(possible)[np.searchsorted(steps, uniform - 1e-7, side="right")])
    np.testing.assert_array_equal(log_prob, raw)
    assert np.isfinite(log_prob).all()


TEXTS = ["", "", "a", "\n", "d", "ef", "\nd", "de", "f x", "\n\n", "#"]


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        ([2, 3, 4, 5], 3),  # "a" "\n" "d" "ef": whole only with the last
        ([6, 5], 1),
        ([3, 3, 7, 8], 3),  # "\n" "\n" "de" "f x": the second line end begins it, and it ends inside a token
        ([3, 4, 4], None),
        ([9, 10], 1),  # "\n\n" "#"
        ([2, 10], None),
    ],
)
def test_stop_strings_are_met_however_tokens_cut_them(tokens, ends):
    table = stop_table(TEXTS, ["\ndef", "\n#"])
    states, state = [], 0
    for token in tokens:
        state = table[state, token]
        states.append(state == len(table) - 1)
    assert (states.index(True) if True in states else None) == ends
    text = "".join(TEXTS[t] for t in tokens)
    assert (truncate(text, ["\ndef", "\n#"]) != text) == (ends is not None)


def random_stops(rng):
    """Token texts and some sets of stop strings over few letters, so that these overlap and are met."""
    texts = ["", *("".join(rng.choice(list("ab\n"), rng.integers(1, 4))) for _ in range(rng.integers(3, 9)))]
    sets = [
        tuple("".join(rng.choice(list("ab\n"), rng.integers(1, 5))) for _ in range(rng.integers(0, 4)))
        for _ in range(rng.integers(1, 5))
    ]
    return texts, sets


def test_a_joined_table_of_one_set_is_its_own():
    rng = np.random.default_rng(0)
    for _ in range(30):
        texts, (stops, *_) = random_stops(rng)
        table, starts = joined_table(texts, [stops])
        np.testing.assert_array_equal(table, stop_table(texts, stops))
        np.testing.assert_array_equal(starts, [0])
        assert (table.dtype, starts.dtype) == (np.int32, np.int32)


def test_a_joined_table_walks_as_each_sets_own():
    """Whatever is drawn, from each set's start a stop is met when that set's own table meets one, and when the text
    has one of its strings."""
    rng, met_in_all = np.random.default_rng(1), 0
    for _ in range(100):
        texts, sets = random_stops(rng)
        table, starts = joined_table(texts, sets)
        assert len(starts) == len(sets)
        assert table.min() >= 0
        assert (table[-1] == len(table) - 1).all()  # met stays met
        for stops, start in zip(sets, starts, strict=True):
            own = stop_table(texts, stops)
            state, own_state, text = start, 0, ""
            for token in rng.integers(0, len(texts), 12):
                state, own_state, text = table[state, token], own[own_state, token], text + texts[token]
                met = state == len(table) - 1
                assert met == (own_state == len(own) - 1) == (truncate(text, stops) != text)
                if met:
                    met_in_all += 1
                    break
                assert state == start + own_state
    assert met_in_all > 50


def test_prompts_start_where_their_own_stop_strings_do():
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 280)
    asked = [("\ndef",), (), ("\ndef",), ("x", "\n")]
    table, starts = stops_of(tokenizer, asked)
    assert starts[0] == starts[2]
    assert len(set(starts.tolist())) == 3
    for stops, start in zip(asked, starts, strict=True):
        for text in ("a\ndef g", "x", "aaa", "a\n"):
            state = start
            for token in tokenizer.encode(text, add_special_tokens=False):
                state = table[state, token]
            assert (state == len(table) - 1) == any(stop in text for stop in stops), (stops, text)


def test_prompts_of_several_stop_sets_are_sampled_in_one_call_as_in_their_own(tiny, params):
    """Stops that are often met, for these tokens: half of the letters, the other half, none."""
    texts = [chr(33 + i) for i in range(97)]
    sets = [tuple(texts[2:50]), tuple(texts[50:]), ()]
    table, starts = joined_table(texts, sets)
    rng = np.random.default_rng(0)
    prompts, mask = jnp.asarray(rng.integers(2, 97, (6, P), np.int32)), jnp.ones((6, P), bool)
    keys = sample_keys(jax.random.key(0), jnp.arange(6, dtype=jnp.uint32), 3)

    @jax.jit
    def draw(table, starts):
        return sample(tiny, SamplingConfig(1.0, 1.0, C), params, prompts, mask, keys, table, EOS, PAD, starts)

    together = jax.device_get(draw(table, np.tile(starts, 2)))
    for i, stops in enumerate(sets):
        own = jax.device_get(draw(stop_table(texts, stops), np.zeros(6, np.int32)))
        rows = np.flatnonzero(np.repeat(np.arange(6) % 3 == i, 3))
        jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a[rows], b[rows]), together, own)
    lengths = together.mask.sum(1).reshape(2, 3, 3)
    assert (lengths[:, :2] < C).any(axis=(0, 2)).all()
    assert (lengths[:, 2] == C).any()


def test_sampling_stops_at_a_stop_string(tiny, params):
    free, *_ = draw(tiny, params, range(8))
    texts = [chr(33 + i) for i in range(97)]
    word = texts[free.tokens[0, 2]] + texts[free.tokens[0, 3]]
    out, *_ = draw(tiny, params, range(8), stops=stop_table(texts, [word]))
    assert out.mask[0].sum() == 4
    assert out.finished[0]
    np.testing.assert_array_equal(out.tokens[0, :4], free.tokens[0, :4])


def test_no_stop_string_never_stops():
    assert (stop_table(TEXTS, [])[0] == 0).all()
    with pytest.raises(ValueError, match="empty string"):
        stop_table(TEXTS, [""])


def test_keys_are_each_samples_own():
    keys = jax.random.key_data(sample_keys(jax.random.key(0), jnp.arange(5, dtype=jnp.uint32), 3))
    assert len({tuple(k) for k in np.asarray(keys)}) == 15


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_completion_length": 0}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(SamplingConfig(1.0, 1.0, 8), **bad)
