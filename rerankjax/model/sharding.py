"""The mesh, and the table of which axes of arrays are split over it.

Batches are split over `data` and `fsdp`, parameters and optimiser state over `fsdp` and `tensor`, and the positions of
long rows over `sequence`. Programs are written for whole arrays: the split changes results only by rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "sequence", "tensor")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis. `data` 0 takes the remaining devices.

    `tensor` is last, so that the devices that exchange most data are neighbours.
    """

    data: int = 0
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < (axis != "data"):
                raise ValueError(
                    f"{axis} = {getattr(self, axis)}: use 1 or more (data = 0 takes the remaining devices)"
                )

    def shape(self, devices: int) -> dict[str, int]:
        """Devices along each axis, of `devices` in all. Raises ValueError unless their product is `devices`."""
        others = self.fsdp * self.sequence * self.tensor
        data = self.data or devices // others
        if data * others != devices:
            raise ValueError(
                f"data = {self.data}, fsdp = {self.fsdp}, sequence = {self.sequence}, tensor = {self.tensor} do not "
                f"fill {devices} devices: their product must be {devices} (data = 0 takes the remaining devices)"
            )
        return {"data": data, "fsdp": self.fsdp, "sequence": self.sequence, "tensor": self.tensor}

    def check_heads(self, num_key_value_heads: int) -> None:
        """Raises ValueError where `tensor` would split a head: XLA then moves heads between devices in every layer."""
        if num_key_value_heads % self.tensor:
            divisors = [str(n) for n in range(1, num_key_value_heads + 1) if num_key_value_heads % n == 0]
            raise ValueError(
                f"tensor = {self.tensor} does not divide the model's num_key_value_heads = {num_key_value_heads}: use "
                f"{' or '.join(divisors)}, and split over fsdp or data instead"
            )


ALL_DATA = MeshConfig()


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes over which each logical axis is split, the first outermost.

    Raises ValueError where two axes of one array are split over the same mesh axis.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    length: tuple[str, ...] = ("sequence",)
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    # Split along the vocabulary alone: XLA reads an embedding that is split both ways by copying it whole.
    vocab: tuple[str, ...] = ("tensor", "fsdp")

    def __post_init__(self) -> None:
        for what, axes in {"activations": ("batch", "length"), **PARAMETERS}.items():
            used = [mesh_axis for axis in axes if axis for mesh_axis in getattr(self, axis)]
            for mesh_axis in used:
                if mesh_axis not in AXES:
                    raise ValueError(f"{what}: {mesh_axis!r} is not a mesh axis; use some of {', '.join(AXES)}")
                if used.count(mesh_axis) > 1:
                    raise ValueError(f"{what}: mesh axis {mesh_axis!r} would split {axes} twice; change a rule")


# The logical axes of each array, except the leading one over layers, which is never split. Other arrays are replicated.
_PROJECTIONS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("embed", "heads")),
    "o_proj": ("heads", "embed"),
    **dict.fromkeys(("gate_proj", "up_proj"), ("embed", "mlp")),
    "down_proj": ("mlp", "embed"),
}
PARAMETERS: Mapping[str, tuple[str | None, ...]] = {
    "embed_tokens/embedding": ("vocab", None),
    "lm_head/kernel": (None, "vocab"),
    **{f"{name}/kernel": axes for name, axes in _PROJECTIONS.items()},
    **{f"{name}/bias": (out,) for name, (_, out) in _PROJECTIONS.items()},
    **{f"{name}/lora_a": (into, None) for name, (into, _) in _PROJECTIONS.items()},
    **{f"{name}/lora_b": (None, out) for name, (_, out) in _PROJECTIONS.items()},
}

RULES = Rules()
# Parameters for drawing tokens are not split over fsdp, because they would be gathered at every token.
DRAWING = dataclasses.replace(RULES, embed=(), vocab=("tensor",))


def make_mesh(config: MeshConfig = ALL_DATA, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `devices`, by default all there are, on every host."""
    devices = jax.devices() if devices is None else devices
    shape = tuple(config.shape(len(devices)).values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices that share a batch."""
    return NamedSharding(mesh, PartitionSpec(RULES.batch))


def row_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in RULES.batch)


def sharding_of(path: Sequence[str], shape: Sequence[int], mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """How the parameter at `path`, for example ("layers", "q_proj", "kernel"), or its optimiser moments are split.

    An array axis whose size the mesh axes do not divide is not split.
    """
    axes = PARAMETERS.get("/".join(path[-2:]))
    if axes is None:
        return replicated(mesh)
    entries: list[tuple[str, ...] | None] = [None] * (len(shape) - len(axes))
    for size, axis in zip(shape[len(entries) :], axes, strict=True):
        over = tuple(a for a in getattr(rules, axis) if mesh.shape[a] > 1) if axis else ()
        entries.append(over if over and size % math.prod(mesh.shape[a] for a in over) == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*entries))


def placed(tree: T, shardings: Any) -> T:
    """The shapes and types of a tree of arrays or shapes, with shardings: what compilation and restoring ask for."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def to_global(batch: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process holds, on the mesh: each process moves only its devices' rows."""

    def place(array: np.ndarray | np.generic) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array)[index])

    return jax.tree.map(place, batch)


def shardings_of(tree: T, mesh: Mesh, rules: Rules = RULES) -> T:
    """A sharding for each array, or shape, of a tree of parameters or of a training state."""

    def leaf_sharding(path: Any, leaf: Any) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return sharding_of(names, leaf.shape, mesh, rules)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def constrain(tree: T, mesh: Mesh, rules: Rules = RULES) -> T:
    """Inside a jitted function: parameters, or a training state, split as the rules say."""
    return tree if mesh.size == 1 else jax.lax.with_sharding_constraint(tree, shardings_of(tree, mesh, rules))


def constrain_rows(x: jax.Array) -> jax.Array:
    """Inside a function `on_mesh`: activations [batch, length, ...] split over batch and length, no other axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    parts = [math.prod(mesh.shape[a] for a in over) for over in (RULES.batch, RULES.length)]
    spec = [
        over if size % n == 0 and n > 1 else None
        for over, size, n in zip((RULES.batch, RULES.length), x.shape, parts, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The mesh axes, of `axes`, over which `size` can be split evenly, all at once."""
    used: tuple[str, ...] = ()
    for axis in axes:
        if axis in mesh.shape and size % math.prod(mesh.shape[a] for a in (*used, axis)) == 0:
            used = (*used, axis)
    return used


def split_by_hand(
    function: Callable[..., jax.Array],
    arrays: Sequence[Any],
    split: Callable[[AbstractMesh], tuple[tuple[PartitionSpec, ...], PartitionSpec]],
) -> jax.Array:
    """`function`, called on each device's part of the arrays. Without a mesh (`on_mesh`), or where the caller is itself
    called on parts, it is called once, on the arrays given.

    arrays: arrays, or pytrees of them.
    split: maps the mesh to how the arrays and the result are split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.manual_axes:
        return function(*arrays)
    given, result = split(mesh)
    whole: jax.Array = jax.shard_map(function, in_specs=given, out_specs=result, check_vma=False)(*arrays)
    return whole


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced with `mesh` as the context's mesh, which `constrain_rows` and attention kernels look for."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def replicated_parameters(tree: Any, mesh: Mesh) -> list[str]:
    """The names of the arrays that every device holds as a whole."""
    leaves = jax.tree_util.tree_leaves_with_path(shardings_of(tree, mesh))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, sharding in leaves
        if sharding.is_fully_replicated
    ]
