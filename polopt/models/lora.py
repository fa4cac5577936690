"""Low-rank adapters (LoRA, 2106.09685) over a base that stays as it is, through qwix.

An adapted linear map is `x W + (alpha / rank) (x A) B`. `A [in,rank]` starts at random and
`B [rank,out]` at zero, so that training starts at the base itself. Only A and B are trained.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from polopt.errors import PoloptError
from polopt.models import intercept
from polopt.models.config import DecoderConfig
from polopt.models.decoder import Attend, Decoder
from polopt.models.experts import Routing
from polopt.models.language_model import Integers, LanguageModel, Params, abstract_module
from polopt.models.quantise import change_kernels, dequantise

EVERY = ("(attention|mlp)/.*",)
A, B = "kernel_lora_a", "kernel_lora_b"  # qwix's names


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LoraModel(LanguageModel):
    """A language model that is trained by adapters alone.

    Its `params` are {"base": those of the `LanguageModel` that it adapts, "adapters": a small tree
    of the same shape}; `split` and `join` take them apart and together. Whoever wants the base
    alone calls `base_model` with `params["base"]`: there is no second copy.

    Args:
      rank: of the adapters.
      alpha: their change of a matrix is `alpha / rank` times A B.
      targets: regular expressions. A linear map is adapted if one of them is its whole path, with
        or without its layer: "attention/q", "layers/0/mlp/.*".

    Raises:
      PoloptError: no rank, an alpha that is not positive, an expression that matches nothing.

    >>> from polopt.models import DecoderConfig
    >>> config = DecoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2,
    ...                        num_kv_heads=1, head_dim=8, mlp_size=32, max_length=128)
    >>> model = LoraModel(config, rank=2, alpha=4.0, targets=("attention/(q|v)",))
    >>> adapters, base = split(model.init(jax.random.key(0)))
    >>> {path: (a.shape, b.shape) for path, (a, b) in pairs(adapters)}["layers/1/attention/v"]
    ((16, 2), (2, 8))
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = EVERY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not self.alpha > 0:
            raise PoloptError(
                f"LoraModel: rank is {self.rank} and alpha {self.alpha}: accepted are a rank of at "
                "least 1 and an alpha above 0"
            )
        self.adapted()

    @classmethod
    def over(cls, base: LanguageModel, **how: Any) -> LoraModel:
        """Adapters over a model, quantised or not; `how` is rank, alpha and targets."""
        return cls(base.config, base.compute_dtype, base.quantised, base.attention, **how)

    @property
    def base_model(self) -> LanguageModel:
        """The model without its adapters."""
        return LanguageModel(self.config, self.compute_dtype, self.quantised, self.attention)

    @property
    def fixed_unembedding(self) -> bool:
        """Whether the output matrix stays as it is: adapters are all that moves."""
        return True

    def adapted(self) -> tuple[str, ...]:
        """Paths of the linear maps that have an adapter."""
        return _adapted(self.config, self.targets)

    def init(self, key: Array, base_params: Params | None = None) -> Params:
        """Adapters without effect, over a base that is given (and not copied) or random.

        A is uniform within ± in^-1/2, as in the authors' code and in PEFT.
        """
        if base_params is None:
            base_params = self.base_model.init(jax.random.fold_in(key, 0))
        shapes = nnx.to_pure_dict(nnx.state(abstract_module(self), nnx.LoRAParam))
        leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        made = [_begun(*leaf, k) for leaf, k in zip(leaves, keys, strict=True)]
        return join(jax.tree.unflatten(tree, made), base_params)

    def unembedding(self, params: Params) -> Array:
        """[V,D]: the base's."""
        return super().unembedding(params["base"])

    def merge(self, params: Params) -> tuple[LanguageModel, Params]:
        """A model without adapters that computes the same: their products added to the weights."""
        adapters, base = split(params)
        model, merged = dequantise(self.base_model, base)
        for path, (a, b) in pairs(adapters):
            change = self.alpha / self.rank * (a @ b)
            merged = change_kernels(merged, [path], functools.partial(_added, change))
        return model, merged

    def module(self, rngs: nnx.Rngs) -> Decoder:
        """The decoder with adapters, and with a base that may be quantised."""
        return intercept.adapted(
            Decoder(self.config, jnp.dtype(self.compute_dtype), rngs),
            self.adapted(),
            self.quantised,
            rngs,
            rank=self.rank,
            alpha=self.alpha,
        )

    def _run(
        self,
        params: Params,
        tokens: Integers,
        positions: Integers,
        attend: Attend,
        memory: tuple[Any, ...] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Array, tuple[Any, ...], tuple[Routing, ...]]:
        # Adapters are kept in float32, whatever the type of the residual stream.
        dtype = jnp.dtype(self.compute_dtype)
        adapters = jax.tree.map(lambda leaf: leaf.astype(dtype), params["adapters"])
        whole = _overlaid(params["base"], adapters)
        return super()._run(whole, tokens, positions, attend, memory, remat=remat)


def split(params: Params) -> tuple[Params, Params]:
    """(what is trained, what stays) of a `LoraModel`'s parameters."""
    return params["adapters"], params["base"]


def join(moving: Params, fixed: Params) -> Params:
    """The inverse of `split`."""
    return {"base": fixed, "adapters": moving}


def pairs(adapters: Params) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """(path of the linear map, (A [in,rank], B [rank,out])) of each adapter."""
    for name, node in adapters.items():
        if A in node:
            yield name, (node[A], node[B])
        else:
            yield from ((f"{name}/{path}", pair) for path, pair in pairs(node))


def check_applied(model: LoraModel, params: Params) -> None:
    """Run the model on eight tokens, with and without adapters.

    With every B at zero its states must be the base's, and a small change of any B must change
    them. On CPU they must be the base's bit for bit; other compilers may make one product of two
    that read the same states, so that sums are in another order.

    Raises:
      PoloptError: one of the two does not hold, and for which adapters.
    """
    change, slopes = _trial(model, params)
    room = 0.0 if jax.default_backend() == "cpu" else 64 * jnp.finfo(model.compute_dtype).eps
    if not change <= room:
        raise PoloptError(
            f"adapters that are zero change the model by {float(change):.2g} of its largest state"
        )
    still = [path for path, (_, slope) in pairs(slopes) if not slope]
    if still:
        raise PoloptError(f"adapters without effect on the model: {', '.join(still)}")


@functools.lru_cache(maxsize=64)
def _adapted(config: DecoderConfig, targets: tuple[str, ...]) -> tuple[str, ...]:
    maps = intercept.linear_maps(config)
    found: set[str] = set()
    for target in targets:
        try:
            rule = re.compile(rf"(layers/\d+/)?({target})")
        except re.error as error:
            raise PoloptError(f"lora_targets: {target!r} is no expression: {error}") from error
        matched = {path for path in maps if rule.fullmatch(path)}
        if not matched:
            known = dict.fromkeys(re.sub(r"(?<=layers/)\d+", "*", path) for path in maps)
            raise PoloptError(f"lora_targets: {target!r} is none of {', '.join(known)}")
        found |= matched
    return tuple(path for path in maps if path in found)


def _begun(path: Any, leaf: Any, key: Array) -> Array:
    if path[-1].key == B:
        return jnp.zeros(leaf.shape)
    bound = leaf.shape[0] ** -0.5
    return jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound)


def _overlaid(base: Params, adapters: Params) -> Params:
    """The tree that qwix's module has: each adapter beside its kernel."""
    both = {name: _overlaid(base[name], node) for name, node in adapters.items() if name in base}
    return {**base, **adapters, **both}


def _added(change: Array, kernel: Array) -> Array:
    return (kernel + change).astype(kernel.dtype)


# Or bfloat16 is rounded where a compiler finds it convenient, with adapters elsewhere than without.
_EXACT = {"xla_allow_excess_precision": False}


@functools.partial(jax.jit, static_argnums=0, compiler_options=_EXACT)
def _trial(model: LoraModel, params: Params) -> tuple[Array, Params]:
    adapters, base = split(params)
    tokens = jnp.arange(8)[None] % model.config.vocab_size
    weight = jax.random.normal(jax.random.key(0), (8, model.config.hidden_size))
    plain = model.base_model.hidden(base, tokens)[0]

    def states(adapters: Params) -> tuple[Array, Array]:
        hidden = model.hidden(join(adapters, base), tokens)[0]
        return jnp.sum(hidden * weight), hidden

    def off(path: Any, leaf: Array) -> Array:
        return jnp.zeros_like(leaf) if path[-1].key == B else leaf

    zero = jax.tree_util.tree_map_with_path(off, adapters)
    slopes, hidden = jax.grad(states, has_aux=True)(zero)
    change = jnp.max(jnp.abs(hidden - plain)) / jnp.max(jnp.abs(plain))
    return change, jax.tree.map(lambda leaf: jnp.any(leaf != 0), slopes)
