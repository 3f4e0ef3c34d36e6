"""The command `rerankjax preflight`.

    rerankjax preflight --config=configs/paper.py:6.7b --topology=v5e:4x4
    rerankjax preflight --config=configs/mini.py --topology=h100:8 --config.ppo.batch_size=512

Does a run fit a TPU slice, or a host of GPUs? All of its device steps are compiled for chips that need not be there.
Topologies: v5e, v5p and v6e with their shape in chips; h100 and h200 with how many; cpu:8 simulates devices. TPUs need
libtpu (`[tpu]`), GPUs JAX's CUDA plugin (`[cuda]`), neither a device. No weights are read: a checkpoint's shape is in
its config.json.

Prints what every step takes of a chip's memory and the least time it can take; where one does not fit, the flags of the
fastest config that does, and its table. Exit code 0: it fits; 1: it does not, or the arguments are wrong.

What is counted: a step's weights, optimiser state and keys and values; activations, with gradients and whatever else
the program makes and drops; and what is resident beside it: other models, and the copy that each host draws with. Time
is the roofline's; chips exchange their parts at no cost. Where the config's attention is "auto", TPU steps are compiled
with splash as they run, GPU steps with plain XLA, since cuDNN's kernel needs a GPU: there a run takes less. JAX takes
three quarters of a GPU's memory: with XLA_PYTHON_CLIENT_MEM_FRACTION=.95 give --memory_gb=76.
"""

import functools
import sys
from collections.abc import Sequence

from absl import app, flags

from rerankjax.loop.command import CONFIG, parse

TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v5p:2x2x1, h100:8, cpu:8 ...")
MEMORY = flags.DEFINE_float("memory_gb", None, "1e9 bytes that a chip has, in place of what it is sold with.", 0.001)
MAX_COMPILATIONS = flags.DEFINE_integer("max_compilations", 60, "At most so many for the table and the suggestion.", 1)
flags.declare_key_flag("config")


def main(argv: Sequence[str]) -> None:
    """Runs the command with the arguments that follow its name, and ends the process with its exit status."""
    flags.mark_flags_as_required(["config", "topology"])
    app.run(_preflight, ["rerankjax preflight", *argv], flags_parser=functools.partial(parse, module=__name__))


def _preflight(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag: fields are set as --config.ppo.kl_coef=0.1")

    # Importing JAX takes seconds: help and a wrong flag do not wait for it.
    from rerankjax.capacity import topology
    from rerankjax.capacity.preflight_report import run
    from rerankjax.loop.resolve import resolve

    try:
        topology.prepare(str(TOPOLOGY.value))
        target = topology.find(str(TOPOLOGY.value), MEMORY.value)
        wrong = run(resolve(CONFIG.value, len(target.devices)), target, MAX_COMPILATIONS.value)
    except ValueError as error:
        sys.exit(f"rerankjax preflight: {error}")
    sys.exit(wrong and f"rerankjax preflight: {wrong}")
