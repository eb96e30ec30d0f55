"""The table and the picture of what `benchmarks/tasks.py` has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
COLOURS = ("#444444", "#3b6ea5", "#c8553d", "#5a9367", "#9b6fb0", "#d9a441", "#6fb1d6", "#b0b0b0")
Interval = tuple[float, float, float]  # mean, low, high


def interval(values: Sequence[float]) -> Interval | None:
    """The mean and its 95 % bootstrap interval: of all resamples where these are few, else of 10,000.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    >>> [round(v, 2) for v in interval([1.0, 2.0, 3.0])]
    [2.0, 1.22, 2.78]
    """
    if not values:
        return None
    x = np.array(values, np.float64)
    n = len(x)
    if n <= 5:
        means = x[np.array(list(product(range(n), repeat=n)))].mean(1)
    else:
        means = np.random.Generator(np.random.Philox(0)).choice(x, (10_000, n)).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(x.mean()), float(low), float(high)


def gather(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[Any, Any]]]:
    """(task, net) -> variant -> what there is of it: by arm and seed `test`, by batch and seed `ms` and `ratio`."""
    found: dict[tuple[str, str], dict[str, dict[Any, Any]]] = {}
    for row in rows:
        if "run" in row:
            run = row["run"]
            own = found.setdefault((run["task"], run["net"]), {}).setdefault(run["variant"], {"spec": run["spec"]})
            own.setdefault(run["arm"], {})[run["seed"]] = row  # the last word counts
        elif "uncompiled" in row:
            run = row["uncompiled"]
            found[run["task"], run["net"]][run["variant"]].setdefault("uncompiled", {})[run["seed"], row["batch"]] = row
        elif "timed" in row:
            own = found.setdefault(tuple(row["timed"]), {}).setdefault(row["variant"], {"spec": ""})
            own.setdefault(("ms", row["batch"]), {})[row["seed"]] = row
            own.get("uncompiled", {}).pop((row["seed"], row["batch"]), None)
    return found


def accuracies(own: Mapping[Any, Any], arm: str) -> dict[int, float]:
    """Test accuracy in percent by seed."""
    return {seed: 100 * row["test"] for seed, row in own.get(arm, {}).items() if "test" in row}


def paired(own: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    return [own[seed] - base[seed] for seed in own if seed in base]


MARK = "<!-- Below: written by benchmarks/tasks.py. -->"


def page(rows: Sequence[Row], old: str, picture: str | None = None) -> str:
    """The report: what stands above the mark in the old page, then the picture and the tables.

    >>> page([], "# What I think of it\\n" + MARK + "\\n\\nold tables").split("\\n")
    ['# What I think of it', '<!-- Below: written by benchmarks/tasks.py. -->', '', '']
    """
    head = old.partition(MARK)[0] if MARK in old else "# Transforms on two tasks\n\n"
    shown = f"![Test accuracy over latency, both with intervals]({picture})\n\n" if picture else ""
    return f"{head}{MARK}\n\n{shown}{table(rows)}"


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each task and network."""
    out: list[str] = []
    for (task, net), variants in gather(rows).items():
        seeds = len(variants["base"].get("carried", {}))
        steps = next(iter(variants["base"]["first"].values()))["run"]["steps"]
        timed = len(variants["base"].get(("ms", 1), {}))
        out += [
            f"## {task}, {net}: {seeds} seed{'s' * (seeds != 1)}, {timed} of them timed, B = {steps} steps\n",
            "| | params | MFLOPs | at birth, % | carried, % | minus base | scratch, % | minus base "
            "| carried minus scratch | batch 1, ms | ratio | batch 32, ms | ratio | s/step |",
            "|" + "---|" * 14,
        ]
        out += [_line(name, own, variants["base"]) for name, own in variants.items()]
        out += [f"\n{name}: {', '.join(told)}." for name, own in variants.items() if (told := _remarks(own))]
        out.append("")
    return "\n".join(out)


def _line(name: str, own: Mapping[Any, Any], base: Mapping[Any, Any]) -> str:
    rows = [r for arm in ("carried", "scratch") for r in own.get(arm, {}).values() if "test" in r]
    births = [r["birth"] for r in own.get("carried", {}).values() if "birth" in r]
    sizes = [f"{rows[0]['params']:,}", f"{rows[0]['flops'] / 1e6:.2f}"] if rows else ["", ""]
    born = "" if not births else " → ".join(f"{100 * np.mean(b):.1f}" for b in zip(*births, strict=True))
    cells = [f"`{own['spec']}`" if own["spec"] else name, *sizes, born]
    for arm in ("carried", "scratch"):
        found = accuracies(own, arm)
        less = paired(found, accuracies(base, arm)) if own is not base else []
        cells += [_told(interval([*found.values()]), ".1f"), _told(interval(less), "+.1f")]
    gained = paired(accuracies(own, "carried"), accuracies(own, "scratch"))
    cells.append(_told(interval(gained), "+.1f"))
    for batch in (1, 32):
        timed = list(own.get(("ms", batch), {}).values())
        ratios = [t["ratio"] for t in timed if t["ratio"] is not None and own is not base]
        cells += [f"{np.mean([t['ms'] for t in timed]):.3f}" if timed else "", _told(interval(ratios), ".2f")]
    seconds = [r["train_seconds"] / _steps(r) for r in rows]
    cells.append(f"{np.median(seconds):.3f}" if seconds else "")
    return "| " + " | ".join(cells) + " |"


def _steps(row: Row) -> float:
    return float(row["run"]["steps"] * {"carried": 0.5, "scratch": 1.5}[row["run"]["arm"]])


def _told(found: Interval | None, form: str) -> str:
    return "" if found is None else f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def _remarks(own: Mapping[Any, Any]) -> list[str]:
    """What failed, and how many gates are open on validation data."""
    arms = [row for arm in ("carried", "scratch", "uncompiled") for row in own.get(arm, {}).values()]
    told = list(dict.fromkeys(row["failure"] for row in arms if "failure" in row))
    for arm in ("carried", "scratch"):
        stats = [pair for row in own.get(arm, {}).values() for pair in row.get("stats", {}).items()]
        shares = [value for name, value in stats if name.endswith(".open")]
        told += [f"{100 * np.mean(shares):.0f} % of gates open ({arm})"] if shares else []
    return told


def draw(rows: Sequence[Row], path: Path) -> None:
    """Test accuracy over latency, as parts of the base's, with intervals; filled: carried, open: from scratch."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    found = gather(rows)
    batches = (1, 32)
    figure = Figure(figsize=(4.2 * len(batches), 3.2 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(batches), sharey="row", squeeze=False)
    names = list(dict.fromkeys(name for variants in found.values() for name in variants))
    colours = dict(zip(names, COLOURS, strict=False))
    for line, ((task, net), variants) in zip(panels, found.items(), strict=True):
        for axes, batch in zip(line, batches, strict=True):
            for name, own in variants.items():
                timed = interval([t["ratio"] for t in own.get(("ms", batch), {}).values() if t["ratio"]])
                for arm, face in (("carried", colours.get(name)), ("scratch", "white")):
                    score = interval([*accuracies(own, arm).values()])
                    if timed is None or score is None:
                        continue
                    axes.errorbar(
                        timed[0], score[0],
                        xerr=[[timed[0] - timed[1]], [timed[2] - timed[0]]],
                        yerr=[[score[0] - score[1]], [score[2] - score[0]]],
                        fmt="o", color=colours.get(name), markerfacecolor=face, capsize=2,
                        label=name if arm == "carried" else None,
                    )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks((0.7, 1.0, 1.4, 2.0))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.minorticks_off()
            axes.set_title(f"{task}, {net}, batch {batch}", fontsize=9)
            axes.set_xlabel("latency, base = 1")
            axes.grid(alpha=0.3)
        line[0].set_ylabel("test accuracy, %")
    if panels[0][0].get_legend_handles_labels()[0]:
        panels[0][0].legend(fontsize=7)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tasks"}):
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
