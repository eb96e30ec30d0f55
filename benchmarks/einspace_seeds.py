"""The nets that einspace's search begins with, as derivations of its grammar: choices by path, for `--from NAME.json`.

    python benchmarks/einspace_seeds.py --out examples/einspace

Each is drawn from examples/spaces/einspace.arch by its choices alone, and is NAME.arch up to its head: canonical hashes
of all before the classifier are equal. (Of the ResNets those without max pooling, which is no terminal of the grammar.)
"""

from __future__ import annotations

import argparse
import json
from functools import reduce
from pathlib import Path

import archc
from archc.grammar.choices import Production
from archc.grammar.draw import read_space
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.graph import Graph

EXAMPLES = Path(archc.__file__).parents[1] / "examples"

Tree = tuple[str, Production, tuple["Tree", ...]]
"""A rule, the number of its production, and the derivations of what that mentions, in order."""

WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PERMUTATIONS = ("021", "0132", "0213", "0231", "0312", "0321")
WINDOWS = ((1, 1), (1, 2), (3, 1), (3, 2), (4, 4), (8, 8), (16, 16))


def tree(rule: str, production: Production, *children: Tree) -> Tree:
    return rule, production, children


# A module is a sequence, a branching, a routing or a computation


def sequential(*modules: Tree) -> Tree:
    return reduce(lambda a, b: tree("Module", 0, tree("Sequential", 0, a, b)), modules)


def computation(number: int, *children: Tree) -> Tree:
    return tree("Module", 3, tree("Computation", number, *children))


def branch(*modules: Tree, merge: Tree) -> Tree:
    """Two modules apart, or one that is copied four or eight times."""
    number = (2, 4, 8).index(int(merge[0].removeprefix("Merge")))
    split = tree(f"Split{merge[0].removeprefix('Merge')}", 0)
    return tree("Module", 1, tree("Branching", number, split, *modules, merge))


def routing(pre: Tree, module: Tree, post: Tree) -> Tree:
    return tree("Module", 2, tree("Routing", 0, pre, module, post))


IDENTITY, NORM, LEAKY_RELU, SOFTMAX, POSITIONS = (computation(i) for i in (0, 2, 3, 4, 5))
NO_PRE, NO_POST, COL2IM = tree("Pre", 0), tree("Post", 0), tree("Post", 2)
ADD = tree("Merge2", 2)


def linear(width: int) -> Tree:
    return computation(1, tree("choose", WIDTHS.index(width)))


def im2col(kernel: int, stride: int = 1) -> Tree:
    return tree("Pre", 2 + WINDOWS.index((kernel, stride)))


def permute(where: str, axes: str) -> Tree:
    return tree(where, 1, tree("Permute", PERMUTATIONS.index(axes)))


def concat(parts: int, axis: int) -> Tree:
    return tree(f"Merge{parts}", {2: 3, 4: 1, 8: 1}[parts], tree("Axis", axis - 1))


# Residual networks


def conv(width: int, kernel: int = 3, stride: int = 1) -> Tree:
    return routing(im2col(kernel, stride), linear(width), COL2IM)


def block(width: int, stride: int = 1) -> Tree:
    body = (conv(width, 3, stride), NORM, LEAKY_RELU, conv(width), NORM)
    shortcut = IDENTITY if stride == 1 else sequential(conv(width, 1, stride), NORM)
    return sequential(branch(sequential(*body), shortcut, merge=ADD), LEAKY_RELU)


def resnet(*blocks: int) -> Tree:
    stem = (conv(64), NORM, LEAKY_RELU, conv(64, stride=2))
    strides = [(64 * 2**i, 1 if i == 0 or j else 2) for i, n in enumerate(blocks) for j in range(n)]
    return sequential(*stem, *(block(width, stride) for width, stride in strides))


def wrn16_4() -> Tree:
    def wide(width: int, shortcut: Tree, stride: int = 1) -> Tree:
        body = sequential(conv(width, 3, stride), NORM, LEAKY_RELU, conv(width))
        return sequential(branch(body, shortcut, merge=ADD), NORM, LEAKY_RELU)

    stages = [(64, 1), (128, 2), (256, 2)]
    pairs = [m for c, s in stages for m in (wide(c, conv(c, 1, s), s), wide(c, IDENTITY))]
    return sequential(conv(16), NORM, LEAKY_RELU, *pairs)


# Rows of patches


def patches() -> tuple[Tree, Tree]:
    return routing(im2col(4, 4), linear(512), NO_POST), POSITIONS


def transformer(depth: int = 4) -> Tree:
    keys = routing(NO_PRE, linear(64), permute("Post", "021"))
    weights = sequential(branch(linear(64), keys, merge=tree("Merge2", 1)), SOFTMAX)
    head = branch(weights, linear(64), merge=tree("Merge2", 0))
    attend = sequential(branch(head, merge=concat(4, 2)), linear(512))
    feed_forward = sequential(linear(512), LEAKY_RELU, linear(512))
    layer = [m for body in (attend, feed_forward) for m in (branch(body, IDENTITY, merge=ADD), NORM)]
    return sequential(*patches(), *(layer * depth))


def mlp_mixer(depth: int = 8) -> Tree:
    widen = routing(permute("Pre", "021"), linear(256), NO_POST)
    narrow = routing(NO_PRE, linear(64), permute("Post", "021"))
    mixed = sequential(NORM, widen, LEAKY_RELU, narrow, linear(256), LEAKY_RELU, linear(512))
    return sequential(*patches(), *([branch(mixed, IDENTITY, merge=ADD)] * depth))


SEEDS = {
    "resnet10": resnet(2, 2),
    "resnet18": resnet(2, 2, 2, 2),
    "resnet34": resnet(3, 4, 6, 3),
    "wrn16_4": wrn16_4(),
    "transformer": transformer(),
    "mlp_mixer": mlp_mixer(),
}


def choices(seed: Tree) -> dict[str, Production]:
    """A derivation as a trace. A network is a module of the outermost kind: no computation alone."""
    _, number, children = seed
    return _laid_out(tree("Network", number, *children), "")


def _laid_out(node: Tree, around: str) -> dict[str, Production]:
    rule, production, children = node
    found: dict[str, Production] = {around + rule: production}
    counts: dict[str, int] = {}
    for child in children:
        count = counts.get(child[0], 0)
        counts[child[0]] = count + 1
        name = (f"{child[0]}#{count}" if count else child[0], *child[1:])
        found |= _laid_out(name, f"{around}{rule}:{production}/")
    return found


def body(graph: Graph) -> str:
    """The canonical hash of a network without its classifier and the mean before that."""
    part = clone(graph)
    (value,) = part.outputs
    assert value.producer is not None
    assert value.producer.op.name == "linear"
    value = value.producer.inputs[0]
    while value.producer is not None and value.producer.op.name in ("mean", "flatten", "global_avg_pool"):
        value = value.producer.inputs[0]
    part.outputs = [value]
    return canonical(part).hash


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    space = read_space(EXAMPLES / "spaces" / "einspace.arch")
    for name, seed in SEEDS.items():
        trace = choices(seed)
        drawn = space.redraw(trace)
        net = archc.load(EXAMPLES / "einspace" / f"{name}.arch", **({"pooled": False} if "resnet" in name else {}))
        same = "the same" if drawn.trace == trace and body(drawn.graph) == body(net.graph) else "ANOTHER"
        print(f"{name}: {len(trace)} choices, {drawn.params:,} parameters, {same} network as {name}.arch")
        (args.out / f"{name}.json").write_text(json.dumps(trace, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
