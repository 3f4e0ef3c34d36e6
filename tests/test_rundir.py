"""A run survives SIGKILL, its stages know what they were made from, and it belongs to one process at a time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerankjax.run.rundir import (
    RunDirectoryError,
    complete,
    digest_of,
    open_run,
    read_manifest,
    saved_config,
    stage_seconds,
    write_stage,
)

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = {
    "seeds": [0],
    "sft": {"steps": 3},
    "ppo": {"kl_coef": 0.15, "epochs": 2},
    "sandbox": {"workers": 2},
    "name": "mini",
}


def start(code: str, workdir: Path) -> subprocess.Popen[str]:
    head = "import os, sys, time; from pathlib import Path; from rerankjax.run.rundir import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def snapshot(root: Path) -> dict[str, Any]:
    """Every file but for how long its stage took."""
    found: dict[str, Any] = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    manifests = {name: json.loads(text) for name, text in found.items() if name.endswith("stage.json")}
    return found | {name: manifest | {"seconds": 0, "peak_bytes": {}} for name, manifest in manifests.items()}


def text(content: str) -> Callable[[Path, Any], object]:
    """A stage that reads no field."""
    return lambda directory, config: (directory / "file").write_text(content)


def never(directory: Path, config: Any) -> None:
    pytest.fail("a complete stage was made again")


def sft(directory: Path, config: Any) -> None:
    (directory / "file").write_text(f"{config.sft.steps} steps")


def ppo(directory: Path, config: Any) -> None:
    (directory / "file").write_text(f"KL {config.ppo.kl_coef}, {config.sandbox.workers} workers")


def loop(root: Path, config: Any, facts: dict[str, str] | None = None, *, again: bool = False) -> tuple[Path, Path]:
    """A run of two stages, of which the second reads the first."""
    with open_run(root, config) as run:
        first = write_stage(run, "seed0/sft", config, [], never if again else sft, facts=facts)
        return first, write_stage(run, "seed0/ppo", config, ["seed0/sft"], never if again else ppo)


def test_a_stage_says_what_it_was_made_from(tmp_path: Path) -> None:
    first, second = loop(tmp_path, CONFIG, {"p.jsonl": "abc"})
    assert (second / "file").read_text() == "KL 0.15, 2 workers"
    manifests = [read_manifest(path) for path in (first, second)]
    assert [m["reads"] for m in manifests] == [{"sft.steps": 3}, {"ppo.kl_coef": 0.15}]
    assert [m["inputs"] for m in manifests] == [{}, {"seed0/sft": digest_of(first)}]
    assert [m["facts"] for m in manifests] == [{"p.jsonl": "abc"}, {}]
    assert set(manifests[0]) == {"seconds", "peak_bytes", "digest", "reads", "inputs", "facts"}
    assert saved_config(tmp_path)["ppo.epochs"] == 2


def test_a_digest_is_of_fields_inputs_and_facts_and_of_nothing_else(tmp_path: Path) -> None:
    def digests(name: str, config: Any, facts: dict[str, str] | None = None) -> tuple[str, ...]:
        return tuple(map(digest_of, loop(tmp_path / name, config, facts)))

    plain = digests("plain", CONFIG)
    assert digests("unread", CONFIG | {"name": "other", "ppo": {"kl_coef": 0.15, "epochs": 9}}) == plain
    assert digests("machine", CONFIG | {"sandbox": {"workers": 7}}) == plain
    first, second = digests("ppo", CONFIG | {"ppo": {"kl_coef": 0.3, "epochs": 2}})
    assert first == plain[0]
    assert second != plain[1]
    for name, found in {
        "sft": digests("sft", CONFIG | {"sft": {"steps": 4}}),
        "fact": digests("fact", CONFIG, {"p.jsonl": "abc"}),
    }.items():  # what the first is made from, the second is made from
        assert found[0] != plain[0], name
        assert found[1] != plain[1], name


def test_a_field_that_no_stage_read_may_change(tmp_path: Path) -> None:
    loop(tmp_path, CONFIG)
    changed = {"seeds": [0, 1], "sft": {"steps": 3}, "ppo": {"kl_coef": 0.15, "epochs": 5}, "sandbox": {"workers": 9}}
    loop(tmp_path, changed, again=True)
    assert saved_config(tmp_path)["ppo.epochs"] == 5
    order = {"sandbox": {"workers": 2}, "ppo": {"epochs": 2, "kl_coef": 0.15}, "sft": {"steps": 3}, "seeds": (0,)}
    loop(tmp_path, order, again=True)


def test_a_field_that_a_stage_read_may_not(tmp_path: Path) -> None:
    loop(tmp_path, CONFIG)
    saved = snapshot(tmp_path)
    changed = {"seeds": [7], "sft": {}, "ppo": {"kl_coef": 0.1, "epochs": 5}, "sandbox": {"workers": 2}, "new": 1}
    with pytest.raises(RunDirectoryError) as error, open_run(tmp_path, changed):
        pass
    assert str(error.value).splitlines() == [
        f"{tmp_path} has stages that were made with another config (field: old -> new):",
        "  ppo.kl_coef: 0.15 -> 0.1",
        "  sft.steps: 3 -> (absent)",
        f"Give another --workdir, with --reuse={tmp_path} to reuse the unchanged stages; or remove {tmp_path}.",
    ]
    assert snapshot(tmp_path) == saved


def test_a_stage_of_another_input_or_fact_is_refused_with_the_difference(tmp_path: Path) -> None:
    loop(tmp_path / "run", CONFIG, {"p.jsonl": "abc", "q.jsonl": "x"})
    with pytest.raises(RunDirectoryError) as error:
        write_stage(tmp_path / "run", "seed0/sft", CONFIG, [], never, facts={"p.jsonl": "abd", "r.jsonl": "y"})
    assert str(error.value).splitlines() == [
        f"{tmp_path}/run/seed0/sft was made from other fields, stages or files (old -> new):",
        '  content of p.jsonl: "abc" -> "abd"',
        '  content of q.jsonl: "x" -> (absent)',
        '  content of r.jsonl: (absent) -> "y"',
        f"Give another --workdir, or remove {tmp_path}/run/seed0/sft.",
    ]
    # Removed, as it says, and made anew: the stage behind it is of the one before.
    before, path = digest_of(tmp_path / "run/seed0/sft"), tmp_path / "run/seed0/sft"
    (path / "stage.json").unlink()
    (path / "file").unlink()
    path.rmdir()
    write_stage(tmp_path / "run", "seed0/sft", CONFIG, [], sft)
    with pytest.raises(RunDirectoryError, match=rf'stage seed0/sft: "{before}" -> "{digest_of(path)}"'):
        write_stage(tmp_path / "run", "seed0/ppo", CONFIG, ["seed0/sft"], never)
    with pytest.raises(RunDirectoryError, match=r"stage seed0/sft: .* -> \(absent\)"):
        write_stage(tmp_path / "run", "seed0/ppo", CONFIG, [], never)
    with pytest.raises(RunDirectoryError, match=r"ppo.kl_coef: 0.15 -> 0.3"):
        write_stage(tmp_path / "run", "seed0/ppo", CONFIG | {"ppo": {"kl_coef": 0.3}}, ["seed0/sft"], never)


def test_a_run_of_the_old_layout_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "seed0/tokenizer").mkdir(parents=True)
    (tmp_path / "seed0/tokenizer/stage.json").write_text('{"seconds": 0.4}\n')
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    before = snapshot(tmp_path / "seed0")
    with pytest.raises(RunDirectoryError) as error, open_run(tmp_path, CONFIG):
        pass
    assert str(error.value) == (
        f"{tmp_path}/seed0/tokenizer was made by an older version of rerankjax, which did not record what a stage is "
        "made from: give another --workdir."
    )
    assert snapshot(tmp_path / "seed0") == before
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_sigkill_mid_stage_keeps_what_was_complete_and_nothing_else(tmp_path: Path) -> None:
    process = start(
        "with open_run(sys.argv[1], {}) as run:\n"
        "    write_stage(run, 'seed0/sft', {}, [], lambda d, c: (d / 'w').write_text('weights'))\n"
        "    def half(d, c):\n"
        "        (d / 'stale').write_text('half')\n"
        "        print('half way', flush=True); time.sleep(60)\n"
        "    write_stage(run, 'seed0/ppo', {}, ['seed0/sft'], half)\n",
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    kill(process)
    with open_run(tmp_path, {}) as run:
        assert complete(run / "seed0/sft")
        assert not complete(run / "seed0/ppo")
        assert not (run / "seed0/ppo").exists()
        write_stage(run, "seed0/sft", {}, [], never)
        write_stage(run, "seed0/ppo", {}, ["seed0/sft"], text("new"))
        assert sorted(p.name for p in (run / "seed0/ppo").iterdir()) == ["file", "stage.json"]
        assert sorted(p.name for p in (run / "seed0").iterdir()) == ["ppo", "sft"]


KILLED_AGAIN_AND_AGAIN = """
import json, random, signal, sys, jax
jax.process_index()  # what takes long is done once, before forks
config, left_alone, killed = {"a": 1}, Path(sys.argv[1], "left_alone"), Path(sys.argv[1], "killed")

def fill(directory, view):
    for i in range(8):
        (directory / str(i)).write_text(str(i + view.a) * 10000)
        time.sleep(.01)

def run_in_fork(root):
    pid = os.fork()
    if not pid:
        with open_run(root, config) as run:
            made = []
            for name in "abcdef":
                write_stage(run, name, config, made, fill)
                made.append(name)
        os._exit(0)
    return pid

assert os.waitpid(run_in_fork(left_alone), 0)[1] == 0
rng, kills, incomplete = random.Random(0), 0, 0
while True:
    pid = run_in_fork(killed)
    time.sleep(rng.uniform(0, 0.1 * (1 + kills / 4)))  # longer and longer, so that it ends on any machine
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    incomplete += any(killed.glob(".*.partial"))
    for stage in killed.glob("[!.]*/"):
        assert {str(i) for i in range(8)} | {"stage.json"} == {p.name for p in stage.iterdir()}
print(json.dumps([status, kills, incomplete]))
"""


def test_run_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    output, _ = start(KILLED_AGAIN_AND_AGAIN, tmp_path).communicate()
    status, kills, incomplete = json.loads(output)
    assert status == 0
    assert kills >= incomplete >= 3
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "left_alone")


def test_failed_stage_is_not_there_and_can_be_made_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_stage(tmp_path, "sft", CONFIG, [], lambda d, c: 1 / 0)
    assert not complete(tmp_path / "sft")
    write_stage(tmp_path, "sft", CONFIG, [], lambda d, c: time.sleep(0.02))
    assert 0.02 <= stage_seconds(tmp_path / "sft") < 5


def test_a_directory_that_no_stage_made_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/precious").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not a complete stage \(no stage\.json\); remove it"):
        write_stage(tmp_path, "sft", CONFIG, [], text("new"))
    assert (tmp_path / "sft/precious").read_text() == "mine"


def test_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    # The first forks a child that outlives it, as a sandbox's fork server may: the child must not hold the run.
    process = start(
        "with open_run(sys.argv[1], {}) as run:\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)\n",
        tmp_path,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RunDirectoryError, match="another process is working on this run"), open_run(tmp_path, {}):
            pass
        kill(process)
        os.kill(child, 0)  # still alive
        with open_run(tmp_path, {}):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stage_begins_without_the_memory_that_earlier_ones_freed():
    code = """
import numpy as np
from rerankjax.run import memory
arrays = [np.ones(2**17) for _ in range(300)]  # a megabyte each
arrays = arrays[-1:]  # the heap's last: what is below it stays in the heap
kept = memory.peaks()["host"]
memory.forget_peak()
print(kept - memory.peaks()["host"])
"""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**25)}  # so that the arrays come from the heap
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200e6


def test_programs_are_dropped_before_their_mappings_reach_the_limit(tmp_path):
    limit = tmp_path / "max_map_count"
    code = f"""
from pathlib import Path
import jax
from rerankjax.run import memory
memory.MAX_MAPPINGS = Path({str(limit)!r})
def mappings():
    return memory.MAPPINGS.read_bytes().count(b"\\n")
square = jax.numpy.ones((9, 9))
before = mappings()
sorts = [jax.jit(lambda x, k=k: jax.numpy.sort(k * x @ x).sum()) for k in range(6)]
results = [sort(square) for sort in sorts]
compiled = mappings()
for allowed in (3 * compiled, compiled):
    memory.MAX_MAPPINGS.write_text(str(allowed))
    memory.limit_mappings()
    print(mappings() - before, end=" ")
assert results == [sort(square) for sort in sorts]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, dropped = map(int, done.stdout.split())
    assert dropped < kept / 2
