"""The command `rerankjax train-reranker`.

    rerankjax train-reranker --config=configs/reranker.py --workdir=runs/reranker \\
        --config.base=FOLDER_OR_HUB_ID_OR_GGUF --config.data=samples.jsonl

Trains a reranker on labelled data and writes it to WORKDIR/export, with its card and results.json. Rows of data are
preferences (prompt, chosen, rejected), executed samples (prompt, candidates, passed) or MultiPL-E's results; see
configs/reranker.py. Several processes train one reranker, each started with the same flags, as with `rerankjax train`.
Exit status 75 means that SIGTERM stopped the command after it saved all work; the same command resumes.
"""

from collections.abc import Sequence

from absl import flags

from rerankjax.loop.command import CONFIG, WORKDIR, run_command

for flag in ("config", "workdir", "distributed", "coordinator", "num_processes", "process_id", "cpu_devices"):
    flags.declare_key_flag(flag)


def main(argv: Sequence[str]) -> None:
    """Runs the command with the arguments behind its name. Ends the process with its exit status."""

    def work() -> None:
        from rerankjax.run.hosts import is_first
        from rerankjax.standalone.train import train_reranker

        folder = train_reranker(CONFIG.value, str(WORKDIR.value))
        if is_first():
            print(f"\nwrote {folder}; rank with it: rerankjax rerank --model {folder} --problems FILE")

    run_command("rerankjax train-reranker", argv, __name__, work, "set fields as in --config.max_length=512")
