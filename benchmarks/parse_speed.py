"""How fast source text is parsed and formatted, beside Lark's own loop over the same tables.

    python benchmarks/parse_speed.py [layers ...]

Times are of the process, the best of three; memory is that of the finished tree.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable

from lark import Lark, Transformer

from archc.grammar.build_tables import HERE
from archc.grammar.format import format_source
from archc.grammar.limits import DEFAULT
from archc.grammar.parser import parse
from archc.grammar.tables import load
from archc.grammar.tree import TreeBuilder


def program(layers: int) -> str:
    """A long program without repetition, such as an importer writes: 23 tokens a line."""
    lines = ["arch long", "input image: f32[N, 16, 32, 32]", "output y: f32[N, 16, 32, 32]", "let v0 = image"]
    for i in range(layers):
        lines.append(f"let v{i + 1} = v{i} -> conv({16 + i % 3}, kernel = 3, stride = 1, bias = false) -> relu")
    return "\n".join([*lines, f"y = v{layers}"])


def lark_with_trivial_callbacks() -> Lark:
    """Lark's LALR loop with an embedded transformer that makes no nodes and no spans."""
    names = [name for name in vars(TreeBuilder) if not name.startswith("_")]
    transformer = type("Trivial", (Transformer,), {name: lambda self, children: children for name in names})()
    grammar = (HERE / "arch.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", maybe_placeholders=True, transformer=transformer)


def best(action: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs, without garbage collection."""
    times = []
    for _ in range(3):
        gc.collect()
        gc.disable()
        begin = time.process_time()
        action()
        times.append(time.process_time() - begin)
        gc.enable()
    return min(times)


def main() -> None:
    begin = time.process_time()
    tables = load()
    print(f"loading the tables: {1000 * (time.process_time() - begin):.0f} ms")
    begin = time.process_time()
    lark = lark_with_trivial_callbacks()
    print(f"constructing them:  {1000 * (time.process_time() - begin):.0f} ms")
    print(f"{'tokens':>8} {'parse':>8} {'tokens/s':>9} {'tree':>8} {'Lark':>8} {'format':>8}")
    for layers in [int(a) for a in sys.argv[1:]] or [1_400, 2_800, 5_600, 11_300]:
        text = program(layers)
        tokens = sum(m.lastgroup not in tables.ignored for m in tables.lexer.finditer(text)) - 1
        ours = best(lambda text=text: parse(text))  # type: ignore[misc]
        theirs = best(lambda text=text: lark.parse(text))  # type: ignore[misc]
        layout = best(lambda text=text: format_source(text))  # type: ignore[misc]
        tracemalloc.start()
        tree = parse(text, limits=DEFAULT)
        megabytes = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        del tree
        print(f"{tokens:8} {ours:7.2f}s {tokens / ours:9.0f} {megabytes:6.1f}MB {theirs:7.2f}s {layout:7.2f}s")


if __name__ == "__main__":
    main()
