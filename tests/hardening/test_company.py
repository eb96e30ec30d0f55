"""Compiled networks in company: of one another, of torch, of threads, of forks; and a thousand times over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from archc.backends.runtime import load
from archc.facade.model import loads

OTHER = """\
arch other

input  x: f32[N, 13]
output y: f32[N, 3]

y = x -> linear(40) -> gelu -> layer_norm -> linear(3) -> softmax(axis = 1)
"""
WIDE = """\
arch wide

input  x: f32[N, 13]
output y: f32[N, 3]

y = x -> linear(700) -> relu -> linear(3)
"""
X = np.random.default_rng(0).standard_normal((9, 13), dtype=np.float32)


def test_two_networks_and_torch_in_one_process(compiled) -> None:
    """In turns, with two threads each; nobody changes what another computes."""
    import torch

    texts = [OTHER, WIDE]
    artifacts = [load(compiled(text, threads=2), threads=2) for text in texts]
    modules = [loads(text).to_torch(None, 0).eval() for text in texts]
    with torch.no_grad():
        wanted = [module(torch.from_numpy(X)).numpy() for module in modules]
        first = [artifact(X) for artifact in artifacts]
        for _ in range(20):
            for artifact, module, ours, theirs in zip(artifacts, modules, first, wanted, strict=True):
                np.testing.assert_array_equal(artifact(X), ours)
                np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(first, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not np.allclose(first[0], first[1], atol=1e-2), "the control: they are two networks"


def test_one_network_with_two_sets_of_weights(compiled) -> None:
    """Equal code, other constants: the library is shared, and neither closes it under the other."""
    paths = [compiled(WIDE, seed=seed) for seed in (1, 2)]
    one, two = (load(path) for path in paths)
    wanted = [one(X), two(X)]
    assert not np.array_equal(*wanted)
    one.close()
    np.testing.assert_array_equal(two(X), wanted[1])
    np.testing.assert_array_equal(load(paths[0])(X), wanted[0])
    two.close()
    with load(paths[1]) as again:
        np.testing.assert_array_equal(again(X), wanted[1])


def test_a_child_forked_after_loading_runs_loads_and_compiles(compiled, python) -> None:
    path, other = compiled(), compiled(OTHER)
    code = f"""
import os, numpy as np
from archc.backends.runtime import load
x = np.ones((4, 13), np.float32)
artifact = load({str(path)!r})
wanted, kept = artifact(x), artifact(x)
if os.fork() == 0:
    import tempfile, pathlib
    from archc.facade.compile import build
    from archc.facade.model import loads
    print(np.array_equal(artifact(x), wanted), load({str(other)!r})(x).shape, flush=True)
    artifact.close()
    folder = pathlib.Path(tempfile.mkdtemp())
    build(loads(load({str(path)!r}).source), folder / "again.archc", threads=1, cache=False)
    print((folder / "again.archc").read_bytes() == open({str(path)!r}, "rb").read(), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
print(np.array_equal(artifact(x), kept))
"""
    assert python(code).splitlines() == ["True (4, 3)", "True", "0", "True"]


def test_threads_load_call_and_unload_one_file(compiled) -> None:
    paths = [compiled(), compiled(OTHER)]
    wanted = [load(path)(X) for path in paths]
    wrong: list[object] = []

    def work(index: int) -> None:
        try:
            for turn in range(25):
                which = (index + turn) % 2
                with load(paths[which]) as artifact:
                    wrong.extend(turn for _ in range(3) if not np.array_equal(artifact(X), wanted[which]))
        except Exception as error:  # a thread's exception would be lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_threads_call_one_artifact_at_once(compiled) -> None:
    """Each with its own input and size, by as many workers as calls; what one gets is never another's."""
    artifact = load(compiled(WIDE, threads=2), threads=2)
    inputs = [np.random.default_rng(i).standard_normal((3 + 5 * i, 13), dtype=np.float32) for i in range(4)]
    wanted = [artifact(x) for x in inputs]
    wrong: list[object] = []
    ready = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        try:
            ready.wait(60)
            wrong.extend(index for _ in range(150) if not np.array_equal(artifact(inputs[index]), wanted[index]))
        except Exception as error:  # a thread's exception would be lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert len(artifact._machines) > 1, "the control: calls did run side by side"
    assert not any(np.array_equal(a[:3], b[:3]) for a, b in pairwise(wanted))


def test_a_busy_neighbour_changes_no_result(compiled) -> None:
    artifact = load(compiled(WIDE, threads=2), threads=2)
    wanted = artifact(X)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        for _ in range(200):
            np.testing.assert_array_equal(artifact(X), wanted)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def resident() -> int:
    """Bytes of memory that this process has to itself."""
    pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("cycles", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_loading_and_unloading_leaves_no_memory(compiled, cycles: int) -> None:
    path = compiled(WIDE)
    x = np.ones((512, 13), np.float32)

    def cycle() -> object:
        with load(path) as artifact:
            artifact(x)
            return artifact

    for _ in range(20):
        cycle()
    before, files, tasks = resident(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(cycles):
        cycle()
    growth = resident() - before
    assert growth < 2 << 20, f"{growth} bytes in {cycles} cycles"
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(os.listdir("/proc/self/task")) == tasks
    before = resident()
    kept = []
    for _ in range(3):  # the control: an artifact that is kept is seen
        kept.append(np.ones(1 << 23))  # too large for memory that was freed before
    assert resident() - before > 100 << 20
