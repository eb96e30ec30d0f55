"""Running an artifact: arrays in, arrays out, by compiled code alone.

Loads neither torch nor tvm's Python nor the compiler: `tvm_ffi` and TVM's runtime library, 60 ms in all.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from archc.backends import native
from archc.backends.artifact import ALIGNMENT, Container, Manifest, Port, SizeNeed, dim_value, open_artifact
from archc.backends.cache import library_file
from archc.backends.weights import Array, numpy_dtype
from archc.ir.diagnostics import CompileError, Diagnostic, DiagnosticSink, did_you_mean, fail

Device = Literal["cpu", "cuda"]
_CPU, _CUDA, _POOLED = 1, 2, 2  # DLPack's device types; TVM's pooled allocator

_SHARED = ("f64", "f32", "f16", "i64", "i32", "i8")  # dtypes that numpy takes over DLPack

_function = functools.cache(native.global_function)


class _Library:
    """A loaded library."""

    def __init__(self, module: Any) -> None:
        self.module = module


# Two handles on one shared library would share its static state, and the first to be freed would break the other.
_libraries: weakref.WeakValueDictionary[str, _Library] = weakref.WeakValueDictionary()
_libraries_lock = threading.Lock()
# Loading a library again costs some 8 KB that TVM's loader never gives back: those loaded last stay.
_recent: deque[_Library] = deque(maxlen=16)


def load(path: Path | str, *, device: Literal["auto", "cpu", "cuda"] = "auto", threads: int | None = None) -> Artifact:
    """Open, check and load an artifact. Every byte is checked before any of its code runs.

    `device` is what the artifact was compiled for; naming it makes that a demand. `threads` is the number of worker
    threads for a call (by default what it was compiled for).

    Raises what `open_artifact` raises, and with exit code 4: E0505 (this machine lacks CPU features, or a GPU that the
    code is for), E0508 (no usable GPU), E0514 (no TVM runtime), E0515 (another release of it).
    """
    return Artifact(open_artifact(path), device=device, threads=threads)


class _Machine:
    """A virtual machine, with its entry function looked up once."""

    __slots__ = ("main", "module")

    def __init__(self, module: Any, entry: str) -> None:
        self.module, self.main = module, module[entry]

    def __getitem__(self, name: str) -> Any:
        return self.module[name]


class Artifact:
    """A compiled network, ready to run. Calls from several threads at once run side by side.

    >>> artifact = load("mlp.archc")                                # doctest: +SKIP
    >>> artifact.run({"x": np.zeros((1, 784), np.float32)})["y"]    # doctest: +SKIP
    """

    def __init__(
        self,
        container: Container,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        self.container = container
        self.device: Device = container.manifest.target.kind
        self.threads = max(1, threads or container.manifest.target.threads)
        self._process = os.getpid()
        _demand_device(container.manifest, device)
        self._ffi = native.runtime()
        self._library: _Library | None = _load_library(container)
        self._constants = [self._place(a) for a in container.constants()]
        self._weights = [self._ffi.convert(self._constants)] if self._constants else []
        self._machines: list[_Machine] = []  # idle virtual machines: each serves one call at a time
        self._forms, self._ports = [_Form(p) for p in self.manifest.inputs], self.manifest.outputs
        with self.machine():
            pass

    @property
    def manifest(self) -> Manifest:
        return self.container.manifest

    @property
    def source(self) -> str:
        """The `.arch` text that was compiled."""
        return self.container.source

    @property
    def report(self) -> dict[str, Any]:
        """What the compilers said about the kernels."""
        return self.container.report

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs by name for inputs by name: numpy arrays, or anything that speaks DLPack, such as torch tensors.

        Raises, gathered: E0520 (an input is missing or unknown), E0521 (dtype), E0522 (shape), E0529 (indices); and
        E0523 (in a process forked after workers were started), E0524 (the compiled code failed).
        """
        tensors = self.tensors(inputs)
        machine = self._idle_machine()
        try:
            return self.outputs(self.invoke(machine, tensors))
        finally:
            self._machines.append(machine)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Inputs in order or by name; the output, or a tuple of several. torch tensors give torch tensors."""
        ports = self.manifest.inputs
        if len(args) > len(ports):
            raise fail(
                "E0520", f"`{self.manifest.name}` takes {len(ports)} inputs; found {len(args)}", help=self._usage()
            )
        inputs = dict(zip((p.name for p in ports), args, strict=False))
        if twice := inputs.keys() & named.keys():
            raise fail("E0520", f"input `{min(twice)}` is given twice", help=self._usage())
        inputs |= named
        outputs: list[Any] = list(self.run(inputs).values())
        torch = sys.modules.get("torch")
        if torch is not None and any(isinstance(v, torch.Tensor) for v in inputs.values()):
            outputs = [torch.from_numpy(o) if o.dtype.name != "bfloat16" else _torch_bf16(torch, o) for o in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def tensors(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The inputs, checked, as TVM tensors on the device, in the order of the program's parameters."""
        arrays = self._fitting(inputs) or self._checked(inputs)
        return [self._place(a) for a in arrays]

    def _fitting(self, inputs: Mapping[str, Any]) -> list[Array] | None:
        """The inputs where nothing is to be said or converted, which takes 2 µs to see; None where it takes a closer
        look."""
        if len(inputs) != len(self._forms):
            return None
        arrays: list[Array] = []
        sizes: dict[str, int] = {}
        for form in self._forms:
            array = inputs.get(form.name)
            if array is None or not form.fits(array, sizes):
                return None
            arrays.append(array)
        return None if _size_problems(self.manifest.needs, sizes) else arrays

    def _checked(self, inputs: Mapping[str, Any]) -> list[Array]:
        """The inputs as arrays of their dtypes, or everything that is wrong with them."""
        problems = DiagnosticSink()
        names = [p.name for p in self.manifest.inputs]
        for name in inputs.keys() - set(names):
            hint = did_you_mean(str(name), names)
            problems.add(Diagnostic("E0520", f"there is no input `{name}`", help=hint or self._usage()))
        arrays, symbols = [], dict[str, tuple[int, str]]()
        for port in self.manifest.inputs:
            if port.name not in inputs:
                problems.add(Diagnostic("E0520", f"input `{port.name}` is missing", help=self._usage()))
                continue
            try:
                array = _as_array(port, inputs[port.name])
            except CompileError as error:
                problems.add(*error.diagnostics)
                continue
            arrays.append(array)
            problems.add(*_shape_problems(port, array.shape, symbols), *_index_problems(port, array))
        values = {name: value for name, (value, _) in symbols.items()}
        if not problems.has_errors:
            problems.add(*_solve(self.manifest.inputs, arrays, values))
            for port, array in zip(self.manifest.inputs, arrays, strict=True):
                problems.add(*_expression_problems(port, array.shape, values))
            problems.add(*_size_problems(self.manifest.needs, values))
        problems.finish()
        return arrays

    def invoke(self, machine: Any, tensors: Sequence[Any]) -> Any:
        """Call the program; the result as TVM gives it."""
        if self.device == "cuda" and self._process != os.getpid():
            raise fail(
                "E0523",
                "this artifact was put on the GPU before the process was forked; CUDA does not survive that",
                help="load it in the child, and start that with `multiprocessing.get_context('spawn')`",
            )
        native.use_threads(self.threads)
        try:
            return machine.main(*tensors, *self._weights)
        except IndexError as error:
            words = _last_line(error)
            raise fail("E0529", words, help="limit it with `clamp`, or correct what computes it") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise fail(
                "E0524",
                f"the compiled code of `{self.manifest.name}` failed",
                label=_last_line(error),
                help="an input is empty: give it one element or more along each axis"
                if any(0 in tensor.shape for tensor in tensors)
                else "`archc verify` compares it with the reference",
            ) from error

    def outputs(self, result: Any) -> dict[str, Array]:
        """A call's result as numpy arrays by name; they own their memory."""
        results = [result] if isinstance(result, self._ffi.Tensor) else list(result)
        ports = self._ports
        assert len(results) == len(ports), f"the program returns {len(results)} values, the manifest has {len(ports)}"
        return {port.name: self._to_numpy(port, r) for port, r in zip(ports, results, strict=True)}

    @contextlib.contextmanager
    def machine(self) -> Iterator[Any]:
        """A virtual machine for one call, an idle one where there is one."""
        machine = self._idle_machine()
        try:
            yield machine
        finally:
            self._machines.append(machine)

    def _idle_machine(self) -> Any:
        try:
            return self._machines.pop()
        except IndexError:
            return self.new_machine()

    def new_machine(self) -> Any:
        """A virtual machine for this artifact's code: cheap, as the weights are shared."""
        assert self._library is not None, "the artifact is closed"
        machine = self._library.module["vm_load_executable"]()
        devices = [(_CUDA, 0, _POOLED)] if self.device == "cuda" else []
        machine["vm_initialization"](*(n for d in (*devices, (_CPU, 0, _POOLED)) for n in d))
        return _Machine(machine, self.manifest.entry)

    def synchronise(self) -> None:
        """Wait until the device has done all its work."""
        if self.device == "cuda":
            _function("runtime.Device_StreamSync")(self._ffi.device("cuda", 0), 0)

    def close(self) -> None:
        """Free the program and its weights; the artifact cannot be run any more."""
        self._machines.clear()
        self._weights, self._constants, self._library = [], [], None

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        ports = ", ".join(map(str, self.manifest.inputs))
        return f"<Artifact {self.manifest.name}({ports}) for {self.manifest.target}>"

    def _usage(self) -> str:
        return "inputs: " + ", ".join(str(p) for p in self.manifest.inputs)

    def _place(self, array: Array) -> Any:
        """The array as a TVM tensor on the device, sharing its memory on the CPU where it is aligned."""
        if not array.size and self.device == "cpu":  # numpy gives it strides that compiled code takes for holes
            kind, here = self._ffi.dtype(array.dtype.name), self._ffi.device("cpu", 0)
            return _function("runtime.TVMTensorAllocWithScope")(array.shape, kind, here, None)
        plain = array.dtype.kind in "fiub"
        if plain and self.device == "cpu":
            if array.flags.carray and array.dtype.isnative:
                tensor = self._ffi.from_dlpack(array)
                if tensor.data_ptr() % ALIGNMENT == 0:  # numpy takes longer to tell
                    return tensor
            return self._ffi.from_dlpack(_aligned_copy(array))
        array = _aligned(array)
        if plain:
            tensor = self._ffi.from_dlpack(array)
        else:  # bfloat16, which numpy cannot hand over
            flat = self._ffi.from_dlpack(array.reshape(-1).view(np.uint8))
            tensor = _function("runtime.TVMTensorCreateView")(flat, array.shape, self._ffi.dtype("bfloat16"), 0)
        if self.device == "cpu":
            return tensor
        there = _function("runtime.TVMTensorAllocWithScope")(
            tensor.shape, tensor.dtype, self._ffi.device("cuda", 0), None
        )
        _function("runtime.TVMTensorCopyFromTo")(tensor, there)
        self.synchronise()
        return there

    def _to_numpy(self, port: Port, tensor: Any) -> Array:
        """A copy: a program may return an input, a weight, or memory that the next call reuses."""
        if self.device == "cpu" and port.dtype in _SHARED:
            return np.from_dlpack(tensor).copy()
        out = np.empty(tuple(tensor.shape), numpy_dtype(port.dtype))
        if out.size:
            _function("runtime.TVMTensorCopyToBytes")(tensor, ctypes.c_void_p(out.ctypes.data), out.nbytes)
        return out


class _Form:
    """What an input has to look like."""

    def __init__(self, port: Port) -> None:
        self.name, self.dims = port.name, port.dims
        self.dtype = numpy_dtype(port.dtype)
        # sizes that follow from others are worked out, and indices looked through, by the thorough check
        self.plain = port.below is None and all(isinstance(d, int) or d.isidentifier() for d in port.dims)
        self.fixed = port.dims if all(isinstance(d, int) for d in port.dims) else None

    def fits(self, array: Any, sizes: dict[str, int]) -> bool:
        """Whether it is an array of the dtype and shape; `sizes` are those of symbols so far."""
        if not self.plain or type(array) is not np.ndarray or array.dtype != self.dtype:
            return False
        shape = array.shape
        if self.fixed is not None:
            return bool(shape == self.fixed)
        return len(shape) == len(self.dims) and all(
            size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
            for dim, size in zip(self.dims, shape, strict=True)
        )


def _demand_device(manifest: Manifest, device: str) -> None:
    target = manifest.target
    built, here = manifest.toolchain.get("tvm", ""), native.tvm_version()
    if built.split(".")[:2] != here.split(".")[:2]:  # the interface between code and runtime changes between releases
        raise fail(
            "E0515",
            f"`{manifest.name}` was compiled with tvm {built}; found {here}",
            help="compile it again, or install the release that it was compiled with",
            exit_code=4,
        )
    if device not in ("auto", target.kind):
        raise fail(
            "E0508",
            f"`{manifest.name}` was compiled for {target.kind}; needed {device}",
            help=f"compile it with `--target {device}`",
            exit_code=4,
        )
    if manifest.code == "object" or target.missing_features:
        missing = ", ".join(target.missing_features) or target.machine
        raise fail(
            "E0505",
            f"`{manifest.name}` was compiled for {target.mcpu} ({target.machine}); this machine lacks: {missing}",
            help="compile it here with `--target cpu`, or for an older machine with `--target x86-64-v3`",
            exit_code=4,
        )
    if target.kind == "cuda" and (problem := native.cuda_problem()):
        raise fail(
            "E0508",
            f"`{manifest.name}` was compiled for CUDA, which does not work here",
            label=problem,
            help="run it where a GPU and its driver are, or compile with `--target cpu`; `archc doctor` says more",
            exit_code=4,
        )


def _load_library(container: Container) -> _Library:
    section = next(s for s in container.manifest.sections if s.name == "library")
    with _libraries_lock:
        library = _libraries.get(section.sha256)
        if library is None:
            with library_file(section.sha256, container.section("library")) as path:
                library = _Library(native.runtime().load_module(str(path)))
            _libraries[section.sha256] = library
            _recent.append(library)
        return library


def _as_array(port: Port, value: Any) -> Array:
    """The value as an array of the port's dtype; only a cast that loses nothing is made in silence."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            value = value.view(torch.uint16).numpy().view(numpy_dtype("bf16"))
        else:
            value = value.numpy()
    elif not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
        value = np.from_dlpack(value)
    array = np.asarray(value)
    needed = numpy_dtype(port.dtype)
    if array.dtype == needed:
        return array
    same_kind = array.dtype.kind == needed.kind or (array.dtype.kind, needed.kind) == ("u", "i")
    if array.dtype.kind in "fiu" and same_kind and np.can_cast(array.dtype, needed, "safe"):
        return array.astype(needed)
    raise fail(
        "E0521",
        f"input `{port.name}` needs dtype {needed.name}; found {array.dtype.name}",
        help=f"cast it: `{port.name}.astype('{needed.name}')`",
    )


def _last_line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[-1][-500:] if said else type(error).__name__


def _index_problems(port: Port, array: Array) -> list[Diagnostic]:
    """An index outside the table that it is looked up in: compiled code has no way to say so."""
    if port.below is None or not array.size:
        return []
    least, most = int(array.min()), int(array.max())
    if least >= 0 and most < port.below:
        return []
    wrong = least if least < 0 else most
    place = [int(i) for i in np.argwhere(array == wrong)[0]]
    return [
        Diagnostic(
            "E0529",
            f"input `{port.name}` needs indices from 0 to {port.below - 1}; found {wrong} at {place}",
            help="it is looked up in a table with so many rows",
        )
    ]


def _shape_problems(port: Port, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> list[Diagnostic]:
    """What is wrong with a shape; symbols that it decides are added to `symbols`, with the input that decided."""
    needed = f"[{', '.join(map(str, port.dims))}]"
    if len(shape) != len(port.dims):
        return [
            Diagnostic(
                "E0522",
                f"input `{port.name}` needs {len(port.dims)} axes {needed}; found {len(shape)}: {list(shape)}",
                help=_missing_axis(port, shape),
            )
        ]
    problems = []
    for axis, (dim, size) in enumerate(zip(port.dims, shape, strict=True)):
        place = f"input `{port.name}`, axis {axis}"
        if isinstance(dim, int):
            if dim != size:
                problems.append(Diagnostic("E0522", f"{place}: needs {dim} of {needed}; found {size} of {list(shape)}"))
        elif dim.isidentifier():
            value, where = symbols.setdefault(dim, (size, place))
            if value != size:
                problems.append(Diagnostic("E0522", f"{place}: `{dim}` is {size} here, and {value} in {where}"))
    return problems


def _missing_axis(port: Port, shape: tuple[int, ...]) -> str | None:
    """How an array with one axis too few gets it, where a place for an axis of size 1 makes it fit."""
    for axis in range(len(port.dims) if len(shape) == len(port.dims) - 1 else 0):
        sizes = (*shape[:axis], 1, *shape[axis:])
        if all(isinstance(dim, str) or dim == size for dim, size in zip(port.dims, sizes, strict=True)):
            what = "a batch axis" if axis == 0 else f"axis {axis}"
            return f"{what} is missing: add it with `{port.name}[{':, ' * axis}None]`"
    return None


def _solve(ports: Sequence[Port], arrays: Sequence[Array], symbols: dict[str, int]) -> list[Diagnostic]:
    """Add symbols that are no axis by themselves, from expressions that are linear in one of them; what is negative."""
    axes = [
        (f"input `{port.name}`, axis {axis}", dim, size, set(re.findall(r"[^\W\d]\w*", dim)))
        for port, array in zip(ports, arrays, strict=True)
        for axis, (dim, size) in enumerate(zip(port.dims, array.shape, strict=True))
        if isinstance(dim, str) and not re.search(r"//|%", dim)
    ]
    problems, before = [], -1
    while len(symbols) > before:
        before = len(symbols)
        for place, dim, size, names in axes:
            unknown = names - symbols.keys()
            if len(unknown) != 1:
                continue
            (name,) = unknown
            least, one, two = (dim_value(dim, symbols | {name: i}) or 0 for i in range(3))
            if one == least or two - one != one - least:
                continue
            symbols[name] = (size - least) // (one - least)
            if symbols[name] < 0:
                problems.append(Diagnostic("E0522", f"{place}: needs {dim}, at least {least}; found {size}"))
    return problems


def _expression_problems(port: Port, shape: tuple[int, ...], symbols: Mapping[str, int]) -> list[Diagnostic]:
    return [
        Diagnostic("E0522", f"input `{port.name}`, axis {axis}: needs {dim} = {value}; found {size}")
        for axis, (dim, size) in enumerate(zip(port.dims, shape, strict=True))
        if isinstance(dim, str) and (value := dim_value(dim, symbols)) is not None and value != size
    ]


def _size_problems(needs: Sequence[SizeNeed], symbols: Mapping[str, int]) -> list[Diagnostic]:
    """Sizes that are too small, or too large, for what the network does with them."""
    failed = [n for n in needs if (value := dim_value(n.size, symbols)) is not None and value < 0]
    given = ", ".join(f"`{name}` is {value}" for name, value in symbols.items()) if failed else ""
    return [Diagnostic("E0522", f"{need.words}; here {given}") for need in failed]


def _aligned(array: Array) -> Array:
    """The array, contiguous and on a boundary that vector loads need; a copy only when it is not so already."""
    fits = array.flags.carray and array.dtype.isnative and _address(array) % ALIGNMENT == 0
    return array if fits else _aligned_copy(array)


def _aligned_copy(array: Array) -> Array:
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    copy: Array = np.ndarray(array.shape, array.dtype.newbyteorder("="), room, -_address(room) % ALIGNMENT)
    copy[...] = array
    return copy


def _address(array: Array) -> int:
    """Where a writable, contiguous array begins."""
    if array.size and array.dtype.kind in "fiub":
        place = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]  # numpy has buffers, and says so in 3.12
        return ctypes.addressof(place)  # together a quarter of the time of the next line
    return int(array.ctypes.data)


def _torch_bf16(torch: Any, array: Array) -> Any:
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
