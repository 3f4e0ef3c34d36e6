"""`sky jobs launch` that starts nothing: SkyPilot reads the same arguments, and what each host would run is printed.

    python tpu/dry_run.py jobs launch tpu/sky.yaml --gpus=tpu-v5litepod-16 --env COMMAND="rerankjax train ..."

SkyPilot's own dry run needs an account at a cloud, and shows no commands.
"""

import os
import string
import sys
from typing import Any, NoReturn


def hosts_of(accelerator: str) -> int:
    """How many machines hold a TPU slice: each has 4 chips, but up to 8 chips of v5e or v6e lie in one.

    The number in a slice's name counts chips for these two, and TensorCores, two a chip, for the others.
    """
    generation, _, size = accelerator.rpartition("-")
    small = generation in ("tpu-v5litepod", "tpu-v6e")
    chips = int(size) if small else int(size) // 2
    return 1 if chips <= (8 if small else 4) else chips // 4


def show(dag: Any, *_: Any, **__: Any) -> NoReturn:
    """In the place of the request to SkyPilot's server."""
    (task,) = dag.tasks
    (resources,) = task.resources
    print(f"{dag.name}: {resources.to_yaml_config()}")
    accelerator = next(iter(resources.accelerators or {}), "")
    hosts = task.num_nodes * (hosts_of(accelerator) if accelerator.startswith("tpu-") else 1)
    run = string.Template(task.run).safe_substitute(task.envs)
    for host in range(hosts):
        print(f"\nhost {host} of {hosts}:\n{task.setup}\n{run}", end="")
    sys.exit()


if __name__ == "__main__":
    os.environ["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
    from sky.client.cli import command

    command.managed_jobs.launch = show
    command.cli(prog_name="sky")
