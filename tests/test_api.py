"""The public names: few, imported when they are used, typed, and as the documentation shows them."""

import importlib.resources
import re
import subprocess
import sys

import pytest
from test_train_reranker import ROOT, base, samples, write

import rerankjax


def test_names_are_imported_when_they_are_used():
    code = "import sys, rerankjax; assert not {'jax', 'numpy', 'transformers'} & set(sys.modules), 'at once'; "
    code += "from rerankjax import load_problems, sandbox; assert 'jax' not in sys.modules; rerankjax.Reranker; "
    code += "assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(rerankjax.__all__) <= set(dir(rerankjax))
    assert rerankjax.sandbox.run.__module__ == "rerankjax.sandbox.pool"
    with pytest.raises(AttributeError, match="no attribute 'reranker_of'; it has Reranker, load_problems"):
        _ = rerankjax.reranker_of
    assert (importlib.resources.files("rerankjax") / "py.typed").is_file()


def test_the_documentation_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base(tmp_path / "model")
    write(tmp_path / "samples.jsonl", samples())
    write(tmp_path / "pairs.jsonl", [{"prompt": f"q{i}", "chosen": "x + 1", "rejected": "x - 1"} for i in range(9)])
    problem = {
        "name": "twice",
        "language": "py",
        "prompt": "def f(x):\n",
        "tests": "assert f(2) == 4",
        "stop_tokens": [],
    }
    write(tmp_path / "problems.jsonl", [problem | {"solution": "    return 2 * x\n"}])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rerankers.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["ranking"] in ([0, 1], [1, 0])
