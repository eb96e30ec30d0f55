"""What was probably meant: every kind of name that a program or a command line can misspell, and no guess at random.

In the tables `{}` is the name: first as it should be (and then nothing is wrong with it), then misspelt.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.cli.main import run
from archc.grammar.load import check_text
from archc.ir.diagnostics import Diagnostic, did_you_mean
from archc.ir.op import REGISTRY

PORTS = "input image: f32[N, 8, 4, 4]\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"
HEAD = "arch a(width: int = 8)\n" + PORTS
PLACES = {  # what is named: a program with a hole, the right name, wrong ones
    "an operator": (HEAD + "y = x -> {}(8)", "linear", ["linaer", "liner", "linears", "Linear", "lineer"]),
    "an operator in an unused definition": (HEAD + "def f = {}(8)\ny = x", "linear", ["linaer", "LINEAR"]),
    "an operator of two words": (HEAD + "let b = image -> {}(2)\ny = x", "max_pool", ["maxpool", "MAX_POOL"]),
    "an operator with a prefix of its own": (HEAD + "y = {}(8)(x)", "linear", ["my_linear"]),
    "a construct": (HEAD + "y = x -> {}(linear(8))", "residual", ["resdiual", "residuals", "Residual", "resiudal"]),
    "a module of the standard library": (
        HEAD + 'import "std/ffn.arch" ({})\ny = x', "swiglu_ffn", ["swigul_ffn", "swiglu_ffm", "SwiGLU_ffn", "swiglu"],
    ),
    "a file of the standard library": (
        HEAD + 'import "std/{}.arch" (swiglu_ffn)\ny = x', "ffn", ["fnf", "ff", "ffns", "FFN"],
    ),
    "a parameter of an operator": (HEAD + "y = x -> linear(8, {} = false)", "bias", ["bais", "bia", "biass", "Bias"]),
    "a parameter of an operator, of a longer name": (
        HEAD + "let b = image -> conv(8, {} = 3)\ny = x", "kernel", ["kernal", "kernels", "kenrel", "Kernel"],
    ),
    "an operand by its name": (
        HEAD + "let q = x -> unflatten(1, [2, 4])\nlet b = q -> attention(2, {} = q)\ny = x", "k", ["K"],
    ),
    "a parameter of a definition": (HEAD + "def f(stride) = relu\ny = x -> f({} = 1)", "stride", ["strid", "stirde"]),
    "a region": (
        HEAD + "y = x -> exit({} = linear(8), rest = linear(8), threshold = 0.5)", "head", ["haed", "heads", "Head"],
    ),
    "an argument of a construct": (
        HEAD + "y = x -> branch(relu, tanh, {} = \"add\")", "merge", ["mrege", "merg", "merges", "Merge"],
    ),
    "a let": (HEAD + "let hidden = x -> relu\ny = {} -> tanh", "hidden", ["hiden", "hidden1", "Hidden", "hdiden"]),
    "a let inside a fn": (
        HEAD + "y = x -> fn(v) {{ let gate = v -> sigmoid return v * {} }}", "gate", ["gaet", "gat", "gates", "Gate"],
    ),
    "the parameter of a fn": (HEAD + "y = x -> fn(signal) {{ return {} }}", "signal", ["singal", "signals", "Signal"]),
    "a def": (HEAD + "def block = relu\ny = x -> {}", "block", ["blokc", "bloc", "blocks", "Block"]),
    "a share": (HEAD + "share table = linear(8)\ny = x -> {}", "table", ["tabel", "tble", "tables", "Table"]),
    "an input": (HEAD + "y = {} -> global_avg_pool", "image", ["imgae", "imag", "images", "Image"]),
    "an output": (HEAD + "output logits: f32[N, 8]\n{} = x\ny = x", "logits", ["logtis", "logit", "Logits"]),
    "a parameter of the program": (HEAD + "y = x -> linear({})", "width", ["widht", "widt", "widths", "Width"]),
    "a type of a parameter": ("arch a(width: {} = 8)\n" + PORTS + "y = x", "int", ["itn", "Int", "ints"]),
    "a dimension": (
        "arch a\ninput x: f32[Batch, 8]\noutput y: f32[{}, 8]\ny = x", "Batch", ["Bacth", "Batc", "batch", "Batches"],
    ),
    "a dtype": ("arch a\ninput x: {}[N, 8]\noutput y: f32[N, 8]\ny = x", "f32", ["f23", "f3", "F32", "float32"]),
    "a dtype as an argument": (HEAD + 'y = x -> cast("{}")', "f32", ["f23", "F32", "float32", "float"]),
    "a value of an enumeration": (HEAD + 'y = x -> gelu(approximate = "{}")', "tanh", ["tahn", "tan", "Tanh"]),
    "a value of an enumeration, by position": (
        HEAD + 'let b = image -> upsample(2, "{}")\ny = x', "nearest", ["neraest", "nearst", "Nearest"],
    ),
    "a merge": (HEAD + 'y = x -> branch(relu, tanh, merge = "{}")', "mul", ["mlu", "mult", "MUL"]),
    "an initialiser": (
        HEAD + 'y = x -> linear(8, init = "{}")', "kaiming_normal", ["kaming_normal", "Kaiming_noraml"],
    ),
    "a rule": ("space a\n" + PORTS + "rule Body = relu | tanh\ny = x -> {}", "Body", ["Bdoy", "Bod", "body", "Bodys"]),
    "a quantity of a requirement": (HEAD + "require {} < 10M\ny = x", "params", ["parmas", "param", "Params"]),
    "a word that begins a statement": (HEAD + "{} q = x\ny = x", "let", ["lte", "lets", "Let"]),
    "a longer word that begins a statement": (HEAD + "{} params < 9\ny = x", "require", ["requrie", "requires"]),
    "a word within a statement": (HEAD + "y = if true {} x else x", "then", ["thne", "than", "Then"]),
}  # fmt: skip
CASES = [
    pytest.param(text, right, wrong, id=f"{what}-{wrong}")
    for what, (text, right, wrongs) in PLACES.items()
    for wrong in wrongs
]


def said(diagnostic: Diagnostic) -> str:
    return diagnostic.help or ""


@pytest.mark.parametrize("what", PLACES)
def test_the_right_name_is_right(what: str) -> None:
    text, right, _ = PLACES[what]
    assert [d.message for d in check_text(text.format(right))] in ([], ["output `logits` is not bound"])


@pytest.mark.parametrize(("text", "right", "wrong"), CASES)
def test_a_name_close_to_a_right_one_suggests_it(text: str, right: str, wrong: str) -> None:
    """A transposition, a missing or superfluous letter, a plural, another case."""
    found = next(d for d in check_text(text.format(wrong)) if d.code != "E0216")
    assert right in said(found)
    assert "did you mean" in said(found)
    source = text.format(wrong).splitlines()
    assert found.span is not None
    marked = source[found.span.line - 1][found.span.column - 1 : found.span.end_column - 1]
    assert wrong in marked, "what is misspelt is marked"
    assert len(marked) <= len(wrong) + len('"std/.arch"'), "and nothing else"


@pytest.mark.parametrize("what", PLACES)
def test_a_name_close_to_nothing_suggests_nothing(what: str) -> None:
    text, _, _ = PLACES[what]
    found = check_text(text.format("frobnicate"))
    assert [d for d in found if "did you mean" in said(d)] == []
    assert found


def test_every_operator_is_suggested_for_its_name_with_two_letters_swapped() -> None:
    for name in REGISTRY:
        if len(name) < 5:
            continue
        wrong = name[:2] + name[3] + name[2] + name[4:]
        if wrong == name or wrong in REGISTRY:
            continue
        suggestion = did_you_mean(wrong, REGISTRY)
        assert suggestion is not None, wrong
        assert name in suggestion or len(name) == 5  # of short names another may be as close


COMMANDS = {  # arguments, with the one that is misspelt in braces; what is suggested
    "a command": (["{chekc}", "good.arch"], "check"),
    "a command in another case": (["{Check}", "good.arch"], "check"),
    "a command in the plural": (["{checks}", "good.arch"], "check"),
    "a command of commands": (["cache", "{claer}"], "clear"),
    "an option": (["check", "good.arch", "{--jsno}"], "--json"),
    "an option with a letter missing": (["train", "good.arch", "{--epoch}", "3"], "--epochs"),
    "a target": (["compile", "good.arch", "-o", "x.archc", "--target", "{cdua}"], "cuda"),
    "a target in another case": (["compile", "good.arch", "-o", "x.archc", "--target", "{CPU}"], "cpu"),
    "a pass": (["compile", "good.arch", "-o", "x.archc", "--pass", "{fold_batchnorm}"], "fold_batch_norm"),
    "a task": (["train", "good.arch", "-o", "w.safetensors", "--task", "{digtis}"], "digits"),
    "an option of the recipe": (
        ["train", "good.arch", "-o", "w.safetensors", "--task", "digits", "--recipe", "{epoch}=3"], "epochs",
    ),
    "an option of a task": (
        ["train", "good.arch", "-o", "w.safetensors", "--task", "digits?{vla}=0.1"], "val",
    ),
    "a format": (["export", "good.arch", "-o", "x", "--format", "{onxn}"], "onnx"),
    "a peer": (["bench", "good.arch", "--against", "{troch}"], "torch"),
    "a parameter": (["check", "good.arch", "--set", "{widht}=3"], "width"),
    "a dimension": (["check", "good.arch", "--dim", "{n}=3"], "N"),
    "an operator": (["ops", "{linaer}"], "linear"),
    "a code": (["explain", "{e301}"], "E0301"),
    "a suffix": (["show", "good.arch", "-o", "x.{sgv}"], ".svg"),
}  # fmt: skip
GOOD = "arch a(width = 8)\ninput x: f32[N, 1, 8, 8]\noutput y: f32[N, 10]\ny = x -> flatten -> linear(10)\n"


def printed(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "good.arch").write_text(GOOD)
    assert run(arguments) in (1, 2, 4)
    return capsys.readouterr().err


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_line_suggests_what_is_close_and_nothing_else(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, right = COMMANDS[what]
    close = [a.replace("{", "").replace("}", "") for a in arguments]
    assert f"did you mean `{right}`?" in printed(close, tmp_path, capsys)
    dashes = "--" if "{--" in "".join(arguments) else ""
    far = [f"{a.partition('{')[0]}{dashes}frobnicate{a.partition('}')[2]}" if "{" in a else a for a in arguments]
    assert "did you mean" not in printed(far, tmp_path, capsys)
