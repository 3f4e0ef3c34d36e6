"""The documentation: it builds without a warning, its links lead somewhere, and its commands are commands of ours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rerankjax.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tpu" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page):
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    local = [link for link in linked if link and "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rerankers" / "index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_commands_and_files_that_exist(page):
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)).replace("\\\n", " ")
    for line in re.sub(r"<<'END'.*?^END$", "", blocks, flags=re.DOTALL | re.MULTILINE).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("rerankjax") and "=" not in words[0]:
            assert words[1] in (*COMMANDS, "rerank"), line
        for word in words:
            path = word.removeprefix("--config=").partition(":")[0]
            if re.fullmatch(r"(configs|experiments|benchmarks)/\S+\.py", path):
                assert (ROOT / path).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_that_no_test_runs_are_marked(page):
    """tests/test_api.py runs the Python blocks of rerankers.md."""
    for before, language in re.findall(r"(.*)\n *```(sh|py|python)\n", page.read_text()):
        runs = page.name == "rerankers.md" and language == "python"
        assert runs == ("<!-- not run by a test -->" not in before)


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
