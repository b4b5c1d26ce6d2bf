"""The head of a function: read from text, and arguments that fit its types.

Text from data sets is walked as a tree, never evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

Draw = Callable[[Random], Any]


class Signature(NamedTuple):
    """The head of a function."""

    name: str
    text: str
    """As it is shown, such as `def add(a: int, b: int) -> int`."""
    parameters: tuple[tuple[str, ast.expr | None], ...]
    """Name and type, if it has one, of each parameter without a default value."""


def parse(text: str, name: str | None = None) -> Signature:
    """Read the head of a function, or the first one of a program, or that of function `name`.

    >>> parse("def add(a: int, b: int) -> int").name
    'add'

    Raises:
        ValueError: there is none; says why.
    """
    tree = _tree(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and name in (None, node.name)]
    if not functions:
        raise ValueError(f"it does not define {name or 'a function'}")
    function = functions[0]
    given = function.args
    if given.vararg or given.kwarg or any(default is None for default in given.kw_defaults):
        raise ValueError("parameters must be named one by one, without * and **")
    parameters = [*given.posonlyargs, *given.args]
    needed = parameters[: len(parameters) - len(given.defaults)]
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return Signature(
        function.name,
        f"def {function.name}({ast.unparse(given)}){returns}",
        tuple((parameter.arg, parameter.annotation) for parameter in needed),
    )


def _tree(text: str) -> ast.Module:
    lines = text.strip()
    forms = [lines, f"{lines.rstrip(':')}: pass"] if "\n" not in lines else [lines, f"{lines}\n    pass"]
    for form in forms[::-1]:
        try:
            return ast.parse(form)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or str(error)
    raise ValueError(reason or "it is too deep")


def literal(text: str) -> Any:
    """Return the value of a Python literal: numbers, texts, lists, tuples, dicts, sets.

    >>> literal("[1, -2.5, ('a', None), {3: {True}}]")
    [1, -2.5, ('a', None), {3: {True}}]

    Raises:
        ValueError: it is something else.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r:.80} is no literal: {error}") from None


def _value(tree: ast.expr) -> Any:
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_value(tree.operand)
    if isinstance(tree, ast.List):
        return [_value(item) for item in tree.elts]
    if isinstance(tree, ast.Tuple):
        return tuple(_value(item) for item in tree.elts)
    if isinstance(tree, ast.Set):
        return {_value(item) for item in tree.elts}
    if isinstance(tree, ast.Dict) and None not in tree.keys:
        return {_value(key): _value(item) for key, item in zip(tree.keys, tree.values, strict=True) if key is not None}
    if isinstance(tree, ast.Call) and ast.unparse(tree) == "set()":
        return set()
    raise ValueError(f"{ast.unparse(tree)[:80]!r} is no literal")


def calls(tests: str, name: str) -> list[tuple[Any, ...]]:
    """Return the arguments with which tests call a function, where they are literals.

    >>> calls("assert add(1, 2) == 3 and add(x, 1)", "add")
    [(1, 2)]
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    arguments = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (name, "candidate") and not node.keywords:
            try:
                arguments.append(tuple(_value(argument) for argument in node.args))
            except (ValueError, TypeError):
                continue
    return arguments


def unusable(setup: str, tests: str, name: str) -> str | None:
    """Return why tests cannot be tests of a function, as far as reading them tells; None if they can.

    >>> unusable("", "assert add(1, 2) == 3", "add"), unusable("", "assert sub(2, 1) == 1", "add")
    (None, 'the tests do not name add')
    """
    named = set[str]()
    for text in (setup, tests):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"{type(error).__name__}: {error}"[:200]
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return None if named & {name, "candidate"} else f"the tests do not name {name}"


def examples(text: str, name: str) -> list[tuple[Any, ...]]:
    """Return the arguments of calls that a text shows, such as a docstring, where they are literals.

    >>> examples("For example add([1, 2], ')') returns 3, add(x) nothing.", "add")
    [([1, 2], ')')]
    """
    starts = [match.start() for match in re.finditer(rf"\b{re.escape(name)}\(", text)]
    shown = []
    for start in starts[:20]:
        ends = [match.end() for match in re.finditer(r"\)", text[start : start + 300])][:20]
        shown += next((found for end in ends if (found := calls(text[start : start + end], name))), [])
    return shown


WORDS = ("", "a", "abc", "Hello World", "racecar", "aAbB12", "the cat sat", "xyzzy", "()[]", "one two three", "ZZ top")
SMALL = (0, 1, 2, 3, -1, 4, 5, 7, 10, -2, 12, 17, 100)


def _int(rng: Random) -> int:
    return rng.choice(SMALL) if rng.random() < 0.5 else rng.randint(-20, 60)


def _float(rng: Random) -> float:
    return rng.choice((0.0, 1.0, 0.5, -1.5, 2.25, 100.0)) if rng.random() < 0.4 else round(rng.uniform(-20, 60), 2)


def _str(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    return "".join(rng.choice("abcde xyzABC019") for _ in range(rng.randint(1, 8)))


_NAMED: dict[str, Draw] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": lambda rng: rng.random() < 0.5,
    "bytes": lambda rng: _str(rng).encode(),
    "complex": lambda rng: complex(_int(rng), _int(rng)),
    "None": lambda rng: None,
}
_ANYTHING: tuple[Draw, ...] = (
    *(_int, _str, _float),
    lambda rng: [_int(rng) for _ in range(rng.randint(0, 6))],
    lambda rng: [_str(rng) for _ in range(rng.randint(0, 4))],
)
_LISTS = ("list", "List", "Sequence", "Iterable", "Collection")


def drawn(annotation: ast.expr) -> Draw:
    """Return how values of a type are drawn.

    Raises:
        ValueError: it is no type that values can be drawn from.
    """
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return drawn(ast.parse(annotation.value, mode="eval").body)
        except SyntaxError:
            raise ValueError(f"no values can be drawn of type {annotation.value!r}") from None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _either([drawn(annotation.left), drawn(annotation.right)])
    name = ast.unparse(annotation.value if isinstance(annotation, ast.Subscript) else annotation).rpartition(".")[2]
    if not isinstance(annotation, ast.Subscript):
        if name in ("Any", "object"):
            return _either(_ANYTHING)
        if name in _NAMED:
            return _NAMED[name]
        inside: list[ast.expr] = []
    else:
        inside = list(annotation.slice.elts) if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if name == "Literal":
        values = [_value(value) for value in inside]
        return lambda rng: rng.choice(values)
    if name == "Union":
        return _either([drawn(part) for part in inside])
    if name == "Optional":
        return _either([drawn(inside[0]), _NAMED["None"]])
    if name in ("tuple", "Tuple") and not _repeated(inside):
        parts = [drawn(part) for part in inside]
        return lambda rng: tuple(part(rng) for part in parts)
    items = [drawn(part) for part in inside if ast.unparse(part) != "..."] or [_int]
    if name in (*_LISTS, "tuple", "Tuple", "set", "Set", "frozenset", "FrozenSet"):
        kind = {"tuple": tuple, "Tuple": tuple, "set": set, "Set": set, "frozenset": set, "FrozenSet": set}
        return lambda rng: kind.get(name, list)(_hashable(items[0](rng), name) for _ in range(rng.randint(0, 6)))
    if name in ("dict", "Dict", "Mapping"):
        key, value = (items * 2)[:2] if inside else (_str, _int)
        return lambda rng: {key(rng): value(rng) for _ in range(rng.randint(0, 4))}
    raise ValueError(f"no values can be drawn of type {ast.unparse(annotation)}")


def _repeated(inside: Sequence[ast.expr]) -> bool:
    return not inside or ast.unparse(inside[-1]) == "..."


def _hashable(value: Any, name: str) -> Any:
    return tuple(value) if name.lower() in ("set", "frozenset") and isinstance(value, list) else value


def _either(draws: Sequence[Draw]) -> Draw:
    return lambda rng: rng.choice(draws)(rng)


def like(value: Any) -> Draw:
    """Return how values are drawn that are like another one: of the same types."""
    if isinstance(value, bool | int | float | str | bytes | complex | None):
        return _NAMED[type(value).__name__ if value is not None else "None"]
    if isinstance(value, dict):
        keys = _either([like(key) for key in value] or [_str])
        items = _either([like(item) for item in value.values()] or [_int])
        return lambda rng: {keys(rng): items(rng) for _ in range(rng.randint(0, 4))}
    inner = [like(item) for item in value] or [_int]
    if isinstance(value, tuple):
        return lambda rng: tuple(part(rng) for part in inner)
    kind = type(value)
    return lambda rng: kind(_either(inner)(rng) for _ in range(rng.randint(0, 6)))


def inputs(
    signature: Signature, known: Sequence[tuple[Any, ...]], number: int, rng: Random
) -> tuple[tuple[Any, ...], ...]:
    """Return lists of arguments: the known ones, then others drawn from the types, or like the known ones.

    A parameter without a type of which no arguments are known gets values of several types, see `_ANYTHING`.

    Raises:
        ValueError: a type is unknown, or known arguments are too few.
    """
    if known and any(len(arguments) < len(signature.parameters) for arguments in known):
        raise ValueError(f"{signature.text} takes {len(signature.parameters)} arguments, got {min(known, key=len)}")
    draws = []
    for place, (_, annotation) in enumerate(signature.parameters):
        if annotation is not None:
            draws.append(drawn(annotation))
        elif known:
            draws.append(_either([like(arguments[place]) for arguments in known]))
        else:
            draws.append(_either(_ANYTHING))
    chosen = {repr(arguments): arguments for arguments in known}
    for _ in range(50 * number):
        if len(chosen) >= number:
            break
        try:
            arguments = tuple(draw(rng) for draw in draws)
        except TypeError as error:  # a list in a set, or as a key
            raise ValueError(f"no values can be drawn for {signature.text}: {error}") from None
        chosen.setdefault(repr(arguments), arguments)
    return tuple(chosen.values())
