"""Graphs of single expressions, as the registry's examples are, and values for their inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.backends.torch.module import TORCH_DTYPES
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.dims import substitute
from archc.ir.graph import Graph
from archc.ir.op import OpDef
from archc.ir.types import FLOATS


def graph_of(results: Sequence[str], inputs: Sequence[str], statements: Sequence[str] = ()) -> Graph:
    """The graph of some expressions over the inputs x, y, z, w.

    A program declares its outputs' types; the first attempt, with wrong types, is for the compiler to tell them.
    """
    ports = [f"input {name}: {kind}" for name, kind in zip("xyzw", inputs, strict=False)]
    body = [*statements, *(f"y{i} = {result}" for i, result in enumerate(results))]

    def program(types: Sequence[str]) -> str:
        return "\n".join(["arch example", *ports, *(f"output y{i}: {t}" for i, t in enumerate(types)), *body])

    with pytest.raises(CompileError) as raised:
        loads(program(["bool[7777]"] * len(results)))
    labels = [d.label for d in raised.value.diagnostics]
    if several := re.fullmatch(r"found (\d) tensors", labels[0]):
        names = [f"r{i}" for i in range(int(several[1]))]
        return graph_of(names, inputs, [*statements, f"let {', '.join(names)} = {results[0]}"])
    types = [found[0] if (found := re.search(r"\w+\[.*\]", label)) else "" for label in labels]
    assert all(types), raised.value.diagnostics
    return loads(program(types))


def graph_of_example(op: OpDef[Any]) -> Graph:
    """The registry's example, applied to its inputs."""
    return graph_of([f"({', '.join('xyzw'[: len(op.example_inputs)])}) -> ({op.example})"], op.example_inputs)


def random_inputs(graph: Graph, sizes: Mapping[str, int], *, seed: int = 0, double: bool = False) -> list[Tensor]:
    """Normal floats, indices from 0 to 2, coin tosses."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for value in graph.inputs:
        shape = [substitute(dim, sizes) for dim in value.type.shape]
        dtype = TORCH_DTYPES[value.type.dtype]
        if value.type.dtype in FLOATS:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            values.append(drawn if double else drawn.to(dtype))
        else:
            values.append(
                torch.randint(0, 2 if value.type.dtype == "bool" else 3, shape, generator=generator).to(dtype)
            )
    return values
