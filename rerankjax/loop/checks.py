"""Checks across several fields of a config, before any work; an error names the field, its value and the remedy."""

from rerankjax.loop.config import (
    PASS_RATE,
    RERANKED,
    SAMPLED,
    TAKEN_ITERATIONS,
    TAKEN_SETS,
    ConfigError,
    ExperimentConfig,
    sampling_of,
)
from rerankjax.model.config import ModelConfig
from rerankjax.pairs.mining import PAIR_SOURCES
from rerankjax.problems.sources import HELD_OUT, SYNTHETIC, SourceConfig
from rerankjax.reranker.ensembles import ENSEMBLES
from rerankjax.sandbox.multipl_e import CSHARP_LISTS


def require(holds: bool, field: str, value: object, remedy: str) -> None:
    """Raises ConfigError that names `config.field`, its value and the remedy unless `holds`."""
    if not holds:
        raise ConfigError(f"config.{field} = {value}: {remedy}")


def check(config: ExperimentConfig, devices: int) -> None:
    """Raises ConfigError unless the config can run on `devices` devices. Models and problems are checked later."""
    try:
        shape = config.mesh.shape(devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh.{error}") from error
    _check_batches(config, shape["data"] * shape["fsdp"])
    _check_numbers(config)
    _check_iterations(config)
    _check_problems(config)
    require(config.generator.given, "generator.checkpoint", "''", "give a checkpoint, or a shape to train from scratch")
    require(
        bool(config.generator.checkpoint) or config.sft.enabled,
        "sft.enabled",
        False,
        "a generator from scratch needs SFT; use True, or give generator.checkpoint",
    )
    for name, source in (("generator", config.generator), ("reranker", config.reranker)):
        if source.shape is not None:
            check_shape(config, source.shape, f"{name}.shape.max_position_embeddings")
    sampling = config.sampling
    require(
        sampling.top_p == 1.0, "sampling.top_p", sampling.top_p, "PPO needs samples of the full distribution; use 1.0"
    )
    require(sampling.top_k == 0, "sampling.top_k", sampling.top_k, "PPO needs samples of the full distribution; use 0")
    require(
        sampling.temperature > 0,
        "sampling.temperature",
        sampling.temperature,
        "PPO cannot explore with greedy samples; use more than 0",
    )
    seeds = config.seeds
    require(bool(seeds) and len(set(seeds)) == len(seeds), "seeds", seeds, "give at least one seed, and each seed once")
    require(bool(config.log_prob_weights), "log_prob_weights", (), "give at least one, such as 0.0")


def check_shape(config: ExperimentConfig, model: ModelConfig, field: str) -> None:
    """Raises ConfigError unless a model's context, `field`, holds the longest prompt, completion and an end-of-text
    token, and the mesh can split the model's heads."""
    try:
        config.mesh.check_heads(model.num_key_value_heads)
    except ValueError as error:
        raise ConfigError(f"config.mesh.{error}") from error
    lengths = [(config.sampling, config.max_prompt_length), *(sampling_of(config, name) for name in config.evaluation)]
    longest = max(prompt + sampling.max_completion_length for sampling, prompt in lengths)
    require(
        longest < model.max_position_embeddings,
        field,
        model.max_position_embeddings,
        f"max_prompt_length + sampling.max_completion_length = {longest} and an end-of-text token do not fit; use "
        f"{longest + 1} or more, or lower the two limits",
    )


def _check_batches(config: ExperimentConfig, devices: int) -> None:
    """Batches that are sampled must divide by the devices that share them; training batches are padded to fit."""
    whole = "rollouts_in_flight" if config.ppo.rollouts_in_flight else "batch_size"
    for field, value in {
        "candidates.prompts_in_flight": config.candidates.prompts_in_flight,
        f"ppo.{whole}": getattr(config.ppo, whole),
    }.items():
        require(
            value > 0 and value % devices == 0,
            field,
            value,
            f"not a positive multiple of the {devices} devices that share it; "
            f"use {max(1, round(value / devices)) * devices}",
        )


def _check_numbers(config: ExperimentConfig) -> None:
    least = {
        "max_prompt_length": (config.max_prompt_length, 1),
        "sft.batch_size": (config.sft.batch_size, 1),
        "reranker_training.batch_size": (config.reranker_training.batch_size, 1),
        "retraining.batch_size": (config.retraining.batch_size, 1),
        "reranker.members": (config.reranker.members, 1),
        "candidates.train": (config.candidates.train, 1),
        "candidates.dev": (config.candidates.dev, 1),
        "candidates.samples_in_flight": (config.candidates.samples_in_flight, 0),
        "candidates.train_problems": (config.candidates.train_problems, 0),
        "mining.pairs": (config.mining.pairs, 1),
        "mining.later_pairs": (config.mining.later_pairs, 1),
        "mining.pairs_together": (config.mining.pairs_together, 1),
        "early_stopping.every": (config.early_stopping.every, 1),
        "early_stopping.samples": (config.early_stopping.samples, 1),
        "problems.dev_problems": (config.problems.dev_problems, 0),
        "problems.test_problems": (config.problems.test_problems, 0),
        "problems.max_train": (config.problems.max_train, 0),
        "problems.max_test_cases": (config.problems.max_test_cases, 0),
    }
    for name, evaluation in config.evaluation.items():
        least[f"evaluation.{name}.samples"] = evaluation.samples, 1
        least[f"evaluation.{name}.max_problems"] = evaluation.max_problems, 0
        least[f"evaluation.{name}.max_prompt_length"] = evaluation.max_prompt_length, 0
    for field, (value, smallest) in least.items():
        require(value >= smallest, field, value, f"use {smallest} or more")
    reward, members = config.ppo.reward, config.reranker.members
    remedy = f"it combines the scores of several rerankers; set reranker.members to 2 or more, now {members}"
    require(reward not in ENSEMBLES or members > 1, "ppo.reward", repr(reward), remedy)
    criterion = config.early_stopping.criterion
    require(
        criterion in (PASS_RATE, RERANKED),
        "early_stopping.criterion",
        repr(criterion),
        f"use {PASS_RATE!r} or {RERANKED!r}",
    )
    for name in ("new_fraction", "hard_fraction"):
        value = getattr(config.mining, name)
        require(0 < value <= 1, f"mining.{name}", value, "use a fraction above 0, up to 1")


def _check_iterations(config: ExperimentConfig) -> None:
    starts = [name for name, iteration in config.iterations.items() if not iteration.after]
    require(
        len(starts) == 1 or not config.iterations,
        "iterations",
        starts,
        f"exactly one iteration needs an empty `after` and pairs {SAMPLED!r}; set `after` in every other iteration to "
        "the iteration whose policy's samples it mines",
    )
    for name, iteration in config.iterations.items():
        field = f"iterations.{name}"
        require(name.isidentifier(), field, "...", "the name is also a directory name; use letters, digits and _")
        require(
            name not in TAKEN_ITERATIONS,
            field,
            "...",
            "the name is reserved for a policy or a stage; rename the iteration",
        )
        known = PAIR_SOURCES if iteration.after else (SAMPLED,)
        require(iteration.pairs in known, f"{field}.pairs", repr(iteration.pairs), f"use one of {', '.join(known)}")
        if not iteration.after:
            continue
        seen, parent = {name}, iteration.after
        while parent:
            names = ", ".join(config.iterations)
            require(parent in config.iterations, f"{field}.after", repr(parent), f"unknown; use one of {names}")
            require(parent not in seen, f"{field}.after", repr(parent), "these iterations form a cycle; change `after`")
            seen.add(parent)
            parent = config.iterations[parent].after
        before = config.iterations[iteration.after]
        runs = not iteration.run or (before.run and before.ppo)
        remedy = "this iteration trains no policy; set its ppo and run to True"
        require(runs, f"{field}.after", repr(iteration.after), remedy)


def _check_problems(config: ExperimentConfig) -> None:
    problems, synthetic = config.problems, config.problems.synthetic
    sets = {"problems.train": problems.train, "problems.dev": problems.dev}
    shots = {"prompts.shots": config.prompts.shots}
    for name, evaluation in config.evaluation.items():
        sets[f"evaluation.{name}.sources"] = evaluation.sources
        if evaluation.prompts:
            shots[f"evaluation.{name}.prompts.shots"] = evaluation.prompts.shots
        require(
            name.isidentifier(),
            f"evaluation.{name}",
            "...",
            "the name is also a directory name; use letters, digits and _",
        )
        taken = "the name is reserved for a training split or another file; rename the set"
        require(name not in TAKEN_SETS, f"evaluation.{name}", "...", taken)
        require(bool(evaluation.sources), f"evaluation.{name}.sources", "()", "give at least one source")
        value = evaluation.csharp_lists
        require(value in CSHARP_LISTS, f"evaluation.{name}.csharp_lists", value, f"use {' or '.join(CSHARP_LISTS)}")
    require(bool(config.evaluation), "evaluation", "{}", "give at least one set of problems")
    for field, sources in sets.items():
        wanted = any(source.source == SYNTHETIC for source in sources)
        require(synthetic is not None or not wanted, field, SYNTHETIC, "set the sizes in problems.synthetic")
    for field, sources in shots.items():
        for source in sources:
            named = source.source not in (SYNTHETIC, HELD_OUT)
            require(named, field, source.source, "shots come from a file or a dataset; give its name")
    for field, sources in sets.items():
        wanted = any(source.source == HELD_OUT for source in sources)
        given = field.startswith("evaluation.") and problems.test_problems > 0
        remedy = "only an evaluation set can use it, and problems.test_problems must be 1 or more"
        require(given or not wanted, field, HELD_OUT, remedy)
    if synthetic is not None:
        try:
            SourceConfig(SYNTHETIC, languages=synthetic.languages)
        except ValueError as error:
            raise ConfigError(f"config.problems.synthetic.{error}") from error
        for name in ("train", "dev", "test", "corpus"):
            value = getattr(synthetic, name)
            require(value > 0, f"problems.synthetic.{name}", value, "use 1 or more")
        steps = synthetic.steps
        require(bool(steps) and min(steps) > 0, "problems.synthetic.steps", steps, "use numbers of 1 or more")
    ngram = problems.decontamination_ngram
    require(ngram == 0 or ngram >= 3, "problems.decontamination_ngram", ngram, "use 3 or more, or 0 to remove none")
    if not config.iterations and not config.sft.enabled:
        return
    require(bool(problems.train), "problems.train", "()", "give at least one source")
    require(
        bool(problems.dev) or problems.dev_problems > 0,
        "problems.dev_problems",
        problems.dev_problems,
        "PPO's early stopping needs dev problems: set some aside, or give problems.dev",
    )
