"""`kill -9` at random moments of small searches: of the coordinator, of the process that workers are forked from, and
of workers. After every kill of a coordinator the study is resumed, and killed again, until it has come to its end.

    python benchmarks/search_crash.py --kills 300 --seed 0 --out crash

Looked for, after each kill and at the end of each study:
- lost         a result that the log had acknowledged and that is gone, or another one
- again        work that was begun again although its result file stood, or a result file that was replaced
- course       a proposal or a result that is not that of the same study when nobody kills anything
- orphans      processes that outlived their coordinator

Half of the moments are drawn from a quarter of the time that a study takes, the others from the milliseconds after a
file appears among the results. Studies are deterministic (`lag`); the undisturbed ones are made with 1, 2 and 4
workers. Most work is made up and takes milliseconds; `--real` is the share of studies that train networks. A line is
written for each study, so that a run which was cut off goes on. Exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from archc.search.vault import RESULTS

sys.path.insert(0, str(Path(__file__).parent))
from results import Results

SPACE = """space tiny()
input  x: f32[N, {inputs}]
output y: f32[N, {outputs}]
rule Body = linear(range(8, 64, step = 8)) -> choose { relu | gelu | tanh } | 0.5: Body -> Body when depth < 3
y = x -> Body -> linear({outputs})
"""
STRATEGIES = ("evolution", "random", "nsga2", "halving")
LAG = 4
LONG = 300.0  # seconds in which a process that was killed must be gone
WRITE_WINDOW = 0.003  # seconds after a file appears
MOST = 25  # kills of a coordinator in one study: so it comes to its end however long a start takes
VICTIMS = (("coordinator", 0.5), ("nursery", 0.2), ("worker", 0.3))


def begin(folder: Path, kind: str, strategy: str, evaluations: int, seed: int = 7) -> None:
    """A study of that kind in a folder."""
    from archc.search.evaluation import Evaluation
    from archc.search.goals import parse_goals
    from archc.search.study import Budget, Study

    sizes = {"inputs": "4", "outputs": "2"} if kind == "synthetic" else {"inputs": "13", "outputs": "3"}
    text = SPACE
    for name, size in sizes.items():
        text = text.replace(f"{{{name}}}", size)
    folder.with_suffix(".arch").write_text(text, encoding="utf-8")
    goals = parse_goals(["accuracy:max", "params:min"])
    if kind == "synthetic":
        recipe: dict[str, Any] = {"takes": 0.02, "points": 2, "faults": {"exception": 0.05}, "trace": True}
        evaluation = Evaluation(task="synthetic", goals=goals, steps=10, recipe=recipe)
    else:
        evaluation = Evaluation(task="wine", goals=goals, steps=20)
    options = {"population": 6} if strategy in ("evolution", "nsga2") else {}
    Study.create(
        folder,
        folder.with_suffix(".arch"),
        evaluation=evaluation,
        budget=Budget(evaluations=evaluations),
        strategy=strategy,
        options=options,
        seed=seed,
        lag=LAG,
    ).close()


def coordinate(folder: Path, workers: int) -> int:
    """Go on with a study to its end; what a victim does."""
    from archc.search.engine import run
    from archc.search.executors.pool import Pool
    from archc.search.study import Study

    try:
        with Study.open(folder) as study:
            run(study, Pool(folder, workers, cores=[]))
    except BaseException:
        with open(folder / "said", "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        return 1
    return 0


def nursery() -> None:
    """Fork a coordinator for each line on stdin (folder, workers); say its process number, and when it ended, how."""
    import archc.search.engine
    import archc.search.executors.pool
    import archc.search.study
    import archc.search.training  # noqa: F401  torch, for keys of real trainings

    for line in sys.stdin:
        folder, workers = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os._exit(coordinate(Path(folder), workers))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Nursery:
    """The process that coordinators come from."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout

    def start(self, folder: Path, workers: int) -> psutil.Process:
        self._in.write(json.dumps([str(folder), workers]).encode() + b"\n")
        return psutil.Process(int(self._out.readline()))

    def has_ended(self, within: float) -> bool:
        return bool(select.select([self._out], [], [], max(0.0, within))[0])

    def wait(self) -> int:
        return int(self._out.readline())

    def close(self) -> None:
        self._in.close()
        self.process.wait()


class Watch:
    """What a study has acknowledged so far, and what is wrong with what it holds now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: dict[int, str] = {}
        self.files: dict[str, tuple[int, int]] = {}
        self.wrong: list[str] = []

    def look(self) -> Any:
        """Compare the study with what was seen before; the study, closed."""
        from archc.search.study import Study

        with Study.open(self.folder, readonly=True) as study:
            told = {t.number: t.result.model_dump_json() for t in study.trials if t.result is not None}
        self.wrong += [f"lost: the result of trial {n}" for n, text in self.told.items() if told.get(n) != text]
        files = {}
        for path in (self.folder / RESULTS).glob("[0-9a-f]*"):
            status = path.stat()
            files[path.stem] = (status.st_ino, status.st_mtime_ns)
        self.wrong += [f"again: {key[:8]} was replaced" for key, mark in self.files.items() if files.get(key) != mark]
        self.told, self.files = told, files
        return study

    def beginnings(self) -> int:
        """Of made-up work: how often it was begun; any after its result stood are wrong."""
        trace = self.folder / "trace"
        lines = trace.read_text().splitlines() if trace.exists() else []
        for line in lines:
            key, begun = line.split()
            if int(begun) > self.files[key][1]:
                self.wrong.append(f"again: {key[:8]} was begun after its result stood")
        return len(lines)


def course(study: Any) -> list[Any]:
    """What a study proposed and found, without what a clock has to do with."""
    left_out = {"seconds", "extra", "message"}
    return [
        [
            trial.proposal.model_dump(mode="json"),
            trial.result.model_dump(mode="json", exclude=left_out) if trial.result else None,
        ]
        for trial in study.trials
    ]


@contextlib.contextmanager
def fresh_study(kind: str, strategy: str, evaluations: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="archc-crash-") as name:
        folder = Path(name) / "study"
        begin(folder, kind, strategy, evaluations)
        yield folder


def undisturbed(nursery: Nursery, kind: str, strategy: str, evaluations: int, workers: int) -> tuple[list[Any], float]:
    """The course of a study that nobody kills, and the seconds that it takes."""
    with fresh_study(kind, strategy, evaluations) as folder:
        begin = time.monotonic()
        nursery.start(folder, workers)
        if nursery.wait():
            raise SystemExit((folder / "said").read_text())
        return course(Watch(folder).look()), time.monotonic() - begin


def kill_study(
    nursery: Nursery,
    kind: str,
    strategy: str,
    evaluations: int,
    expected: list[Any],
    seconds: float,
    draw: random.Random,
) -> dict[str, Any]:
    """Kill a study until it has come to its end; what happened. `wrong` is empty when all is well.

    `expected` is its course, and `seconds` how long it takes, when nobody kills it.
    """
    kills, sessions = [], 0
    with fresh_study(kind, strategy, evaluations) as folder:
        watch = Watch(folder)
        while True:
            workers = draw.choice((1, 2, 4))
            coordinator = nursery.start(folder, workers)
            sessions += 1
            victims = VICTIMS if sessions <= MOST else VICTIMS[1:]
            landed = list(_kills(nursery, coordinator, folder, victims, seconds, draw))
            kills += landed
            code = nursery.wait()
            if not any(kill["victim"] == "coordinator" for kill in landed):
                break
            watch.wrong += landed[-1].pop("orphans")
            landed[-1]["acknowledged"] = len(watch.told)
            watch.look()
        if code:
            watch.wrong.append(f"it ended with {code}: {(folder / 'said').read_text()[-2000:]}")
        study = watch.look()
        found = course(study)
        differ = [n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b]
        if differ or len(found) != len(expected):
            watch.wrong.append(f"course: {len(found)} trials for {len(expected)}, the first to differ: {differ[:1]}")
        return {
            "kind": kind,
            "strategy": strategy,
            "sessions": sessions,
            "kills": kills,
            "trials": len(found),
            "begun": watch.beginnings(),
            "results": len(watch.files),
            "wrong": watch.wrong,
        }


def _kills(
    nursery: Nursery,
    coordinator: psutil.Process,
    folder: Path,
    victims: Sequence[tuple[str, float]],
    seconds: float,
    draw: random.Random,
) -> Iterator[dict[str, Any]]:
    """Kill now and then, until the coordinator has ended, by itself or by us."""
    begin = time.monotonic()
    while True:
        in_a_write = draw.random() < 0.5
        if in_a_write:
            _until_a_write(nursery, folder, draw.randrange(6))
        delay = draw.uniform(0, WRITE_WINDOW if in_a_write else seconds / 4)
        if nursery.has_ended(delay):
            return
        victim = draw.choices([v for v, _ in victims], [share for _, share in victims])[0]
        family = _family(coordinator)
        if not family[victim]:
            continue
        draw.choice(family[victim]).kill()
        made: dict[str, Any] = {
            "victim": victim,
            "in_a_write": in_a_write,
            "after": round(time.monotonic() - begin, 3),
            "temporary": any(p.name.startswith(".") for p in (folder / RESULTS).iterdir()),
        }
        if victim == "coordinator":
            _, alive = psutil.wait_procs(family["nursery"] + family["worker"], timeout=LONG)
            made["orphans"] = [f"orphans: {process}" for process in alive]
            yield made
            return
        yield made


def _family(coordinator: psutil.Process) -> dict[str, list[psutil.Process]]:
    nurseries: list[psutil.Process] = []
    workers: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        nurseries = coordinator.children()
        for process in nurseries:
            workers += process.children(recursive=True)
    return {"coordinator": [coordinator], "nursery": nurseries, "worker": workers}


def _until_a_write(nursery: Nursery, folder: Path, skip: int) -> None:
    """Wait for a file among the results that has not been seen yet, after `skip` others."""
    seen = set(os.listdir(folder / RESULTS)) if (folder / RESULTS).exists() else set()
    most = len(seen) + skip
    while len(seen) <= most and not nursery.has_ended(0.0005):
        with contextlib.suppress(FileNotFoundError):
            seen |= set(os.listdir(folder / RESULTS))


def kill_many(
    count: int,
    seed: int,
    *,
    out: Path | None = None,
    real: float = 0.2,
    evaluations: int = 120,
    strategies: tuple[str, ...] = STRATEGIES,
    say: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Kill until `count` kills have landed; a row for each study, those in `out` too."""
    results = Results(out / "rows.jsonl") if out is not None else None
    rows: list[dict[str, Any]] = list(results.rows) if results else []
    expected: dict[tuple[str, str], tuple[list[Any], float]] = {}
    nursery = Nursery()
    try:
        while (landed := sum(len(row["kills"]) for row in rows)) < count:
            number = len(rows)
            draw = random.Random(f"{seed} {number}")
            kind = "real" if number % 10 >= 10 - round(10 * real) else "synthetic"
            strategy = strategies[number % len(strategies)]
            size = evaluations if kind == "synthetic" else evaluations // 10
            if (kind, strategy) not in expected:
                one, *others = (undisturbed(nursery, kind, strategy, size, w) for w in _widths(kind))
                if any(other[0] != one[0] for other in others):
                    raise SystemExit(f"{kind}, {strategy}: the number of workers changes the course")
                expected[kind, strategy] = one
            row = {"number": number, **kill_study(nursery, kind, strategy, size, *expected[kind, strategy], draw)}
            rows.append(row)
            if results is not None:
                results.add(row)
            say(f"{landed + len(row['kills'])} kills, {kind} {strategy}: {row['wrong'] or 'nothing wrong'}")
    finally:
        nursery.close()
    return rows


def _widths(kind: str) -> tuple[int, ...]:
    return (1, 2, 4) if kind == "synthetic" else (1, 2)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run."""
    kills = [kill for row in rows for kill in row["kills"]]
    counts = Counter(f"{row['kind']} {kill['victim']}" for row in rows for kill in row["kills"])
    made_up = [row for row in rows if row["kind"] == "synthetic"]
    return {
        "kills": len(kills),
        "by kind and victim": dict(sorted(counts.items())),
        "in the milliseconds after a file appeared": sum(kill["in_a_write"] for kill in kills),
        "while a temporary file stood": sum(kill["temporary"] for kill in kills),
        "studies": len(rows),
        "trials": sum(row["trials"] for row in rows),
        "acknowledged before a kill of the coordinator": sum(kill.get("acknowledged", 0) for kill in kills),
        "made-up work begun": sum(row["begun"] for row in made_up),
        "made-up results": sum(row["results"] for row in made_up),
        "wrong": dict(Counter(text.partition(":")[0] for row in rows for text in row["wrong"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=float, default=0.2, help="share of studies that train networks")
    parser.add_argument("--out", type=Path, default=Path("crash"))
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nursery:
        nursery()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = kill_many(
        options.kills, options.seed, out=options.out, real=options.real, say=lambda text: print(text, flush=True)
    )
    found = summary(rows) | {"seed": options.seed, "processor seconds": round(sum(os.times()[:4]))}
    (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
