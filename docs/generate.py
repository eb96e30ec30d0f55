"""Write docs/reference.md from the registry of operators, and docs/errors.md from the pages of the diagnostics.

    python docs/generate.py            write both
    python docs/generate.py --check    exit 1 when one is not current

Both are derived: to change them, change the declarations in ir/ops/ and the pages in ir/errors/.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.calls import in_words, positional_order
from archc.grammar.parser import parse
from archc.grammar.program import Program
from archc.grammar.syntax import Bind
from archc.grammar.values import Tensor, spell, tensors_of
from archc.ir.cost import graph_flops
from archc.ir.dims import substitute
from archc.ir.explain import codes, page
from archc.ir.graph import Graph, Node
from archc.ir.op import REGISTRY, OpDef, Weight
from archc.ir.opdoc import signature_of

DOCS = Path(__file__).parent
FAMILIES = {
    "linear": "Linear maps",
    "convolution": "Convolution",
    "pool": "Pooling",
    "norm": "Normalisation",
    "activation": "Activations and dropout",
    "attention": "Attention and positions",
    "kan": "Kolmogorov-Arnold layers",
    "structural": "Structural operators",
    "arithmetic": "Arithmetic",
    "comparison": "Comparison and logic",
    "reduction": "Reductions",
    "shape": "Shapes",
    "index": "Indices",
    "constant": "Constants and free parameters",
}
CODE_FAMILIES = {
    "E00": "Files and limits",
    "E01": "Syntax",
    "E02": "Names, arguments and imports",
    "E03": "Shapes and types",
    "E04": "Passes and contracts",
    "E05": "Targets and artifacts",
    "E06": "Weights, data and training",
    "E07": "Spaces and search",
    "E08": "Metanetworks",
    "E09": "Import and export",
}

REFERENCE_HEAD = """\
# Operator reference

<!-- Written by `python docs/generate.py` from the declarations in ir/ops/. Do not edit. -->

Every operator that a program can name, from the registry: `archc ops NAME` prints the same. How to call them is in
[the language guide](language.md).

**Signatures.** Operands stand before `;`, weights behind it, results after `->`. A repeated letter is one axis: sizes
agree. `g.i` is a product (outer, inner), `a + b` a sum (concatenation), `*b` any number of axes. `!` pins an axis: its
order means something. `~` marks an axis that survives though the operator looks across it. A letter that is also a
parameter has its value as size. Operands and results without a dtype share one; `float` demands that this is a float
dtype; `int` is any integer dtype. Where the signature depends on ranks, parameters or networks, the one of the example
is given.

**Calls.** Parameters are written in the order shown, by position or by name; those with a default may be left out. A
call also takes `name = "…"`, which fixes the name of its weights. Tensors are fed with `->`, or stand among the
arguments; an operand with `?` may be left out, `k=q` is `q` when left out, and `*xs` is one or more.

**Costs** are of the example, for one sample where its first axis is `N`: an addition or a product is one FLOP.
"""

ERRORS_HEAD = """\
# Diagnostics

<!-- Written by `python docs/generate.py` from the pages in ir/errors/. Do not edit. -->

Every mistake has a code. `archc explain E0301` prints its page: what it means, a program or a command with the fault,
and one without. Exit codes of the command line: 0 fine, 1 the input is wrong, 2 usage, 3 verification mismatch,
4 target or device unavailable, 70 a bug in archc (with a report file), 124 timeout, 130 interrupted.
"""


class _Example(Program):
    """A program whose outputs have the types of what they are bound to."""

    def _check_output(self, name: str, item: Bind) -> None:
        for i, tensor in enumerate(t for t in tensors_of(self.env.names[name]) or () if isinstance(t, Tensor)):
            key = f"{name}{i}" if i else name
            self.outputs[key] = self.outputs[name]
            self.results[key] = (tensor.value, item.value.span)


def example_graph(op: OpDef[Any]) -> Graph:
    """The registry's example of an operator, applied to its inputs."""
    names = "xyzw"[: len(op.example_inputs)]
    lines = ["arch example()", *(f"input {n}: {t}" for n, t in zip(names, op.example_inputs, strict=True))]
    fed = names if len(names) == 1 else f"({', '.join(names)})"
    return _Example(parse("\n".join([*lines, "output r: f32[1]", f"r = {fed} -> ({op.example})"]))).elaborate()


def reference() -> str:
    """The text of docs/reference.md."""
    ops = sorted((o for o in REGISTRY.values() if o.category in FAMILIES), key=_order)
    parts = [REFERENCE_HEAD]
    for family, members in groupby(ops, key=lambda o: o.category):
        listed = list(members)
        parts.append(f"- **{FAMILIES[family]}**: " + ", ".join(f"[{o.name}](#{o.name})" for o in listed) + "\n")
    parts = [parts[0], "".join(parts[1:])]
    for family, members in groupby(ops, key=lambda o: o.category):
        parts.append(f"## {FAMILIES[family]}\n")
        parts += ["\n".join(_op(op)) for op in members]
    return "\n".join(parts)


def _order(op: OpDef[Any]) -> tuple[int, str]:
    return list(FAMILIES).index(op.category), op.name


def _op(op: OpDef[Any]) -> Iterator[str]:
    graph = example_graph(op) if op.example else None
    node = next((n for n in graph.nodes if n.op is op), None) if graph is not None else None
    yield f"### {op.name}\n"
    yield f"{op.doc}\n"
    yield "```text"
    yield _call(op)
    yield from _signature(op, node)
    yield "```\n"
    if notes := inspect.cleandoc(op.params.__dict__.get("__doc__") or ""):
        yield _as_list(notes) + "\n"
    fields = {f.alias or n: f for n, f in op.params.model_fields.items()}
    if order := positional_order(op):
        yield "| parameter | value | default |"
        yield "|---|---|---|"
        for name in order:
            info = fields[name]
            kind = in_words(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
            default = "required" if info.is_required() else f"`{spell(info.default)}`"
            yield f"| `{name}` | {kind.replace('|', chr(92) + '|')} | {default} |"
        yield ""
    if op.weights:
        yield "| weight | when | in the example | drawn from |"
        yield "|---|---|---|---|"
        for role, weight in op.weights.items():
            yield _weight(role, weight, node)
        yield ""
    if graph is not None:
        yield from _example(op, graph)
    if op.paper:
        yield f"Source: {op.paper}.\n"


def _call(op: OpDef[Any]) -> str:
    """How a call is written: `conv(out, kernel, stride = 1, …)`."""
    fields = {f.alias or n: f for n, f in op.params.model_fields.items()}
    words = [r.replace("*", "").replace("?", " = none") for r in op.regions]
    words += [n if fields[n].is_required() else f"{n} = {spell(fields[n].default)}" for n in positional_order(op)]
    return f"{op.name}({', '.join(words)})" if words else op.name


def _signature(op: OpDef[Any], node: Node | None) -> Iterator[str]:
    if isinstance(op.line, str):
        yield op.line
    elif node is not None:
        yield f"operands {', '.join(op.operand_names) or 'none'}; for the example below:"
        yield str(node.bound.signature)
    else:
        yield signature_of(op)


def _weight(role: str, weight: Weight, node: Node | None) -> str:
    when = "from a `share`" if weight.tied else f"`{weight.when}`" if weight.when else "always"
    shape, drawn = "", ""
    if node is not None and role in node.bound.weights:
        spec = node.bound.weights[role]
        shape = f"`{spec.type}`"
        drawn = f"`{spec.init}`" if weight.trainable else f"`{spec.init}`; kept, not trained"
    return f"| `{role}` | {when} | {shape} | {drawn} |"


def _example(op: OpDef[Any], graph: Graph) -> Iterator[str]:
    fed = f"({', '.join(op.example_inputs)})" if len(op.example_inputs) > 1 else op.example_inputs[0]
    yield f"```text\n{fed} -> {op.example}"
    yield f"{' ' * len(fed)} => {', '.join(str(v.type) for v in graph.outputs)}"
    flops = substitute(graph_flops(graph), {"N": 1})
    yield f"{' ' * len(fed)}    {flops} FLOPs\n```\n" if flops else "```\n"


def _as_list(notes: str) -> str:
    """A docstring's `name   what it is` lines as a Markdown list."""
    lines: list[str] = []
    for line in notes.splitlines():
        if entry := re.fullmatch(r"(\w+) {2,}(.*)", line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append("  " + line.strip() if line.startswith(" ") else line)
    return "\n".join(lines)


def errors() -> str:
    """The text of docs/errors.md."""
    parts = [ERRORS_HEAD]
    for family, members in groupby(codes(), key=lambda code: code[:3]):
        parts.append(f"## {CODE_FAMILIES[family]}\n\n| code | meaning |\n|---|---|")
        for code in members:
            title = (page(code) or "").partition("\n")[0].removeprefix(f"# {code}: ")
            parts.append(f"| [{code}](../ir/errors/{code}.md) | {title} |")
        parts.append("")
    return "\n".join(parts)


PAGES = {"reference.md": reference, "errors.md": errors}


def main(arguments: list[str]) -> int:
    stale = []
    for name, text in PAGES.items():
        path, wanted = DOCS / name, text()
        if path.is_file() and path.read_text(encoding="utf-8") == wanted:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8", newline="\n")
            print(f"wrote docs/{name}")
    if "--check" in arguments and stale:
        print(f"not current: {', '.join(stale)}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
