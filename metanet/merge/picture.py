"""Loss and other metrics along the line between two networks, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as File

from archc.backends.weights import atomic_file
from archc.ir.diagnostics import fail
from archc.metanet.merge.average import Path

SUFFIXES = (".svg", ".png")


def check_picture(path: File | str) -> None:
    """Raises E0022 (exit code 2) for a name that is no picture's."""
    if File(path).suffix.lower() not in SUFFIXES:
        raise fail("E0022", f"cannot draw `{path}`", label="a plot is .svg or .png", exit_code=2)


def draw_paths(paths: Mapping[str, Path], file: File | str, title: str = "") -> None:
    """A panel for each metric, a line for each way of merging; the same paths give the same bytes.

    Raises: CompileError E0022 for another ending than .svg and .png, E0608 when the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    check_picture(file)
    metrics = list(next(iter(paths.values())).metrics[0])
    figure = Figure(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for name, path in paths.items():
            panel.plot(path.alphas, [m[metric] for m in path.metrics], label=name, marker=".")
        panel.set(xlabel="share of B", title=f"{title} {metric}".strip().replace("_", " "))
    panels[0].legend()
    kind = File(file).suffix.lower().lstrip(".")
    with matplotlib.rc_context({"svg.hashsalt": "archc"}), atomic_file(file) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
