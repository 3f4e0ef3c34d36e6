"""A run survives SIGKILL, belongs to one config, and to one process at a time."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rerankjax.run.rundir import RunDirectoryError, complete, open_run, stage_seconds, write_stage

ROOT = Path(__file__).parents[1]
CONFIG = {"seeds": [0], "ppo": {"kl_coef": 0.15, "epochs": 2}, "name": "mini"}


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


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "stage.json"}


def test_sigkill_mid_stage_keeps_what_was_complete_and_nothing_else(tmp_path: Path) -> None:
    process = start(
        "with open_run(sys.argv[1], {}) as run:\n"
        "    write_stage(run / 'seed0' / 'sft', lambda d: (d / 'w').write_text('weights'))\n"
        "    def half(d):\n"
        "        (d / 'stale').write_text('half')\n"
        "        print('half way', flush=True); time.sleep(60)\n"
        "    write_stage(run / 'seed0' / 'ppo', half)\n",
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    kill(process)
    with open_run(tmp_path, {}) as run:
        assert complete(run / "seed0/sft")
        assert not complete(run / "seed0/ppo")
        assert not (run / "seed0/ppo").exists()
        write_stage(run / "seed0/sft", lambda d: pytest.fail("a complete stage was made again"))
        write_stage(run / "seed0/ppo", lambda d: (d / "w").write_text("new"))
        assert sorted(p.name for p in (run / "seed0/ppo").iterdir()) == ["stage.json", "w"]
        assert sorted(p.name for p in (run / "seed0").iterdir()) == ["ppo", "sft"]


def test_run_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    code = (
        "def fill(d):\n"
        "    for i in range(8):\n"
        "        (d / str(i)).write_text(str(i) * 10000); time.sleep(.01)\n"
        "with open_run(sys.argv[1], {'a': 1}) as run:\n"
        "    print('started', flush=True)\n"
        "    for name in 'abcdef': write_stage(run / name, fill)\n"
    )
    assert start(code, tmp_path / "left_alone").wait() == 0
    expected = snapshot(tmp_path / "left_alone")
    rng, kills, process = random.Random(0), 0, start(code, tmp_path / "killed")
    while True:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1 * (1 + kills / 4)))  # longer and longer, so that it ends on any machine
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        for stage in (p.parent for p in (tmp_path / "killed").glob("*/stage.json")):
            if not stage.name.startswith("."):
                assert {str(i) for i in range(8)} <= {p.name for p in stage.iterdir()}
        process = start(code, tmp_path / "killed")
    assert process.returncode == 0
    assert kills >= 3
    assert snapshot(tmp_path / "killed") == expected


def test_failed_stage_is_not_there_and_can_be_made_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_stage(tmp_path / "sft", lambda d: 1 / 0)
    assert not complete(tmp_path / "sft")
    write_stage(tmp_path / "sft", lambda d: time.sleep(0.02))
    assert 0.02 <= stage_seconds(tmp_path / "sft") < 5


def test_a_directory_that_no_stage_made_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/precious").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no complete stage \(no stage\.json\); remove it"):
        write_stage(tmp_path / "sft", lambda d: None)
    assert (tmp_path / "sft/precious").read_text() == "mine"


def test_changed_config_shows_the_difference_and_the_remedy(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG):
        saved = (tmp_path / "config.json").read_bytes()
    changed = {"seeds": [0, 1], "ppo": {"kl_coef": 0.1, "epochs": 2}, "tag": "x"}
    with pytest.raises(RunDirectoryError, match="another config") as error, open_run(tmp_path, changed):
        pass
    assert str(error.value).splitlines() == [
        f"{tmp_path} was started with another config (field: saved -> given):",
        '  name: "mini" -> (absent)',
        "  ppo.kl_coef: 0.15 -> 0.1",
        "  seeds: [0] -> [0, 1]",
        '  tag: (absent) -> "x"',
        f"Give another --workdir, or remove {tmp_path} to start it anew.",
    ]
    assert (tmp_path / "config.json").read_bytes() == saved


def test_same_config_in_another_order_and_with_tuples_is_the_same(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG):
        pass
    with open_run(tmp_path, {"name": "mini", "ppo": {"epochs": 2, "kl_coef": 0.15}, "seeds": (0,)}) as run:
        assert run == tmp_path


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
        with pytest.raises(RunDirectoryError, match="another process is at work on this run"), open_run(tmp_path, {}):
            pass
        kill(process)
        os.kill(child, 0)  # still alive
        with open_run(tmp_path, {}):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
