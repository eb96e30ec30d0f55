"""Compilation targets: what machine the code is for, as a frozen record that needs no tvm.

A `TargetSpec` is part of every cache key and of every artifact, so it names a concrete machine: `cpu` is resolved to
this host's microarchitecture when it is parsed, and the record lists the CPU features that the code will rely on, so
that loading it elsewhere is a diagnostic and not an illegal instruction.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from archc.ir.diagnostics import CompileError, did_you_mean, fail

if TYPE_CHECKING:
    import tvm

Isa = Literal["avx512", "avx2", "sse", "neon"]

# The psABI levels, in the spelling of /proc/cpuinfo (`abm` is lzcnt).
_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {"avx512_vnni"}
_ICELAKE = _VNNI | {"avx512_bitalg", "avx512_vbmi2", "avx512_vpopcntdq", "avx512ifma", "avx512vbmi", "gfni", "vaes"}
_ZEN = {"aes", "sha_ni", "sse4a", "xsavec"}

# LLVM's name for a CPU → the features that compiled code may use. The first whose features are all present is this
# host, so a hypervisor that hides a feature yields an older name, never code that traps.
_AMD: Mapping[str, frozenset[str]] = {
    "znver5": _ICELAKE | _ZEN | {"avx512_bf16", "avx512_vp2intersect", "avx_vnni"},
    "znver4": _ICELAKE | _ZEN | {"avx512_bf16"},
    "znver3": _V3 | _ZEN | {"clwb", "vaes", "vpclmulqdq"},
    "znver2": _V3 | _ZEN | {"clwb"},
    "znver1": _V3 | _ZEN,
}
_INTEL: Mapping[str, frozenset[str]] = {
    "sapphirerapids": _ICELAKE | {"avx512_bf16", "avx512_fp16", "avx_vnni"},
    "icelake-server": _ICELAKE,
    "cooperlake": _VNNI | {"avx512_bf16"},
    "cascadelake": _VNNI,
    "skylake-avx512": _V4,
    "haswell": _V3 | {"fsgsbase"},
}
_LEVELS: Mapping[str, frozenset[str]] = {"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64-v2": _V2, "x86-64": frozenset()}
_KNOWN = {**_AMD, **_INTEL, **_LEVELS, **dict.fromkeys(["broadwell", "skylake", "alderlake", "raptorlake"], _V3)}

DEFAULT_ARCHES = ("sm_80", "sm_90")
_NAMES = ("cpu", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "cuda")
_HELP = (
    "use `cpu`, `x86-64-v2`, `x86-64-v3`, `x86-64-v4`, `aarch64`, `cuda`, `cuda:sm_80,sm_90`, or a TVM target as JSON"
)


class TargetSpec(BaseModel):
    """A machine to compile for.

    `mcpu`, `mattr` and `triple` describe the host side in LLVM's words; `arches` the GPU, where there is one.
    `features` are the CPU features (as in /proc/cpuinfo) that a machine needs to run the result. `threads` is what the
    kernels are tuned for; it can be changed when they are run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cpu", "cuda"]
    triple: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    isa: Isa
    arches: tuple[str, ...] = ()
    threads: int = 1

    def __str__(self) -> str:
        return f"cuda:{','.join(self.arches)}" if self.kind == "cuda" else self.mcpu

    @property
    def vector_bytes(self) -> int:
        """The width of a vector register."""
        return {"avx512": 64, "avx2": 32, "sse": 16, "neon": 16}[self.isa]

    @property
    def vector_registers(self) -> int:
        """How many vector registers there are."""
        return {"avx512": 32, "avx2": 16, "sse": 16, "neon": 32}[self.isa]

    @property
    def machine(self) -> str:
        """The processor family: `x86_64` or `aarch64`."""
        return self.triple.split("-")[0]

    @property
    def missing_features(self) -> tuple[str, ...]:
        """What this host lacks to run the host side of the code; empty when it can."""
        machine, flags = host()
        if machine != self.machine:
            return (self.machine,)
        return tuple(f for f in self.features if f not in flags)

    def to_tvm(self) -> tvm.target.Target:
        """The TVM target; for several GPU architectures, that of the first (the least) one."""
        import tvm_ffi
        from tvm.target import Target

        native = {"kind": "llvm", "mcpu": self.mcpu, "mattr": list(self.mattr)}
        if self.machine != host()[0]:
            native["mtriple"] = self.triple
        native = {k: v for k, v in native.items() if v}
        # LLVM would fall back to a generic CPU with a line on stderr; a slow artifact is not what was asked for
        if self.machine == host()[0]:
            known = tvm_ffi.get_global_func("target.llvm_get_cpu_archlist")(Target({"kind": "llvm"}))
            if self.mcpu not in list(known):
                raise _unknown(self.mcpu, f"LLVM knows no CPU `{self.mcpu}`", [str(k) for k in known])
        if self.kind == "cpu":
            return Target(native)
        return Target(
            {
                "kind": "cuda",
                "arch": self.arches[0],
                "max_threads_per_block": 1024,
                "max_num_threads": 1024,
                "max_shared_memory_per_block": 49152,  # what every architecture grants without opting in
                "thread_warp_size": 32,
                "registers_per_block": 65536,
                "host": native,
            }
        )


@cache
def host() -> tuple[str, frozenset[str]]:
    """This machine: processor family, and its features as the kernel reports them."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return machine, frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return machine, frozenset(found[1].split() if found else ())


def native_mcpu(flags: frozenset[str]) -> str:
    """LLVM's name for an x86 CPU with these features: the most specific one whose features are all there.

    >>> native_mcpu(_V3), native_mcpu(_V2 | {"avx"}), native_mcpu(frozenset())
    ('x86-64-v3', 'x86-64-v2', 'x86-64')
    """
    vendor = _AMD if "sse4a" in flags or "clzero" in flags else _INTEL
    return next(name for name, needed in {**vendor, **_LEVELS}.items() if needed <= flags)


def parse_target(text: str, *, threads: int = 1) -> TargetSpec:
    """The target that `text` names; raises E0501 (exit code 4) for one that does not exist.

    >>> parse_target("x86-64-v3").isa
    'avx2'
    >>> parse_target("cuda:sm_90").arches
    ('sm_90',)
    """
    text = text.strip()
    if text.startswith("{"):
        return _from_json(text, threads)
    name, colon, arches = text.partition(":")
    if name == "cuda":
        return _cuda([a.strip() for a in arches.split(",")] if colon else list(DEFAULT_ARCHES), _launcher(), threads)
    if text == "cpu":
        return _native(threads)
    if text == "aarch64":
        return _cpu("generic", "aarch64-linux-gnu", threads=threads)
    if text in _KNOWN:
        return _cpu(text, "x86_64-linux-gnu", threads=threads)
    if text.split()[0:1] in (["llvm"], ["cuda"]) or text.startswith(("llvm", "cuda")):
        return _from_words(text, threads)
    raise _unknown(text, f"there is no target `{text}`", [*_NAMES, *_KNOWN])


def _unknown(name: str, message: str, candidates: list[str]) -> CompileError:
    help = "did you mean `cuda`?" if name in ("gpu", "nvidia") else did_you_mean(name, candidates) or _HELP
    return fail("E0501", message, help=help, exit_code=4)


def _native(threads: int = 1) -> TargetSpec:
    machine, flags = host()
    if machine == "x86_64":
        return _cpu(native_mcpu(flags), "x86_64-linux-gnu", threads=threads)
    return _cpu("generic", f"{machine}-linux-gnu", threads=threads)


def _cpu(mcpu: str, triple: str, mattr: tuple[str, ...] = (), threads: int = 1) -> TargetSpec:
    features = _KNOWN.get(mcpu, frozenset()) | {a[1:].replace(".", "_") for a in mattr if a[0] == "+"}
    if triple.startswith("aarch64"):
        isa: Isa = "neon"
        features = frozenset()
    elif "avx512f" in features:
        isa = "avx512"
        # LLVM prefers 256-bit vectors on Intel for fear of clock throttling and would split our 512-bit tiles
        if mcpu not in _AMD and "-prefer-256-bit" not in mattr:
            mattr = (*mattr, "-prefer-256-bit")
    else:
        isa = "avx2" if {"avx2", "fma"} <= features else "sse"
    return TargetSpec(
        kind="cpu", triple=triple, mcpu=mcpu, mattr=mattr, features=tuple(sorted(features)), isa=isa, threads=threads
    )


def _launcher() -> TargetSpec:
    """The processor beside a GPU: it only launches kernels, so the plainest level keeps artifacts portable."""
    native = _native()
    return _cpu("x86-64-v2", native.triple) if native.machine == "x86_64" else native


def _cuda(arches: list[str], processor: TargetSpec, threads: int) -> TargetSpec:
    for arch in arches:
        if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
            raise _unknown(arch, f"`{arch}` is not a CUDA architecture such as `sm_90`", list(DEFAULT_ARCHES))
    ordered = tuple(sorted(set(arches), key=lambda a: (int(re.sub(r"\D", "", a)), a)))
    return processor.model_copy(update={"kind": "cuda", "arches": ordered, "threads": threads})


def _from_words(text: str, threads: int) -> TargetSpec:
    """The command-line form `llvm -mcpu=znver4 -mattr=+a,+b`, which TVM itself no longer reads."""
    kind, *options = text.split()
    fields: dict[str, Any] = {"kind": kind}
    for option in options:
        key, equals, value = option.lstrip("-").partition("=")
        if not equals or not option.startswith("-"):
            raise _unknown(text, f"in the target `{text}`, `{option}` is not of the form `-key=value`", [])
        fields[key] = value.split(",") if key == "mattr" else value
    return _from_fields(text, fields, threads)


def _from_json(text: str, threads: int) -> TargetSpec:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unknown(text, f"the target is not valid JSON: {error}", []) from None
    if not isinstance(fields, dict):
        raise _unknown(text, "a target in JSON is an object with a `kind`", [])
    return _from_fields(text, fields, threads)


def _from_fields(text: str, fields: dict[str, Any], threads: int) -> TargetSpec:
    allowed = {
        "llvm": {"kind", "mcpu", "mtriple", "mattr"},
        "cuda": {"kind", "arch", "host"},
    }.get(str(fields.get("kind")))
    if allowed is None:
        raise _unknown(str(fields.get("kind", text)), f"the TVM target `{text}` is neither of kind llvm nor cuda", [])
    if extra := sorted(set(fields) - allowed):
        needed = ", ".join(f"`{name}`" for name in sorted(allowed))
        raise _unknown(extra[0], f"a target of this kind has {needed}; found `{extra[0]}`", sorted(allowed))
    if fields["kind"] == "cuda":
        processor = _launcher()
        if "host" in fields:
            processor = _from_json(json.dumps(fields["host"]), threads)
            if processor.kind != "cpu":
                raise _unknown(text, "the host of a CUDA target is of kind llvm", [])
        arch = fields.get("arch", list(DEFAULT_ARCHES))
        return _cuda([arch] if isinstance(arch, str) else [str(a) for a in arch], processor, threads)
    mattr = fields.get("mattr", [])
    words = [fields.get("mcpu", ""), fields.get("mtriple", "")]
    if not all(isinstance(w, str) for w in words) or not (
        isinstance(mattr, list) and all(isinstance(a, str) and re.fullmatch(r"[+-][\w.-]+", a) for a in mattr)
    ):
        raise _unknown(text, '`mcpu` and `mtriple` are strings, and `mattr` a list such as `["+avx2"]`', [])
    native = _native()
    return _cpu(words[0] or native.mcpu, words[1] or native.triple, tuple(mattr), threads)
