"""Row "RewardRanker, 2 iter., self-training" of the paper's Table 1: the second iteration on both.

    python experiments/table1.py run --rows self-training --workdir runs/table1

The first iteration is ranker_6_7b.py's. Its policy's failures that the reranker likes become negatives, and what it
solved positives; the reranker is trained on, and PPO runs again from the SFT model. Not run yet but on tiny models.

Assumed, since the paper does not say (common.py has the reasons):
`sampling.max_completion_length`, `evaluation.max_prompt_length`, `evaluation.csharp_lists`, `dtype`, `compute_dtype`,
`evaluation.samples`, `evaluation.temperature`, `evaluation.top_p`, `evaluation.answers`, `problems`,
`sft_on_solutions`, `sft`, `sampling.temperature`, `candidates.train`, `max_prompt_length`, `reranker_training`,
`ppo`, `early_stopping`, `mining`, `lora`, `seed`, `retraining`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    common = runpy.run_path(str(Path(__file__).with_name("common.py")))
    config: ConfigDict = common["get_row"]("self-training", "6.7b", "reranked", "6.7b", "self_training")
    return config
