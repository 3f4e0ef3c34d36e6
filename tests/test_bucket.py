"""A run in a bucket: complete stages or none whenever it is killed, one process at a time, whole objects only."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from rerankjax.run import bucket, checkpoint
from rerankjax.run.reuse import reuse
from rerankjax.run.rundir import RunDirectoryError, complete, durable_path, open_run, stage_seconds, write_stage

ROOT = Path(__file__).parents[1]
URL = "gs://my-bucket/runs/mini"
CONFIG = {"seeds": [0], "ppo": {"kl_coef": 0.15, "epochs": 2}}


class Killed(BaseException):
    """The process is no more: whatever it tries on the way out has no effect."""


class Objects(MemoryFileSystem):
    """An object store: whole objects are written, read, listed and removed. It can end the process at any write."""

    protocol = "gs"
    store: dict = {}  # noqa: RUF012 (fsspec's own way)
    pseudo_dirs: list = [""]  # noqa: RUF012
    written: list = []  # noqa: RUF012
    writes_left = None  # until the process is killed

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "memory://"))

    def change(self, path):
        if Objects.writes_left == 0:
            raise Killed
        if Objects.writes_left:
            Objects.writes_left -= 1
        self.written.append(self._strip_protocol(path))

    def open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            self.change(path)
        return super().open(path, mode, **kwargs)

    def put_file(self, lpath, rpath, **_):
        with self.open(rpath, "wb") as file:
            file.write(Path(lpath).read_bytes())

    def rm(self, path, **kwargs):
        self.change(path)
        super().rm(path, **kwargs)

    def rm_file(self, path):
        self.change(path)
        super().rm_file(path)

    def no_such_thing(self, *_, **__):
        raise AssertionError("an object store cannot do that")

    mv = rename = move = copy = cp_file = makedirs = mkdir = mkdirs = touch = no_such_thing

    @classmethod
    def objects(cls):
        """What is there, under the run's directory."""
        found = {name.removeprefix("/my-bucket/runs/mini/"): file.getvalue() for name, file in cls.store.items()}
        return {name: value for name, value in found.items() if name != "lock"}


@pytest.fixture
def objects(monkeypatch, tmp_path):
    """The store behind gs://, empty; the machine's own files below tmp_path, where a `gs:` must not appear."""
    monkeypatch.setitem(_registry, "gs", Objects)
    for name, value in {"store": {}, "pseudo_dirs": [""], "written": [], "writes_left": None}.items():
        monkeypatch.setattr(Objects, name, value)
    monkeypatch.setattr(bucket, "STALE_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield Objects
    assert list(tmp_path.iterdir()) == []  # no mirror is left, and nobody took the URL for a path


def fill(directory, config):
    (directory / "a.txt").write_text("A")
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "er" / "b.bin").write_bytes(b"\x00B")


def loop(made, config=CONFIG):
    """A run of two stages with a result, as `train` goes; `made` gets the names of the stages it had to make."""
    with open_run(URL, config) as root:
        for name, inputs in (("seed0/sft", []), ("seed0/policies/ppo", ["seed0/sft"])):

            def recorded(directory, view, name=name):
                made.append(name)
                assert view.ppo.kl_coef == config["ppo"]["kl_coef"]
                fill(directory, view)

            path = write_stage(root, name, config, inputs, recorded)
            assert (path / "deep/er/b.bin").read_bytes() == b"\x00B"
            assert (path / "a.txt").read_text() == "A"
            assert complete(path)
        (root / "results.json").write_text(f"{stage_seconds(path) >= 0}")


def without_measurements(objects):
    """The objects except how long a stage took and how much memory the process had needed by then."""
    measured = rb'"seconds": [\d.]+|"peak_bytes": {[^}]*}'
    return {name: re.sub(measured, b"", value) for name, value in objects.items()}


def test_a_stage_is_there_with_its_last_object(objects):
    loop([])
    stage = "/my-bucket/runs/mini/seed0/sft"
    assert [name for name in objects.written if name.startswith(stage)] == [
        f"{stage}/a.txt",
        f"{stage}/deep/er/b.bin",
        f"{stage}/stage.json",
    ]
    assert set(objects.objects()) == {
        "config.json",
        "results.json",
        *(f"seed0/{stage}/{name}" for stage in ("sft", "policies/ppo") for name in ("a.txt", "deep/er/b.bin")),
        "seed0/sft/stage.json",
        "seed0/policies/ppo/stage.json",
    }
    assert "/my-bucket/runs/mini/lock" not in objects.store


def test_a_complete_stage_is_fetched_and_not_made_again(objects):
    loop([])
    before, made = objects.objects(), []
    objects.written.clear()
    loop(made)
    assert made == []
    assert objects.objects() == before
    assert not [name for name in objects.written if "seed0" in name]


def test_killed_at_any_write_a_run_ends_the_same(objects, monkeypatch):
    loop([])
    expected, total = without_measurements(objects.objects()), len(objects.written)
    for moment in range(total):
        objects.store.clear()
        objects.pseudo_dirs[:] = [""]
        monkeypatch.setattr(Objects, "writes_left", moment)
        with pytest.raises(Killed):
            loop([])
        there = objects.objects()
        complete_before = [name for name in ("seed0/sft", "seed0/policies/ppo") if f"{name}/stage.json" in there]
        for name in complete_before:
            assert (there[f"{name}/a.txt"], there[f"{name}/deep/er/b.bin"]) == (b"A", b"\x00B")
        monkeypatch.setattr(Objects, "writes_left", None)
        made = []
        loop(made)
        assert sorted(made + complete_before) == ["seed0/policies/ppo", "seed0/sft"]
        assert without_measurements(objects.objects()) == expected, f"killed at write {moment}"


def test_what_a_killed_attempt_left_is_not_in_the_stage_that_follows(objects):
    with pytest.raises(ZeroDivisionError), open_run(URL, CONFIG) as root:
        write_stage(root, "sft", CONFIG, [], lambda d, c: 1 / 0)
    objects().pipe_file(f"{URL}/sft/checkpoint/half", b"half")  # as Orbax leaves it: written there directly
    with open_run(URL, CONFIG) as root:
        assert not complete(root / "sft")
        write_stage(root, "sft", CONFIG, [], fill)
    assert {name for name in objects.objects() if name.startswith("sft/")} == {
        "sft/a.txt",
        "sft/deep/er/b.bin",
        "sft/stage.json",
    }


def test_results_of_a_run_that_fails_are_not_uploaded(objects):
    def fails():
        with open_run(URL, CONFIG) as root:
            (root / "results.json").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert set(objects.objects()) == {"config.json"}


def test_another_config_is_refused_by_the_bucket_s_name(objects):
    loop([])
    before, made = objects.objects(), []
    with pytest.raises(RunDirectoryError) as error:
        loop(made, {"seeds": [1], "ppo": {"kl_coef": 0.3, "epochs": 2}})
    assert str(error.value) == (
        f"{URL} has stages that were made with another config (field: old -> new):\n  ppo.kl_coef: 0.15 -> 0.3\n"
        f"Give another --workdir, with --reuse={URL} to reuse the unchanged stages; or remove {URL}."
    )
    assert objects.objects() == before
    loop(made, {"seeds": [1], "ppo": {"kl_coef": 0.15, "epochs": 9}})  # no stage read those
    assert made == []
    assert json.loads(objects.objects()["config.json"])["ppo.epochs"] == 9


def test_a_stage_of_another_input_or_fact_is_refused(objects):
    with open_run(URL, CONFIG) as root:
        write_stage(root, "sft", CONFIG, [], fill, facts={"p.jsonl": "abc"})
        write_stage(root, "ppo", CONFIG, ["sft"], fill)
    before = digest_of_object("sft")
    with open_run(URL, CONFIG) as root:
        with pytest.raises(RunDirectoryError, match=r'content of p\.jsonl: "abc" -> "abd"'):
            write_stage(root, "sft", CONFIG, [], fill, facts={"p.jsonl": "abd"})
        objects().rm(f"{URL}/sft", recursive=True)
        shutil.rmtree(root / "sft")
        write_stage(root, "sft", CONFIG, [], fill)
        with pytest.raises(RunDirectoryError, match=rf'stage sft: "{before}" -> "{digest_of_object("sft")}"'):
            write_stage(root, "ppo", CONFIG, ["sft"], fill)


def digest_of_object(stage):
    return json.loads(Objects.objects()[f"{stage}/stage.json"])["digest"]


def test_a_run_of_the_old_layout_is_refused_in_one_line(objects):
    objects().pipe_file(f"{URL}/seed0/tokenizer/stage.json", b'{"seconds": 0.4, "files": []}')
    before = objects.objects()
    with pytest.raises(RunDirectoryError) as error:
        loop([])
    assert str(error.value) == (
        f"{URL}/seed0/tokenizer was made by an older version of rerankjax, which did not record what a stage is made "
        "from: give another --workdir."
    )
    assert objects.objects() == before


def test_stages_are_taken_from_another_run_into_a_bucket(objects, tmp_path_factory):
    """Also where the bucket has the first of them, and this machine has none."""
    other = tmp_path_factory.mktemp("other")
    with open_run(other, CONFIG) as run:
        write_stage(run, "seed0/sft", CONFIG, [], fill)
        write_stage(run, "seed0/ppo", CONFIG, ["seed0/sft"], fill)
    with open_run(URL, CONFIG) as root:
        write_stage(root, "seed0/sft", CONFIG, [], fill)
    for taken in (["seed0/ppo"], []):
        with open_run(URL, CONFIG) as root:
            assert reuse(root, [other], CONFIG, [0]) == taken
            for name, inputs in (("seed0/sft", []), ("seed0/ppo", ["seed0/sft"])):
                path = write_stage(root, name, CONFIG, inputs, lambda d, c: pytest.fail("it is there"))
                assert (path / "deep/er/b.bin").read_bytes() == b"\x00B"
        assert "seed0/ppo/deep/er/b.bin" in objects.objects()


def test_a_stage_that_lost_a_file_is_named(objects):
    loop([])
    objects().rm_file(f"{URL}/seed0/sft/a.txt")
    with pytest.raises(RunDirectoryError, match=rf"{URL}/seed0/sft: a.txt is missing; remove {URL}/seed0/sft"):
        loop([])


def test_a_second_process_is_refused_while_the_first_shows_life(objects, monkeypatch):
    monkeypatch.setattr(bucket, "STALE_SECONDS", 30.0)
    monkeypatch.setattr(bucket, "BEAT_SECONDS", 0.05)
    with open_run(URL, CONFIG):
        refused = pytest.raises(RunDirectoryError, match=rf"another process is working on this run .*{os.getpid()}")
        with refused, open_run(URL, CONFIG):
            pass
    with open_run(URL, CONFIG):
        pass  # at once: it ended as it should


def test_a_dead_process_s_run_is_taken_over_and_a_revived_one_stops(objects, capsys):
    def revived():
        with open_run(URL, CONFIG) as old:
            # Suspended, so that it shows no life: a beat is 10 s, stale 0.05 s here. Another start goes on.
            with open_run(URL, CONFIG) as new:
                write_stage(new, "sft", CONFIG, [], fill)
            before.update(objects.objects())
            write_stage(old, "sft", CONFIG, [], lambda d, c: pytest.fail("the other process made it"))
            write_stage(old, "ppo", CONFIG, ["sft"], fill)

    before = {}
    with pytest.raises(RunDirectoryError, match="another process has taken over this run"):
        revived()
    assert "taken over from a process that died" in capsys.readouterr().out
    assert {name: value for name, value in objects.objects().items() if not name.startswith("ppo/")} == before
    assert "ppo/stage.json" not in objects.objects()


def test_other_hosts_of_the_run_read_and_write_nothing(objects):
    with open_run(URL, CONFIG) as first, open_run(URL, CONFIG, primary=False) as second:
        assert first != second
        assert (second / "config.json").exists()
        before = objects.objects()
        write_stage(second, "ppo", CONFIG, [], fill)
        assert objects.objects() == before
        write_stage(first, "sft", CONFIG, [], fill)
        write_stage(second, "sft", CONFIG, [], lambda d, c: pytest.fail("the first host made it"))
        assert (second / "sft" / "a.txt").read_text() == "A"


def test_what_must_outlive_the_machine_lies_in_the_bucket(objects, tmp_path):
    assert durable_path(tmp_path / "sft" / "checkpoint") == tmp_path / "sft" / "checkpoint"  # a local run's own place
    with open_run(URL, CONFIG) as root:
        assert os.fspath(durable_path(root / "seed0" / "sft" / "checkpoint")) == f"{URL}/seed0/sft/checkpoint"
        found = []
        write_stage(root, "sft", CONFIG, [], lambda d, c: found.append(durable_path(d / "checkpoint")))
        assert os.fspath(found[0]) == f"{URL}/sft/checkpoint"  # where it will be, not where it is filled
        assert str(durable_path(root / "report.html")) == f"{URL}/report.html"


@pytest.mark.parametrize(
    ("workdir", "said"),
    [
        ("ftp://host/run", r"--workdir=ftp://host/run: a bucket's address starts with gs://, s3://, az://, file:///"),
        ("s3://bucket/run", r"--workdir=s3://bucket/run: Install s3fs"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(workdir, said):
    with pytest.raises(RunDirectoryError, match=said), open_run(workdir, CONFIG):
        pass


def test_a_bucket_that_may_not_be_read_is_named_with_the_reason(objects, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("403: no storage.objects.get")

    monkeypatch.setattr(Objects, "exists", refuse)
    with pytest.raises(
        RunDirectoryError, match=rf"{URL} cannot be read: PermissionError: 403: .* this machine's account"
    ):
        loop([])


def start(code, url):
    head = "import sys, time; from rerankjax.run import bucket; from rerankjax.run.rundir import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{head}bucket.STALE_SECONDS = 1.0\n{code}", url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_sigkill_mid_stage_keeps_what_was_complete_and_the_next_process_goes_on(tmp_path):
    """Over processes, with file:/// as the store: the lock of one that was killed goes stale."""
    url = f"file://{tmp_path}/store"
    process = start(
        "with open_run(sys.argv[1], {}) as run:\n"
        "    write_stage(run, 'sft', {}, [], lambda d, c: (d / 'w').write_text('weights'))\n"
        "    def half(d, c):\n"
        "        (d / 'stale').write_text('half')\n"
        "        print(run, flush=True); time.sleep(60)\n"
        "    write_stage(run, 'ppo', {}, ['sft'], half)\n",
        url,
    )
    mirror = Path(process.stdout.readline().strip())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.rmtree(mirror)  # its machine is gone
    assert (tmp_path / "store" / "lock").exists()
    process = start(
        "with open_run(sys.argv[1], {}) as run:\n"
        "    path = write_stage(run, 'sft', {}, [], None)\n"
        "    print((path / 'w').read_text())\n"
        "    write_stage(run, 'ppo', {}, ['sft'], lambda d, c: (d / 'w').write_text('new'))\n",
        url,
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.splitlines()[1:] == ["weights"]
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["config.json", "ppo", "sft"]
    assert sorted(p.name for p in (tmp_path / "store" / "ppo").iterdir()) == ["stage.json", "w"]
    assert json.loads((tmp_path / "store" / "ppo" / "stage.json").read_text())["files"] == ["w"]


def test_orbax_writes_checkpoints_into_the_bucket_itself(tmp_path):
    url, tree = f"file://{tmp_path}/store", {"w": jnp.arange(6.0).reshape(2, 3)}
    with open_run(url, CONFIG) as root:
        write_stage(root, "sft", CONFIG, [], lambda d, c: (checkpoint.save(d / "checkpoint", tree), fill(d, c)))
        assert not (root / "sft" / "checkpoint").exists()
    assert (tmp_path / "store" / "sft" / "checkpoint").is_dir()
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
    with open_run(url, CONFIG) as root:
        path = write_stage(root, "sft", CONFIG, [], lambda d, c: pytest.fail("it is complete"))
        assert sorted(p.name for p in path.iterdir()) == ["a.txt", "deep", "stage.json"]
        np.testing.assert_array_equal(checkpoint.restore(path / "checkpoint", like)["w"], tree["w"])
