"""`train-reranker`: labelled data in, a folder that transformers scores the same with out, and nothing by half."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import test_gguf
import torch
from gguf import TokenType
from test_gguf_tokenizer import SPECIAL
from test_gguf_tokenizer import trained as trained_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerankjax.loop.config import ConfigError
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.padding import give_padding
from rerankjax.reranker.rerank import Reranker
from rerankjax.run.metrics import read_metrics
from rerankjax.run.recovery import Preempted, Recovery
from rerankjax.standalone import fit
from rerankjax.standalone.config import RerankerTrainingConfig, resolve
from rerankjax.standalone.train import read_splits, train_reranker

ROOT = Path(__file__).parents[1]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUICK = {
    "max_length": 64,
    "batch_size": 8,
    "optimizer": {"learning_rate": 3e-3, "steps": 16, "warmup_steps": 1, "microbatches": 1},
    "early_stopping": {"every": 4, "patience": 0},
    "checkpoints": {"steps": 6},
}
FULL = QUICK | {"lora": {"rank": 0}}


def samples(count=30):
    """Rows of executed samples: what is added is right, what is taken away is wrong."""
    rng = random.Random(0)
    for i in range(count):
        texts = [(f"    return x {sign} {rng.randrange(9)}\n", sign == "+") for sign in "+-+-"][: 3 + i % 2]
        yield {"prompt": f"def f{i}(x):\n", "candidates": [t for t, _ in texts], "passed": [p for _, p in texts]}


def conversations(count=30):
    for row in samples(count):
        turns = [{"role": "assistant", "content": text} for text in row["candidates"]]
        yield {"prompt": [{"role": "user", "content": row["prompt"]}], "chosen": turns[:1], "rejected": turns[1:2]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def base(folder, pad="<|pad|>", chat=""):
    tokenizer = train_tokenizer([row["prompt"] + row["candidates"][0] for row in samples()], 300)
    tokenizer.chat_template = chat or None
    tokenizer.pad_token = pad
    shape = ModelConfig(len(tokenizer), 32, 48, 2, 4, 2, 8, 128)
    weights.save(folder, shape, init_decoder(shape, jax.random.key(0)), tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on executed samples and on preferences, of all parameters."""
    place = tmp_path_factory.mktemp("trained")
    preferences = [{"prompt": f"def g{i}(x):\n", "chosen": "x + 1", "rejected": "x - 1"} for i in range(8)]
    data = [write(place / "a.jsonl", samples()), write(place / "b.jsonl", preferences)]
    config = {"base": base(place / "base"), "data": data, **FULL}
    return config, train_reranker(config, place / "run")


def torch_scores(folder, texts, **options):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt", **options)).logits[0, 0] for text in texts]
        together = model(**tokenizer(texts, return_tensors="pt", padding=True, **options)).logits[:, 0]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    return np.array(alone)


def test_it_learns_and_others_score_the_same(trained):
    _, folder = trained
    reranker = Reranker.from_pretrained(folder)
    prompt, candidates = "def new(x):\n", ["    return x + 7\n", "    return x - 7\n", "\n"]
    scores = reranker.score(prompt, candidates)
    assert scores[0] > scores[1] + 1
    texts = [f"{prompt}{c}{reranker.tokenizer.eos_token}" for c in candidates]
    np.testing.assert_allclose(torch_scores(folder, texts), scores, atol=1e-5)
    for roles in (("user", "assistant"), ("query", "document")):  # a tool that renders messages scores the same
        turns = [[{"role": r, "content": t} for r, t in zip(roles, (prompt, c), strict=True)] for c in candidates]
        assert [reranker.tokenizer.apply_chat_template(chat, tokenize=False) for chat in turns] == texts
    np.testing.assert_allclose(Reranker.from_pretrained(folder, chat=True).score(prompt, candidates), scores, atol=1e-5)


def test_the_export_says_what_transformers_4_must_know(trained):
    """It reads rope_theta alone, knows no TokenizersBackend, and by default gives models a third input."""
    _, folder = trained
    config, tokenizer = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "tokenizer_config"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


def test_its_card_and_results_are_of_problems_it_never_saw(trained):
    config, folder = trained
    results = json.loads((folder / "results.json").read_text())
    splits = read_splits(resolve(config, jax.device_count()))
    prompts = [{row.prompt for row in rows} for rows in splits]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 38
    assert results["problems"] + results["preferences"] == len(splits.test) == 4
    solved = {(row["rule"], row["n"]): row["value"] for row in results["solved"]}
    assert solved["reranker", 4] == 1.0 > solved["random", 4]
    measures = {row["measure"]: row["value"] for row in results["measures"]}
    assert measures["auc"] == measures["pairwise_accuracy"] == 1.0
    card = (folder / "README.md").read_text()
    for said in ("AUC", "pairwise accuracy", "n = 4", "| optimizer.steps | 16 |", "a.jsonl", "Bradley-Terry"):
        assert said in card
    metrics = read_metrics(folder.parent / "training")
    assert [row["step"] for row in metrics if "dev_accuracy" in row] == [4, 8, 12, 16]


def test_a_conversation_is_exported_with_its_template_and_a_padding_token(tmp_path):
    """An adapter on a model that pads with its end of text, and has no other special token."""
    config = {"data": [write(tmp_path / "c.jsonl", conversations())], **QUICK, "lora": {"rank": 4}}
    config["base"] = base(tmp_path / "base", pad="<|eos|>", chat=CHAT)
    tokens = json.loads((tmp_path / "base/tokenizer.json").read_text())
    assert "<|pad|>" in {token["content"] for token in tokens["added_tokens"]}
    folder = train_reranker(config, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == "<|pad|>" != tokenizer.eos_token
    chats = [[{"role": "user", "content": "f"}, {"role": "assistant", "content": c}] for c in ("x + 1", "x - 1 - 1")]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    scores = Reranker.from_pretrained(folder, chat=True).score("f", ["x + 1", "x - 1 - 1"])
    np.testing.assert_allclose(torch_scores(folder, texts, add_special_tokens=False), scores, atol=1e-5)
    assert "chat=True" in (folder / "README.md").read_text()
    # CrossEncoder of sentence-transformers renders a pair as turns of these roles.
    roles = {"user": "query", "assistant": "document"}
    pairs = [[turn | {"role": roles[turn["role"]]} for turn in chat] for chat in chats]
    assert [tokenizer.apply_chat_template(pair, tokenize=False) for pair in pairs] == texts


def test_a_reranker_is_trained_further(trained, tmp_path):
    config, folder = trained
    again = train_reranker(config | {"base": str(folder), "optimizer": FULL["optimizer"] | {"steps": 4}}, tmp_path)
    before, after = (Reranker.from_pretrained(f).score("def f(x):\n", ["x + 1", "x - 1"]) for f in (folder, again))
    assert before[0] > before[1]
    assert after[0] - after[1] != before[0] - before[1]
    with pytest.raises(ConfigError, match=r"config\.pooling = 'mean': the reranker in config\.base uses 'last'"):
        train_reranker(config | {"base": str(folder), "pooling": "mean"}, tmp_path / "mean")


@pytest.mark.long
def test_a_gguf_file_is_a_base(tmp_path, monkeypatch):
    """With the padding of SmolLM2's, its end of text, in whose place a free token is found."""
    words = json.loads(trained_tokenizer("smollm").to_str())["model"]
    vocab = sorted(words["vocab"], key=words["vocab"].get)
    types = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in vocab]
    fields = {"model": "gpt2", "pre": "smollm", "tokens": vocab, "token_type": types, "add_bos_token": False}
    fields |= {"merges": [" ".join(pair) for pair in words["merges"]], "eos_token_id": 2, "padding_token_id": 2}
    monkeypatch.setattr(test_gguf, "VOCAB", len(vocab))
    named = {f"tokenizer__ggml__{name}": value for name, value in fields.items()}
    named["tokenizer__chat_template"] = CHAT.replace("<|eos|>", "<|im_end|>")
    file = test_gguf.write_gguf(tmp_path / "base.gguf", test_gguf.make_model(), **named)
    data = [write(tmp_path / "c.jsonl", conversations())]
    folder = train_reranker({"base": str(file), "data": data, **QUICK, "lora": {"rank": 4}}, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == "<|endoftext|>"
    chat = [{"role": "user", "content": "f"}, {"role": "assistant", "content": "x + 1"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    scores = Reranker.from_pretrained(folder, chat=True).score("f", ["x + 1"])
    np.testing.assert_allclose(torch_scores(folder, [text], add_special_tokens=False), scores, atol=1e-5)


def test_a_cut_run_resumes_bit_for_bit(trained, tmp_path, monkeypatch):
    config, folder = trained
    after = Recovery.after

    def interrupted(self, step, snapshot):
        if step == 9:
            signal.raise_signal(signal.SIGTERM)
        after(self, step, snapshot)

    monkeypatch.setattr(Recovery, "after", interrupted)
    with pytest.raises(Preempted):
        train_reranker(config, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run/training").exists()
    again = train_reranker(config, tmp_path / "run")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert read_metrics(again.parent / "training") == read_metrics(folder.parent / "training")


def test_training_stops_where_dev_gets_no_better(trained, tmp_path, monkeypatch):
    """And keeps the best parameters, not the last."""
    config, _ = trained
    seen, accuracies = [], iter([0.5, 0.9, 0.6, 0.7, 0.8])
    stopping = {"early_stopping": {"every": 2, "patience": 2}}
    monkeypatch.setattr(fit, "pair_step", recording(fit.pair_step, seen))
    monkeypatch.setattr("rerankjax.standalone.train.dev_accuracy", lambda rows, scores: next(accuracies))
    saved = []
    monkeypatch.setattr("rerankjax.run.checkpoint.save", lambda path, tree: saved.append(jax.device_get(tree)))
    with pytest.raises(FileNotFoundError):  # nothing is saved, so that nothing can be restored
        train_reranker(config | stopping, tmp_path / "run")
    assert len(seen) == 8  # .5 .9 .6 .7: two in a row no better than .9
    jax.tree.map(np.testing.assert_array_equal, saved[0], seen[3])


def recording(pair_step, seen):
    """`pair_step`, whose update notes the parameters that it makes."""

    def of(*arguments):
        update, batch = pair_step(*arguments)

        def noting(*arguments):
            state, metrics = update(*arguments)
            seen.append(jax.device_get(state.params))
            return state, metrics

        return noting, batch

    return of


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": []}, "config.data = (): give it with --config.data=..."),
        ({"base": "./nowhere"}, "config.base = './nowhere' cannot be loaded: ./nowhere is not a folder"),
        ({"data": ["gone.jsonl"]}, "config.data: [Errno 2] No such file or directory: 'gone.jsonl'"),
        ({"format": "chat"}, "config.format = 'chat', with the tokenizer of config.base: the tokenizer has no chat"),
        ({"max_length": 999}, "config.max_length = 999: the model's context is 128 tokens; use at most"),
        ({"max_length": 3}, "config.max_length = 3: no dev row whose prompt fits has a right and a wrong answer"),
        ({"batch_size": 12}, "config.batch_size = 12: not a positive multiple of 8"),
        ({"optimizer": {"steps": "many"}}, "config.optimizer.steps = 'many' has type str: give a value of type int"),
        ({"optimiser": {}}, "config.optimiser is unknown"),
        ({"dev_fraction": 0.7}, "config.dev_fraction = 0.7: use more than 0 and less than .5"),
        ({"pooling": "first"}, 'config.pooling = "first" is unknown'),
        ({"mesh": {"tensor": 4}}, "config.mesh.tensor = 4 does not divide the model's num_key_value_heads = 2"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_any_work(trained, tmp_path, change, said):
    config, _ = trained
    with pytest.raises(ConfigError) as error:
        train_reranker(config | change, tmp_path / "run")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_broken_data_is_one_line_before_any_work(trained, tmp_path):
    config, _ = trained
    right = [row | {"passed": [True] * len(row["passed"])} for row in samples()]
    broken = {
        "config.data, train split: ": ({"data": [write(tmp_path / "right.jsonl", right)]}, "passing ones"),
        "config.data: ": ({"test": [write(tmp_path / "same.jsonl", samples())]}, "same.jsonl, row 1: field 'prompt'"),
        "config.dev: ": ({"dev": [write(tmp_path / "bad.jsonl", [{"prompt": "p"}])]}, "bad.jsonl, row 1: fields"),
        "config.format = 'text': ": (
            {"format": "text", "data": [write(tmp_path / "chat.jsonl", conversations())]},
            "field 'prompt' is a conversation; use 'chat'",
        ),
    }
    for start, (change, said) in broken.items():
        with pytest.raises(ConfigError) as error:
            train_reranker(config | change, tmp_path / "run")
        assert str(error.value).startswith(start)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_padding_token_is_one_that_nothing_needs():
    tokenizer = train_tokenizer(["a"], 260)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|endoftext|>", "<|other|>"]})
    for taken, template, expected in (
        ("<|eos|>", "", "<|pad|>"),
        ("<|eos|>", "<|pad|>", "<|endoftext|>"),
        ("<|pad|>", "<|pad|>", "<|pad|>"),  # what is there is kept
    ):
        tokenizer.pad_token, tokenizer.chat_template = taken, template
        give_padding(tokenizer)
        assert tokenizer.pad_token == expected


def test_a_table_grows_where_padding_lies_beyond_it(tmp_path):
    """A model with just as many rows as its tokenizer has tokens, none of them free."""
    place = Path(base(tmp_path / "base"))
    text = (place / "tokenizer.json").read_text()
    (place / "tokenizer.json").write_text(text.replace("<|pad|>", "<|other|>"))
    fields = json.loads((place / "tokenizer_config.json").read_text()) | {"pad_token": None, "eos_token": "<|eos|>"}
    (place / "tokenizer_config.json").write_text(json.dumps(fields))
    data = [write(tmp_path / "a.jsonl", samples())]
    folder = train_reranker({"base": str(place), "data": data, **FULL}, tmp_path / "run")
    reranker = Reranker.from_pretrained(folder)
    rows = weights.read_shape(place).vocab_size
    assert (reranker.tokenizer.pad_token_id, reranker.config.vocab_size) == (rows, rows + 1)
    texts = [f"def f(x):\n{c}<|eos|>" for c in ("x + 1", "x")]
    np.testing.assert_allclose(torch_scores(folder, texts), reranker.score("def f(x):\n", ["x + 1", "x"]), atol=1e-5)


def test_the_config_file_says_every_field():
    from configs.reranker import get_config

    for arg in ("lora", "full", "trial", "full,trial"):
        config = get_config(arg)
        assert set(config.keys()) == {field.name for field in dataclasses.fields(RerankerTrainingConfig)} - {"unroll"}
        config.update({"base": "somewhere", "data": ("data.jsonl",), "batch_size": 64})
        resolved = resolve(config, 8)
        assert bool(resolved.lora.rank) == ("full" not in arg)


def test_the_command_trains_and_says_how_to_rank(tmp_path):
    data = write(tmp_path / "a.jsonl", samples())
    command = [sys.executable, "-m", "rerankjax", "train-reranker", "--config=configs/reranker.py:full,trial"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.base={base(tmp_path / 'base')}", "--config.max_length=64"]
    quick = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": os.environ["RERANKJAX_TESTS_XLA_FLAGS"]}

    def run(*flags):
        options = {"cwd": ROOT, "env": os.environ | quick, "capture_output": True, "text": True, "check": False}
        return subprocess.run([*command, *flags], **options)

    done = run(f"--config.data={data}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"rerankjax rerank --model {tmp_path}/run/export" in done.stdout
    assert "Problems solved" in done.stdout
    assert (tmp_path / "run/export/model.safetensors").is_file()
    broken = run(f"--config.data={write(tmp_path / 'b.jsonl', [{'prompt': 1}])}")
    assert broken.stderr.startswith("rerankjax train-reranker: config.data: ")
    assert "Traceback" not in broken.stderr
