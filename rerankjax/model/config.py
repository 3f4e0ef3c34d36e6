"""The shape of a decoder, in Hugging Face's names."""

import dataclasses

MODEL_TYPES = ("llama", "qwen2", "qwen3")
ATTENTIONS = ("auto", "xla", "skip", "splash", "cudnn")
COMPUTE_DTYPES = ("", "float32", "bfloat16", "float16")  # of a run's config also "auto": see `loop.config.computed`
REMATS = ("none", "full", "dots")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies change for a context longer than `original_max_position_embeddings` (tokens).

    "linear" divides them all by `factor` (DeepSeek-Coder). "llama3" divides those that turn fewer than
    `low_freq_factor` times in the original context, keeps those that turn more than `high_freq_factor` times, and
    blends in between; only "llama3" uses the other fields.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(f'rope_type = "{self.rope_type}" is not supported: use one of {", ".join(ROPE_TYPES)}')
        if self.factor < 1:
            raise ValueError(f"factor = {self.factor} shortens RoPE's context: use 1 or more")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor = {self.high_freq_factor} is not above low_freq_factor = {self.low_freq_factor}: "
                "raise high_freq_factor"
            )


UNSCALED = RopeScaling()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family. Fields are those of Hugging Face's configs; lengths are in tokens.

    `model_type` "qwen2" adds biases to the query, key and value projections, "qwen3" an RMSNorm of each head's queries
    and keys; `attention_bias` adds biases to all four projections of the others.

    `attention` is the kernel by which whole rows attend: "xla" anywhere, "skip" for packed rows on CPUs, "splash"
    on TPUs, "cudnn" on NVIDIA GPUs, or "auto", the fastest of them for JAX's backend.
    `compute_dtype` is the type in which products are computed, whatever the parameters' type: "bfloat16" over float32
    parameters trains with float32 master weights. Empty, it is the parameters' own.
    `remat` is for training only: "full" recomputes each layer in the backward pass, so that only its input is kept;
    "dots" also keeps the results of its projections and of "skip", and recomputes the rest; "none" keeps all.
    `unroll` layers are compiled as one body of the loop over layers. On a CPU, where a loop copies what the gradient
    needs, unrolling all layers trains a shallow model a tenth faster; compile time grows in proportion to `unroll`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    model_type: str = "llama"
    attention_bias: bool = False
    rope_scaling: RopeScaling = UNSCALED
    attention: str = "auto"
    compute_dtype: str = ""
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f'model_type = "{self.model_type}" is not supported: use one of {", ".join(MODEL_TYPES)}')
        if self.attention not in ATTENTIONS:
            raise ValueError(f'attention = "{self.attention}" is unknown: use one of {", ".join(ATTENTIONS)}')
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads = {self.num_key_value_heads} does not divide num_attention_heads = "
                f"{self.num_attention_heads}: each key/value head serves an equal group of query heads"
            )
        for name, known in (("compute_dtype", COMPUTE_DTYPES), ("remat", REMATS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is unknown: use one of {', '.join(map(repr, known))}"
                )
        if not 0 < self.unroll <= self.num_hidden_layers:
            raise ValueError(f"unroll = {self.unroll}: use 1 to num_hidden_layers = {self.num_hidden_layers}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd: RoPE rotates pairs of dimensions, use an even number")
        if self.attention_bias and self.model_type == "qwen2":
            raise ValueError("attention_bias = True is not supported for qwen2, whose biases are fixed: leave it out")

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"
