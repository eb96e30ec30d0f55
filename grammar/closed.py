"""Which names an expression takes from around it, and whether their values are plain data.

A choice whose alternatives mean the same wherever they stand can be drawn on its own, apart from what is around it, and
what was found out about it holds everywhere else. Its key says what its meaning depends on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from archc.grammar.elaborate import value_key
from archc.grammar.scope import MISSING, Definition, Env, RuleEntry, owners
from archc.grammar.syntax import (
    Call,
    Def,
    Fn,
    Keyword,
    Let,
    Node,
    Ref,
    Repeat,
    Require,
    Rule,
    Share,
    String,
    children,
)
from archc.ir.dims import Expr

_free: dict[int, tuple[Node, frozenset[str]]] = {}


def free_names(node: Node) -> frozenset[str]:
    """The names that a piece of syntax uses and does not bind.

    >>> from archc.grammar.parser import parse
    >>> sorted(free_names(parse("y = fn(x) { let z = x; return z + w }(v)").items[0].value))
    ['v', 'w']
    """
    known = _free.get(id(node))
    if known is None:
        known = _free[id(node)] = node, frozenset(_names(node))
    return known[1]


def _names(node: Node) -> Iterable[str]:
    if isinstance(node, Ref):
        return [node.name]
    if isinstance(node, Fn):
        bound = {p.text for p in node.parameters}
        found: set[str] = set()
        for statement in node.statements:
            body = statement.condition if isinstance(statement, Require) else statement.value
            found |= free_names(body) - bound
            if isinstance(statement, Let):
                bound |= {n.text for n in statement.names}
            elif isinstance(statement, Share):
                bound.add(statement.name.text)
        return found.union(*[free_names(r) - bound for r in node.results])
    if isinstance(node, Repeat) and node.index is not None:
        before = (free_names(n) for n in children(node) if n is not node.body and n is not node.index)
        return (free_names(node.body) - {node.index.text}).union(*before)
    below: set[str] = set().union(*map(free_names, children(node)))
    if isinstance(node, Def | Rule):
        below -= {f.name.text for f in node.formals or ()}
    return below


def fixes_names(node: Node) -> bool:
    """Does an expression name its nodes itself? Then it matters what stands around it."""
    if isinstance(node, Call) and any(isinstance(k.value, String) and _names_nodes(k) for k in node.keywords):
        return True
    return any(map(fixes_names, children(node)))


def _names_nodes(keyword: Keyword) -> bool:
    return keyword.name.text in ("name", "weight", "bias")


def meaning_key(nodes: Iterable[Node], env: Env) -> Hashable | None:
    """What the meaning of expressions in an environment depends on; None when that is more than plain data."""
    found: dict[Any, Hashable] = {}
    return tuple(found.items()) if _gather(nodes, env, found) else None


def _gather(nodes: Iterable[Node], env: Env, found: dict[Any, Hashable]) -> bool:
    for node in nodes:
        for name in sorted(free_names(node)):
            value = env.look_up(name)
            if value is MISSING:
                if "." in name and any(env.look_up(owner) is not MISSING for owner in owners(name)):
                    return False  # a weight of a share
                continue
            if isinstance(value, Definition | RuleEntry):
                key = id(value.syntax)
                if key not in found:
                    found[key] = value.syntax.name.text
                    if not _gather([value.syntax], value.env, found):
                        return False
            elif _is_plain(value):
                found[name, len(found)] = value_key(value)
            else:
                return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Expr)
