"""What a person sees of models and mistakes at a Python prompt."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

import archc

TEXT = "arch a(width = 8)\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(width) -> relu -> linear(2)\n"


def test_a_model_and_its_summary_are_short() -> None:
    model = archc.loads(TEXT)
    assert repr(model) == str(model) == "Model(a: x: f32[N, 4] -> y: f32[N, 2], 58 parameters)"
    lines = str(model.summary()).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["linear", "relu", "linear1"]
    assert "a: 58 parameters" in lines


def test_a_mistake_tells_everything() -> None:
    with pytest.raises(archc.CompileError) as caught:
        archc.loads(TEXT, widht=3)
    assert str(caught.value).splitlines() == [
        "error[E0215]: the program has no parameter `widht`",
        "  help: did you mean `width`?",
    ]
    with pytest.raises(archc.CompileError) as caught:
        archc.loads(TEXT.replace("linear(2)", "linear(3)"))
    told = str(caught.value).splitlines()
    assert told[0] == "error[E0340]: output `y` needs f32[N, 2]"
    assert told[1:3] == ["  --> <text>:4:5", "  this is f32[N, 3]"]
    again = pickle.loads(pickle.dumps(caught.value))  # as a worker process sends it; our own bytes
    assert (str(again), again.exit_code) == (str(caught.value), 1)


def test_arguments_of_another_kind_are_told() -> None:
    import torch

    with pytest.raises(TypeError, match=r"needed a Model or the path of an \.arch file, found Linear"):
        archc.compile(torch.nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"found Linear; give its state_dict\(\)"):
        archc.loads(TEXT).to_torch(torch.nn.Linear(4, 2))
    with pytest.raises(archc.CompileError) as caught:
        archc.loads(TEXT).to_torch({f"w{i}": np.zeros(2, np.float32) for i in range(30)})
    assert len(caught.value.diagnostics) == 10
    assert "24 more do not fit" in str(caught.value)


def test_names_are_completed_and_nothing_heavy_is_loaded_for_it() -> None:
    code = (
        "import sys, archc; assert {'load', 'compile', 'train'} <= set(dir(archc)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
