"""Every program in the documentation is read by the compiler, every Python block runs, and generated pages are current.

```arch          a whole program: `archc check` finds nothing
```arch-error E  a whole program: exactly this code
```arch-fragment parsed only
```python        run, in order, in one namespace for each page; `program` is the `arch` block before it
```console       lines that begin with `$` are run in the repository
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import archc
from archc.cli.app import app
from archc.grammar.limits import DEFAULT
from archc.grammar.load import check_text
from archc.grammar.parser import parse
from archc.ir import op
from archc.ir.explain import codes

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "examples/README.md") if (ROOT / name).is_file()),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\S*)[ ]?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2], m[3]) for m in FENCE.finditer(text)]


ALL = [block for page in PAGES for block in blocks(page)]


def of(kind: str) -> list[Block]:
    return [block for block in ALL if block.kind == kind]


@pytest.mark.parametrize("block", of("arch"), ids=str)
def test_a_program_is_right(block: Block) -> None:
    assert check_text(block.text) == ()


@pytest.mark.parametrize("block", of("arch-error"), ids=str)
def test_a_wrong_program_has_its_code(block: Block) -> None:
    assert [d.code for d in check_text(block.text)] == [block.note]


@pytest.mark.parametrize("block", of("arch-fragment"), ids=str)
def test_a_fragment_parses(block: Block) -> None:
    parse(block.text, str(block))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.kind == "python" for b in blocks(p))], ids=lambda p: p.name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    known = dict(op.REGISTRY)
    namespace: dict[str, Any] = {}
    try:
        run_blocks(page, namespace)
    finally:  # what a page registers stays there
        op.REGISTRY.clear()
        op.REGISTRY.update(known)


def run_blocks(page: Path, namespace: dict[str, Any]) -> None:
    for block in blocks(page):
        if block.kind == "arch":
            namespace["program"] = block.text
        elif block.kind == "python":
            code = "\n" * block.line + block.text  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec", dont_inherit=True), namespace)


def console() -> list[Any]:
    """Blocks of commands; those that train take a minute or more."""
    return [pytest.param(b, marks=pytest.mark.slow if "archc train" in b.text else ()) for b in of("console")]


@pytest.mark.parametrize("block", console(), ids=str)
def test_commands_run(block: Block, tmp_path: Path) -> None:
    """In a folder with links to the examples; a line of output that is shown must appear."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "ARCHC_CACHE": str(tmp_path / "cache"), "NO_COLOR": "1", "COLUMNS": "120"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    said = ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            command = re.sub(r"(^|[;&|] )archc ", rf"\1{sys.executable} -m archc ", line[2:])
            command = re.sub(r"^python ", f"{sys.executable} ", command)
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            said = done.stdout + done.stderr
            expected = int(block.note.removeprefix("exit ")) if block.note else 0
            assert done.returncode == expected, f"{line}\n{said}"
        elif line.strip() not in ("", "…"):
            assert " ".join(line.split()) in " ".join(said.split()), f"{line!r} is not in\n{said}"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["reference.md", "errors.md", "library.md", "training.md", "passes.md"])
def test_generated_pages_are_current(name: str) -> None:
    wanted = generator().PAGES[name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == wanted, "run `python docs/generate.py`"


def test_every_code_that_is_named_has_a_page() -> None:
    known = set(codes())
    for page in PAGES:
        named = set(re.findall(r"\bE0\d{3}\b", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_limits_in_the_guide_are_the_defaults() -> None:
    text = (ROOT / "docs/language.md").read_text(encoding="utf-8")
    rows = {row[3]: row[1] for row in re.findall(r"^\| (.+?) \| (.+?) \| (E\d+) \| `(\w+)` \|$", text, re.MULTILINE)}
    words = {"16 MiB": 16 << 20, "2 million": 2_000_000, "100 000": 100_000}
    assert {field: words.get(said) or int(said) for field, said in rows.items()} == asdict(DEFAULT)


def test_the_guide_names_what_the_package_offers() -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    for name in archc.__all__:
        assert re.search(rf"\b{name}\b", text), name


def test_the_guide_and_the_readme_name_only_commands_that_exist() -> None:
    commands = {command.name or "" for command in (*app.registered_commands, *app.registered_groups)}
    for page in PAGES:
        named = set(re.findall(r"^(?:\$ )?archc ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= commands, page.name


def test_the_readme_begins_with_its_two_commands() -> None:
    install, tests = blocks(ROOT / "README.md")[:2]
    assert install.text.count("\n") == tests.text.count("\n") == 1
    assert "pip install -e ." in install.text
    assert install.text.endswith(" && .venv/bin/python examples/digits.py\n")
    assert tests.text.endswith(" && .venv/bin/python -m pytest -n 2\n")
    for block in (install, tests):
        assert subprocess.run(["bash", "-n", "-c", block.text], capture_output=True).returncode == 0


def test_the_ci_runs_the_readmes_command() -> None:
    line = next(x for x in (ROOT / ".ci/run").read_text().splitlines() if x.startswith("tests="))
    found = subprocess.run(
        ["bash", "-c", f"{line}; printf '%s\\n' \"$tests\""], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout == blocks(ROOT / "README.md")[1].text


def test_a_wrong_block_would_be_noticed() -> None:
    assert [d.code for d in check_text("arch a() input x: f32[N, 4] output y: f32[N, 3] y = x -> linear(2)")] == [
        "E0340"
    ]
    assert FENCE.findall("```arch-error E0201\nx\n```") == [("arch-error", "E0201", "x\n")]
