"""The engine: each prompt read once, slots refilled, and still every sample a function of its own key."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.candidates.engine import EngineConfig, Prompt, make_engine, read_size
from rerankjax.candidates.generate import generate
from rerankjax.candidates.sampling import SamplingConfig, make_sampler
from rerankjax.candidates.stop import joined_table, stop_table, truncate
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.problems.problem import Problem
from rerankjax.prompts.tokenizer import train_tokenizer

MESH = make_mesh(devices=jax.devices()[:2])

EOS, PAD, C = 1, 0, 8
NO_STOPS = stop_table([""] * 97, ())


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [Prompt(rng.integers(2, 97, rng.integers(1, 41)).tolist(), 100 + i) for i in range(9)]


@pytest.fixture
def params(tiny):
    # Far from uniform, so that a wrong distribution shows.
    return jax.tree.map(lambda a: a * 2, init_decoder(tiny, jax.random.key(0)))


def engine(tiny, *, rows=2, slots=2, chunk=3, reads=EngineConfig.reads, temperature=1.0, top_p=0.9, mesh=None):
    sampling, shape = SamplingConfig(temperature, top_p, C), EngineConfig(rows, slots, 40, chunk, reads)
    return make_engine(tiny, sampling, shape, EOS, PAD, mesh or MESH)


def drawn(engine, params, prompts, *, samples=5, stops=NO_STOPS, key=7):
    out = list(engine.stream(params, prompts, samples=samples, key=jax.random.key(key), stops=stops))
    assert sorted((s.prompt, s.sample) for s in out) == [(p, n) for p in range(len(prompts)) for n in range(samples)]
    return {(s.prompt, s.sample): s for s in out}


def test_equals_the_sampler_of_whole_batches(tiny, params, prompts):
    """Two ways through the model: a cache repeated for each sample, and a prefix that samples share."""
    tokens, mask = np.full((len(prompts) + 1, 40), PAD, np.int32), np.zeros((len(prompts) + 1, 40), bool)
    for i, prompt in enumerate([*prompts, prompts[0]]):
        tokens[i, 40 - len(prompt.tokens) :], mask[i, 40 - len(prompt.tokens) :] = prompt.tokens, True
    sampler = make_sampler(tiny, SamplingConfig(1.0, 0.9, C), 5, EOS, PAD, MESH)
    numbers = np.array([p.number for p in [*prompts, prompts[0]]], np.uint32)
    expected = jax.device_get(sampler(params, tokens, mask, jax.random.key(7), numbers, NO_STOPS))
    for (prompt, sample), got in drawn(engine(tiny), params, prompts).items():
        row = prompt * 5 + sample
        length = expected.mask[row].sum()
        np.testing.assert_array_equal(got.tokens, expected.tokens[row, :length])
        np.testing.assert_allclose(got.log_probs, expected.log_probs[row, :length], atol=2e-5)
        np.testing.assert_allclose(got.raw_log_probs, expected.raw_log_probs[row, :length], atol=2e-5)
        assert got.finished == expected.finished[row]


def test_a_sample_depends_on_its_key_alone(tiny, params, prompts):
    together = drawn(engine(tiny), params, prompts)
    other_shape = drawn(engine(tiny, rows=4, slots=3, chunk=1), params, prompts[::-1], samples=6)
    for (prompt, sample), got in together.items():
        np.testing.assert_array_equal(got.tokens, other_shape[len(prompts) - 1 - prompt, sample].tokens)
    alone = make_mesh(devices=jax.devices()[:1])
    one_device = drawn(engine(tiny, rows=3, mesh=alone), params, prompts)
    for at, got in together.items():
        np.testing.assert_array_equal(got.tokens, one_device[at].tokens)
    other_key = drawn(engine(tiny), params, prompts, key=8)
    assert any(len(a.tokens) != len(b.tokens) or (a.tokens != b.tokens).any()
               for a, b in zip(together.values(), (other_key[k] for k in together), strict=True))  # fmt: skip


def test_samples_end_where_they_should(tiny, params, prompts):
    out = drawn(engine(tiny), params, prompts, samples=8).values()
    assert any(s.finished for s in out)
    for s in out:
        ends = s.tokens == EOS
        assert not ends[:-1].any()
        assert s.finished == ends[-1]
        assert s.finished or len(s.tokens) == C
    texts = [chr(33 + i) for i in range(97)]
    free = drawn(engine(tiny), params, prompts)
    long = next(k for k, s in free.items() if len(s.tokens) > 4)
    word = texts[free[long].tokens[2]] + texts[free[long].tokens[3]]
    stopped = drawn(engine(tiny), params, prompts, stops=stop_table(texts, [word]))[long]
    np.testing.assert_array_equal(stopped.tokens, free[long].tokens[:4])
    assert stopped.finished


def test_prompts_of_several_stop_sets_share_a_stream(tiny, params, prompts):
    """Each ends by its own stops, wherever its slot was before."""
    texts = [chr(33 + i) for i in range(97)]
    sets = [tuple(texts[2:50]), (), tuple(texts[50:])]
    table, starts = joined_table(texts, sets)
    mixed = [prompt._replace(start=int(starts[i % 3])) for i, prompt in enumerate(prompts)]
    used = engine(tiny)
    together = drawn(used, params, mixed, stops=table)
    for i, stops in enumerate(sets):
        own = drawn(used, params, prompts, stops=stop_table(texts, stops))
        for at, sample in own.items():
            if at[0] % 3 == i:
                np.testing.assert_array_equal(together[at].tokens, sample.tokens)
                assert together[at].finished == sample.finished
    by_set = [[s for (prompt, _), s in together.items() if prompt % 3 == i] for i in range(3)]
    assert all(any(s.finished and len(s.tokens) < C and s.tokens[-1] != EOS for s in by_set[i]) for i in (0, 2))
    assert any(len(s.tokens) == C for s in by_set[1])


def test_problems_of_several_stop_sets_and_lengths_are_candidates_as_they_are_alone(tiny, monkeypatch):
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 300)
    config = dataclasses.replace(tiny, vocab_size=len(tokenizer))
    params = init_decoder(config, jax.random.key(0))
    stops = [tuple("abcdefghijklmnopqrstuvwxyz"), (), tuple("0123456789"), ("never met",)]
    problems = [Problem(f"p{i}", "py", "def f(x):\n" * (1 + i**3), "", of) for i, of in enumerate(stops)]

    def candidates(asked):
        settings = {"key": jax.random.key(3), "samples": 4, "prompt_length": 300, "mesh": MESH}
        settings |= {"prompts_in_flight": 2, "slots": 3}
        settings["used"] = lambda waited, real: fractions.append(real)
        found = generate(config, SamplingConfig(1.0, 1.0, 16), params, asked, tokenizer, **settings)
        return {(c.problem, c.sample): dataclasses.replace(c, log_probability=0.0) for c in found}

    fractions = []
    together = candidates(problems)
    lengths = [len(ids) for ids in tokenizer([p.prompt for p in problems])["input_ids"]]
    monkeypatch.setattr("rerankjax.candidates.generate.SHORTEST_PROMPTS", min(lengths))
    assert max(lengths) > 8 * min(lengths)
    assert candidates(problems) == together  # by engines of several lengths
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert together == {at: c for problem in problems for at, c in candidates([problem]).items()}
    for (name, _), c in together.items():
        of = stops[int(name[1:])]
        assert truncate(c.completion, of) == c.completion
    assert any(c.finished and c.length < 16 for (name, _), c in together.items() if name == "p0")


def test_prompts_wait_until_every_device_can_read_one(tiny, params, prompts, monkeypatch):
    even, seen = engine(tiny, rows=4, slots=1, chunk=1), []  # that no other test has
    read = even.read

    def counted(*arguments):
        seen.append(int((np.asarray(arguments[4]) < 4).sum()))
        return read(*arguments)

    monkeypatch.setattr(even, "read", counted)
    same_length = [Prompt(prompt.tokens[:20], prompt.number) for prompt in prompts[:7]]
    got, expected = drawn(even, params, same_length, samples=1), drawn(engine(tiny), params, same_length, samples=1)
    assert sum(seen) == 7
    assert all(rows % 2 == 0 for rows in seen[:-1])
    for one, sample in got.items():
        np.testing.assert_array_equal(sample.tokens, expected[one].tokens)


# 3 problems, 4 samples each; on a CPU, with at least 4 samples in flight.
@pytest.mark.parametrize(("slots", "rows", "fewest"), [(4, 4, 32), (2, 8, 32), (1, 8, 32), (1, 4, 4), (4, 2, 4)])
def test_an_engine_has_no_more_rows_than_its_prompts_use(tiny, monkeypatch, slots, rows, fewest):
    monkeypatch.setattr("rerankjax.candidates.generate.FEWEST", fewest)
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 300)
    config, made = dataclasses.replace(tiny, vocab_size=len(tokenizer)), []
    monkeypatch.setattr(
        "rerankjax.candidates.generate.make_engine", lambda *args: (made.append(args[2]), make_engine(*args))[1]
    )
    problems = [Problem(f"p{i}", "py", "def f(x):\n", "", ()) for i in range(3)]
    settings = {"key": jax.random.key(3), "samples": 4, "prompt_length": 40, "mesh": MESH}
    settings |= {"prompts_in_flight": 8, "slots": slots}
    params = init_decoder(config, jax.random.key(0))
    found = list(generate(config, SamplingConfig(1.0, 1.0, 4), params, problems, tokenizer, **settings))
    assert ([shape.rows for shape in made], len(found)) == ([rows], 12)


def test_slots_are_refilled_and_nothing_compiles_anew(tiny, params, prompts):
    used = engine(tiny, chunk=2)  # that no other test has
    taken = []

    def endless():
        for i in range(10_000):
            taken.append(i)
            yield Prompt(prompts[i % len(prompts)].tokens, i)

    stream = used.stream(params, endless(), samples=3, key=jax.random.key(0), stops=NO_STOPS)
    for _ in range(60):
        next(stream)
    compiled = used.compilations
    for _ in range(60):
        next(stream)
    assert used.compilations == compiled <= 1 + 2  # the chunk; two prompts of two lengths
    assert len(taken) <= 120 // 3 + 2 + 1  # prompts are taken as rows become free


def test_prompts_are_read_so_many_at_once(tiny, params, prompts, monkeypatch):
    few, seen = engine(tiny, rows=8, reads=4), []
    read = few.read
    monkeypatch.setattr(few, "read", lambda *arguments: (seen.append(arguments[2].shape), read(*arguments))[1])
    got, expected = drawn(few, params, prompts), drawn(engine(tiny, rows=8), params, prompts)
    assert {rows for rows, _ in seen} == {2, 4}
    for one, sample in got.items():
        np.testing.assert_array_equal(sample.tokens, expected[one].tokens)


@pytest.mark.parametrize(
    ("prompts", "shards", "expected"),
    [(1, 1, [1]), (3, 1, [2, 1]), (7, 1, [8]), (12, 1, [8, 4]), (13, 1, [16]), (11, 1, [8, 2, 1]), (5, 4, [4, 4])],
)
def test_prompts_are_read_with_few_empty_rows(prompts, shards, expected):
    sizes = []
    while prompts > 0:
        sizes.append(read_size(prompts, shards))
        prompts -= sizes[-1]
    assert sizes == expected


def test_no_more_prompts_are_read_at_once_than_asked(tiny, params, prompts, monkeypatch):
    few, seen = engine(tiny, rows=8, reads=7), []
    read = few.read

    def counted(*arguments):
        seen.append((arguments[2].shape[0], int((np.asarray(arguments[4]) < 8).sum())))
        return read(*arguments)

    monkeypatch.setattr(few, "read", counted)
    same_length = [Prompt(prompt.tokens[:20], prompt.number) for prompt in prompts[:8]]
    drawn(few, params, same_length)
    assert seen == [(8, 7), (2, 1)]


def test_rows_without_a_prompt_take_samples_from_others(tiny, params, prompts, monkeypatch):
    wide, begun = engine(tiny, rows=4, slots=1, chunk=2), []
    draw = wide.draw
    monkeypatch.setattr(wide, "draw", lambda *arguments: (begun.append(int(arguments[4].sum())), draw(*arguments))[1])
    got, expected = drawn(wide, params, prompts[:1], samples=8), drawn(engine(tiny), params, prompts[:1], samples=8)
    assert begun[0] == 4
    for one, sample in got.items():
        np.testing.assert_array_equal(sample.tokens, expected[one].tokens)


def test_the_last_samples_are_drawn_in_fewer_rows(tiny, params, prompts, monkeypatch):
    monkeypatch.setattr("rerankjax.candidates.engine.FEWEST", 4)
    used, seen = engine(tiny, rows=8, chunk=1), []  # that no other test has
    draw = used.draw
    monkeypatch.setattr(used, "draw", lambda *arguments: (seen.append(len(arguments[2].done)), draw(*arguments))[1])
    for _ in range(2):  # from all rows again
        got = drawn(used, params, prompts)
        for at, sample in drawn(engine(tiny), params, prompts).items():
            np.testing.assert_array_equal(got[at].tokens, sample.tokens)
            np.testing.assert_allclose(got[at].log_probs, sample.log_probs, atol=2e-5)
    assert {16, 4} <= set(seen) <= {16, 8, 4}
    half = len(seen) // 2
    assert seen[:half] == seen[half:] == sorted(seen[:half], reverse=True)


def test_the_order_of_caches_on_a_tpu_changes_nothing(tiny, params, prompts, monkeypatch):
    expected = drawn(engine(tiny), params, prompts)
    monkeypatch.setattr("rerankjax.candidates.engine._turns_caches", lambda mesh: True)
    turned = engine(tiny, chunk=4)  # that no other test has
    assert turned._empty(jnp.float32).caches[0].keys.shape == (C, 2, 4, 8)
    for one, sample in drawn(turned, params, prompts).items():
        np.testing.assert_array_equal(sample.tokens, expected[one].tokens)
        np.testing.assert_allclose(sample.log_probs, expected[one].log_probs, atol=1e-6)


def test_greedy_takes_the_same_for_every_key(tiny, params, prompts):
    out = drawn(engine(tiny, temperature=0.0), params, prompts, samples=2)
    for prompt in range(len(prompts)):
        np.testing.assert_array_equal(out[prompt, 0].tokens, out[prompt, 1].tokens)
        assert (out[prompt, 0].log_probs == 0).all()


def test_bad_input_is_refused(tiny, params):
    for tokens in ([], [2] * 41):
        with pytest.raises(ValueError, match=rf"prompt 0: has {len(tokens)} tokens; it must have 1 to .* 40"):
            drawn(engine(tiny), params, [Prompt(tokens, 0)])
    with pytest.raises(ValueError, match="rows = 3 is not divisible by the 2 devices"):
        engine(tiny, rows=3)
    with pytest.raises(ValueError, match="chunk is 0"):
        EngineConfig(2, 2, 40, 0)
