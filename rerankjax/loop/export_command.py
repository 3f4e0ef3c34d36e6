"""The command `rerankjax export`.

    rerankjax export --config=configs/mini.py --workdir=runs/mini --policy=ppo --output=exported

Writes a policy of a finished run to a new folder, in Hugging Face's format with its tokenizer, and the policy's
executed samples to OUTPUT/samples/SPLIT.jsonl: labelled rows (prompt, candidates, passed) for `rerankjax
train-reranker` and `rerankjax evaluate`. The flags --config and --workdir are those of `rerankjax train`. Policies are
base (the checkpoint before SFT), sft, ppo, and ppo2-ITERATION. The run's last reranker is in WORKDIR/seedN/export.
"""

from collections.abc import Sequence

from absl import flags

from rerankjax.loop.command import CONFIG, WORKDIR, run_command

for flag in ("config", "workdir", "cpu_devices"):
    flags.declare_key_flag(flag)
POLICY = flags.DEFINE_string("policy", "ppo", "The policy: the name of a directory in WORKDIR/seedN/policies, or base.")
OUTPUT = flags.DEFINE_string("output", None, "The new folder.")
SEED = flags.DEFINE_integer("seed", None, "The seed; by default the config's first.")


def main(argv: Sequence[str]) -> None:
    """Runs the command with the arguments behind its name. Ends the process with its exit status."""

    def work() -> None:
        from rerankjax.loop.export import export_policy

        for path in export_policy(CONFIG.value, str(WORKDIR.value), SEED.value, POLICY.value, str(OUTPUT.value)):
            print(f"wrote {path}")

    required = ("config", "workdir", "output")
    run_command("rerankjax export", argv, __name__, work, "give values as in --policy=ppo", required)
