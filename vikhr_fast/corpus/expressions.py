"""Expressions over a record's fields, from corpus.toml: data, never code that runs."""

import ast
from collections.abc import Mapping
from typing import Any

from simpleeval import EvalWithCompoundTypes, InvalidExpression

from vikhr_fast.errors import InputError

_FUNCTIONS = {"len": len, "int": int, "float": float, "abs": abs, "min": min, "max": max}


class Expression:
    """An expression such as "votes > 10 and language in ['ru', 'uk']"; see simpleeval for what there is.

    Args:
        text: the expression.
        place: what errors name as its origin.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, text: str, place: str) -> None:
        self.text, self.place = text, place
        try:
            self._parsed = EvalWithCompoundTypes.parse(text)
            nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
        except (InvalidExpression, SyntaxError, ValueError) as error:
            raise InputError(f"{place}: {text!r}: not an expression: {' '.join(str(error).split())}") from None
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        self.fields = tuple(sorted(names - _FUNCTIONS.keys()))
        """Names of the fields that it looks at."""
        self._evaluator = EvalWithCompoundTypes(functions=dict(_FUNCTIONS))

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        """Its value for one record; InputError where it has none, as of a sum with None."""
        self._evaluator.names = dict(fields)
        try:
            return self._evaluator.eval(self.text, previously_parsed=self._parsed)
        except Exception as error:  # whatever an operation on a field's value raises
            raise InputError(f"{self.place}: {self.text!r}: {' '.join(str(error).split())}") from None
