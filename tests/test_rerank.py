"""Reranker: the scores of plain rows, whatever is shared, batched, repeated or reordered; and those of transformers."""

import dataclasses
import itertools
import os
import socket

import jax
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification

from rerankjax.model.decoder import init_decoder
from rerankjax.model.likelihood import SequenceBatch, completion_log_probs
from rerankjax.model.weights import save_reranker
from rerankjax.pairs.data import TextPair
from rerankjax.pairs.labelled import Message
from rerankjax.prompts.rows import pad_rows
from rerankjax.prompts.tokenizer import encode_completions, load_tokenizer, train_tokenizer
from rerankjax.reranker import rerank
from rerankjax.reranker.bradley_terry import POOLINGS, init_reranker, score_rows
from rerankjax.reranker.encoding import encode_pairs
from rerankjax.reranker.rerank import LOG_PROBABILITY, PromptLengthError, Reranker

CONTEXT = 64
CHAT = (
    "system: be brief<|eos|>{% for m in messages %}{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["def f(x):\n    return x + 1\n", "def g(xs):\n\n\n    return sum(xs)\n", "assistant: return x\n"]
    return train_tokenizer(texts * 3, 400)


@pytest.fixture(params=POOLINGS)
def reranker(request, tiny, tokenizer):
    config = dataclasses.replace(tiny, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    params = init_reranker(init_decoder(config, jax.random.key(0)), jax.random.key(1))
    return Reranker(config, params, tokenizer, request.param)


def problems(seed=0, count=5):
    """Problems with 0 to 24 candidates, some twice, of 0 to 30 characters behind prompts of 1 to 20."""
    draws = np.random.default_rng(seed)
    letters = list("abcdef \n(x+1)")

    def text(least, most):
        return "".join(draws.choice(letters, draws.integers(least, most)))

    found = []
    for i in range(count):
        distinct = [text(0, 31) for _ in range(min(i, 3) + draws.integers(0, 20) * (i % 3 == 0))]
        found.append((text(1, 21), [str(c) for c in draws.permutation(distinct + distinct[: i % 4])]))
    return found


def plain_scores(reranker, given, prompt_length):
    """The scores of plain rows of every problem, padded to one length of prompts."""
    prompts, completions = zip(*((p, c) for p, candidates in given for c in candidates), strict=True)
    ids = [row[: CONTEXT - prompt_length] for row in encode_completions(reranker.tokenizer, completions)]
    encoded = reranker.tokenizer(list(prompts))["input_ids"]
    rows = SequenceBatch(
        *pad_rows(encoded, ids, prompt_length, CONTEXT - prompt_length, reranker.tokenizer.pad_token_id)
    )
    return score_rows(reranker.config, reranker.pooling, reranker.params, jax.device_put(rows), prompt_length)


def test_scores_are_those_of_plain_rows(reranker, monkeypatch):
    # Several batches of a shape, the last not full; problems split over rows, and packed some at a time.
    for name, value in {"TOKENS": 512, "LONG_ROW": 64, "CUT": 16, "PACKED": 9}.items():
        monkeypatch.setattr(rerank, name, value)
    given = problems()
    # The context holds 64 tokens: of these, 4 of the prompt and 60 behind it.
    beyond = ("1111", ["x" * 100, "x" * 101, "(" + "x" * 100, ""])
    done = []
    *scores, cut = reranker.score_all([*given, beyond], done.append)
    np.testing.assert_allclose(np.concatenate(scores), plain_scores(reranker, given, 20), atol=1e-5)
    np.testing.assert_allclose(cut, plain_scores(reranker, [beyond], 4), atol=1e-5)
    assert cut[0] == cut[1] != cut[2]
    assert [len(s) for s in scores] == [len(candidates) for _, candidates in given]
    assert {s.dtype for s in scores} == {np.dtype(np.float32)}
    assert sum(done) == 4 + sum(len(set(candidates)) for _, candidates in given)
    assert sum(done) < 4 + sum(len(candidates) for _, candidates in given)
    assert len(done) > 3


def test_a_language_model_scores_by_its_log_probability(reranker):
    config, decoder, tokenizer = reranker.config, reranker.params["decoder"], reranker.tokenizer
    given = problems(2)
    scores = Reranker(config, {"decoder": decoder}, tokenizer, LOG_PROBABILITY).score_all(given)
    prompts, completions = zip(*((p, c) for p, candidates in given for c in candidates), strict=True)
    ids = encode_completions(tokenizer, completions)
    encoded = tokenizer(list(prompts))["input_ids"]
    rows = jax.device_put(SequenceBatch(*pad_rows(encoded, ids, 20, CONTEXT - 20, tokenizer.pad_token_id)))
    by_token, _ = completion_log_probs(config, decoder, rows, 20)
    np.testing.assert_allclose(np.concatenate(scores), by_token.sum(1), rtol=1e-5, atol=1e-4)


def test_order_and_company_do_not_matter(reranker):
    given = problems(1)
    scores = reranker.score_all(given)
    draws = np.random.default_rng(0)
    order = draws.permutation(len(given))
    within = [draws.permutation(len(candidates)) for _, candidates in given]
    moved = reranker.score_all([(given[i][0], [given[i][1][j] for j in within[i]]) for i in order])
    for i, of_problem in zip(order, moved, strict=True):
        np.testing.assert_allclose(of_problem, scores[i][within[i]], atol=1e-5)
    np.testing.assert_allclose(reranker.score(*given[3]), scores[3], atol=1e-5)


def test_ranking_is_best_first_and_stable(reranker):
    prompt, candidates = problems()[3]
    candidates = [*candidates, *candidates]
    ranking = reranker.rank(prompt, candidates)
    scores = reranker.score(prompt, candidates)
    assert sorted(ranking) == list(range(len(candidates)))
    for before, after in itertools.pairwise(ranking):
        assert scores[before] > scores[after] or (scores[before] == scores[after] and before < after)
    assert len({scores[i] for i in ranking}) <= len(candidates) / 2  # there are equals


def test_nothing_to_score_is_no_error(reranker):
    assert reranker.score("a", []).shape == (0,)
    assert reranker.rank("a", []) == []
    assert reranker.score_all([]) == []


@pytest.mark.parametrize("prompt", ["", "x" * CONTEXT, "x" * 200])
def test_a_prompt_that_leaves_no_room_is_named(reranker, prompt):
    assert len(reranker.score_all([("x" * (CONTEXT - 1), ["y"])])[0]) == 1
    with pytest.raises(
        PromptLengthError, match=f"problem 1: the prompt has {len(prompt)} tokens, but .* 1 to 63"
    ) as error:
        reranker.score_all([("a", ["b"]), (prompt, [])])
    assert error.value.problem == 1


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    """A reward model and its tokenizer with a chat template, saved by transformers."""
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    ours = tokenizer.chat_template
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = ours
    return folder


def their_scores(folder, rows):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


TEXTS = ["return x\n", "\n\nreturn sum(xs)", "", "    return x + 1", "x" * 60]


def test_a_folder_is_scored_as_transformers_does(theirs):
    tokenizer = load_tokenizer(theirs)
    reranker = Reranker.from_pretrained(theirs)
    assert reranker.pooling == "last"
    given = [("def f(x):\n", TEXTS), ("def g(xs):", TEXTS[:3])]
    merged = 0
    for (prompt, candidates), scores in zip(given, reranker.score_all(given), strict=True):
        rows = [tokenizer.encode(f"{prompt}{c}{tokenizer.eos_token}") for c in candidates]
        apart = [[*tokenizer.encode(prompt), *tokenizer.encode(c), tokenizer.eos_token_id] for c in candidates]
        merged += sum(a != b for a, b in zip(rows, apart, strict=True))
        np.testing.assert_allclose(scores, their_scores(theirs, rows), atol=1e-5)
    assert merged  # the tokenizer joins a prompt's end and a candidate's beginning


def test_special_tokens_that_a_tokenizer_adds_are_scored(theirs, reranker):
    """As of Llama, whose tokenizer puts one before each text: other tools score it, so it is scored here."""
    tokenizer = load_tokenizer(theirs)
    eos = tokenizer.eos_token
    before = TemplateProcessing(f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = before
    change = dataclasses.replace
    whole = change(reranker, tokenizer=tokenizer, whole=True).score("def f(x):", TEXTS[:1])
    plain = change(reranker, whole=True).score(f"{eos}def f(x):", TEXTS[:1])
    np.testing.assert_array_equal(whole, plain)


def test_a_prompt_of_several_messages_is_scored_as_transformers_does(theirs):
    tokenizer = load_tokenizer(theirs)
    turns = Message("user", "f"), Message("assistant", "x"), Message("user", "again")
    chats = [[m._asdict() for m in (*turns, Message("assistant", c))] for c in TEXTS]
    rows = [tokenizer.encode(tokenizer.apply_chat_template(c, tokenize=False)) for c in chats]
    scores = Reranker.from_pretrained(theirs, chat=True).score(turns, TEXTS)
    np.testing.assert_allclose(scores, their_scores(theirs, rows), atol=1e-5)
    with pytest.raises(ValueError, match="the prompt is a conversation: score with chat"):
        Reranker.from_pretrained(theirs).score(turns, TEXTS)


def test_pairs_are_encoded_as_they_are_scored(tokenizer):
    pairs = [TextPair("def f(x):\n", "\n\nreturn", "return x"), TextPair("def f(x):\n", "x" * 60, "return x")]
    ((prompt, rows),) = encode_pairs(tokenizer, pairs, chat=False, max_length=40)  # the other one is longer
    for text, row in zip(("\n\nreturn", "return x"), rows, strict=True):
        assert [*prompt, *row] == tokenizer.encode(f"def f(x):\n{text}{tokenizer.eos_token}")
    assert prompt == tokenizer.encode("def f(x):\n")[: len(prompt)]
    assert encode_pairs(tokenizer, pairs, chat=False, max_length=4) == []


def test_a_conversation_is_scored_as_transformers_does(theirs):
    tokenizer = load_tokenizer(theirs)
    reranker = Reranker.from_pretrained(str(theirs), chat=True)
    prompt = "write f\n"
    chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": c}] for c in TEXTS]
    rows = [tokenizer.encode(tokenizer.apply_chat_template(c, tokenize=False)) for c in chats]
    opening = tokenizer.encode(tokenizer.apply_chat_template(chats[0][:1], tokenize=False, add_generation_prompt=True))
    # The beginnings of two are merged with the prompt's end, so that these do not stand behind all of its tokens.
    assert [row[: len(opening)] == opening for row in rows] == [False, True, True, False, True]
    np.testing.assert_allclose(reranker.score(prompt, TEXTS), their_scores(theirs, rows), atol=1e-5)
    assert not np.allclose(reranker.score(prompt, TEXTS), Reranker.from_pretrained(theirs).score(prompt, TEXTS))


def test_a_candidate_of_a_conversation_does_not_depend_on_its_company(theirs, reranker, tokenizer):
    tokenizer = load_tokenizer(theirs)
    config = dataclasses.replace(reranker.config, max_position_embeddings=256)
    chatting = dataclasses.replace(reranker, tokenizer=tokenizer, chat=True, config=config)
    together = chatting.score("write f\n", TEXTS)
    alone = [chatting.score("write f\n", [text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_a_tokenizer_lacks_is_named(theirs, reranker):
    tokenizer = load_tokenizer(theirs)
    change = dataclasses.replace
    with pytest.raises(ValueError, match="no chat template: score without chat"):
        change(reranker, chat=True)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}<{% endif %}"
    )
    with pytest.raises(ValueError, match=r"continues with '<' without an answer, and with '\[b\]' before"):
        change(reranker, chat=True, tokenizer=tokenizer).score("a", ["b"])
    tokenizer.pad_token = None
    np.testing.assert_array_equal(change(reranker, tokenizer=tokenizer).score("a", TEXTS), reranker.score("a", TEXTS))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set its eos_token"):
        change(reranker, tokenizer=tokenizer)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_saved_reranker_scores_the_same(tmp_path, tokenizer, reranker, pooling):
    reranker = dataclasses.replace(reranker, pooling=pooling)
    pad = tokenizer.pad_token_id
    save_reranker(
        tmp_path / "it", reranker.config, reranker.params, pooling=pooling, pad_token_id=pad, tokenizer=tokenizer
    )
    again = dataclasses.replace(Reranker.from_pretrained(tmp_path / "it"), whole=False)
    assert again.pooling == pooling
    np.testing.assert_array_equal(again.score("def f(x):\n", TEXTS), reranker.score("def f(x):\n", TEXTS))
    (tmp_path / "it" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        Reranker.from_pretrained(tmp_path / "it")


def test_a_hub_id_is_read_from_the_cache(theirs, tmp_path, monkeypatch):
    """As the hub's client lays it out; nothing is asked of the network."""
    import huggingface_hub.constants as constants

    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    os.symlink(theirs, snapshot)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scores = Reranker.from_pretrained("owner/name").score("a", TEXTS)
    np.testing.assert_array_equal(scores, Reranker.from_pretrained(theirs).score("a", TEXTS))
