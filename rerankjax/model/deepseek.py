"""DeepSeek-Coder's shapes, those of the paper's generators and reranker (arXiv 2401.14196).

From the config.json of deepseek-ai/deepseek-coder-{1.3b,6.7b,33b}-instruct; the base models' are the same.
"""

from rerankjax.model.config import ModelConfig, RopeScaling


def _coder(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=32_256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=128,
        max_position_embeddings=16_384,
        rope_theta=100_000.0,
        rope_scaling=RopeScaling("linear", 4.0),
        tie_word_embeddings=False,
    )


DEEPSEEK_CODER = {
    "1.3B": _coder(2048, 5504, 24, 16, 16),
    "6.7B": _coder(4096, 11_008, 32, 32, 32),
    "33B": _coder(7168, 19_200, 62, 56, 8),
}
