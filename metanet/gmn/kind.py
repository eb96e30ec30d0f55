"""`archc metanet train gmn`: a metanetwork that says from its weights how well a trained net does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from archc.backends.weights import Array
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.gmn.batch import Collator, check_known
from archc.metanet.gmn.learn import Examples, LearnConfig, Regressor, learn, scores
from archc.metanet.gmn.model import Gmn, GmnConfig, parameters_of, vocabulary_sizes
from archc.metanet.gmn.zoo import Net, ZooConfig, grow, read_zoo
from archc.metanet.kinds import Kind, Say
from archc.metanet.neuron_graph import edge_types
from archc.metanet.store import Card, Stored, save
from archc.metanet.vocabulary import Vocabulary

TARGETS = ("test accuracy", "generalisation gap")
LEAST = 20
"""Nets below which nothing can be learned or judged."""


class TrainConfig(LearnConfig):
    """The options of training on a zoo."""

    zoo: Path = Field(Path("zoo"), description="folder of a zoo; one is grown there when it holds none")
    architectures: int = Field(8, ge=1, le=100, description="of a zoo that is grown: architectures of each family")
    nets: int = Field(56, ge=1, le=10_000, description="of a zoo that is grown: nets of each architecture")
    steps: int = Field(300, ge=1, description="of a zoo that is grown: the most steps of a net's training")
    unseen: float = Field(0.2, gt=0, lt=0.9, description="share of the nets that is kept to judge by")
    epochs: int = Field(16, ge=1, description="passes over the networks")
    nodes: int = Field(32, ge=4, description="width of the states of nodes")
    edges: int = Field(8, ge=2, description="width of the states of edges")
    rounds: int = Field(3, ge=0, le=20, description="rounds of messages")

    @property
    def shape(self) -> GmnConfig:
        """What builds the empty model."""
        return GmnConfig(nodes=self.nodes, edges=self.edges, rounds=self.rounds, outputs=len(TARGETS))


def train(config: TrainConfig, out: Path, resume: bool, say: Say) -> Card:
    """Train on a zoo (grown if there is none) and write the metanetwork.

    Raises: CompileError E0831 for a folder that holds no sound zoo, E0833 for the state of another run, E0834 for too
    few nets.
    """
    if not any(config.zoo.glob("*.safetensors")):
        grow(config.zoo, ZooConfig(architectures=config.architectures, nets=config.nets, steps=config.steps), say)
    nets = read_zoo(config.zoo)
    learned, unseen = split(nets, config)
    collator = Collator()
    state = out.with_name(out.name + ".state")
    if not resume:
        state.unlink(missing_ok=True)
    examples = Examples(*_inputs(collator, learned), _targets(learned))
    options = LearnConfig(**{name: getattr(config, name) for name in LearnConfig.model_fields})
    regressor, log = learn(examples, options, config.shape, collator, state, say)
    used = {int(t) for n in learned for t in np.unique(collator.arrays(n.architecture.graph).edge_type)}
    types = edge_types(collator.words)
    card = Card(
        kind="gmn",
        name=out.stem,
        config=config.model_dump(mode="json"),
        command=_command(config, out),
        vocabulary=collator.words.to_json() | {"edge_types": list(types), "trained": [types[t] for t in sorted(used)]},
        tasks=["digits"],
        trained={"nets": len(learned), "families": sorted({n.family for n in learned}), "torch": torch.__version__,
                 "parameters": parameters_of(regressor.model), "cpu_seconds": sum(e["cpu_seconds"] for e in log)},
        figures=_judge(regressor, unseen),
        log=log,
    )  # fmt: skip
    arrays = {f"model.{n}": p.detach().numpy() for n, p in regressor.model.state_dict().items()}
    save(out, card, arrays | {"mean": regressor.mean.numpy(), "spread": regressor.spread.numpy()})
    state.unlink(missing_ok=True)
    return card


def evaluate(stored: Stored, config: TrainConfig, say: Say) -> dict[str, Any]:
    """Figures on the nets of the zoo that training leaves out; every net of another zoo is unseen, so `unseen` can be
    raised there."""
    _, unseen = split(read_zoo(config.zoo), config)
    model, trained = restore(stored)
    types = stored.card.vocabulary["edge_types"]
    for graph in {id(n.architecture.graph): n.architecture.graph for n in unseen}.values():
        check_known(torch.from_numpy(model.collator.arrays(graph).edge_type), trained, types)
    return _judge(model, unseen)


def restore(stored: Stored) -> tuple[Regressor, torch.Tensor]:
    """The metanetwork of a file, and which edge types [types] it was trained on, bool. Its vocabulary is the card's,
    so that ops which came later move no row.

    Raises: CompileError E0802 when the file's arrays are not those of its card.
    """
    words = Vocabulary.from_json(stored.card.vocabulary)
    was, now = stored.card.vocabulary["edge_types"], edge_types(words)
    model = Gmn(TrainConfig.model_validate(stored.card.config).shape, vocabulary_sizes(words)[0], len(was))
    arrays = {n: torch.from_numpy(np.array(a)) for n, a in stored.arrays.items()}
    try:
        model.load_state_dict({n.removeprefix("model."): a for n, a in arrays.items() if n.startswith("model.")})
    except RuntimeError as error:
        raise fail(
            "E0802", f"{stored.path} does not hold the metanetwork of its card", help="train it again"
        ) from error
    places = torch.tensor([was.index(name) if name in was else 0 for name in now])
    table = model.edge_kind.weight.detach()[places]
    model.edge_kind = torch.nn.Embedding(len(table), table.shape[1], _weight=table)
    trained = set(stored.card.vocabulary["trained"])
    regressor = Regressor(model, Collator(words), arrays["mean"], arrays["spread"])
    return regressor, torch.tensor([name in trained for name in now])


def tell(stored: Stored, graph: Graph, weights: Mapping[str, Array]) -> dict[str, float]:
    """What the metanetwork says of one net: its test accuracy and generalisation gap.

    Raises: CompileError E0810 and E0832 for a net with what it was not trained on, E0603–E0605 for weights of another
    architecture, E0812 for weights that are not finite.
    """
    model, trained = restore(stored)
    column = model.collator.column(graph, weights)
    check_known(torch.from_numpy(model.collator.arrays(graph).edge_type), trained, edge_types(model.collator.words))
    said = model.predict([graph], [column])[0]
    return {target: float(value) for target, value in zip(TARGETS, said, strict=True)}


def split(nets: Sequence[Net], config: TrainConfig) -> tuple[list[Net], list[Net]]:
    """Nets to learn from and unseen ones, at random by the seed. Raises: CompileError E0834 for too few."""
    if len(nets) < LEAST:
        message = f"the zoo has {len(nets)} nets, and {LEAST} are the least to learn from"
        raise fail("E0834", message, help="grow a larger one: `--option nets=56`")
    order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(nets))
    cut = max(2, int(len(nets) * config.unseen))
    return [nets[i] for i in np.sort(order[cut:])], [nets[i] for i in np.sort(order[:cut])]


def _inputs(collator: Collator, nets: Sequence[Net]) -> tuple[list[Graph], list[torch.Tensor]]:
    graphs = [n.architecture.graph for n in nets]
    return graphs, [collator.column(g, n.weights) for g, n in zip(graphs, nets, strict=True)]


def _targets(nets: Sequence[Net]) -> Array:
    return np.array([(n.record.test_accuracy, n.record.gap) for n in nets])


def _judge(model: Regressor, nets: Sequence[Net]) -> dict[str, Any]:
    said, true = model.predict(*_inputs(model.collator, nets)), _targets(nets)
    figures: dict[str, Any] = {"unseen nets": len(nets)}
    for k, target in enumerate(TARGETS):
        figures |= {f"{target}: {name}": value for name, value in scores(said[:, k], true[:, k]).items()}
    return figures


def _command(config: TrainConfig, out: Path) -> str:
    """The command that trains it again; of the zoo's path the folder's name is enough."""
    given = {n: getattr(config, n) for n in TrainConfig.model_fields if getattr(config, n) != _default(n)}
    if "zoo" in given:
        given["zoo"] = config.zoo.name
    return " ".join([f"archc metanet train gmn -o {out.name}", *(f"--option {n}={v}" for n, v in given.items())])


def _default(name: str) -> Any:
    return TrainConfig.model_fields[name].default


KIND = Kind(
    "gmn",
    "a graph metanetwork: how well a trained net does, from its weights alone",
    TrainConfig,
    train,
    evaluate,
)
