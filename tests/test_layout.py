"""The house: data goes one way, and what needs no device imports none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rerankjax

ORDER = (
    "problems",
    "prompts",
    "model",
    "candidates",
    "sandbox",
    "verdicts",
    "pairs",
    "reranker",
    "policy",
    "results",
    "run",
    "loop",
    "standalone",
    "capacity",
)
PACKAGE = Path(rerankjax.__file__).parent


def test_every_package_has_its_place():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_no_package_imports_a_later_one(package):
    later = {f"rerankjax.{name}" for name in ORDER[ORDER.index(package) + 1 :]}
    for path in (PACKAGE / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            wrong = [n for n in names if ".".join(n.split(".")[:2]) in later]
            assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize(
    "module",
    [
        "problems.family",
        "problems.corpus",
        "problems.sources",
        "problems.decontamination",
        "sandbox",
        "sandbox.__main__",
        "cli",
    ],
)
def test_problems_sandbox_and_cli_import_no_jax(module):
    code = f"import sys, rerankjax.{module}; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_map_names_files_that_exist():
    root = PACKAGE.parent
    linked = re.findall(r"\]\((rerankjax/[^)]+)\)", (root / "CONTRIBUTING.md").read_text())
    assert len(linked) > 20
    assert [name for name in linked if not (root / name).is_file()] == []
