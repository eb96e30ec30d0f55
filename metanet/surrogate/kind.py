"""`archc metanet train surrogate`: learn from a file of results, and measure on results that were not learned from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from archc.grammar.load import loads
from archc.ir.diagnostics import fail
from archc.metanet.kinds import Kind, Say
from archc.metanet.store import Card, Stored
from archc.metanet.surrogate.features import Seen, see
from archc.metanet.surrogate.model import LOWEST, Surrogate
from archc.metanet.vocabulary import Vocabulary, vocabulary

FOLDS = 5


class Options(BaseModel):
    """What it learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    results: str = Field(
        "", description="a file of trained networks, a JSON object a line: `text`, the program, and the accuracy"
    )
    accuracy: str = Field("test", description="which entry is the accuracy; of a list the last")
    limit: int = Field(0, ge=0, description="learn from so many networks at most; 0: all")
    coverage: float = Field(0.9, gt=0.5, lt=1, description="the share of networks that intervals are to cover")
    seed: int = Field(0, ge=0, description="how networks are dealt into five folds")


@dataclass(frozen=True, slots=True)
class Result:
    """A trained network: what is seen of it, its accuracy, and its trained numbers."""

    seen: Seen
    accuracy: float


def read_results(options: Options, words: Vocabulary) -> list[Result]:
    """The networks of a file of results.

    Raises: CompileError E0816 for a line that is none, E0804 without a file, and what a wrong program raises.
    """
    if not options.results:
        help = "`--option results=FILE`; benchmarks/pool.py makes such a file"
        raise fail("E0804", "a surrogate learns from a file of results", label="found none", help=help)
    path = Path(options.results)
    if not path.is_file():
        raise fail("E0804", "there is no such file of results", label=options.results)
    found = list(_read(path, options, words))
    return found[: options.limit] if options.limit else found


def _read(path: Path, options: Options, words: Vocabulary) -> Iterator[Result]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, value = row["text"], row[options.accuracy]
            accuracy = float(value[-1] if isinstance(value, list) else value)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            help = f'a line is {{"text": "arch …", "{options.accuracy}": 0.9, …}}'
            label = f"line {number}: {type(error).__name__}: {error}"
            raise fail("E0816", f"{path} is no file of results", label=label, help=help) from error
        yield Result(see(loads(text), words), accuracy)


def train(options: Options, out: Path, resume: bool, say: Say) -> Card:
    """Fit a surrogate, and measure it by leaving out a fifth of the networks at a time. Seconds: there is nothing to
    resume."""
    begun, words = time.process_time(), vocabulary()
    results = read_results(options, words)
    say(f"{len(results)} networks, read in {time.process_time() - begun:.1f} s")
    surrogate = Surrogate(words)
    surrogate.fit([r.seen for r in results], [r.accuracy for r in results])
    figures = crossed(results, options, words, say)
    card = Card(
        kind="surrogate",
        name=out.stem,
        config=options.model_dump(),
        command=f"archc metanet train surrogate -o {out.name} --option results={Path(options.results).name}",
        trained={"networks": len(results), "seconds": round(time.process_time() - begun, 1)},
        figures=figures,
    )
    surrogate.save(out, card)
    return card


def crossed(results: list[Result], options: Options, words: Vocabulary, say: Say) -> dict[str, Any]:
    """Figures on networks that were left out, a fifth at a time."""
    import numpy as np

    if len(results) < FOLDS * LOWEST:
        say(f"fewer than {FOLDS * LOWEST} networks: not measured")
        return {}
    rng = np.random.Generator(np.random.Philox(options.seed))
    fold = rng.permutation(np.arange(len(results)) % FOLDS)
    told = np.zeros((3, len(results)))
    for k in range(FOLDS):
        surrogate = Surrogate(words)
        learned = [r for r, f in zip(results, fold, strict=True) if f != k]
        surrogate.fit([r.seen for r in learned], [r.accuracy for r in learned])
        found = surrogate.predict([r.seen for r, f in zip(results, fold, strict=True) if f == k], options.coverage)
        told[:, fold == k] = found.mean, found.low, found.high
    return measured(np.array([r.accuracy for r in results]), *told)


def measured(truth: Any, mean: Any, low: Any, high: Any) -> dict[str, Any]:
    """Kendall's τ, overall and in the top third by accuracy, R², coverage and mean width of the intervals."""
    import numpy as np
    from scipy.stats import kendalltau

    best = truth >= np.quantile(truth, 2 / 3)
    error = float(((truth - mean) ** 2).sum() / max(float(((truth - truth.mean()) ** 2).sum()), 1e-12))
    return {
        "tau": float(kendalltau(mean, truth).statistic),
        "tau_top_third": float(kendalltau(mean[best], truth[best]).statistic),
        "r2": 1 - error,
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "width": float((high - low).mean()),
        "networks": len(truth),
    }


def evaluate(stored: Stored, options: Options, say: Say) -> dict[str, Any]:
    """Measure a surrogate on the networks of a file of results, which should be others than it learned from."""
    import numpy as np

    surrogate = Surrogate.of(stored)
    results = read_results(options, surrogate.words)
    found = surrogate.predict([r.seen for r in results], options.coverage)
    known = sum(any(r.seen == own for own in surrogate.seen) for r in results)
    if known:
        say(f"{known} of the {len(results)} networks look like ones that it learned from")
    return measured(np.array([r.accuracy for r in results]), found.mean, found.low, found.high)


KIND = Kind(
    "surrogate",
    "Predicts accuracy from a network's graph, without training it, with an interval.",
    Options,
    train,
    evaluate,
)
