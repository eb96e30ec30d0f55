"""The example package is found by its entry points: its metadata is put on the path as an installation would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples/plugin"

Run = Callable[[str], Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python in a process in which the package is installed; `answer` is what comes back."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"archc_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = os.pathsep.join([str(tmp_path), str(PLUGIN), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "ARCHC_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(code: str) -> Any:
        program = f"import json, archc\nfile = {str(PLUGIN / 'spirals.arch')!r}\n{code}\nprint(json.dumps(answer))"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_without_the_package_its_operator_is_unknown() -> None:
    from archc.grammar.load import check

    assert {d.code for d in check(PLUGIN / "spirals.arch")} == {"E0201"}


def test_the_operator_has_weights_cost_and_symmetry(run: Run) -> None:
    answer = run(
        """
model = archc.load(file)
certificate = model.symmetry()
answer = [list(model.graph.parameters()), model.cost.params, certificate.ok, certificate.moved > 0.9]
"""
    )
    names, params, ok, moved = answer
    assert names[2:4] == ["star_relu.weight", "star_relu.bias"]
    assert params == 2 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2 + 2 * 2
    assert ok
    assert moved


def test_both_backends_run_it(run: Run) -> None:
    answer = run(
        """
import numpy as np, torch
x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
module = archc.load(file).to_torch().eval()
w = {name: value.double() for name, value in module.state_dict().items()}
h = torch.tensor(x).double()
for layer, act in (("linear", "star_relu"), ("linear1", "star_relu1")):
    h = h @ w[layer + ".weight"].T + w[layer + ".bias"]
    h = w[act + ".weight"] * h.relu() ** 2 + w[act + ".bias"]
h = (h @ w["linear2.weight"].T + w["linear2.bias"]).numpy()
answer = [float(np.abs(y - h).max()) for y in (module(torch.tensor(x)).detach().numpy(), archc.compile(file)(x))]
"""
    )
    assert max(answer) < 1e-5


def test_the_task_is_trained(run: Run) -> None:
    answer = run(
        """
import tempfile, pathlib
with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "w.safetensors"
    trained = archc.train(file, "spirals?turns=0.5", out, epochs=30)
    answer = [trained.result.test.metrics["accuracy"], out.is_file()]
"""
    )
    accuracy, kept = answer
    assert kept
    assert accuracy > 0.8


def test_the_transform_keeps_the_function(run: Run) -> None:
    answer = run(
        """
from archc.metanet.symmetry import random_weights
model = archc.loads("arch a input x: f32[N, 4] output y: f32[N, 2] y = x -> linear(8) -> relu -> linear(2)")
weights = {n: w.astype("f4") for n, w in random_weights(model.graph, 0).items()}
made = archc.transform(model, "scale_layers(per_channel = true) at linear1", weights=weights)
answer = [sorted(made.weights.keys() - weights.keys()), [c.ok for c in made.checks], made.contract.eval]
"""
    )
    assert answer == [["scale.weight"], [True, True, True], "exact"]


def test_without_the_package_its_transform_is_unknown() -> None:
    from archc.ir.diagnostics import CompileError
    from archc.passes.spec import parse_pass

    with pytest.raises(CompileError, match="E0401"):
        parse_pass("scale_layers")


def test_the_strategy_searches_for_the_objective(run: Run) -> None:
    """In worker processes, too, which find the package as this one does. A replay proposes the same."""
    answer = run(
        """
import pathlib, tempfile, numpy as np
from archc.backends.weights import read_weights
space = pathlib.Path(file).with_name("spirals_space.arch")
with tempfile.TemporaryDirectory() as folder:
    goals = ["accuracy", "lipschitz:min"]
    how = {"strategy": "climb", "options": {"draws": 0.3}, "evaluation": {"steps": 30}}
    study = archc.search(space, "spirals?points=200", goals, budget=4, workers=1, study=folder + "/study", **how)
    best = study.best
    weights = read_weights(best.weights).arrays
    norms = [np.linalg.norm(w, 2) for w in weights.values() if w.ndim == 2]
    origins = sorted({t.proposal.candidate.origin.partition("/")[0] for t in study.trials})
    answer = [len(study.trials), origins, study.replay(), best.values["lipschitz"], float(np.prod(norms))]
"""
    )
    count, origins, differences, told, recomputed = answer
    assert count == 4
    assert origins == ["draw", "mutation"]
    assert differences == []
    assert told == pytest.approx(recomputed, rel=1e-4)


def test_without_the_package_its_strategy_and_objective_are_unknown() -> None:
    from archc.ir.diagnostics import CompileError
    from archc.search.objectives import objective_kind
    from archc.search.strategy import strategy_kind

    with pytest.raises(CompileError, match="E0711"):
        strategy_kind("climb")
    with pytest.raises(CompileError, match="E0721"):
        objective_kind("lipschitz")
