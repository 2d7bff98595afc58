"""Expressions over a record's fields, from corpus.toml: data, never code that runs.

Whatever an expression says and a record holds, time and memory are linear in the record: an expression is short, has
`_MOST_CALLS` calls at most, repeats nothing, and no number grows beyond `_MOST_BITS`.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

from vikhr_fast.errors import InputError

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "float": float, "int": int, "len": len, "max": max, "min": min, "set": set,
}  # fmt: skip
_METHODS: tuple[str, ...] = (
    *("casefold", "count", "endswith", "find", "get", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper"),
    *("keys", "lower", "lstrip", "rfind", "rstrip", "split", "splitlines", "startswith", "strip", "timestamp", "upper"),
    "values",
)
_NAMED = ("default", "maxsplit")  # of max, min and split; key= would call what it is given
_NODES = (
    *(ast.Expression, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.IfExp, ast.Compare, ast.Call, ast.keyword),
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set, ast.Dict),
    *(ast.boolop, ast.unaryop, ast.operator, ast.cmpop, ast.expr_context),
)
_SHOWN_CHARACTERS = 200
_MOST_CHARACTERS, _MOST_NESTED, _MOST_BITS, _MOST_CALLS = 10_000, 150, 1 << 16, 32
_MOST_STRIPPED = 100  # characters that strip looks for, at every character of the text


class Expression:
    """An expression such as "votes > 10 and language in ['ru', 'uk']".

    There are names of fields and `text`, numbers, strings, lists, comparisons, `in`, `and`, `or`, `not`, `a if b else
    c`, arithmetic of numbers, items, attributes, the functions of `_FUNCTIONS`, and the methods of `_METHODS`.

    Args:
        text: the expression.
        place: what errors name as its origin.

    Raises:
        InputError: it cannot be read, or has what there is not.
    """

    def __init__(self, text: str, place: str) -> None:
        self.text, self.place = text, place
        self._named = f"{place}: {text if len(text) <= _SHOWN_CHARACTERS else f'{text[:_SHOWN_CHARACTERS]}...'!r}"
        try:
            nodes = list(_nodes(text))
            called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
            names = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called}
            self._parsed = EvalWithCompoundTypes.parse(text)
        except (InvalidExpression, SyntaxError, ValueError) as error:
            raise InputError(f"{self._named}: not an expression: {' '.join(str(error).split())}") from None
        except (RecursionError, MemoryError):  # the second of Python's parser
            raise InputError(f"{self._named}: not an expression: nested too deeply") from None
        self.fields = tuple(sorted(names))
        """Names of the fields that it looks at."""
        self._evaluator = EvalWithCompoundTypes(operators={**DEFAULT_OPERATORS, **_OPERATORS})
        self._evaluator.functions = dict(_FUNCTIONS)

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        """Its value for one record; InputError where it has none, as of a sum with None."""
        self._evaluator.names = dict(fields)
        try:
            value = self._evaluator.eval(self.text, previously_parsed=self._parsed)
            if callable(value):
                raise TypeError("a method that isn't called: put () behind it")
            return value
        except Exception as error:  # whatever an operation on a field's value raises
            raise InputError(f"{self._named}: {' '.join(str(error).split())}") from None


def _nodes(text: str) -> Iterator[ast.AST]:
    """The parts of an expression, level by level; ValueError where there are too many, or others than there may be."""
    calls = 0
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"more than {_MOST_CHARACTERS:,} characters")
    level: list[ast.AST] = [ast.parse(text.strip(), mode="eval")]
    for _ in range(_MOST_NESTED):
        for node in level:
            if not isinstance(node, _NODES) or isinstance(node, ast.MatMult):
                raise ValueError(f"{type(node).__name__}: not known in expressions")
            if isinstance(node, ast.Call):
                _check_call(node)
            calls += isinstance(node, ast.Call | ast.Slice)
        if calls > _MOST_CALLS:
            raise ValueError(f"more than {_MOST_CALLS} calls and slices")
        yield from level
        level = [own for node in level for own in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(f"nested more than {_MOST_NESTED} deep")


def _check_call(call: ast.Call) -> None:
    """ValueError unless it is of a function or method that there is, with what that may take."""
    if isinstance(call.func, ast.Attribute):
        kind, name, known = "method", call.func.attr, _METHODS
    elif isinstance(call.func, ast.Name):
        kind, name, known = "function", call.func.id, tuple(_FUNCTIONS)
    else:
        raise ValueError("only functions and methods can be called")
    if name not in known:
        raise ValueError(f"{name}: no such {kind}; there are {', '.join(known)}")
    if unknown := [keyword.arg for keyword in call.keywords if keyword.arg not in _NAMED]:
        raise ValueError(f"{name}: no argument {unknown[0] or '**'}= here")
    if name == "int" and len(call.args) != 1:  # Python limits the digits of decimal numbers alone
        raise ValueError("int takes one argument here")
    if name.endswith("strip") and call.args:
        (characters, *_) = call.args
        if not isinstance(characters, ast.Constant) or len(str(characters.value)) > _MOST_STRIPPED:
            raise ValueError(f"{name} takes a string of {_MOST_STRIPPED} characters at most")


def _of_numbers(symbol: str, calculate: Callable[[Any, Any], Any], bits: Callable[[int, int], int]) -> Any:
    """An operator for numbers alone, integers among them up to a size; `bits` is how large its value can be."""

    def calculated(left: Any, right: Any) -> Any:
        if hasattr(left, "__len__") or hasattr(right, "__len__"):
            raise ValueError(f"{symbol} takes numbers alone")
        if isinstance(left, int) and isinstance(right, int) and bits(left, right) > _MOST_BITS:
            raise ValueError(f"a number of more than {_MOST_BITS:,} bits")
        return calculate(left, right)

    return calculated


_OPERATORS = {
    ast.Mult: _of_numbers("*", operator.mul, lambda left, right: left.bit_length() + right.bit_length()),
    ast.Pow: _of_numbers("**", operator.pow, lambda left, right: left.bit_length() * max(right, 0)),
    ast.FloorDiv: _of_numbers("//", operator.floordiv, lambda left, right: left.bit_length()),  # noqa: ARG005
    ast.Mod: _of_numbers("%", operator.mod, lambda left, right: min(left.bit_length(), right.bit_length())),
}
"""In place of simpleeval's own, which allow 4000000 ** 4000000, a list of 100,000 lists, and '%999999999d' % 1."""
