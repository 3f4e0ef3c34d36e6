"""Row "RewardRanker (1.3B + 6.7B)" of the paper's Table 1: 1.3B samples, 6.7B chooses.

    python experiments/table1.py run --rows 1.3b+6.7b --workdir runs/table1

SFT of both, a reranker from pairs of 1.3B's samples, PPO of 1.3B against it, and of PPO's samples the reranker's
choice. Not run yet but on tiny models.

Assumed, since the paper does not say (common.py has the reasons):
`sampling.max_completion_length`, `evaluation.max_prompt_length`, `evaluation.csharp_lists`, `dtype`, `compute_dtype`,
`evaluation.samples`, `evaluation.temperature`, `evaluation.top_p`, `evaluation.answers`, `problems`,
`sft_on_solutions`, `sft`, `sampling.temperature`, `candidates.train`, `max_prompt_length`, `reranker_training`,
`ppo`, `early_stopping`, `mining`, `lora`, `seed`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    common = runpy.run_path(str(Path(__file__).with_name("common.py")))
    config: ConfigDict = common["get_row"]("1.3b+6.7b", "1.3b", "reranked", "6.7b")
    return config
