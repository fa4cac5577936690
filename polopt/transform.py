"""A transform is data: a pure function, its numbers, and a card that says what it is.

`@piece` turns a pure function into a factory of transforms. Keyword parameters annotated `float`
become *hyper-parameters*: leaves of the pytree, so they can be vmapped, traced, replaced and
compared. All other keyword parameters are *options*: static structure. Parameters named
`memory` and `key` are filled in by the machinery.

    @piece("trajectory", reads="ratio", writes="policy", formula="min(r·A, clip(r)·A)")
    def clip(surrogate, context, *, low: float = 0.2, high: float = 0.2): ...

Options annotated `Column` name a recorded column, and the piece then needs it; options annotated
`Want` are differentiable columns of the current models (see `polopt.columns`), which it then wants.

    clip(0.2, 0.28)        # a Transform
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from polopt.errors import PoloptError, did_you_mean

# What a chain holds after each piece. A piece says what it reads and what it leaves behind.
REWARD_STAGES = ("reward", "sequence", "value")
TRAJECTORY_STAGES = ("logp", "ratio", "policy")
Column = str  # the name of a recorded column
Want = Any  # a differentiable column of the current models: a name or a `polopt.columns.Column`
COUPLINGS = ("none", "sequence", "group", "batch")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a piece is, for people and for the machinery. Static, hashable, equal by value."""

    side: str
    reads: tuple[str, ...] = ()
    writes: str | None = None
    term: str | None = None
    needs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # options that name a recorded column
    wants: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # options that are a wanted column of the current models
    couples: str = "none"
    min_group: int = 1  # smallest group in which the piece gives any credit
    from_nothing: bool = False  # it gives credit also where there was none before it
    clock: str | None = None
    invariant: tuple[str, ...] = ()
    purpose: str = ""
    formula: str = ""
    source: str = ""
    repairs: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


class Hooks(NamedTuple):
    """The optional halves of a piece that run at other moments than the piece itself."""

    before: Callable | None = None  # (trajectories, credit, **hyper) -> {name: [N,T]}, once
    members: Callable | None = None  # (trajectories, keep) -> bool[N,T], the term's denominator
    init: Callable | None = None  # (prompts, **hyper) -> memory
    advance: Callable | None = None  # (memory, info, **hyper) -> memory, per optimiser step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transform:
    """One piece of a method. Equal by value, so equal transforms never retrace."""

    name: str = dataclasses.field(metadata={"static": True})
    fn: Callable = dataclasses.field(metadata={"static": True})
    card: Card = dataclasses.field(metadata={"static": True})
    hooks: Hooks = dataclasses.field(metadata={"static": True})
    options: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})
    hyper: Any  # a NamedTuple of numbers
    aggregate: Any = None  # the term's own aggregation, a Transform

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `fn` and of the hooks."""
        return {**self.hyper._asdict(), **dict(self.options)}

    @property
    def needs(self) -> tuple[str, ...]:
        """Recorded columns that the piece reads."""
        options = dict(self.options)
        named = (options[name] for name in self.card.columns)
        return (*self.card.needs, *(name for name in named if name is not None))

    @property
    def wants(self) -> tuple[Want, ...]:
        """Differentiable columns of the current models that the piece reads."""
        options = dict(self.options)
        return (*self.card.wants, *(options[name] for name in self.card.outputs))

    def __repr__(self) -> str:
        shown = [f"{k}={_shown(v)}" for k, v in self.arguments().items()]
        if self.aggregate is not None:
            shown.append(f"aggregate={self.aggregate}")
        return f"{self.name}({', '.join(shown)})"


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or getattr(value, "name", None) or repr(value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chain:
    """Links in series, each with a name."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    links: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.links))})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Add:
    """Branches in parallel from one input; what they make is summed with weights."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    links: tuple[Any, ...]
    weights: tuple[float, ...]

    def __repr__(self) -> str:
        return f"add({', '.join(map(repr, self.links))}, weights={self.weights})"


Link = Transform | Chain | Add


def chain(*links: Link, **named: Link) -> Chain:
    """Compose in series. Nested chains are flattened: `chain` is associative, `chain()` identity.

    A link is named after its piece; keywords name links by hand, after the positional ones.
    """
    pairs: list[tuple[str, Link]] = []
    for name, link in [(_name(link), link) for link in links] + list(named.items()):
        pairs.extend(
            zip(link.names, link.links, strict=True) if isinstance(link, Chain) else [(name, link)]
        )
    return Chain(_unique([name for name, _ in pairs]), tuple(link for _, link in pairs))


def add(*links: Link, weights: tuple[float, ...] | None = None) -> Add:
    """Compose in parallel: every branch sees the same input; credits (or objectives) are summed.

    On the reward side the sum is of credit (per row where all branches have one number per row,
    else per token); on the trajectory side it is of each term's objective.
    """
    if not links:
        raise PoloptError("add() needs at least one branch")
    weights = tuple(weights) if weights is not None else (1.0,) * len(links)
    if len(weights) != len(links):
        raise PoloptError(f"add() has {len(links)} branches but {len(weights)} weights")
    return Add(_unique([_name(link) for link in links]), tuple(links), weights)


def _name(link: Link) -> str:
    if isinstance(link, Transform):
        return link.name
    if isinstance(link, Chain | Add):
        return type(link).__name__.lower()
    raise PoloptError(f"a chain is made of pieces, chains and sums; got {link!r}")


def _unique(names: list[str]) -> tuple[str, ...]:
    """Number repeated names: `clip, clip_2, ...`, the same however the chain was nested."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        base, _, number = name.rpartition("_")
        if number.isdecimal() and base in names:  # numbered by an inner chain
            name = base
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(out)


def walk(link: Link, path: str = "") -> Iterator[tuple[str, Transform]]:
    """Every transform of a composition with its path, in order of execution."""
    if isinstance(link, Transform):
        yield path, link
        return
    for name, child in zip(link.names, link.links, strict=True):
        yield from walk(child, f"{path}/{name}" if path else name)


def run(link: Link, x: Any, call: Callable, combine: Callable, path: str = "") -> Any:
    """Thread `x` through a composition: `call(path, transform, x)`, `combine(x, outs, weights)`."""
    if isinstance(link, Transform):
        return call(path, link, x)
    if isinstance(link, Add):
        outs = [
            run(child, x, call, combine, f"{path}/{name}" if path else name)
            for name, child in zip(link.names, link.links, strict=True)
        ]
        return combine(x, outs, link.weights)
    for name, child in zip(link.names, link.links, strict=True):
        x = run(child, x, call, combine, f"{path}/{name}" if path else name)
    return x


def replace_link(link: Link, name: str, new: Link) -> tuple[Link, int]:
    """`link` with every link called `name` replaced, and how many there were."""
    if isinstance(link, Transform):
        return link, 0
    count, links = 0, []
    for own, child in zip(link.names, link.links, strict=True):
        changed, found = (new, 1) if own == name else replace_link(child, name, new)
        links.append(changed)
        count += found
    return dataclasses.replace(link, links=tuple(links)), count


def check_order(link: Link, side: str, stage: str, where: str = "") -> str:
    """The stage that a composition leaves behind; a wrong order or side is refused by name."""
    if isinstance(link, Chain):
        for child in link.links:
            stage = check_order(child, side, stage, where)
        return stage
    if isinstance(link, Add):
        ends = {check_order(child, side, stage, where) for child in link.links}
        unfinished = "reward" if side == "reward" else "ratio"
        if unfinished in ends and (side == "reward" or stage != unfinished):
            raise PoloptError(
                f"a branch of add() on the {side} side leaves {unfinished}: only "
                f"{'credits' if side == 'reward' else 'objectives'} can be summed"
            )
        return ends.pop() if len(ends) == 1 else "value" if side == "reward" else "policy"
    card = link.card
    if card.side != side:
        raise PoloptError(f"{link.name} is a {card.side} piece, not a {side} piece")
    if card.reads and stage not in card.reads:
        raise PoloptError(
            f"wrong order on the {side} side: {link.name} reads {' or '.join(card.reads)}, "
            f"but what stands before it leaves {stage}"
        )
    return card.writes or stage


def piece(
    side: str,
    *,
    before: Callable | None = None,
    members: Callable | None = None,
    init: Callable | None = None,
    advance: Callable | None = None,
    reads: str | tuple[str, ...] = (),
    **card: Any,
) -> Callable[[Callable], Callable[..., Transform]]:
    """Turn a pure function into a factory of transforms (see the module's docstring).

    Args:
      side: "reward", "trajectory" or "aggregate".
      before, members, init, advance: see `Hooks`.
      reads: stages that the piece accepts; none given means any.
      card: the remaining fields of `Card`. `purpose` defaults to the docstring's first line.
    """
    hooks = Hooks(before, members, init, advance)
    reads = (reads,) if isinstance(reads, str) else tuple(reads)

    def decorate(fn: Callable) -> Callable[..., Transform]:
        signature = _factory_signature(fn)
        purpose = (inspect.getdoc(fn) or "").split("\n")[0]
        kinds = {n: str(p.annotation) for n, p in signature.parameters.items()}
        hypers = [n for n, kind in kinds.items() if "float" in kind]
        named = {
            "columns": tuple(n for n, kind in kinds.items() if "Column" in kind),
            "outputs": tuple(n for n, kind in kinds.items() if kind == "Want"),
        }
        made = Card(**{"side": side, "reads": reads, "purpose": purpose, **named, **card})
        types: dict[tuple[str, ...], Any] = {}

        @functools.wraps(fn)
        def factory(*args: Any, **kwargs: Any) -> Transform:
            bound = _bind(fn.__name__, signature, args, kwargs)
            aggregate = bound.pop("aggregate", None)
            # A hyper-parameter that is None switches something off: structure, not a number.
            numbers = {n: _number(bound.pop(n)) for n in hypers if bound[n] is not None}
            fields = tuple(numbers)
            if fields not in types:
                types[fields] = namedtuple(f"{fn.__name__}_hyper", fields)
            return Transform(
                fn.__name__,
                fn,
                made,
                hooks,
                tuple(bound.items()),
                types[fields](**numbers),
                aggregate,
            )

        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.card = made  # type: ignore[attr-defined]
        return factory

    return decorate


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float | np.number) else value


def _factory_signature(fn: Callable) -> inspect.Signature:
    """The keyword-only parameters of `fn`, which a factory also takes by place."""
    kinds = [
        p
        for p in inspect.signature(fn).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("memory", "key")
    ]
    return inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in kinds])


def _bind(name: str, signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    for given in kwargs:
        if given not in signature.parameters:
            known = list(signature.parameters)
            raise PoloptError(
                f"{name}() has no argument {given!r}{did_you_mean(given, known)}"
                f" (it takes {', '.join(known) or 'none'})"
            )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise PoloptError(f"{name}(): {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def takes(fn: Callable, name: str) -> bool:
    """Whether the pure function asks for `memory` or `key`."""
    return name in inspect.signature(fn).parameters
