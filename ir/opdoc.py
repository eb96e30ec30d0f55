"""What the registry says of an op, as plain data: for `archc ops` and the generated language reference."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from archc.ir.op import OpDef


def signature_of(op: OpDef[Any]) -> str:
    """The one-line signature; an op whose line depends on the call names its operands only."""
    if isinstance(op.line, str):
        return op.line
    return f"{', '.join(op.operand_names)} -> … (depends on ranks and parameters)"


def parameters_of(op: OpDef[Any]) -> list[dict[str, Any]]:
    """Name, type, default and whether it is required, for each parameter, in order."""
    return [
        {
            "name": info.alias or name,
            "type": _type(info),
            "required": info.is_required(),
            "default": None if info.is_required() else _plain(info.default),
        }
        for name, info in op.params.model_fields.items()
    ]


def _type(info: FieldInfo) -> str:
    return _spell(info.annotation)


def _spell(annotation: Any) -> str:
    """A type in the words of the language: `int | list of int | none`, `"a" | "b"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is None:
        return {"Expr": "dim", "bool": "bool", "int": "int", "float": "number", "str": "text"}.get(
            getattr(annotation, "__name__", str(annotation)), "value"
        )
    if str(origin) == "typing.Literal":
        return " | ".join(f'"{a}"' for a in arguments)
    if origin is tuple:
        return f"list of {_spell(arguments[0])}" if arguments else "list"
    if hasattr(annotation, "__metadata__"):
        return _spell(arguments[0])
    return " | ".join(dict.fromkeys(_spell(a) for a in arguments))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
