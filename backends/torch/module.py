"""Graphs as `torch.nn.Module`: trainable, and the reference for numerics."""

from __future__ import annotations

import linecache
import re
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archc.backends.torch.lowerings  # noqa: F401 - fills the table of lowerings
from archc.backends.torch import runtime
from archc.backends.torch.codegen import generate, parameter_paths
from archc.backends.weights import check_weights, type_of
from archc.ir.graph import Graph, Parameter
from archc.ir.types import NUMPY_NAMES, TensorType

Outputs = Tensor | tuple[Tensor, ...]

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, word) for name, word in NUMPY_NAMES.items()}
"""The IR's dtype names -> torch's."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class ArchModule(nn.Module):
    """A network made from a graph; the subclass that `to_torch` generates has its `forward`.

    Parameters hang in plain nested modules, so that the keys of `state_dict()` are the IR's parameter names. Where a
    name would hide an attribute of `nn.Module` (`train.weight`), the attribute has an underscore more
    (`module.train_.weight`, as `named_parameters` tells), while `state_dict` keeps the name.

    source           the Python source of the methods
    parameter_paths  parameter name -> the attributes that lead to it
    """

    source: str = ""
    parameter_paths: Mapping[str, tuple[str, ...]] = {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles carry the source: no module has the class by its name. (archc itself never unpickles.)"""
        return _empty, (type(self).__name__, self.source, self.parameter_paths), self.__dict__.copy()

    def forward_with_aux(self, *inputs: Tensor) -> tuple[Outputs, dict[str, Tensor]]:
        """The outputs, and what training adds: `loss/NODE.balance` and the like (scalars, to be added to the loss as
        they are) and `exit/NODE` (the logits of an early exit, to be judged like the output).

        Beside these, how rows went, in training and in evaluation, without gradients: `stat/NODE.open`, the share of
        open gates, `stat/NODE.left`, the share that left at an exit, of `stat/NODE….rows` rows; of a mixture
        `stat/NODE.load` [experts], the share of rows that each computes, and `stat/NODE.entropy` of its scores.
        """
        return self(*inputs), {}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        if renamed := {prefix + path: prefix + name for name, path in self._renamed().items()}:
            items = [(renamed.get(key, key), value) for key, value in state.items()]
            state.clear()  # in place: a larger module gathers the states of its parts in this dictionary
            state.update(items)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, path in self._renamed().items():
            if prefix + name in state_dict:
                state_dict[prefix + path] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _renamed(self) -> dict[str, str]:
        return {name: ".".join(path) for name, path in self.parameter_paths.items() if name != ".".join(path)}


def to_torch(
    graph: Graph,
    weights: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str | None = None,
) -> ArchModule:
    """The graph as a module, with `weights` (numpy arrays or tensors by parameter name) or initial values from `seed`.

    `dtype="f64"` converts floats as `module.double()` does; constants in the program follow. `forward` takes the
    graph's inputs in order and returns its output, or a tuple of several. The only thing that it changes is what torch
    changes too: the running estimates of a batch norm, in training.

    Raises: CompileError E0603–E0606 for weights that do not fit, E0901 for an op without a lowering, E0902 for a
    symbolic size that no input tells.

    >>> from archc.ir.graph import Graph
    >>> from archc.ir.op import REGISTRY
    >>> from archc.ir.dims import symbol
    >>> from archc.ir.types import TensorType
    >>> linear, graph = REGISTRY["linear"], Graph("tiny")
    >>> x = graph.add_input("x", TensorType((symbol("N"), 4)))
    >>> head = graph.add(linear, [x], linear.params(out=2), name="head")
    >>> graph.outputs, graph.output_names = [head.output], ["y"]
    >>> module = to_torch(graph)
    >>> list(module.state_dict()), module(torch.ones(3, 4)).shape
    (['head.weight', 'head.bias'], torch.Size([3, 2]))
    """
    parameters = graph.parameters()
    if weights is not None:
        needed = {name: p.type for name, p in parameters.items()}
        check_weights(needed, {name: _type(value) for name, value in weights.items()})
    paths = parameter_paths(parameters)
    module = _generated_class(class_name(graph.name), generate(graph, paths).methods, paths)()
    for name, parameter in parameters.items():
        tensor = initial(parameter, seed) if weights is None else _tensor(weights[name])
        runtime.attach(module, paths[name], tensor, parameter.trainable)
    return module if dtype is None else module.to(TORCH_DTYPES[dtype])


def initial(parameter: Parameter, seed: int = 0) -> Tensor:
    """The initial value of a parameter: the same for the same seed and name on every machine."""
    value = torch.from_numpy(np.asarray(parameter.init.sample(parameter.shape, seed, parameter.name), order="C"))
    return value.to(TORCH_DTYPES[parameter.type.dtype])


def class_name(name: str) -> str:
    """A graph's name as that of a class.

    >>> class_name("resnet20"), class_name("moe_lm"), class_name("2-layer")
    ('Resnet20', 'MoeLm', 'Model2Layer')
    """
    words = re.split(r"[^0-9A-Za-z]+", name)
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return joined if joined.isidentifier() and joined not in ("None", "True", "False") else f"Model{joined}"


def _generated_class(name: str, source: str, paths: Mapping[str, tuple[str, ...]]) -> type[ArchModule]:
    """The class with these methods: one as long as it is in use, so that a copy's class is its original's."""
    key = (name, source, tuple(paths.items()))
    if (known := _CLASSES.get(key)) is not None:
        return known
    text = f"class Model(ArchModule):\n{source}"
    # No `__name__`: torch.compile would import a module of that name when this one is part of a larger model.
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "ArchModule": ArchModule}
    scope |= runtime.HELPERS
    file = f"<archc {name} {abs(hash(text)):x}>"
    exec(compile(text, file, "exec", dont_inherit=True), scope)
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # tracebacks show the generated lines
    made: type[ArchModule] = scope["Model"]
    weakref.finalize(made, linecache.cache.pop, file, None)  # a search makes thousands of them
    made.__module__, made.__name__, made.__qualname__ = __name__, name, name
    made.source, made.parameter_paths = source, dict(paths)
    _CLASSES[key] = made
    return made


_CLASSES: weakref.WeakValueDictionary[tuple[Any, ...], type[ArchModule]] = weakref.WeakValueDictionary()


def _empty(name: str, source: str, paths: Mapping[str, tuple[str, ...]]) -> ArchModule:
    """A module of that class without its state, which a copy or a pickle brings."""
    made = _generated_class(name, source, paths)
    return made.__new__(made)


def _type(value: Any) -> TensorType:
    if isinstance(value, Tensor):
        return TensorType(tuple(value.shape), _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch.")))
    return type_of(np.asarray(value))


def _tensor(value: Any) -> Tensor:
    """A copy, so that training does not write into the caller's arrays."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    array = np.array(value, order="C")
    if array.dtype.name == "bfloat16":  # numpy has it from ml_dtypes, which torch does not know
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


__all__ = ["TORCH_DTYPES", "ArchModule", "class_name", "initial", "to_torch"]
