"""Which prompts suit a pretrained model: pass@1 and pass@n of its samples on dev problems, by prompt.

    make models/SmolLM2-135M-Instruct.Q4_1.gguf
    python experiments/prompt_styles.py --mbpp=mbpp.jsonl                        # 25 minutes on two cores
    python experiments/prompt_styles.py --problems=runs/lists/seed0/problems     # of a run of smollm2.py:lists

Each style of `rerankjax.prompts` is asked without examples and with three: MBPP's (tasks 2 to 4; dev are its tasks 511
to 600), or the corpus's first right solutions. Products have the type that a run's compute_dtype "auto" takes.
Prints a Markdown table with 95% bootstrap intervals over problems.
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rerankjax.candidates.generate import generate
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model import weights
from rerankjax.model.products import fastest_dtype
from rerankjax.model.sharding import make_mesh, replicated
from rerankjax.problems.problem import Problem, read_problems, read_solutions
from rerankjax.problems.sources import load_problems
from rerankjax.progress import progress
from rerankjax.prompts.ask import STYLES, ask
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.results.selection import pass_at_k
from rerankjax.results.statistics import mean_estimate
from rerankjax.run.hosts import make_cpu_devices
from rerankjax.verdicts.execution import SandboxConfig, execute

SHOTS = ("MBPP/2", "MBPP/3", "MBPP/4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--mbpp", help="MBPP's file of all tasks, mbpp.jsonl")
    of.add_argument(
        "--problems", type=Path, help="instead, those of a run of configs/smollm2.py:lists, runs/lists/seed0/problems"
    )
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.8)
    args = parser.parse_args()
    make_cpu_devices(os.cpu_count() or 1)
    if args.problems:
        dev = read_problems(args.problems / "dev.jsonl")
        train = {problem.name: problem for problem in read_problems(args.problems / "train.jsonl")}
        right = [solution for solution in read_solutions(args.problems / "corpus.jsonl") if solution.correct]
        shots = [dataclasses.replace(train[one.problem], solution=one.completion) for one in right[:3]]
    else:
        dev = load_problems(args.mbpp, "MBPP", split="validation")
        shots = [problem for problem in load_problems(args.mbpp, "MBPP", split="prompt") if problem.name in SHOTS]

    mesh, tokenizer = make_mesh(), load_tokenizer(args.model)
    shape, params = weights.load(args.model, sharding=replicated(mesh))
    shape = dataclasses.replace(shape, compute_dtype=fastest_dtype())
    sampling = SamplingConfig(args.temperature, top_p=0.95, max_completion_length=160)
    sandbox = SandboxConfig(workers=os.cpu_count() or 1, cpu_seconds=5.0, wall_seconds=60.0)

    def row(style: str, shown: Sequence[Problem]) -> str:
        title, problems = f"{style}, {len(shown)} examples", ask(dev, style, tokenizer, shown)

        def source(problem: Problem, text: str) -> str:
            return problems.source(problem.name, text)

        with progress(title, args.samples * len(dev), "programs") as advance:
            drawn = generate(
                shape,
                sampling,
                params,
                problems.asked,
                tokenizer,
                key=jax.random.key(0),
                samples=args.samples,
                prompt_length=max(len(tokenizer.tokenize(problem.prompt)) for problem in problems.asked),
                prompts_in_flight=16,
                slots=args.samples,
                mesh=mesh,
            )
            judged = sorted(
                execute(sandbox, problems.asked, drawn, advance, source), key=lambda c: (c.problem, c.sample)
            )
        passed = np.array([c.passed for c in judged]).reshape(len(dev), args.samples)
        ended = np.mean([c.finished for c in judged])
        one, any_sample = (mean_estimate([solved]).text() for solved in (passed.mean(1), pass_at_k(passed)))
        return f"| {title} | {one} | {any_sample} | {ended:.2f} |"

    print(f"| prompt | pass@1 | pass@{args.samples} | ended within {sampling.max_completion_length} tokens |")
    print("| --- | ---: | ---: | ---: |")
    for style in STYLES:
        for shown in ((), shots):
            print(row(style, shown), flush=True)


if __name__ == "__main__":
    main()
