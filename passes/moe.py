"""`moe`: a block becomes a mixture of experts, each a copy of it, a part of it, or beside it.

Three ways to be born equal. Copies (upcycling) agree whatever the router says, as long as gates sum to 1 and no row is
dropped. Parts of the hidden layer sum to the block when all experts run and their gates are equal. And beside the block
itself, kept as a shared expert, experts whose last layer is zero say nothing, whatever the router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from archc.ir.dims import Dim
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import ZEROS, Init
from archc.ir.op import Params
from archc.ir.ops.convolution import CONV
from archc.ir.ops.kan import KAN
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import BATCH_NORM
from archc.ir.ops.pool import GLOBAL_AVG_POOL
from archc.ir.ops.structural import MOE, SKIP, MoeParams
from archc.ir.types import TensorType
from archc.passes.blocks import users_of
from archc.passes.editing import Editor, common_scope, renewed
from archc.passes.expert_blocks import ExpertBlock, Of, expert_blocks, is_depthwise, is_divisible
from archc.passes.expert_split import Division, divide, fit, observed
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform

Router = Literal["softmax", "sigmoid", "noisy", "switch", "expert_choice", "dense_to_sparse", "grkan"]


class MoeOptions(Options):
    """
    experts      how many there are to choose from
    top_k        how many each row runs: 2 unless said; 1 for "switch", all for "dense_to_sparse". The gate of one alone
                 is 1 where gates sum to 1, which teaches a router nothing: to learn where rows go takes 2, or a switch
    method       "copy": each expert is a copy of the block; "split": its hidden channels are divided among the experts
    router       "softmax" of a linear layer; "sigmoid" instead; "noisy" adds noise in training; "switch" is top-1 with
                 the probability as gate; with "expert_choice" experts choose rows; "dense_to_sparse" runs all experts
                 until `top_k` and `temperature` are lowered; "grkan" routes by a rational KAN layer
    shared       with "copy", true: the block stays and sees every row, the experts beside it are born silent. With
                 "split", the share of hidden channels that every row sees
    of           "blocks": feed-forward blocks and blocks of convolutions; "layers": single layers, which are copied
    batch_norm   also blocks with batch norms where each expert sees other rows: in training its statistics are theirs
    nested       also blocks within experts
    jitter       noise on the weights of copies, in units of their standard deviation, so that they differ from birth
    router_init  standard deviation of the router's first weights; as a linear layer's unless said
    normalize, capacity, temperature, noise, balance, z_loss  as the operator's; by default what the router is known for
    """

    experts: int = Field(default=8, ge=2)
    top_k: PositiveInt | None = None
    method: Literal["copy", "split"] = "copy"
    router: Router = "softmax"
    shared: bool | float = False
    of: Of = "blocks"
    batch_norm: bool = False
    nested: bool = False
    jitter: NonNegativeFloat = 0.0
    router_init: NonNegativeFloat | None = None
    normalize: bool | None = None
    capacity: PositiveFloat | None = None
    temperature: PositiveFloat | None = None
    noise: NonNegativeFloat | None = None
    balance: NonNegativeFloat = 0.01
    z_loss: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active > self.experts:
            raise ValueError(f"top_k = {self.active} is more than there are experts, {self.experts}")
        if self.router == "switch" and self.active != 1:
            raise ValueError(f"a switch runs one expert, not top_k = {self.active}")
        if self.method == "copy" and not isinstance(self.shared, bool):
            raise ValueError(f'shared = {self.shared:g} is a share of channels, for method = "split"')
        if self.method == "split":
            if self.shared is True or not 0 <= self.shared < 1:
                raise ValueError("shared is the share of channels that stay together, at least 0 and below 1")
            if self.of == "layers":
                raise ValueError("a single layer has no hidden channels to split")
            if self.jitter:
                raise ValueError("jitter is for copies: parts differ")
            if self.router == "grkan" and not self.runs_all:
                raise ValueError("a grkan router cannot be fitted to parts: let all run at first, top_k = experts")
        return self

    @property
    def active(self) -> int:
        """How many experts a row runs."""
        usual = {"switch": 1, "dense_to_sparse": self.experts}.get(self.router, min(2, self.experts))
        return usual if self.top_k is None else self.top_k

    @property
    def by_expert(self) -> bool:
        return self.router == "expert_choice"

    @property
    def limit(self) -> float | None:
        return 1.0 if self.by_expert and self.capacity is None else self.capacity

    @property
    def drops(self) -> bool:
        """May an expert have no room for a row that chose it, or a row be chosen by no expert?"""
        return self.limit is not None and self.limit * self.active < self.experts

    @property
    def runs_all(self) -> bool:
        """Does every row run every expert?"""
        return not self.drops and (self.by_expert or self.active == self.experts)

    @property
    def sums_to_one(self) -> bool:
        """Do the gates of a row that has an expert sum to 1?"""
        every = self.runs_all and self.router != "sigmoid"  # the softmax over all does
        return not self.drops and (self.normalized or every)

    @property
    def normalized(self) -> bool:
        return self.router != "switch" if self.normalize is None else self.normalize

    @property
    def drawn(self) -> float:
        """The standard deviation of the noise on logits, in training. A noisy router's: Riquelme et al. 2021."""
        return (1 / self.experts if self.router == "noisy" else 0.0) if self.noise is None else self.noise

    @property
    def even(self) -> bool:
        """Is the router born zero, so that all gates are equal? Then parts add up to the block."""
        return self.method == "split" and self.runs_all and not self.router_init

    @property
    def usual_gate(self) -> float:
        """The gate of an expert among equals."""
        if self.normalized:
            return 1 / (self.experts if self.runs_all else self.active)
        return 0.5 if self.router == "sigmoid" else 1 / self.experts

    def of_node(self) -> MoeParams:
        """The parameters of the operator."""
        usual = 2.0 if self.router == "dense_to_sparse" else 1.0  # where Nie et al. 2021 start from
        return MoeParams(
            top_k=self.active,
            normalize=self.normalized,
            capacity=self.limit,
            noise=self.drawn,
            balance=self.balance,
            z_loss=self.z_loss,
            shared=bool(self.shared),
            score="sigmoid" if self.router == "sigmoid" else "softmax",
            routing="expert" if self.by_expert else "token",
            temperature=usual if self.temperature is None else self.temperature,
        )


def contract(options: MoeOptions) -> Contract:
    """Which options keep the function; why the others do not."""
    if options.shared is True:
        return Contract()
    why = _unequal(options)
    if why:
        return Contract("approximate", "approximate", why)
    if options.method == "split" and options.drawn:
        return Contract("exact", "approximate", "noise in training makes the gates of parts unequal")
    if options.batch_norm and options.of == "blocks" and not options.runs_all:
        return Contract(
            "exact", "approximate", "in training each expert's batch norm sees the rows of that expert alone"
        )
    return Contract()


def _unequal(options: MoeOptions) -> str:
    """What keeps the result from being that of the block; empty for nothing."""
    if options.method == "split":
        if not options.runs_all:
            return "a row runs only some of the parts"
        return "" if options.even else "parts add up to the block only if the router starts at zero"
    if options.drops and options.by_expert:
        return "a row that no expert chooses gets nothing"
    if options.drops:
        return "a row that comes when its experts are full gets nothing of them"
    if not options.sums_to_one:
        return "the gates of a row do not sum to 1"
    return "jitter makes the copies differ" if options.jitter else ""


# -- sites --------------------------------------------------------------------------------------------------------


def _find(graph: Graph, options: MoeOptions) -> Iterator[Site | Refusal]:
    users, owners = users_of(graph), _owners(graph)
    told: set[Node] = set()
    for block in expert_blocks(graph, options.of, options.method == "split"):
        owner, region = owners.get(block.graph, (None, ""))
        if owner is not None and not region.startswith("experts"):
            continue  # routers and gates stay as they are
        if owner is not None and not options.nested:
            if owner not in told:
                help = "`nested = true` makes experts of its experts' blocks"
                yield Refusal(owner, "it needs a block that is in no expert yet", "this has experts", help)
            told.add(owner)
            continue
        yield _refusal(block, options, users) or Site(block.anchor, block.nodes, block.graph, block)


def _owners(graph: Graph) -> dict[Graph, tuple[Node, str]]:
    """The mixture (or the `skip`) in whose experts, router or gate a graph is, at whatever depth, and which of them."""
    found: dict[Graph, tuple[Node, str]] = {}
    for outer in graph.graphs():
        for node in outer.nodes:
            for i, region in enumerate(node.regions):
                if node.op is MOE or (node.op is SKIP and i == 0):
                    found[region] = node, region.name
                elif outer in found:
                    found[region] = found[outer]
    return found


def _refusal(block: ExpertBlock, options: MoeOptions, users: dict[str, int]) -> Refusal | None:
    """Why a block cannot become a mixture."""
    own: dict[str, int] = {}
    for parameter in (p for n in block.nodes for p in n.weights.values()):
        own[parameter.name] = own.get(parameter.name, 0) + 1
    for name, count in own.items():
        if count < users[name]:
            return Refusal(block.anchor, "experts need weights of their own", f"`{name}` is used elsewhere, too")
    if not options.runs_all:
        for node in block.nodes:
            if node.op is BATCH_NORM and set(node.output.type.shape[2:]) <= {1}:
                reason = "a batch norm cannot be trained on an expert's only row if that is a single value"
                found = f"`{node.name}` makes {node.output.type}"
                return Refusal(block.anchor, reason, found, "let every row run every expert: `top_k = experts`")
    if options.method == "split":
        return _indivisible(block, options)
    if options.shared is True:
        return _unsilenced(block)
    if block.has_batch_norm and not (options.batch_norm or options.runs_all):
        reason = "experts that see other rows in training would have other batch statistics"
        help = "`batch_norm = true` takes it, exact in evaluation alone; so does `shared = true`, which is exact"
        return Refusal(block.anchor, reason, "it has a batch norm", help)
    return None


def _indivisible(block: ExpertBlock, options: MoeOptions) -> Refusal | None:
    assert block.down is not None
    for node in block.nodes:
        if node not in (*block.ups, block.down) and not is_divisible(node):
            found = f"`{node.name}` is a {node.op.name}"
            return Refusal(block.anchor, "channels of the hidden layer must not meet before they are summed", found)
    hidden, experts = block.hidden, options.experts
    if options.shared:
        if hidden * (1 - options.shared) < experts:
            found = f"{hidden * (1 - options.shared):g} are to be divided"
            return Refusal(block.anchor, f"each of {experts} experts needs a hidden channel", found)
    elif hidden % experts:
        fitting = [n for n in range(2, hidden + 1) if hidden % n == 0 and n <= 2 * experts]
        help = f"`experts` can be {', '.join(map(str, fitting))}; or let the rest be `shared`" if fitting else None
        reason = f"its hidden channels need to be divisible by {experts}"
        return Refusal(block.anchor, reason, f"there are {hidden}", help, code="E0410")
    return None


def _last(block: ExpertBlock) -> Node | None:
    """The node that makes the block's result from its weights: nothing comes behind it but dropout."""
    for node in reversed(block.nodes):
        if node.op.name != "dropout":
            return node if node.op in (LINEAR, CONV) or (node.op is BATCH_NORM and "bias" in node.weights) else None
    return None


def _unsilenced(block: ExpertBlock) -> Refusal | None:
    if _last(block) is None:
        reason = "the block's last operator needs weights, which are zero at first: a layer or a batch norm"
        return Refusal(block.anchor, reason, f"it ends with `{block.nodes[-1].name}`, a {block.nodes[-1].op.name}")
    return None


# -- writing ------------------------------------------------------------------------------------------------------


def _apply(graph: Graph, sites: Sequence[Site], options: MoeOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    rows = editor.symbol("Rows")  # each region has symbols of its own, so all can have this one
    blocks: list[ExpertBlock] = [site.found for site in sites]
    split, approximate = options.method == "split", not options.even
    samples = observed(graph, blocks, context) if split and approximate else {}
    moved: dict[Value, Value] = {}  # a block may read what one before it made: now the mixture in its place
    for block in blocks:
        division = divide(block, options.experts, options.shared, samples, context) if split else None
        if division is not None and approximate and options.router_init is None:
            fit(block, division, options.of_node(), options.usual_gate, samples, context)
        now = replace(block, x=moved.get(block.x, block.x))
        moved[block.out] = _Mixture(editor, now, options, context, rows).write(division)


class _Mixture:
    """One block in the course of becoming a mixture."""

    def __init__(self, editor: Editor, block: ExpertBlock, options: MoeOptions, context: Context, rows: Dim) -> None:
        self.block, self.options, self.context = block, options, context
        self.scope = common_scope([n.name for n in block.nodes])
        self.e = editor.beside(block.graph, block.anchor)
        self.e.prefix = self.scope
        self.name = self.e.name("moe")
        x = block.x.type
        self.row = TensorType((rows, *(x.shape[1:] if block.by_sample else x.shape[-1:])), x.dtype)

    def write(self, division: Division | None) -> Value:
        """The result of the mixture in place of the block; `division`: which channels each expert has, None for all."""
        names = [f"experts.{i}" for i in range(self.options.experts)]
        if division is None:
            experts = [self._copy(name) for name in names]
            shared = [self._block()] if self.options.shared else []
        else:
            experts = [self._part(name, part, division) for name, part in zip(names, division.parts, strict=True)]
            shared = [self._part("shared", division.common, None)] if self.options.shared else []
        regions = [self._router(division), *experts, *shared]
        node = self.e.node(MOE, self.block.x, full_name=self.name, regions=regions, params=self.options.of_node())
        self.block.out.replace_all_uses(node.output, self.block.graph)
        return node.output

    def _region(self, name: str, type_: TensorType) -> tuple[Editor, Value]:
        region, (x,) = self.e.region(name, [type_])
        return self.e.inside(region, f"{self.name}.{name}"), x

    def _renamed(self, region: str, old: str) -> str:
        return f"{self.name}.{region}.{old.removeprefix(f'{self.scope}.')}"

    def _router(self, division: Division | None) -> Graph:
        e, x = self._region("router", self.block.x.type)
        if self.block.by_sample:
            x = e(GLOBAL_AVG_POOL, x)
        channels, std = x.type.shape[-1], self.options.router_init
        init = "zeros" if self.options.even or std == 0 else None if std is None else f"normal({std!r})"
        if self.options.router == "grkan":
            assert isinstance(channels, int)
            groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
            router = e.node(KAN, x, out=self.options.experts, basis="grkan", groups=groups, bias=False, init=init)
        else:
            fitted = division is not None and division.bias is not None
            router = e.node(LINEAR, x, out=self.options.experts, bias=fitted, init=init)
            if division is not None and division.bias is not None:
                self.context.store(router.weights["weight"], division.weight)
                self.context.store(router.weights["bias"], division.bias)
        e.graph.outputs = [router.output]
        return e.graph

    def _block(self) -> Graph:
        """The block itself, its names and weights as they are."""
        e, x = self._region("shared", self.row)
        values = {self.block.x: x}
        e.copy(self.block.nodes, values)
        e.graph.outputs = [values[self.block.out]]
        return e.graph

    def _copy(self, name: str) -> Graph:
        """The block with weights of its own; beside a shared expert, with a last layer that is zero."""
        e, x = self._region(name, self.row)
        values, copies = {self.block.x: x}, dict[Parameter, Parameter]()
        weigh, silent = renewed(copies), _last(self.block) if self.options.shared else None
        for node in self.block.nodes:
            if node is silent:
                values[node.output] = self._silent(
                    e, node, values[node.operands[0]], self._renamed(name, node.name), copies
                )
            else:
                e.copy([node], values, rename=lambda old: self._renamed(name, old), weigh=weigh)
        if self.context.weights is not None:
            for old, new in copies.items():
                self.context.store(new, self._jittered(self.context.value(old), new))
        e.graph.outputs = [values[self.block.out]]
        return e.graph

    def _silent(self, e: Editor, old: Node, x: Value, name: str, copies: dict[Parameter, Parameter]) -> Value:
        """The node, giving zeros; weights that it has in common with the old one are entered in `copies`."""
        if old.op is not BATCH_NORM:
            params = old.params.model_copy(update={"bias": False, "init": "zeros"})
            return e(old.op, x, full_name=e.free(name), params=params)
        weights = {}
        for role, parameter in old.weights.items():
            init = ZEROS if parameter.trainable else parameter.init
            new = weights[role] = Parameter(f"{name}.{role}", parameter.type, init, parameter.trainable)
            if not parameter.trainable:
                copies[parameter] = new
        return e(old.op, x, full_name=e.free(name), params=old.params, weights=weights)

    def _jittered(self, value: Any, parameter: Parameter) -> Any:
        if not self.options.jitter or not parameter.trainable:
            return value
        noise = Init("normal", self.options.jitter * float(value.std())).sample(
            parameter.shape, self.context.seed, f"{parameter.name}.jitter"
        )
        return value + noise

    def _part(self, name: str, part: Any, division: Division | None) -> Graph:
        """The block with some of its hidden channels. An expert's result is scaled by what its gate takes away, the
        shared one's (without a division) is not, and brings the bias."""
        block, options = self.block, self.options
        e, x = self._region(name, self.row)
        values = {block.x: x}
        for old in block.nodes:
            if old is block.down:
                keep_bias = "bias" in old.weights and (division is None or not options.shared)
                params: Params = old.params.model_copy(update={"bias": keep_bias})
            else:
                params = _narrowed(old, old in block.ups, len(part))
            new = e.node(
                old.op,
                *(values[v] for v in old.operands),
                full_name=e.free(self._renamed(name, old.name)),
                params=params,
            )
            values[old.output] = new.output
            if self.context.weights is not None:
                for role, parameter in new.weights.items():
                    whole = self.context.value(old.weights[role])
                    if old is not block.down:
                        self.context.store(parameter, whole[part])
                    elif role == "weight":
                        scale = 1.0 if division is None else division.factor / options.usual_gate
                        self.context.store(parameter, whole[:, part] * scale)
                    else:
                        running = options.experts if options.runs_all else options.active
                        gates = 1.0 if division is None else running * options.usual_gate
                        self.context.store(parameter, whole / gates)
        e.graph.outputs = [values[block.out]]
        return e.graph


def _narrowed(node: Node, is_up: bool, width: int) -> Params:
    """The parameters of a node of the hidden layer that has `width` channels."""
    if is_depthwise(node):
        return node.params.model_copy(update={"out": width, "groups": width})
    return node.params.model_copy(update={"out": width}) if is_up else node.params


MOE_PASS = Transform(
    name="moe",
    doc="A block becomes a mixture of experts: copies of it, parts of its hidden layer, or the block with silent "
    "experts beside it.",
    options=MoeOptions,
    find=_find,
    apply=_apply,
    contract=contract,
    where="feed-forward blocks, bodies of residual blocks of convolutions, pairs of convolutions; single layers",
    variants=(
        "moe(experts = 4)",
        "moe(experts = 4, router = sigmoid)",
        "moe(experts = 4, router = noisy)",
        "moe(experts = 4, router = switch)",
        "moe(experts = 4, router = expert_choice)",
        "moe(experts = 4, router = dense_to_sparse)",
        "moe(experts = 4, router = grkan)",
        "moe(experts = 4, capacity = 1.25)",
        "moe(experts = 4, batch_norm = true)",
        "moe(experts = 4, shared = true)",
        "moe(experts = 4, router = switch, shared = true)",
        "moe(experts = 4, of = layers)",
        "moe(experts = 4, top_k = 4, method = split)",
        "moe(experts = 4, top_k = 2, method = split)",
        "moe(experts = 4, top_k = 2, method = split, shared = 0.25)",
    ),
    paper="copies: Komatsuzaki et al. 2022, arXiv:2212.05055; parts: Zhang et al. 2022, MoEfication, arXiv:2110.01786; "
    "channels of convolutions: Zhang et al. 2023, Robust MoE, arXiv:2308.10110; noise: Riquelme et al. 2021, "
    "arXiv:2106.05974; switch: Fedus et al. 2021, arXiv:2101.03961; experts that choose: Zhou et al. 2022, "
    "arXiv:2202.09368; from dense to sparse: Nie et al. 2021, arXiv:2112.14397; GR-KAN routers: Inzirillo and Genet "
    "2024, arXiv:2409.15161",
)
