"""Mutations of a network itself, whose choices are not known: the user's own net, or what a transform has made.

A stretch of the network, from one tensor to another with nothing entering or leaving between, is replaced by a fresh
draw of one of the space's rules, between exactly those types: the space's program is drawn from with other ports.

And transforms as mutations: a pass at one of its sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from archc.grammar.draw import Space
from archc.grammar.load import loads, room_to_recurse
from archc.grammar.mutate import generator
from archc.grammar.parser import parse
from archc.grammar.printer import print_graph
from archc.grammar.program import Program
from archc.grammar.syntax import Bind, Let, Port, Ref, Require, Rule, walk
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph, Value
from archc.ir.types import TensorType
from archc.passes.blocks import between
from archc.passes.editing import Editor, renewed
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass, parse_transform
from archc.passes.transform import find_sites, settle

REACH = 12
"""Tensors before the end of a stretch among which its beginning is looked for."""
TRIES = 40
"""Stretches that are tried for one graft."""


@dataclass(frozen=True, slots=True)
class Made:
    """A network that came of an edit, as text, with its canonical hash."""

    text: str
    hash: str


def grafts(space: Space, text: str, key: str) -> Iterator[Made]:
    """The network with a stretch of it drawn anew, for one stretch and rule after the other in keyed order."""
    rng = generator(key)
    graph = loads(text)
    rules = [i.name.text for i in space.syntax.items if isinstance(i, Rule) and not i.formals]
    for _ in range(TRIES):
        stretch = _stretch(graph, rng)
        if stretch is None or not rules:
            return
        rule, seed = rules[int(rng.integers(len(rules)))], int(rng.integers(2**62))
        part = _drawn(space, rule, stretch[0].type, stretch[1].type, seed)
        made = None if part is None else admitted(space, _spliced(graph, stretch[0].name, stretch[1].name, part))
        if made is not None:
            yield made


def _stretch(graph: Graph, rng: np.random.Generator) -> tuple[Value, Value] | None:
    """Two tensors of which the second comes from the first alone, or twice the same."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    values = [v for node in graph.nodes for v in node.outputs if v.type.dtype == "f32" and v not in graph.outputs]
    if not values:
        return None
    out = values[int(rng.integers(len(values)))]
    found = [out]
    for x in _upstream(out):
        if between(graph, x, out, order):
            found.append(x)
    return found[int(rng.integers(len(found)))], out


def _upstream(out: Value) -> list[Value]:
    """What a tensor is computed from, nearest first."""
    found: dict[Value, None] = {}
    front = [out]
    while front and len(found) < REACH:
        front = [v for o in front if o.producer is not None for v in o.producer.inputs if v not in found]
        found.update(dict.fromkeys(front))
    return [v for v in found if v.type.dtype == "f32"]


def _drawn(space: Space, rule: str, given: TensorType, wanted: TensorType, seed: int) -> Graph | None:
    """A network of one rule of the space, between two types; None where none is found."""
    ports = parse(f"space part\ninput x: {given}\noutput y: {wanted}\ny = x -> {rule}\n", space.syntax.file)
    items = [i for i in space.syntax.items if not isinstance(i, Bind | Require)]
    tensors = {"x"}
    for item in items:  # what is computed from the space's own inputs is no part of its rules
        if isinstance(item, Port):
            tensors.add(item.name.text)
        elif isinstance(item, Let) and any(isinstance(n, Ref) and n.name in tensors for n in walk(item)):
            tensors |= {name.text for name in item.names}
    rest = [i for i in items if not isinstance(i, Port) and not (isinstance(i, Let) and i.names[0].text in tensors)]
    try:
        part = Space(replace(space.syntax, items=(*ports.items, *rest)), space.values, None, space.limits)
        return part.draw(seed).graph
    except CompileError:
        return None


def _spliced(old: Graph, given: str, wanted: str, part: Graph) -> Graph:
    """The network with `part` between two tensors, in the place of what was there."""
    graph = clone(old)
    values = {v.name: v for v in [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]}
    x, out = values[given], values[wanted]
    assert out.producer is not None
    users = list(out.uses)
    written = {part.inputs[0]: x}
    Editor(graph, graph, out.producer).copy(part.nodes, written, rename=lambda name: name, weigh=renewed({}))
    for user in users:  # not the part itself, which reads `out` where something is put in
        user.set_inputs(tuple(written[part.outputs[0]] if v is out else v for v in user.inputs))
    settle(graph, Context())
    return graph


def transformed(text: str, spec: str, key: str) -> Iterator[tuple[str, Graph]]:
    """The network with a transform at one of its sites: (the pass as it is to be applied again, the result), for one
    site after the other in keyed order."""
    rng = generator(key)
    graph = loads(text)
    transform, options = parse_transform(spec)
    if " at " in spec:
        specs = [spec]
    else:
        sites = find_sites(transform, graph, options).sites
        names = list(dict.fromkeys(s.anchor.name for s in sites))
        specs = [f"{spec} at {names[i]}" for i in rng.permutation(len(names))]
    for one in specs:
        new = clone(graph)
        try:
            run_passes(new, [parse_pass(one)], Context())
        except CompileError:
            continue
        yield one, new


def admitted(space: Space, graph: Graph) -> Made | None:
    """The network as text, if it meets what the space requires; None if not."""
    text = print_graph(graph)
    syntax = parse(text)
    required = [i for i in space.syntax.items if isinstance(i, Require)]
    try:
        with room_to_recurse():
            again = Program(
                replace(syntax, formals=space.syntax.formals, items=(*syntax.items, *required)), space.values
            ).elaborate()
    except CompileError as error:
        if any(d.code != "E0336" for d in error.diagnostics):
            raise
        return None
    return Made(text, canonical(again).hash)
