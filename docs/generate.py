"""Write the pages that are derived: docs/reference.md from the registry of operators, docs/errors.md from the pages of
the diagnostics, docs/library.md from the standard library, docs/training.md from the schemas of tasks and recipe,
docs/passes.md from the declarations of passes, and on the pages of the diagnostics, below each bad program, what `archc
check` says about it.

    python docs/generate.py            write them
    python docs/generate.py --check    exit 1 when one is not current

To change them, change the declarations: ir/ops/, ir/errors/, grammar/std/, backends/torch/training/.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import BaseModel

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.backends.torch.training import composed, datasets
from archc.backends.torch.training.images import IMAGES
from archc.backends.torch.training.recipe import Recipe
from archc.backends.torch.training.text import TEXT
from archc.cli.main import run
from archc.grammar.calls import in_words
from archc.grammar.imports import standard_files
from archc.grammar.op_page import op_page
from archc.grammar.values import spell
from archc.ir.explain import codes, page
from archc.ir.op import REGISTRY, OpDef
from archc.passes.catalogue import PASSES, TRANSFORMS
from archc.passes.page import PassPage, pass_page

DOCS = Path(__file__).parent
ERRORS = DOCS.parent / "ir/errors"
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


LIBRARY_HEAD = """\
# Standard library

<!-- Written by `python docs/generate.py` from grammar/std/. Do not edit. -->

Definitions that come with archc, in full: what a program imports is what stands here. `import "std/ffn.arch"
(swiglu_ffn)` brings one, then `swiglu_ffn(1024, 256)` is a module like any other.
"""

PASSES_HEAD = """\
# Passes

<!-- Written by `python docs/generate.py` from the declarations in passes/. Do not edit. -->

Transforms change an architecture; cleanups keep its function whatever it is. `archc transform FILE --pass 'NAME(option
= value)' -o NEW.arch`, `archc compile FILE --pass …`, or `archc.transform(model, "NAME(option = value)", weights=…)`.
`archc passes NAME` prints what stands here. How to use them is in [the guide](guide.md#transform).

**Contracts.** What the new network computes, with the weights carried over, beside the old one, in evaluation and in
training: `exact`, the same up to rounding (checked in float64 to 1e-10 of the largest output, or what the network's
own conditioning explains, and in float32); `approximate`, nearly: the error is measured and told; `reinitialised`:
weights are drawn anew, which has to be allowed (`--allow-reinit`). Each variant has its own. Dropout is left out of
the comparison.

**Where.** A transform acts on all its sites unless a selection says otherwise, `--at WHERE` or `NAME(…) at WHERE`:

| selection | chooses |
|---|---|
| `blocks.*.ffn` | by name; `*` is any part of a path, `**` several; a scope means all in it |
| `layers 4..8` | by number of the repeated block, from 0, the last included |
| `op conv` | sites with a node of this operator |
| `params > 1M`, `flops > 10M` | by the size of the site (FLOPs for one sample) |
| `not layers 0`, `op linear and layers 2..4` | the rest; both |

Several `--at` add up. `--dry-run` lists the sites, and the places that are left out with the reason.
"""

TASKS_HEAD = """\
# Tasks and recipes

<!-- Written by `python docs/generate.py` from the schemas in backends/torch/training/. Do not edit. -->

`archc train FILE --task TASK -o W.safetensors`, or `archc.train(model, task, out)`. A task brings data, loss and
metrics; a recipe is how it is learned. Options of a task follow its name: `--task
'npz:data.npz?standardise=true&val=0.1'`. Those of the recipe are `--recipe lr=0.001`, repeatable (`--epochs`, `--lr`
and `--seed` are short for theirs; lists are `--recipe 'betas=[0.9, 0.95]'`), or keywords in Python.

The network's first output is judged: logits over the classes on its last axis, or one value for each target. What the
task needs as input and output is said when they do not fit (E0615, E0616).

## Tasks
"""

GOING_ON = """\
## Going on after a transform

`archc train NEW.arch --weights W.safetensors` goes on from weights, those that `archc transform` carried over for
instance. Gates of `skip` are born open, and heads of `early_exit` unsure: they begin as the trained network, and learn.

```text
archc transform net.arch --pass "skip(cost = 0.3, target = 0.5)" --weights w.safetensors -o gated.arch \\
    --weights-out g.safetensors
archc train gated.arch --task digits --weights g.safetensors -o trained.safetensors --recipe keep=last \\
    --report report
```

- An open gate costs: `cost * max(0, share of open gates - target)` is a part of the loss. Gates close late, and closing
  costs some accuracy, so the weights that validate best may be early ones in which nothing is skipped: `keep=last`.
- The head of an exit learns from the network's own loss, weighed by `exit_weight`. In training no sample leaves.
- The history (`result.json` of `--report`) has a row for each epoch with `stats`, of training and of validation:
  `NODE.open`, the share of open gates; `NODE.left`, the share that leaves of those that reach an exit; `NODE.load`, the
  share of rows that each expert computes; `NODE.entropy` of a router's scores, 1 when all experts are as likely. Those
  of validation are what a compiled network does. `routing.png` draws them, a row for each layer (and expert).
"""

DATA = {
    "digits": "Input f32[N, 1, 8, 8], output f32[N, 10]. 1197 images train, 300 validate, 300 test.",
    "hard_digits": """\
Each of the 1797 digits is composed onto `copies` canvases: in a scale of 0.8–1.2 (bilinear), at a random place where
all of it is seen, in a contrast of 0.5–1, under normal noise that is cut off at black and white. The source images are
split first, so that no digit stands on two sides. Everything is drawn from `seed`.

Input f32[N, 1, size, size], output f32[N, 10]. 4788 images train, 1200 validate, 1200 test.""",
    "add_digits": """\
Each image has three channels with a digit of its own, composed as `hard_digits` are. The label is the sum of the three,
0 to 27, or the sum modulo `modulo`. The source images are split first, so that no digit stands on two sides; in its
split each is shown equally often in each channel. Everything is drawn from `seed`. The commonest sum has about 7.5 %
of the images.

Input f32[N, 3, size, size], output f32[N, 28]. 4788 images train, 1200 validate, 1200 test. With `classes=2` only zeros
and ones are shown, and there are four sums: the smaller, the sooner something is learned.""",
    "mult_digits": """\
Images as in `add_digits`; the label is the last digit of the product of the three, every one with equal probability (of
digits drawn freely, 43 % would have a product that ends in 0). With `classes=3` only 0, 1 and 2 are shown.

Input f32[N, 3, size, size], output f32[N, 10]. 4788 images train, 1200 validate, 1200 test.""",
    "tiles": """\
Each image is four tiles, 2×2, with a digit each, composed as `hard_digits` are (in a scale of 0.7–1 where a tile is
smaller than 10 pixels). The label is the number of distinct digits among the four, 1 to 4, with equal probability;
equal digits are different source images, mostly. The source images are split first, so that no digit stands on two
sides. Everything is drawn from `seed`.

Input f32[N, 1, size, size], output f32[N, 4]. 4788 images train, 1200 validate, 1200 test.""",
    "dyck": """\
A sequence of brackets of `kinds` kinds, k opening and k + `kinds` closing. Half of them are well nested; in the others
two brackets of a well-nested one are exchanged, so that counts tell nothing. As in all tasks on sequences, everything
is drawn from `seed`, and no sequence is on two sides, or twice on one.

Input i64[N, length], output f32[N, 2].""",
    "listops": """\
Nested lists with an operator each, `min`, `max`, `first` or `sum` modulo 10, over digits and lists. Symbols: 0 to 9 are
digits, 10 to 13 open a list with these operators, 14 closes it, 15 fills up to `length`. After ListOps (Nangia & Bowman
2018, arXiv:1804.06028), smaller, and with `first` in the place of the median.

Input i64[N, length], output f32[N, 10].""",
    "copy": """\
Random symbols; for every place the label is what stood `lag` places before, in a circle: attention by position, or a
mixing of places, can tell, and nothing that looks at one place can.

Input i64[N, length], output f32[N, length, symbols].""",
    "induction": """\
Random symbols; the last one stands once before, and the label is what followed it there. After the induction heads of
Olsson et al. 2022 (arXiv:2209.11895).

Input i64[N, length], output f32[N, symbols].""",
    "breast_cancer": "Input f32[N, 30], output f32[N, 2]; each feature is centred and scaled.",
    "wine": "Input f32[N, 13], output f32[N, 3]; each feature is centred and scaled.",
    "npz": """\
Arrays of equal length along the first axis, written by `numpy.savez("data.npz", x=x, y=y)`:

- `x` is (N, …): u8 is scaled to [0, 1], other integers are kept as ids (input i64), floats are f32.
- Integer `y` are classes in any numbering, one for each example (N,) or for each position (N, T): the output is
  f32[N, classes] or f32[N, T, classes]. Floating `y` (N, …) are values to predict by squared error: the output is
  f32[N, …].
- `x_val` and `y_val`, `x_test` and `y_test` are held out as they are; else shares are drawn, evenly over classes.""",
    "images": """\
A folder with one folder for each class, named by it; pictures (.png, .jpg, .bmp, .gif, .ppm, .webp) lie anywhere
below:

```text
flowers/daisy/1.png   flowers/daisy/2.jpg   flowers/rose/1.png
```

A picture's shorter side is scaled to `size` and the centre cut out. Input f32[N, channels, size, size], output f32[N,
classes]. Its content decides whether it trains, validates or tests: a copy never stands on both sides.""",
    "text": """\
A UTF-8 file. Its first part trains, the next validates, the last tests. The vocabulary is the alphabet of the file,
sorted. Input i64[N, T], output f32[N, T, characters]: the logits of the next character at each place.""",
}

RECIPE = """\
Equal recipes on equal data, threads and versions give equal weights. Weight decay spares parameters of fewer than two
axes. The rate rises linearly, then falls as half a cosine. A task has defaults of its own: `digits` shifts images by
1 pixel, `images` by size / 8; tables learn for 60 epochs of batches of 32, `text` for 10."""


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
    told = op_page(op)
    yield f"### {told.name}\n"
    yield f"{told.doc}\n"
    yield "```text"
    yield told.call
    yield from told.signature
    yield "```\n"
    if told.notes:
        yield _as_list(told.notes) + "\n"
    if told.parameters:
        yield "| parameter | value | default |"
        yield "|---|---|---|"
        for p in told.parameters:
            kind = p.kind.replace("|", chr(92) + "|")
            yield f"| `{p.name}` | {kind} | {'required' if p.default is None else f'`{p.default}`'} |"
        yield ""
    if told.weights:
        yield "| weight | when | in the example | drawn from |"
        yield "|---|---|---|---|"
        for w in told.weights:
            drawn = f"`{w.init}`{'' if w.trained else '; kept, not trained'}" if w.init else ""
            yield f"| `{w.role}` | {w.when} | {f'`{w.shape}`' if w.shape else ''} | {drawn} |"
        yield ""
    if told.example:
        yield "\n".join(("```text", *told.example, "```\n"))
    if told.paper:
        yield f"Source: {told.paper}.\n"


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


def library() -> str:
    """The text of docs/library.md."""
    parts = [LIBRARY_HEAD]
    for path, text in sorted(standard_files().items()):
        title, _, rest = text.partition("\n\n")
        parts.append(f"## {path}\n\n{title.removeprefix('# ')}\n\n```arch-fragment\n{rest}```\n")
    return "\n".join(parts)


def passes() -> str:
    """The text of docs/passes.md."""
    parts = [PASSES_HEAD]
    for title, names in (("Transforms", TRANSFORMS), ("Cleanups", PASSES)):
        listed = ", ".join(f"[{n}](#{n})" for n in sorted(names))
        parts.append(f"## {title}\n\n{listed}\n")
        parts += ["\n".join(_pass(pass_page(n))) for n in sorted(names)]
    return "\n".join(parts)


def _pass(told: PassPage) -> Iterator[str]:
    yield f"### {told.name}\n\n{told.doc}\n"
    if told.kind == "cleanup":
        return
    yield f"```text\n{told.call}\n```\n\nApplies to {told.where}.\n"
    if told.options:
        yield _as_list(told.notes) + "\n"
        yield "| option | value | default |\n|---|---|---|"
        for o in told.options:
            kind = o.kind.replace("|", chr(92) + "|")
            yield f"| `{o.name}` | {kind} | {'required' if o.default is None else f'`{o.default}`'} |"
        yield ""
    yield "| variant | evaluation | training | |\n|---|---|---|---|"
    for v in told.variants:
        yield f"| `{v.spec}` | {v.eval} | {v.train} | {v.why} |"
    yield ""
    if told.paper:
        yield f"Source: {told.paper}.\n"


def tasks() -> str:
    """The text of docs/training.md."""
    parts = [TASKS_HEAD]
    for kind in (*datasets.KINDS, *composed.KINDS, IMAGES, TEXT):
        parts.append(f"### {kind.name}\n\n{kind.doc}.\n\n{DATA[kind.name]}\n")
        parts.append(_options(kind.config))
    parts.append(f"## Recipe\n\n{RECIPE}\n\n{_options(Recipe)}")
    parts.append(GOING_ON)
    return "\n".join(parts)


def _options(record: type[BaseModel]) -> str:
    rows = ["| option | value | default | |", "|---|---|---|---|"]
    for name, info in record.model_fields.items():
        kind = in_words(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
        default = "required" if info.is_required() else f"`{spell(info.default)}`"
        rows.append(f"| `{name}` | {kind.replace('|', chr(92) + '|')} | {default} | {info.description or ''} |")
    return "\n".join(rows) + "\n"


def told_about(program: str) -> str:
    """What `archc check` prints about a program."""
    said = io.StringIO()
    with TemporaryDirectory() as folder, chdir(folder), redirect_stderr(said):
        Path("net.arch").write_text(program, encoding="utf-8")
        run(["check", "net.arch"])
    return said.getvalue()


def with_messages(text: str) -> str:
    """The page of a diagnostic with the message below each of its bad programs."""
    head, bad, rest = text.partition("\n## Bad\n")
    shown, good, rest = rest.partition("\n## Good\n")
    shown = PROGRAM.sub(lambda m: f"{m[1]}\n```text\n$ archc check net.arch\n{told_about(m[2])}```\n", shown)
    return head + bad + shown + good + rest


PROGRAM = re.compile(
    r"(^```arch\n(.*?)^```\n)(?:\n```text\n\$ archc check net\.arch\n.*?^```\n)?", re.DOTALL | re.MULTILINE
)
PAGES = {
    "reference.md": reference,
    "errors.md": errors,
    "library.md": library,
    "training.md": tasks,
    "passes.md": passes,
}


def main(arguments: list[str]) -> int:
    stale = []
    wanted_texts = {DOCS / name: text() for name, text in PAGES.items()}
    for path in sorted(ERRORS.glob("E*.md")):
        wanted_texts[path] = with_messages(path.read_text(encoding="utf-8"))
    for path, wanted in wanted_texts.items():
        name = path.relative_to(DOCS.parent).as_posix()
        if path.is_file() and path.read_text(encoding="utf-8") == wanted:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8", newline="\n")
            print(f"wrote {name}")
    if "--check" in arguments and stale:
        print(f"not current: {', '.join(stale)}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
