"""All that is known of a pass, for `archc passes NAME` and docs/passes.md: read off its declaration."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from archc.grammar.calls import in_words, positional_order, written_call, written_fields
from archc.grammar.values import spell
from archc.passes.catalogue import PASSES, find_transform
from archc.passes.manager import Contract
from archc.passes.spec import as_op, parse_transform


@dataclass(frozen=True)
class Option:
    """An option in the language's words; `default` is None when it is required."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class Variant:
    """A spec, and what it keeps in evaluation and in training."""

    spec: str
    eval: str
    train: str
    why: str


@dataclass(frozen=True)
class PassPage:
    """`kind` is `transform` or `cleanup`; `notes` is what the declaration of the options says of them."""

    name: str
    kind: str
    doc: str
    call: str
    where: str
    notes: str
    options: tuple[Option, ...]
    variants: tuple[Variant, ...]
    paper: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def pass_page(name: str) -> PassPage:
    """The page of a pass that there is.

    >>> pass_page("fold_batch_norm").variants[0].eval
    'exact'
    """
    if name in PASSES:
        step = PASSES[name]
        made = "<locals>" in step.run.__qualname__  # by `until_stable`, say: it tells itself what it does
        doc = step.run.__doc__ or "" if made else _first(inspect.getmodule(step.run))
        return PassPage(name, "cleanup", doc, name, "any network", "", (), (_variant(name, step.contract),), "")
    transform = find_transform(name)
    assert transform is not None, f"there is no pass {name}"
    op = as_op(transform)
    fields = written_fields(transform.options)
    options = []
    for field in positional_order(op):
        info = fields[field]
        kind = in_words(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
        options.append(Option(field, kind, None if info.is_required() else spell(info.default)))
    variants = []
    for spec in transform.variants or (name,):
        found, given = parse_transform(spec)
        variants.append(_variant(spec, found.contract(given)))
    notes = inspect.cleandoc(transform.options.__doc__ or "")
    return PassPage(
        name, "transform", transform.doc, written_call(op), transform.where, notes, tuple(options), tuple(variants),
        transform.paper,
    )  # fmt: skip


def _variant(spec: str, contract: Contract) -> Variant:
    return Variant(spec, contract.eval, contract.train, contract.why)


def _first(module: Any) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join(inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0].split())
    return text
