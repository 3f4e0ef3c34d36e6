"""Run the paper's loop: python experiments/selftrain.py --config=configs/mini.py --workdir=runs/mini"""

from absl import app, flags
from ml_collections import config_flags

from rerankjax.loop.selftrain import selftrain

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory: made, or gone on with.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag: fields are set as --config.ppo.kl_coef=0.1")
    selftrain(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
