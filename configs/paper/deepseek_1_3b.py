"""Row "DeepSeek-Coder-Instruct, 1.3B" of the paper's Table 1: the instruct checkpoint by itself, nothing trained.

    python experiments/table1.py run --rows 1.3b-greedy 1.3b-sampled --workdir runs/table1

`greedy` is DeepSeek-Coder's own way and the paper's figure; `sampled`, the mean of many samples, is what a reranker
begins with. Not run yet but on tiny models. In bfloat16 the weights take 2.7 GB.

Assumed, since the paper does not say (common.py has the reasons):
`sampling.max_completion_length`, `evaluation.max_prompt_length`, `evaluation.csharp_lists`, `dtype`, `compute_dtype`,
`evaluation.samples`, `evaluation.temperature`, `evaluation.top_p`, `seed`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "greedy") -> ConfigDict:
    if arg not in ("greedy", "sampled"):
        raise ValueError(f"configs/paper/deepseek_1_3b.py:{arg} is unknown: use greedy or sampled")
    common = runpy.run_path(str(Path(__file__).with_name("common.py")))
    config: ConfigDict = common["get_row"](f"1.3b-{arg}", "1.3b", arg)
    return config
