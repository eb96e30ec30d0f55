"""What each operator computes, written from its definition in plain torch.

Nothing of archc is imported: this is the second opinion that backends and decompositions are compared with. Clarity
comes before speed; loops are fine. An entry of `REFERENCE` is called as

    f(params, inputs, weights)              or, for an op with regions,
    f(params, inputs, weights, regions)

with the op's parameters by the names that programs use, a list of tensors, the weights by role, and the regions as
functions from tensors to a list of tensors. It returns a tensor, or a tuple where the op has several results.
Everything is as in evaluation: no dropout, running statistics, no noise.
"""

from torch_reference import attention, elementwise, kan, layers, reduce, shape, structural
from torch_reference.table import DTYPES, REFERENCE

__all__ = ["DTYPES", "REFERENCE", "attention", "elementwise", "kan", "layers", "reduce", "shape", "structural"]
