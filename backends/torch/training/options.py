"""Options given as text or keywords become frozen records; what is wrong becomes a diagnostic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from archc.ir.diagnostics import CompileError, Diagnostic, did_you_mean

Record = TypeVar("Record", bound=BaseModel)


def build(record: type[Record], options: Mapping[str, Any], code: str, what: str) -> Record:
    """`record(**options)`; every option that is wrong is reported, gathered, under `code`.

    >>> from archc.backends.torch.training.recipe import Recipe
    >>> build(Recipe, {"epoch": 3}, "E0617", "recipe")
    Traceback (most recent call last):
        ...
    archc.ir.diagnostics.CompileError: error[E0617]: recipe has no option `epoch`
      help: did you mean `epochs`?
    """
    try:
        return record.model_validate(dict(options))
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            name = ".".join(map(str, item["loc"])) or what
            if item["type"] == "extra_forbidden":
                known = did_you_mean(name, record.model_fields) or f"options: {', '.join(record.model_fields)}"
                problems.append(Diagnostic(code, f"{what} has no option `{name}`", help=known))
            elif item["type"] == "missing":
                problems.append(Diagnostic(code, f"{what} needs `{name}`", help=record.model_fields[name].description))
            else:
                label = f"found {item['input']!r}; {item['msg'][:1].lower()}{item['msg'][1:]}"
                problems.append(Diagnostic(code, f"{what}: `{name}` cannot be this", label=label))
        raise CompileError(*problems) from None
