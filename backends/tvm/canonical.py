"""Equal modules to equal bytes: the one place where TVM's pipeline follows the order of addresses in memory.

The functions that compute symbolic sizes (`shape_func`) store each size in a slot; the order of the stores comes from
a hash table over expressions, and differs from run to run (about one in nine for two sizes).
"""

from __future__ import annotations

from typing import Any

from archc.backends.tvm.load import tvm

tirx = tvm.tirx


def pipeline(passes: Any) -> Any:
    """A Relax pipeline for `tvm.compile`: `passes`, then stores of sizes in the order of their slots."""
    return tvm.transform.Sequential([passes, _SortedStores])


@tvm.transform.module_pass(opt_level=0, name="SortedStores")  # type: ignore[untyped-decorator]
def _SortedStores(module: Any, _context: Any) -> Any:
    changed = {gv: _sorted(f) for gv, f in module.functions.items() if _computes_sizes(f)}
    return tvm.IRModule(dict(module.functions.items()) | changed, attrs=module.attrs) if changed else module


def _computes_sizes(function: Any) -> bool:
    return (
        isinstance(function, tirx.PrimFunc)
        and bool(function.attrs and function.attrs.get("tirx.is_host_func"))
        and isinstance(function.body, tirx.SeqStmt)
        and all(isinstance(s, tirx.BufferStore) and isinstance(s.indices[0], tirx.IntImm) for s in function.body.seq)
    )


def _sorted(function: Any) -> Any:
    stores = list(function.body.seq)
    slots = [int(s.indices[0]) for s in stores]
    read = {int(load.indices[0]) for s in stores for load in _loads(s.value)}
    if read & set(slots) or len(set(slots)) < len(slots):
        return function  # the order matters, and is then TVM's own
    return function.with_body(tirx.SeqStmt(sorted(stores, key=lambda s: int(s.indices[0]))))


def _loads(expr: Any) -> list[Any]:
    """The reads of memory in an expression of sizes: products, sums, quotients of them."""
    if isinstance(expr, tvm.ir.TensorLoad):
        return [expr]
    parts = [
        getattr(expr, name)
        for name in ("a", "b", "value", "condition", "true_value", "false_value")
        if hasattr(expr, name)
    ] + list(getattr(expr, "args", ()))
    return [load for part in parts if isinstance(part, tvm.ir.Expr) for load in _loads(part)]
