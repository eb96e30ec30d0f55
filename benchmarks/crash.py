"""`kill -9` at random moments of compiling, training, formatting in place and writing to the cache: a file is old or
new and never half, and the same work done again ends with the same bytes.

    python benchmarks/crash.py --kills 200 --seed 0 --results crash.jsonl
    python benchmarks/crash.py --kills 60 --signals INT,TERM

A signal that can be heeded has to be: exit code 130 or 143, no file left over, no traceback.

A line is written for each kill, and a kill that has a line is not made again, so a run that was cut off goes on where
it was. Half of the moments are drawn from the whole time that the work takes, the others from the milliseconds after
a temporary file appears, where a bad writer would be caught. Exit code 1 when anything was wrong.

The victims are forked from a process that has imported everything and started no thread, so that each costs only its
work: the command that is killed is the real one, `archc compile …` or `archc train …`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NET = """\
arch wine(hidden = 48)

input  x: f32[N, 13]
output logits: f32[N, 3]

logits = x -> linear(hidden) -> relu -> linear(hidden) -> relu -> linear(3)
"""
LONG = "".join(f"def block{i}( width ) =  conv(width,3)->relu   # {i}\n" for i in range(2000))
ENTRIES = 8
ENTRY_BYTES = 1 << 20
WRITE_WINDOW = 0.01  # seconds after a temporary file appears


def fill_cache(root: str) -> int:
    """Put `ENTRIES` artifacts and as many libraries into a cache; what is there is left."""
    from archc.backends.artifact import Facts, write_artifact
    from archc.backends.cache import Cache, cache_key, library_file
    from archc.backends.tvm.targets import parse_target

    os.environ["ARCHC_CACHE"] = root
    facts = Facts(name="entry", inputs=(), outputs=(), ir_hash="0" * 64, weights_hash="0" * 64)
    target = parse_target("x86-64-v3")
    for number in range(ENTRIES):
        data = random.Random(number).randbytes(ENTRY_BYTES)

        def build(path: Path, data: bytes = data) -> None:
            write_artifact(path, facts=facts, target=target, code="object", toolchain={}, library=data)

        Cache(Path(root)).get_or_build(cache_key(entry=number), build)
        with library_file(hashlib.sha256(data).hexdigest(), memoryview(data)):
            pass
    return 0


def nursery() -> None:
    """Fork a victim for each line on stdin; say its process number, and when it has ended, how."""
    import sklearn.datasets  # noqa: F401
    import torch

    import archc.backends.torch.training
    import archc.facade.train
    import archc.grammar.format  # noqa: F401
    from archc.backends.cache import cache_key
    from archc.backends.tvm import build, compile  # noqa: F401
    from archc.cli.main import heed_signals, run

    torch.set_num_threads(1)
    cache_key()  # reads our sources now: victims that go on must find the same ones
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()  # the linker that it starts dies with it
            os.environ |= order["environment"]
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            if order["errors"]:
                os.dup2(os.open(order["errors"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            heed_signals()
            arguments = order["arguments"]
            os._exit(fill_cache(*arguments[1:]) if arguments[0] == "fill" else run(arguments))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Nursery:
    """The process that victims come from."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--nursery"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *arguments: object, errors: object = "", **environment: object) -> int:
        """Start a victim; its process number. What it tells goes to stderr, or into the file `errors`."""
        assert self.process.stdin is not None
        order = {
            "arguments": [str(a) for a in arguments],
            "environment": {name: str(value) for name, value in environment.items()},
            "errors": str(errors),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the victim, or minus the signal that ended it."""
        return self._answer()

    def has_ended(self, within: float) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], max(0.0, within))[0])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Work:
    """Something to be killed in: `arguments` in a folder, what watches its files, and the bytes that it ends with."""

    kind: str
    arguments: Callable[[Path, bool], list[object]]
    watched: str
    result: str
    old: bytes
    new: bytes
    seconds: float


def compile_arguments(seed: int) -> Callable[[Path, bool], list[object]]:
    def arguments(folder: Path, again: bool) -> list[object]:
        return ["compile", folder / "net.arch", "-o", folder / "out.archc", "--threads", 1, "--seed", seed, "-q"]

    return arguments


def train_arguments(epochs: int) -> Callable[[Path, bool], list[object]]:
    def arguments(folder: Path, again: bool) -> list[object]:
        flags = ["--task", "wine", "--threads", 1, "--epochs", epochs, "-q"]
        resume = ["--resume"] if (folder / "out.checkpoint.safetensors").exists() else []
        return ["train", folder / "net.arch", "-o", folder / "out.safetensors", *flags, *resume]

    return arguments


def format_arguments(folder: Path, again: bool) -> list[object]:
    return ["fmt", folder / "long.arch", "-q"]


def cache_arguments(folder: Path, again: bool) -> list[object]:
    return ["fill", folder / "cache"]


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="archc-crash-") as name:
        folder = Path(name)
        for part in ("cache", "tmp"):
            (folder / part).mkdir(mode=0o700)
        (folder / "net.arch").write_text(NET, encoding="utf-8")
        (folder / "long.arch").write_text(LONG, encoding="utf-8")
        yield folder


def surroundings(folder: Path) -> dict[str, Any]:
    return {"ARCHC_CACHE": folder / "cache", "TMPDIR": folder / "tmp"}


def undisturbed(nursery: Nursery, arguments: Callable[[Path, bool], list[object]], result: str) -> tuple[bytes, float]:
    """What the work ends with when nobody kills it, and how long it takes."""
    with fresh_folder() as folder:
        begin = time.monotonic()
        nursery.start(*arguments(folder, False), **surroundings(folder))
        code = nursery.wait()
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}")
        return (folder / result).read_bytes() if result else b"", time.monotonic() - begin


def works(nursery: Nursery, epochs: int = 40) -> list[Work]:
    """Each kind of work with its undisturbed result."""
    old, _ = undisturbed(nursery, compile_arguments(1), "out.archc")
    new, seconds = undisturbed(nursery, compile_arguments(2), "out.archc")
    made = [Work("compile", compile_arguments(2), ".", "out.archc", old, new, seconds)]
    first, _ = undisturbed(nursery, train_arguments(1), "out.safetensors")
    last, seconds = undisturbed(nursery, train_arguments(epochs), "out.safetensors")
    made.append(Work("train", train_arguments(epochs), ".", "out.safetensors", first, last, seconds))
    laid_out, seconds = undisturbed(nursery, format_arguments, "long.arch")
    made.append(Work("fmt", format_arguments, ".", "long.arch", LONG.encode(), laid_out, seconds))
    _, seconds = undisturbed(nursery, cache_arguments, "")
    made.append(Work("cache", cache_arguments, "cache/artifacts", "", b"", b"", seconds))
    return made


def kill_once(
    nursery: Nursery, work: Work, draw: random.Random, how: signal.Signals = signal.SIGKILL
) -> dict[str, Any]:
    """Kill one victim and look at what it leaves; `wrong` is empty when all is well."""
    wrong: list[str] = []
    with fresh_folder() as folder:
        if work.result:
            (folder / work.result).write_bytes(work.old)
        in_a_write = draw.random() < 0.5
        delay = draw.uniform(0, WRITE_WINDOW if in_a_write else work.seconds)
        victim = nursery.start(*work.arguments(folder, False), errors=folder / "told", **surroundings(folder))
        begin = time.monotonic()
        if in_a_write:
            _until_a_write(nursery, folder / work.watched, draw.randrange(ENTRIES if work.kind == "cache" else 3))
        landed = not nursery.has_ended(delay)
        after = time.monotonic() - begin
        if landed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(victim, how)
        code = nursery.wait()
        landed = landed and code != 0
        watched = folder / work.watched  # a cache is not there before its first entry
        left = sorted(p.name for p in watched.iterdir()) if watched.exists() else []
        if landed and how != signal.SIGKILL:
            wrong += unheeded(work, folder, how, code)
        wrong += judge(work, folder)
        nursery.start(*work.arguments(folder, True), **surroundings(folder))
        if code := nursery.wait():
            wrong.append(f"done again, it ended with {code}")
        wrong += judge(work, folder, finished=True)
    return {
        "kind": work.kind,
        "signal": how.name,
        "landed": landed,
        "in_a_write": in_a_write,
        "after": round(after, 4),
        "temporary": sum(name.startswith(".") for name in left),
        "wrong": wrong,
    }


def unheeded(work: Work, folder: Path, how: signal.Signals, code: int) -> list[str]:
    """What is wrong after a signal that could be heeded."""
    wrong = [] if code == 128 + how else [f"{how.name} ended it with {code}"]
    told = (folder / "told").read_text(errors="replace")
    wrong += [f"it told: {told[-2000:]}"] if "Traceback" in told or "internal error" in told else []
    for place in {folder, folder / work.watched, folder / "tmp"}:
        left = [p.name for p in place.iterdir() if p.name.startswith((".", "archc-"))]
        wrong += [f"left in `{place.name}`: {left}"] if left else []
    return wrong


def _until_a_write(nursery: Nursery, folder: Path, skip: int) -> None:
    """Wait for a temporary file that has not been seen yet, after `skip` others."""
    seen: set[str] = set()
    while len(seen) <= skip and not nursery.has_ended(0):
        with contextlib.suppress(FileNotFoundError):
            seen |= {name for name in os.listdir(folder) if name.startswith(".")}
        time.sleep(0.0002)


def judge(work: Work, folder: Path, finished: bool = False) -> list[str]:
    """What is wrong with the files."""
    from archc.backends.cache import Cache

    wrong = []
    if work.result:
        found = (folder / work.result).read_bytes()
        if found not in ((work.new,) if finished else (work.old, work.new)):
            wrong.append(f"{work.result} is {'not the new file' if finished else 'neither old nor new'}")
    if work.kind == "train":
        state = folder / "out.checkpoint.safetensors"
        if state.exists():
            wrong += ["the checkpoint was left"] if finished else _unsound(state)
    cache = Cache(folder / "cache")
    entries = cache.entries()
    wrong += [f"a damaged entry in the cache: {entry.path.name}" for entry in cache.verify()]
    for path in (folder / "cache" / "lib").glob("[0-9a-f]*.so"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            wrong.append(f"a damaged library in the cache: {path.name}")
    if finished and work.kind == "cache":
        names = {p.name for p in (folder / "cache" / "artifacts").iterdir()}
        if len(entries) != ENTRIES or len(names) != ENTRIES:
            wrong.append(f"{ENTRIES} entries were needed; found {sorted(names)}")
    return wrong


def _unsound(checkpoint: Path) -> list[str]:
    from archc.backends.weights import read_weights
    from archc.ir.diagnostics import CompileError

    try:
        read_weights(checkpoint)
    except CompileError as error:
        return [f"half a checkpoint: {error}"]
    return []


def kill_many(
    count: int,
    seed: int,
    results: Path | None = None,
    epochs: int = 40,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
) -> list[dict[str, Any]]:
    """Make kills, one kind after the other, until `count` have landed; the rows, those in `results` too."""
    rows = _read(results) if results and results.exists() else []
    nursery = Nursery()
    try:
        made = works(nursery, epochs)
        if set(signals) != {signal.SIGKILL}:
            made = [work for work in made if work.kind != "cache"]  # it is no command
        while sum(row["landed"] for row in rows) < count:
            number = len(rows)
            how = signals[number // len(made) % len(signals)]
            row = kill_once(nursery, made[number % len(made)], random.Random(f"{seed} {number}"), how)
            rows.append({"number": number, **row})
            if results:
                with open(results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    finally:
        nursery.close()
    return rows


def _read(results: Path) -> list[dict[str, Any]]:
    """The rows of a run that was cut off, maybe in the middle of a line, which is removed."""
    text = results.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        results.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a file that is written, and gone on with")
    parser.add_argument("--signals", default="KILL", help="such as INT,TERM")
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nursery:
        nursery()
        return
    if not shutil.which("g++"):
        raise SystemExit("compiling needs a C++ compiler")
    signals = [signal.Signals[f"SIG{name}"] for name in options.signals.split(",")]
    rows = kill_many(options.kills, options.seed, options.results, signals=signals)
    landed = Counter(row["kind"] for row in rows if row["landed"])
    half = sum(row["landed"] and row["temporary"] > 0 for row in rows)
    wrong = [row for row in rows if row["wrong"]]
    print(f"{landed.total()} kills ({', '.join(f'{n} {kind}' for kind, n in sorted(landed.items()))})", end="")
    print(f", {half} of them while a temporary file stood; {len(wrong)} went wrong")
    for row in wrong:
        print(json.dumps(row))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
