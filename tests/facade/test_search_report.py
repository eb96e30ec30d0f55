"""The report of a search: one file, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import archc
from archc.facade.report import write_report
from archc.facade.study import go_on
from archc.search.evaluation import Evaluation
from archc.search.goals import parse_goals
from archc.search.study import Study, parse_budget

SPACE = """# <script>alert("a comment is no script")</script> @DATA@
space tiny()
input x: f32[N, 4]
output y: f32[N, 2]
rule Body = linear(range(8, 64, step = 8)) -> choose { relu | gelu | tanh } | 0.5: Body -> Body when depth < 3
y = x -> Body -> linear(2)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A search with made-up objectives, of which some architectures are infeasible."""
    folder = tmp_path_factory.mktemp("report") / "study"
    space = folder.with_suffix(".arch")
    space.write_text(SPACE)
    goals = parse_goals(["accuracy:max", "cost:min"], ["width < 0.9"])
    made = Study.create(
        folder,
        space,
        evaluation=Evaluation(task="synthetic", goals=goals, steps=10),
        budget=parse_budget("40"),
        strategy="evolution",
        options={"population": 8},
    )
    go_on(made, workers=1)
    with Study.open(folder, readonly=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("page") / "report.html")


def data_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_file_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|fetch\(|XMLHttpRequest""", text)
    assert set(re.findall(r"https?://[^\"'\\\\ ]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert "<script>alert" not in text
    assert len(text) < 3_000_000


def test_its_data_are_those_of_the_study(page: Path, study: Study) -> None:
    data = data_of(page)
    assert (
        len(data["trials"]) == len(study.ended) == study.history.counts["finished"] + study.history.counts["infeasible"]
    )
    assert data["front"] == [t.number for t in study.front()]
    assert {row["reason"]: row["count"] for row in data["reasons"]} == study.history.reasons
    assert sum(row["trials"] for row in data["origins"]) == len(data["trials"])
    assert data["space"] == SPACE
    for trial in data["trials"]:
        assert data["texts"][trial["text"]] == study.trials[trial["number"]].proposal.candidate.text
    assert all(data["again"][str(n)] for n in data["front"])


def test_the_same_study_gives_the_same_page(page: Path, study: Study, tmp_path: Path) -> None:
    assert write_report(study, tmp_path / "again.html").read_text() == page.read_text()


def test_pictures_end_where_the_room_does(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The front comes first."""
    monkeypatch.setattr("archc.search.report.MOST_PICTURES", 1)
    data = data_of(write_report(study, tmp_path / "small.html"))
    assert list(data["pictures"]) == [study.trials[data["front"][0]].proposal.candidate.hash]


def test_a_study_without_results_has_a_page(tmp_path: Path) -> None:
    space = tmp_path / "tiny.arch"
    space.write_text(SPACE)
    evaluation = Evaluation(task="synthetic", goals=parse_goals(["accuracy"]))
    with Study.create(tmp_path / "s", space, evaluation=evaluation, budget=parse_budget("4")) as study:
        data = data_of(write_report(study, tmp_path / "r.html"))
    assert (data["trials"], data["front"], data["progress"]) == ([], [], [])


def test_a_study_in_a_notebook(study: Study) -> None:
    found = archc.Study.open(study.folder)
    assert found.best is not None
    assert f"<td>{found.best.number}</td>" in found._repr_html_()
    assert found.best._repr_html_().startswith("<svg")
    assert str(found.folder) in repr(found)


# In a browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --no-first-run"
)


@dataclass
class Opened:
    """A page in a browser, and what went wrong or over the network in it."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield found
        found.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    tab = browser.new_page(color_scheme=request.param)
    tab.set_default_timeout(120_000)
    found = Opened(tab)
    tab.on("console", lambda message: found.messages.append(message.text))
    tab.on("pageerror", lambda error: found.messages.append(str(error)))
    tab.on("request", lambda asked: found.requests.append(asked.url))
    tab.goto(page.as_uri())
    yield found
    tab.close()


def test_in_a_browser(opened: Opened, page: Path) -> None:
    """Nothing goes wrong, nothing is loaded; every trial is there, pointing at one shows it, choosing one keeps it."""
    tab, data = opened.page, data_of(page)
    drawn = [t for t in data["trials"] if t["status"] != "infeasible" and t["shares"] is None]
    assert tab.locator("#scatter circle").count() == len(drawn)
    assert tab.locator("#scatter circle.front").count() == len(data["front"])
    assert tab.locator("#front tbody tr").count() == len(data["front"])
    assert tab.locator("#origins tbody tr").count() == len(data["origins"])
    assert tab.locator("#infeasible tbody tr").count() == len(data["reasons"]) > 0
    assert tab.locator("#ancestry circle.front").count() == len(data["front"])

    point = tab.locator("#scatter circle.front").last
    number, tip = point.get_attribute("data-trial"), tab.locator("#tip")
    assert not tip.is_visible()
    point.hover()
    assert tip.is_visible()
    assert tip.inner_text().startswith(f"Trial {number}: on the front")
    assert tip.locator("svg").count() == 1
    tab.mouse.move(2, 2)
    assert not tip.is_visible()

    point.focus()
    assert tip.is_visible()  # for who has no mouse, too
    tab.keyboard.press("Enter")
    detail = tab.locator("#detail")
    assert detail.locator("h3").inner_text().startswith(f"Trial {number}:")
    assert detail.locator("pre").first.text_content().startswith("arch ")
    assert "archc train" in detail.inner_text()
    tab.keyboard.press("Escape")
    assert not tip.is_visible()

    tab.locator("#others").uncheck()
    assert tab.locator("#scatter circle").count() == len(data["front"])
    tab.locator("#x").select_option("accuracy")
    assert "accuracy" in tab.locator("#scatter svg").get_attribute("aria-label")
    assert opened.messages == []
    assert {url.partition(":")[0] for url in opened.requests} == {"file"}
    assert len(opened.requests) == 1


def test_an_error_in_the_page_would_be_seen(browser: Any, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("const front =", "const front = nothing +"))
    messages: list[str] = []
    tab = browser.new_page()
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(broken.as_uri())
    tab.close()
    assert any("nothing is not defined" in message for message in messages)
