"""The sampling engine: n samples per prompt, each prompt read once, slots refilled as samples end.

There are R rows. Each row has a prompt, whose keys and values its S slots share; a slot draws one sample. The device
draws in chunks of a few tokens. Between chunks, the host takes the finished samples and gives each free slot the next
sample of its prompt; a row whose prompt has no samples left gets the next prompt, and when there is none, half of the
samples that another row has still to begin. Where several devices share the rows, prompts wait until each device can
read one. No batch waits for its slowest sample, and shapes are fixed: the chunk is compiled once, reading once for each
number of prompts and padded length. On a CPU, where a token of fewer samples takes less time, the last samples are
drawn in fewer rows, whose number is halved: the chunk is compiled for each half.

All slots write at the same column of their caches, which are ring buffers: a slot's own keys are the last ones that it
wrote. The order of the keys does not matter, because each was rotated to its position before it was written.
"""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from rerankjax.candidates.sampling import SamplingConfig, choose
from rerankjax.model.attention import Prefix
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Cache, Params, decode_step, in_compute_dtype, prefill, unstack
from rerankjax.model.sharding import (
    DRAWING,
    RULES,
    by_row,
    constrain,
    on_mesh,
    placed,
    replicated,
    row_shards,
    shardings_of,
)

FEWEST = 32  # samples in flight on a CPU, below which it would draw a token hardly faster
SHORTEST_BUCKET = 32  # tokens, at least, to which prompts are padded


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How much is drawn at a time. rows * slots samples are in flight; all devices of the mesh share the rows."""

    rows: int  # prompts
    slots: int  # samples of one prompt
    prompt_length: int  # tokens; a longer prompt is refused
    chunk: int = 8  # tokens between two checks by the host
    reads: int = 1 << 30  # prompts that are read at once, at most

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"EngineConfig: {field.name} is {getattr(self, field.name)}; it must be at least 1")


class Prompt(NamedTuple):
    """A prompt's tokens, and a number that is folded into its samples' keys: the same in any batch.

    start: the state of the stop automaton in which its samples start.
    """

    tokens: Sequence[int]
    number: int
    start: int = 0


class Sample(NamedTuple):
    """One sample of the prompt at position `prompt` of the input. Lengths are of the completion, in tokens."""

    prompt: int
    sample: int
    tokens: np.ndarray  # int32 [length], with the end-of-text token or the one that met a stop string
    log_probs: np.ndarray  # float32 [length], under the distribution sampled from
    raw_log_probs: np.ndarray  # float32 [length], under the model at temperature 1
    finished: bool  # false where the length limit cut it


def _turns_caches(mesh: Mesh) -> bool:
    """Whether the state holds caches as [C K B E]: a TPU writes a column of these at once. If they were [B K C E], XLA
    would copy all of them into that order before each chunk, and back after it."""
    return bool(mesh.devices.flat[0].platform == "tpu")


def _turn(caches: tuple[Cache, ...]) -> tuple[Cache, ...]:
    """[B K C E] as [C K B E], or back."""
    return jax.tree.map(lambda a: a.transpose(2, 1, 0, 3), caches)


class _State(NamedTuple):
    """Everything on the device. B = R * S slots; the slots of a row are adjacent."""

    caches: tuple[Cache, ...]  # of the slots' own tokens, by layer: [B K C E], or as `_turns_caches` says
    prefixes: tuple[Prefix, ...]  # by layer
    first: Float[Array, "R V"]  # logits that follow each prompt
    length: Int[Array, " R"]  # of each prompt
    column: Int[Array, ""]  # where in the ring the next token is written
    token: Int[Array, " B"]  # the last drawn
    drawn: Int[Array, " B"]  # how many tokens a slot has
    matched: Int[Array, " B"]  # the stop automaton's state
    done: Bool[Array, " B"]
    finished: Bool[Array, " B"]
    keys: Key[Array, " B"]
    tokens: Int[Array, "B C"]
    log_probs: Float[Array, "B C"]
    raw_log_probs: Float[Array, "B C"]


def _empty(config: ModelConfig, engine: EngineConfig, length: int, dtype: Any) -> _State:
    R, B, P = engine.rows, engine.rows * engine.slots, engine.prompt_length
    heads, E = config.num_key_value_heads, config.head_dim

    def of_layers(make: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(make() for _ in range(config.num_hidden_layers))

    return _State(
        caches=of_layers(lambda: Cache(*(jnp.zeros((B, heads, length, E), dtype) for _ in range(2)))),
        prefixes=of_layers(
            lambda: Prefix(
                jnp.zeros((R, heads, P, E), dtype), jnp.zeros((R, heads, P, E), dtype), jnp.zeros((R, P), bool)
            )
        ),
        first=jnp.zeros((R, config.vocab_size)),
        length=jnp.zeros(R, jnp.int32),
        column=jnp.int32(0),
        token=jnp.zeros(B, jnp.int32),
        drawn=jnp.zeros(B, jnp.int32),
        matched=jnp.zeros(B, jnp.int32),
        done=jnp.ones(B, bool),
        finished=jnp.zeros(B, bool),
        keys=jax.random.split(jax.random.key(0), B),
        tokens=jnp.zeros((B, length), jnp.int32),
        log_probs=jnp.zeros((B, length)),
        raw_log_probs=jnp.zeros((B, length)),
    )


def _read(
    config: ModelConfig,
    mesh: Mesh,
    params: Params,
    state: _State,
    prompts: Int[Array, "N P"],
    mask: Bool[Array, "N P"],
    rows: Int[Array, " N"],
) -> _State:
    """Reads prompts, padded on the left, into `rows`; a row number past the last drops its prompt."""
    length = state.prefixes[0].mask.shape[1]
    prompts, mask = jax.lax.with_sharding_constraint((prompts, mask), by_row(mesh))
    logits, caches = prefill(config, params, prompts, mask, length - prompts.shape[1])
    mask = jnp.pad(mask, ((0, 0), (0, length - mask.shape[1])))
    put = functools.partial(jax.tree.map, lambda old, new: old.at[rows].set(new.astype(old.dtype), mode="drop"))
    return state._replace(
        prefixes=tuple(put(old, Prefix(*new, mask=mask)) for old, new in zip(state.prefixes, caches, strict=True)),
        first=put(state.first, logits),
        length=put(state.length, jnp.sum(mask, axis=1, dtype=jnp.int32)),
    )


def _keep(slots: int, state: _State, rows: Int[Array, " N"]) -> _State:
    """The state of `rows` alone."""
    of_slots = (slots * rows[:, None] + jnp.arange(slots)[None]).ravel()
    parts = state._asdict()
    column = parts.pop("column")
    for name, part in parts.items():
        index = rows if name in ("prefixes", "first", "length") else of_slots
        parts[name] = jax.tree.map(operator.itemgetter(index), part)
    return _State(column=column, **parts)


def _draw(
    config: ModelConfig,
    sampling: SamplingConfig,
    chunk: int,
    eos: int,
    turn: bool,
    params: Params,
    layers: tuple[Params, ...],
    state: _State,
    stops: Int[Array, "states V"],
    begin: Bool[Array, " B"],
    key: Key[Array, ""],
    number: UInt[Array, " B"],
    sample: UInt[Array, " B"],
    start: Int[Array, " B"],
) -> _State:
    """Draws up to `chunk` tokens in every slot. Slots in `begin` first start sample `sample` of prompt `number`, in
    state `start` of the stop automaton."""
    B, C = state.tokens.shape
    slots = B // state.length.shape[0]
    own = jax.vmap(lambda n, s: jax.random.fold_in(jax.random.fold_in(key, n), s))(number, sample)
    state = state._replace(
        drawn=jnp.where(begin, 0, state.drawn),
        matched=jnp.where(begin, start, state.matched),
        done=state.done & ~begin,
        finished=state.finished & ~begin,
        keys=jnp.where(begin, own, state.keys),
    )
    first, length = (jnp.repeat(a, slots, axis=0) for a in (state.first, state.length))
    met = stops.shape[0] - 1
    every = jnp.arange(B)

    def body(s: _State) -> _State:
        age = (s.column - jnp.arange(C)) % C  # of each place in the ring, 0 for the one written now
        seen = age[None] < s.drawn[:, None]
        logits, caches = decode_step(
            config, params, layers, s.token, length + s.drawn - 1, seen, s.caches, s.column, s.prefixes
        )
        logits = jnp.where((s.drawn == 0)[:, None], first, logits.astype(first.dtype))
        uniform = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t)))(s.keys, s.drawn)
        token, log_prob, raw = choose(sampling, logits, uniform)
        matched = stops[s.matched, token]
        ends = (token == eos) | (matched == met)
        place = jnp.where(s.done, C, s.drawn)  # past the end where nothing is to be written

        def put(old: Array, new: Array) -> Array:
            return old.at[every, place].set(new, mode="drop")

        drawn = jnp.where(s.done, s.drawn, s.drawn + 1)
        return s._replace(
            caches=caches,
            column=(s.column + 1) % C,
            token=token,
            drawn=drawn,
            matched=matched,
            done=s.done | ends | (drawn == C),
            finished=s.finished | (ends & ~s.done),
            tokens=put(s.tokens, token),
            log_probs=put(s.log_probs, log_prob),
            raw_log_probs=put(s.raw_log_probs, raw),
        )

    if turn:
        state = state._replace(caches=_turn(state.caches))
    # A loop of fixed length: a check at every token whether all slots are done would make devices wait for each other.
    state = jax.lax.fori_loop(0, chunk, lambda _, s: body(s), state)
    return state._replace(caches=_turn(state.caches)) if turn else state


class Engine:
    """Compiled once, used for many prompts. Not thread-safe.

    params are an argument of `stream`, so that a policy in training is sampled without recompiling.
    """

    def __init__(
        self, config: ModelConfig, sampling: SamplingConfig, engine: EngineConfig, *, eos: int, pad: int, mesh: Mesh
    ) -> None:
        devices = row_shards(mesh)
        if engine.rows % devices:
            raise ValueError(
                f"EngineConfig: rows = {engine.rows} is not divisible by the {devices} devices that share rows"
            )
        self._engine, self._pad = engine, pad
        rows, everywhere = by_row(mesh), replicated(mesh)
        turn = _turns_caches(mesh)
        # On a CPU, a tied head would be transposed at every chunk and at every read.
        untied = config.tie_word_embeddings and on_cpu(mesh)
        if untied:
            config = dataclasses.replace(config, tie_word_embeddings=False)

        def empty(dtype: Any) -> _State:
            state = _empty(config, engine, sampling.max_completion_length, dtype)
            return state._replace(caches=_turn(state.caches)) if turn else state

        # Keys and values [rows, heads, length, dimensions] are split over heads as their projections are.
        heads = RULES.heads if config.num_key_value_heads % mesh.shape["tensor"] == 0 else None
        cached = NamedSharding(mesh, PartitionSpec(RULES.batch, heads))
        sharding = jax.tree.map(
            lambda a: cached if a.ndim == 4 else rows if a.ndim else everywhere,
            jax.eval_shape(lambda: empty(jnp.float32)),
        )
        if turn:
            turned = NamedSharding(mesh, PartitionSpec(None, heads, RULES.batch))
            sharding = sharding._replace(caches=jax.tree.map(lambda _: turned, sharding.caches))
        self._empty = jax.jit(empty, static_argnums=0, out_shardings=sharding)
        self.idle_seconds = 0.0  # so far, at most, in which the device waited for the host
        self.real_tokens = self.computed_tokens = 0  # so far, of prompts read and samples drawn
        self.compilations = 0  # so far; bounded by the lengths and numbers of prompts that are read together

        def compiled(function: Callable[..., _State], state: int | tuple[()]) -> Callable[..., _State]:
            def traced(*arguments: Any) -> _State:
                self.compilations += 1
                return function(*arguments)

            return jax.jit(on_mesh(mesh, traced), donate_argnums=state, out_shardings=sharding)

        # (parameters without layers, layers one by one, state, stops, slots to begin, key, prompts, samples, starts)
        self.draw = compiled(functools.partial(_draw, config, sampling, engine.chunk, eos, turn), 2)
        # (parameters, state, prompts, mask, rows) -> state
        self.read = compiled(functools.partial(_read, config, mesh), 1)
        # (state, rows) -> state
        self.keep = compiled(functools.partial(_keep, engine.slots), ())

        def prepare(params: Params) -> tuple[Params, tuple[Params, ...]]:
            params = in_compute_dtype(config, params)
            if untied:
                params = params | {"lm_head": {"kernel": params["embed_tokens"]["embedding"].T}}
            params = constrain(params, mesh, DRAWING)
            # Layers are stacked to read prompts, separate to draw: slicing them at every chunk would copy them.
            return params, unstack(config, params["layers"])

        self._prepare = jax.jit(prepare)
        self._mesh, self._sharding = mesh, sharding
        self._fewest = rows_for(-(-FEWEST // engine.slots), devices) if on_cpu(mesh) else engine.rows

    def shapes(self, params: Params) -> tuple[Params, tuple[Params, ...], Any]:
        """Shapes on the mesh of what `read` and `draw` take: the parameters, their layers one by one, the state."""
        params, layers = jax.eval_shape(self._prepare, params)
        state = jax.eval_shape(functools.partial(self._empty, jax.tree.leaves(params)[0].dtype))
        split = (placed(tree, shardings_of(tree, self._mesh, DRAWING)) for tree in (params, layers))
        return *split, placed(state, self._sharding)

    def stream(
        self,
        params: Params,
        prompts: Iterable[Prompt],
        *,
        samples: int,
        key: Key[Array, ""],
        stops: Int[Array, "states V"] | np.ndarray,
    ) -> Iterator[Sample]:
        """Yields `samples` samples of each prompt as they end. Prompts are taken as rows become free.

        A sample depends only on `params`, `key`, its prompt's tokens and number, and its own number. `stops` is a table
        of `candidates.stop`. Meanwhile the devices hold the layers' parameters twice.

        Raises:
            ValueError: a prompt has no token, or more than `prompt_length`.
        """
        R, S, shards = self._engine.rows, self._engine.slots, row_shards(self._mesh)
        params, layers = self._prepare(params)
        state = self._empty(jax.tree.leaves(params)[0].dtype)
        others = {name: part for name, part in params.items() if name != "layers"}
        numbered = enumerate(prompts)
        of_row: list[tuple[int, Prompt]] = [(-1, Prompt((), 0))] * R  # the prompt of each row, and which it is
        todo: list[list[int]] = [[] for _ in range(R)]  # samples of it not yet begun
        drawing: list[tuple[int, int] | None] = [None] * (R * S)  # (prompt, sample) of each slot
        finished: list[Sample] = []
        ready = time.monotonic()
        while True:
            free = [r for r in range(R) if not todo[r] and not any(drawing[r * S : (r + 1) * S])]
            if any(drawing):  # a free row costs less than one of padding in a read
                free = free[: len(free) // shards * shards]
            fresh = [(r, *one) for r, one in zip(free, numbered, strict=False)] if free else []
            for r, index, prompt in fresh:
                of_row[r], todo[r] = (index, prompt), list(range(samples))[::-1]
                self.real_tokens += len(prompt.tokens)
            for r in free[len(fresh) :]:
                most = max(range(R), key=lambda row: len(todo[row]))
                if len(todo[most]) < 2 * S:  # reading its prompt again would save less than it costs
                    break
                half = len(todo[most]) // 2
                of_row[r], todo[r], todo[most] = of_row[most], todo[most][:half], todo[most][half:]
                fresh.append((r, *of_row[r]))
            for chosen, tokens, mask in self._padded([(r, index, prompt.tokens) for r, index, prompt in fresh]):
                state = self.read(params, state, tokens, mask, chosen)
                self.computed_tokens += tokens.size
            live = [r for r in range(R) if todo[r] or any(drawing[r * S : (r + 1) * S])]
            fewer = max(rows_for(len(live), shards), self._fewest) if live else R
            if 2 * fewer <= R:  # no prompt is left to begin
                kept = (live + [r for r in range(R) if r not in live])[:fewer]
                state, R = self.keep(state, np.array(kept, np.int32)), fewer
                of_row, todo = [of_row[r] for r in kept], [todo[r] for r in kept]
                drawing = [drawing[r * S + slot] for r in kept for slot in range(S)]
            begin, sample = np.zeros(R * S, bool), np.zeros(R * S, np.uint32)
            for slot in range(R * S):
                if drawing[slot] is None and todo[slot // S]:
                    begin[slot], sample[slot] = True, todo[slot // S].pop()
                    drawing[slot] = of_row[slot // S][0], int(sample[slot])
            if any(drawing):
                number = np.repeat(np.array([prompt.number for _, prompt in of_row], np.uint32), S)
                start = np.repeat(np.array([prompt.start for _, prompt in of_row], np.int32), S)
                state = self.draw(others, layers, state, stops, begin, key, number, sample, start)
                self.computed_tokens += R * S * self._engine.chunk
            begun = time.monotonic()
            self.idle_seconds += begun - ready
            yield from finished  # while the device draws
            if not any(drawing):
                return
            if state.done.is_ready():  # since when is unknown
                self.idle_seconds += time.monotonic() - begun
            done, drawn, stopped = jax.device_get((state.done, state.drawn, state.finished))
            ready = time.monotonic()
            ended = [(slot, *one) for slot, one in enumerate(drawing) if one is not None and done[slot]]
            finished = []
            if ended:
                out = jax.device_get((state.tokens, state.log_probs, state.raw_log_probs))
                for slot, index, which in ended:
                    tokens, log_probs, raw_log_probs = (a[slot, : drawn[slot]].copy() for a in out)
                    self.real_tokens += len(tokens)
                    finished.append(Sample(index, which, tokens, log_probs, raw_log_probs, bool(stopped[slot])))
                    drawing[slot] = None

    def _padded(
        self, prompts: Sequence[tuple[int, int, Sequence[int]]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows, tokens, mask) of prompts padded to one length, in batches of `read_size`."""
        by_length: dict[int, list[tuple[int, Sequence[int]]]] = {}
        for row, index, tokens in prompts:
            if not 0 < len(tokens) <= self._engine.prompt_length:
                raise ValueError(
                    f"prompt {index}: has {len(tokens)} tokens; it must have 1 to prompt_length = "
                    f"{self._engine.prompt_length}"
                )
            by_length.setdefault(self._padded_length(len(tokens)), []).append((row, tokens))
        for length, left in by_length.items():
            while left:
                most = left[: self._engine.reads]
                count = read_size(len(most), row_shards(self._mesh))
                group = most[:count]
                left = left[len(group) :]
                rows = np.full(count, self._engine.rows, np.int32)
                filled, mask = np.full((count, length), self._pad, np.int32), np.zeros((count, length), bool)
                mask[:, -1] = True  # a row of padding alone would attend to nothing
                for i, (row, tokens) in enumerate(group):
                    rows[i], filled[i, length - len(tokens) :], mask[i, length - len(tokens) :] = row, tokens, True
                yield rows, filled, mask

    def _padded_length(self, length: int) -> int:
        """`length` up to the next of a few parts of a power of two: each is compiled, in a few seconds on a CPU."""
        length = max(SHORTEST_BUCKET, length)
        step = (1 << (length - 1).bit_length()) // (8 if on_cpu(self._mesh) else 4)
        return min(-(-length // step) * step, self._engine.prompt_length)


def on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def chunk_for(mesh: Mesh) -> int:
    """Tokens to draw between two checks by the host: fewer on a CPU, where they take long and a check does not."""
    return 4 if on_cpu(mesh) else EngineConfig.chunk


def rows_for(prompts: int, shards: int) -> int:
    """The least number of rows that is enough and `shards` times a power of two, so that few numbers are compiled."""
    return shards << (-(-prompts // shards) - 1).bit_length()


def read_size(prompts: int, shards: int) -> int:
    """How many rows are read first if `prompts` prompts wait: less than a quarter of the rows is empty if more than one
    row per shard is read."""
    size = rows_for(prompts, shards)
    return size if size == shards or 4 * prompts > 3 * size else size // 2


@functools.cache
def make_engine(
    config: ModelConfig, sampling: SamplingConfig, engine: EngineConfig, eos: int, pad: int, mesh: Mesh
) -> Engine:
    """The engine of these settings, made once, so that it compiles once."""
    return Engine(config, sampling, engine, eos=eos, pad=pad, mesh=mesh)
