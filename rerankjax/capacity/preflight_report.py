"""What `rerankjax preflight` prints of a config: each step's memory and time, and flags with which it fits."""

import sys

from rerankjax.capacity import preflight, preflight_search
from rerankjax.capacity.roofline import adapter_count, parameter_count
from rerankjax.capacity.run_shapes import find_models
from rerankjax.capacity.topology import Topology
from rerankjax.loop.config import ExperimentConfig


def run(config: ExperimentConfig, target: Topology, max_compilations: int) -> str | None:
    """Prints the tables. Returns what is wrong, and what to do about it; None if all fits.

    Raises:
        ConfigError: a checkpoint's shape cannot be determined.
    """
    generator, reranker = find_models(config, target.attention, target.compute_dtype)
    for model in (generator, reranker) if reranker is not generator else (generator,):
        lora = config.lora
        trained = f"an adapter trains {adapter_count(model.shape, lora):,} of them" if lora.rank else "all are trained"
        print(f"{model.name}: {parameter_count(model.shape):,} parameters; {trained}")
    print(f"{len(target.devices)} x {target.chip.name}\n")
    compiler = preflight.Compiler(target, lambda text: print(text, file=sys.stderr, flush=True))

    def report(config: ExperimentConfig) -> bool:
        estimates = preflight.estimates_of(config, compiler)
        print(f"{preflight_search.described(config, target)}\n\n{preflight.table(estimates, target)}", flush=True)
        return all(estimate.fits for estimate in estimates)

    if report(config):
        print(f"The run fits ({compiler.count} compilations).")
        return None
    variant = preflight_search.suggest(config, compiler, max_compilations)
    if variant is None:
        return (
            "the run does not fit, and the search found no mesh, remat and microbatches with which it fits "
            f"({compiler.count} compilations). " + preflight_search.closest(config, target)
        )
    report(variant)
    return (
        f"the run does not fit, but it fits with {' '.join(preflight_search.flags(config, variant))}, as the second "
        f"table shows ({compiler.count} compilations)."
    )
