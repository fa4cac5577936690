"""Chat templates as untrusted programs: Jinja's sandbox, with a budget for what they may do.

A template comes with a model file, so it is code by whoever made that file. Jinja's immutable
sandbox keeps it from Python's internals and from the messages; it does not keep it from running for
ever or from filling the memory. Here every loop, call and new text is paid for from a budget that
grows with the conversation, and only those filters and methods of strings exist whose cost is known
before they run.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from polopt.errors import PoloptError

_MAX_TEMPLATE = 200_000  # characters
_MAX_TEXT = 1_000_000  # characters that a rendering has beyond those of the conversation
_BUDGET = 2_000_000  # steps of about 50 ns, and characters made
_BUDGET_PER_CHARACTER = 200
_MAX_NUMBER = 1_000  # as an argument: widths, counts and indents
_FILTERS = (
    *("abs", "batch", "capitalize", "count", "d", "default", "dictsort", "first", "float"),
    *("groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr"),
    *("sort", "string", "title", "trim", "truncate", "unique", "upper"),
)
_STRING_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
    *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper"),
    *("join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
    *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"),
    *("swapcase", "title", "upper"),
)

_left: contextvars.ContextVar[list[int]] = contextvars.ContextVar("left")


class _RefusalError(Exception):
    """What a template asked for and does not get."""


def render(
    template: str, values: Mapping[str, Any], *, size: int, date: datetime.datetime | None = None
) -> str:
    """The text of a template.

    Args:
      template: Jinja source, as in `tokenizer_config.json`.
      values: the template's variables, of JSON's types.
      size: characters in them, by which the budget grows.
      date: what `strftime_now` tells; the present if not given.

    Raises:
      PoloptError: the template is wrong, raised an exception, or asks for more than it may.
    """
    token = _left.set([_BUDGET + _BUDGET_PER_CHARACTER * size])
    try:
        parts, room = [], _MAX_TEXT + 4 * size
        clock = functools.partial(_strftime, date or datetime.datetime.now())
        for part in _compiled(template).generate(**values, strftime_now=clock):
            room -= len(part)
            if room < 0:
                raise _RefusalError("its text grows beyond all measure")
            parts.append(part)
        return "".join(parts)
    except PoloptError:
        raise
    except RecursionError:
        raise PoloptError("the chat template calls itself without end") from None
    except Exception as error:  # untrusted code raises what it likes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PoloptError(f"the chat template cannot be rendered: {reason}") from error
    finally:
        _left.reset(token)


def _spend(amount: int) -> None:
    left = _left.get()
    left[0] -= amount
    if left[0] < 0:
        raise _RefusalError("it does far more work than a conversation of this size needs")


def _paid(value: Any) -> Any:
    """What was made, paid for by its size."""
    if isinstance(value, str | list | tuple | dict):
        _spend(1 + len(value))
    elif isinstance(value, int) and value.bit_length() > 256:
        raise _RefusalError("it computes a number of hundreds of bits")
    return value


def _each(items: Iterable[Any], cost: int) -> Iterable[Any]:
    """A loop's items, each paid for by what the loop does with it."""
    if hasattr(items, "__len__"):
        _spend(cost * len(items))  # type: ignore[arg-type]
        return items

    def pay() -> Iterator[Any]:
        for item in items:
            _spend(cost)
            yield item

    return pay()


def _check_arguments(args: Iterable[Any]) -> None:
    for arg in args:
        if isinstance(arg, int | float) and abs(arg) > _MAX_NUMBER:
            raise _RefusalError(f"it calls something with the number {arg}")


def _pay_join(separator: str, items: Iterable[Any]) -> list[Any]:
    """The items of a join, whose text is paid for before it is made."""
    items = list(items)
    _spend(sum(len(separator) + (len(i) if isinstance(i, str) else 20) for i in items))
    return items


def _pay_replace(text: Any, old: Any, new: Any) -> None:
    _spend(len(text) + text.count(old) * len(new))


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    _pay_replace(str(text), old, new)
    return str(text).replace(old, new, count)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it makes; `wraps` keeps Jinja's mark of what it is passed."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        _check_arguments([*args[1:], *kwargs.values()])
        return _paid(function(*args, **kwargs))

    return run


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own escapes what HTML reads."""
    if isinstance(indent, str) or (indent or 0) > 16:
        raise _RefusalError(f"it indents JSON by {indent!r}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime(date: datetime.datetime, form: str) -> str:
    """A date as text; the C library would pad it to any width that the format names."""
    if len(form) > 100 or any(character.isdigit() for character in form):
        raise _RefusalError(f"it asks for the date as {form[:100]!r}")
    return date.strftime(form)


def _raise(message: Any) -> None:
    raise _RefusalError(f"it says: {message}")


def _concat(parts: list[Any]) -> str:
    return "".join(_pay_join("", map(str, parts)))


def _joined(own: Callable[..., str]) -> Callable[..., str]:
    """Jinja's filter, on items that are paid for."""

    @functools.wraps(own)
    def run(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
        return own(context, _pay_join(d, value), d, attribute)

    return run


class _Names(jinja2.utils.Namespace):
    """What a template's `namespace` makes; names of Python's own insides are not stored."""

    def __setitem__(self, name: Any, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise _RefusalError(f"it stores the name {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Names:
    made = _Names()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


class _Generation(jinja2.ext.Extension):
    """The tag by which some templates mark what an assistant says: its content, as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body, lineno=line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which every step is paid for."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_paid,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.weight = 0  # of the template
        known = {name: _guarded(self.filters[name]) for name in _FILTERS}
        known["join"] = _guarded(_joined(self.filters["join"]))
        known["replace"] = _guarded(_replace)
        known["tojson"] = _guarded(_tojson)
        self.filters = known | {"_each": _each, "_concat": _concat}
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _namespace,
            "raise_exception": _raise,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No format: no method of a string is taken but those of the list."""

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        heavy = isinstance(function, jinja2.runtime.Macro | jinja2.runtime.LoopContext)
        _spend(self.weight if heavy else 1)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "join":
            args = (_pay_join(owner, *args),)
        elif isinstance(owner, str) and name == "replace":
            _pay_replace(owner, args[0], args[1])
        if owner is not None:
            _check_arguments([*args, *kwargs.values()])
        return _paid(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        long = next((x for x in (left, right) if isinstance(x, str | list | tuple)), None)
        if operator == "%" and isinstance(left, str):
            raise _RefusalError("it formats with %")
        if operator == "**" and max(abs(left), abs(right)) > _MAX_NUMBER:
            raise _RefusalError("it raises to a large power")
        if operator == "*" and long is not None:
            _spend(len(long) * max(right if long is left else left, 0))
        elif operator == "+" and long is not None:
            _spend(len(left) + len(right))
        return _paid(super().call_binop(context, operator, left, right))


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > _MAX_TEMPLATE:
        raise PoloptError(f"the chat template has {len(template)} characters, over {_MAX_TEMPLATE}")
    env = _Environment()
    tree = env.parse(template)
    _meter(tree, env)
    return env.template_class.from_code(env, env.compile(tree), env.make_globals(None))


def _meter(tree: nodes.Template, env: _Environment) -> None:
    """Make loops and concatenations of a template pay."""

    def through(name: str, value: Any, *args: int) -> Any:
        given = [nodes.Const(arg) for arg in args]
        node = nodes.Filter(value, name, given, [], None, None, lineno=value.lineno)
        return node.set_environment(env)

    env.weight = _weight(tree)
    loops, joins = list(tree.find_all(nodes.For)), list(tree.find_all(nodes.Concat))
    costs = [_weight(loop) for loop in loops]
    for loop, cost in zip(loops, costs, strict=True):
        loop.iter = through("_each", loop.iter, cost)
    for join in joins:
        parts = nodes.List(join.nodes, lineno=join.lineno).set_environment(env)
        join.nodes = [through("_concat", parts)]


def _weight(tree: nodes.Node) -> int:
    """What it costs to go through a part of a template once."""
    steps = 1 + sum(1 for _ in tree.find_all(nodes.Node))
    written = [node.data for node in tree.find_all(nodes.TemplateData)]
    written += [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
    return steps + sum(map(len, written)) // 4
