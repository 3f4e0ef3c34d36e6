"""The command `rerankjax`: every kind of input to the scores of `Reranker`, and bad input named before any work."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rerankjax.cli import main
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.weights import save_reranker
from rerankjax.pairs.data import DataSource, make_pairs, read_data
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.reranker.rerank import Reranker
from rerankjax.reranker.samples import read_samples
from rerankjax.run.allocation import keep_freed_memory

GIVEN = [
    ("first", "def f(x):\n", ["    return x\n", "    return 1\n", "    return x\n", "    pass\n"]),
    ("second", "def g(x):\n", []),
    ("third", "def h(x, y):\n", ["    return x + y\n", "    return y\n"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"], 300)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if "
    tokenizer.chat_template += "add_generation_prompt %}<assistant>{% endif %}"
    config = ModelConfig(300, 32, 48, 2, 4, 2, 8, 64)
    params = init_reranker(init_decoder(config, jax.random.key(0)), jax.random.key(1))
    folder = tmp_path_factory.mktemp("model") / "it"
    save_reranker(folder, config, params, pooling="mean", pad_token_id=tokenizer.pad_token_id, tokenizer=tokenizer)
    return folder


def as_rows(field="candidates"):
    return "".join(json.dumps({"name": n, "prompt": p, field: c, "other": 1}) + "\n" for n, p, c in GIVEN)


def as_file(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder / name


def inputs(folder):
    """The same problems as JSONL, as compressed JSONL with MultiPL-E's name, and as a directory of its files."""
    for i, row in enumerate(as_rows("completions").splitlines()):
        as_file(folder / "directory", f"{i}.json" + ".gz" * (i % 2), row)
    as_file(folder / "directory", "0.results.json.gz", "{}")
    yield as_file(folder, "rows.jsonl", as_rows().replace("\n", "\n\n"))
    yield as_file(folder, "rows.jsonl.gz", as_rows("completions"))
    yield folder / "directory"


def test_every_input_is_ranked_as_reranker_does(model, tmp_path, capsys):
    reranker = Reranker.from_pretrained(model)
    expected = [reranker.score(prompt, candidates) for _, prompt, candidates in GIVEN]
    outputs = []
    for path in inputs(tmp_path):
        assert main(["rerank", "--model", str(model), "--problems", str(path)]) == 0
        out, err = capsys.readouterr()
        outputs.append(out)
        assert "5/5 candidates" in err  # each distinct one once
    assert len(set(outputs)) == 1
    rows = [json.loads(line) for line in outputs[0].splitlines()]
    for (name, prompt, candidates), scores, row in zip(GIVEN, expected, rows, strict=True):
        assert list(row) == ["name", "scores", "ranking", "best"]
        assert row["name"] == name
        np.testing.assert_allclose(row["scores"], scores, atol=1e-5)
        assert row["ranking"] == reranker.rank(prompt, candidates)
        assert row["best"] == (candidates[row["ranking"][0]] if candidates else None)


def test_output_is_whole_or_as_it_was(model, tmp_path, capsys):
    rows, output = as_file(tmp_path, "rows.jsonl", as_rows()), tmp_path / "ranked.jsonl"
    command = ["rerank", "--model", str(model), "--output", str(output), "--problems"]
    assert main([*command, str(rows)]) == 0
    assert capsys.readouterr().out == ""
    written = output.read_text()
    assert [json.loads(line)["name"] for line in written.splitlines()] == ["first", "second", "third"]
    long = as_file(tmp_path, "long.jsonl", '\n{"prompt": "' + "1" * 64 + '", "candidates": ["x"]}\n')
    assert main([*command, str(long)]) == 2
    assert f"{long}, row 2: field 'prompt': the prompt has 64 tokens" in capsys.readouterr().err
    assert output.read_text() == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.jsonl", "ranked.jsonl", "rows.jsonl"]


def test_options_reach_the_reranker(model, tmp_path, capsys):
    rows = as_file(tmp_path, "rows.jsonl", as_rows())
    _, prompt, candidates = GIVEN[0]
    for flags, options in ((["--chat"], {"chat": True}), (["--dtype", "bfloat16"], {"dtype": "bfloat16"})):
        assert main(["rerank", "--model", str(model), "--problems", str(rows), *flags]) == 0
        scores = json.loads(capsys.readouterr().out.splitlines()[0])["scores"]
        expected = Reranker.from_pretrained(model, **options).score(prompt, candidates)
        np.testing.assert_allclose(scores, expected, atol=1e-2 if "dtype" in options else 1e-5)
        assert not np.array_equal(scores, Reranker.from_pretrained(model).score(prompt, candidates))


def test_names_are_those_of_rows_or_say_where_they_stand(tmp_path):
    row = '{"prompt": "a", "candidates": []}'
    assert [s.name for s in read_samples(as_file(tmp_path, "a.jsonl", f"{row}\n\n{row}"))] == ["a.jsonl:1", "a.jsonl:3"]
    assert [s.name for s in read_samples(as_file(tmp_path, "b.json.gz", row))] == ["b.json.gz"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "a", "candidates": []}\n{"prompt": "b"}', ["row 2", "'candidates' and 'completions'"]),
        ("a.jsonl", '{"prompt": "a", "candidates": [], "completions": []}', ["row 1", "one of the fields"]),
        ("a.jsonl", '{"prompt": "a", "candidates": ["x", 1]}', ["row 1", "'candidates'", "number 2 is 1", "correct"]),
        ("a.json", '{"prompt": "a", "completions": "x"}', ["a.json:", "'completions' must be list"]),
        ("a.jsonl.gz", '{"candidates": ["x"]}', ["row 1", "'prompt' is missing"]),
        ("a.jsonl", '{"prompt": "", "candidates": ["x"]}', ["row 1", "'prompt' is empty"]),
        ("a.jsonl", '{"prompt": "a", "candidates": ["x"], "name": 7}', ["row 1", "'name' must be str"]),
        ("a.jsonl", '{"prompt": "a", "cand', ["row 1", "not JSON", "cut off"]),
        ("a.jsonl", "[]", ["row 1", "expected a JSON object"]),
        ("a.jsonl", "\n", ["has no row"]),
        ("a.txt", "", ["must end in", ".jsonl.gz"]),
    ],
)
def test_bad_input_is_named_before_the_model_is_loaded(tmp_path, capsys, name, text, said):
    path = as_file(tmp_path, name, text)
    assert main(["rerank", "--model", "./missing", "--problems", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [part for part in [str(path), *said] if part not in err] == []
    assert "missing" not in err.replace("is missing", "")


def test_what_is_not_there_is_named(model, tmp_path, capsys):
    rows = as_file(tmp_path, "rows.jsonl", as_rows())
    for arguments, said in (
        (["--model", "./missing", "--problems", str(rows)], "./missing is not a folder"),
        (["--model", str(model), "--problems", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["--model", str(model), "--problems", str(tmp_path / "none")], "must end in"),
    ):
        assert main(["rerank", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["rerank", "--model", str(model), "--problems", str(rows), "--output", str(tmp_path / "no" / "file")])
    assert "an existing directory" in capsys.readouterr().err


def test_help_tells_formats_without_jax():
    code = "import sys; sys.modules.update(jax=None, numpy=None, transformers=None); from rerankjax.cli import main; "
    for arguments, said in ((["--help"], "rerank"), (["rerank", "--help"], '{"prompt": "...", "candidates"')):
        command = [sys.executable, "-c", f"{code}main({arguments})"]
        assert said in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    command = [sys.executable, "-m", "rerankjax", "rerank"]
    assert "--problems" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_train_starts_with_memory_that_is_kept(tmp_path, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text("import os\n\ndef get_config():\n    raise ValueError(os.environ['GLIBC_TUNABLES'])\n")
    command = [sys.executable, "-m", "rerankjax", "train", f"--config={config}", f"--workdir={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0" in done.stderr
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    monkeypatch.setattr(os, "execv", None)  # what the user has set stays
    keep_freed_memory()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"


MINI = str(Path(__file__).parents[1] / "configs" / "mini.py")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "flag --config=None: Flag --config must have a value other than None"),
        pytest.param(
            [f"--config={MINI}:smok"], "mini.py:smok is unknown: use one of demo, full", marks=pytest.mark.long
        ),
        pytest.param(["--config=nothing.py"], "No such file or directory: 'nothing.py'", marks=pytest.mark.long),
        ([f"--config={MINI}:smoke", "--config.ppo.kl_coeff=1"], 'Did you mean "kl_coef" instead of "kl_coeff"?'),
        (
            [f"--config={MINI}:smoke", "--config.foo=1"],
            "the config file does not set the field 'foo': add it to the file",
        ),
        (
            [f"--config={MINI}:smoke", "--config.ppo.kl_target=1", "--config.ppo.kl_horizon=1"],
            "config.ppo.kl_horizon = 1.0: one iteration of batch_size = 8 completions could take the KL coefficient "
            "to 0: use more than 1.6",
        ),
        ([f"--config={MINI}:smoke", "--config.ppo.kl_coef=-1"], "config.ppo.kl_coef = -1.0 is negative: use 0 or more"),
    ],
)
def test_train_refuses_flags_and_configs_in_one_line(tmp_path, flags, said):
    """Before anything is written: names of flags and files are wrong more often than runs are."""
    command = [sys.executable, "-m", "rerankjax", "train", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, *others = done.stderr.splitlines()
    assert first.startswith("rerankjax train: ")
    assert said in first
    assert others in ([], ["rerankjax train --help lists the flags."])
    assert not (tmp_path / "run").exists()


def test_cores_become_devices():
    """In a process of its own: devices are made once."""
    code = "from rerankjax.run import hosts; hosts.make_cpu_devices(3); import jax; print(jax.device_count())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True)
    assert done.stdout.split() == [b"3"], done.stderr


def test_execute_makes_the_data_that_rerankers_are_trained_on(tmp_path, capsys):
    row = {"name": "f", "language": "py", "prompt": "def f(x):\n", "tests": "assert f(1) == 2\n"}
    file = as_file(tmp_path, "s.jsonl", json.dumps(row | {"completions": ["    return x + 1", "    return x"]}) + "\n")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["execute", "--file", str(file), "--output-dir", str(tmp_path / "results")]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    (found,) = read_data([DataSource(str(tmp_path / "results"))])
    assert (found.candidates, found.passed) == (("    return x + 1", "    return x"), (True, False))
    (pair,) = make_pairs([found], 8, 0)
    assert pair == ("def f(x):\n", "    return x + 1", "    return x")
    assert main(["execute", "--file", str(tmp_path / "none.txt"), "--output-dir", str(tmp_path)]) == 2
    assert "its name must end in" in capsys.readouterr().err
