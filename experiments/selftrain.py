"""Run the paper's loop: python experiments/selftrain.py --config=configs/mini.py --workdir=runs/mini"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch

from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.rundir import RunDirectoryError
from rerankjax.loop.selftrain import selftrain
from rerankjax.sandbox import SandboxError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory: made, or gone on with.", required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag: fields are set as --config.ppo.kl_coef=0.1")
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it closes
    try:
        selftrain(CONFIG.value, WORKDIR.value)
    except (ConfigError, RunDirectoryError, SandboxError) as error:
        sys.exit(f"selftrain: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
