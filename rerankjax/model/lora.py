"""LoRA: a model as low-rank changes of a frozen base (arXiv 2106.09685).

An adapter is {"layers": {"q_proj": {"lora_a": [N, in, rank], "lora_b": [N, rank, out]}, ...}}, float32. Attached to a
base it gives ordinary decoder parameters, whose frozen part is the base's own arrays: any number of models on one base
store the base once. If the base is None there is no adapter: the parameters are whole, and all are trained.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, init_decoder

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """W + alpha / rank * A B for the kernel W of each of `targets`. Rank 0: no adapter, all parameters are trained."""

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank = {self.rank} is negative: use 1 or more, or 0 to train without adapters")
        if not self.alpha > 0:
            raise ValueError(f"alpha = {self.alpha} is not positive: use more than 0")
        for name in self.targets:
            if name not in TARGETS:
                raise ValueError(f"targets = {self.targets}: {name} is unknown: use some of {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets = {self.targets}: name at least one projection, each once")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


FULL = LoraConfig(rank=0)


def adapter_shapes(config: ModelConfig, lora: LoraConfig) -> Params:
    """An adapter's shapes and types, without its values."""
    decoder = jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))

    def shapes(name: str) -> Params:
        layers, inputs, outputs = decoder["layers"][name]["kernel"].shape
        return {
            "lora_a": jax.ShapeDtypeStruct((layers, inputs, lora.rank), jnp.float32),
            "lora_b": jax.ShapeDtypeStruct((layers, lora.rank, outputs), jnp.float32),
        }

    return {"layers": {name: shapes(name) for name in lora.targets}}


def init_adapter(config: ModelConfig, lora: LoraConfig, key: Array) -> Params:
    """An adapter that changes nothing yet: A uniform in +-1 / sqrt(in), as PEFT draws it, and B zero."""

    def draw(shape: Params, key: Array) -> Params:
        a, b = shape["lora_a"], shape["lora_b"]
        bound = a.shape[1] ** -0.5
        return {"lora_a": jax.random.uniform(key, a.shape, a.dtype, -bound, bound), "lora_b": jnp.zeros_like(b)}

    shapes = adapter_shapes(config, lora)["layers"]
    keys = jax.random.split(key, len(shapes))
    return {"layers": {name: draw(shapes[name], k) for name, k in zip(lora.targets, keys, strict=True)}}


def attach(base: Params | None, adapter: Params, lora: LoraConfig) -> Params:
    """Decoder parameters: the base's arrays, and the adapter's beside the kernels that it changes.

    The scale goes into B. Without a base the parameters are whole already, and returned unchanged.
    """
    if base is None:
        return adapter
    layers = dict(base["layers"])
    for name, pair in adapter["layers"].items():
        layers[name] = layers[name] | {"lora_a": pair["lora_a"], "lora_b": pair["lora_b"] * lora.scale}
    return base | {"layers": layers}


def attach_trunk(base: Params | None, params: Params, lora: LoraConfig) -> Params:
    """`attach` for a model with a head beside its decoder."""
    return params | {"decoder": attach(base, params["decoder"], lora)}


def merge(params: Params) -> Params:
    """Attached decoder parameters for export: W + A B, summed in float32 and rounded to W's type, without A and B.

    Parameters that are whole already are returned unchanged.
    """

    def add(layer: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = layer
        change = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

    def whole(module: Params) -> Params:
        if "lora_a" not in module:
            return module
        # A layer at a time: in float32, all layers would take twice the memory of a bfloat16 kernel.
        kernel = jax.lax.map(add, (module["kernel"], module["lora_a"], module["lora_b"]))
        return {name: leaf for name, leaf in module.items() if not name.startswith("lora_")} | {"kernel": kernel}

    return params | {"layers": {name: whole(module) for name, module in params["layers"].items()}}
