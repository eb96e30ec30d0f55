"""What a person sees of models and mistakes at a Python prompt."""

from __future__ import annotations

import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    with pytest.raises(TypeError, match=r"needed a Model or the path of an \.arch file, found Linear"):
        archc.compile(torch.nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"found Linear; give its state_dict\(\)"):
        archc.loads(TEXT).to_torch(torch.nn.Linear(4, 2))
    with pytest.raises(archc.CompileError) as caught:
        archc.loads(TEXT).to_torch({f"w{i}": np.zeros(2, np.float32) for i in range(30)})
    assert len(caught.value.diagnostics) == 10
    assert "24 more do not fit" in str(caught.value)


def test_a_format_that_there_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no format 'tflite': known are torch, onnx, pt2"):
        archc.export(archc.loads(TEXT), tmp_path / "net.tflite", "tflite")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_one_peer_needs_no_list() -> None:
    with pytest.raises(archc.CompileError) as caught:
        archc.bench(archc.loads(TEXT), "torhc")
    assert "there is nothing called `torhc`" in str(caught.value)
    assert "did you mean `torch`?" in str(caught.value)


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor], ids=lambda f: f.__name__)
def test_numbers_of_numpy_and_torch_are_parameters(number: Any) -> None:
    assert archc.loads(TEXT, width=number(9)).hash == archc.loads(TEXT, width=9).hash != archc.loads(TEXT).hash
    fixed = archc.loads(TEXT, dims={"N": number(3)})
    assert fixed.hash == archc.loads(TEXT, dims={"N": 3}).hash


def test_fractions_truth_values_and_arrays_are_parameters() -> None:
    text = TEXT.replace("width = 8", "on = true, rate = 0.1, shape = [4]").replace(
        "linear(width)", "linear(8, bias = on) -> dropout(rate) -> reshape([N, shape[0], 8 // shape[0]]) -> flatten"
    )
    same = archc.loads(text, on=False, rate=0.5, shape=[2])
    for rate in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)):
        assert archc.loads(text, on=np.False_, rate=rate, shape=np.array([2])).text() == same.text()
    with pytest.raises(archc.CompileError, match=r"needs a whole number\n.*\n  found the number 8\.5"):
        archc.loads(TEXT, width=np.float32(8.5))
    with pytest.raises(archc.CompileError, match="needs a whole number"):
        archc.loads(TEXT, width=np.array([8, 9]))


def test_names_are_completed_and_nothing_heavy_is_loaded_for_it() -> None:
    code = (
        "import sys, archc; assert {'load', 'compile', 'train'} <= set(dir(archc)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
