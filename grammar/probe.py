"""Probing: what a production does to tensors, written down as a script that can be followed for other types.

A production is elaborated by the elaborator itself, on tensors of which little but rank and dtype is looked at. Every
op that is applied becomes a step of the script. Where a choice is met, the elaboration stops and the script ends, for
now: once it is known what the choice came to, the production is elaborated again, as far as the next choice. So scripts
grow into a tree, of which each branch is found out once.

What the elaborator decides by the sizes of a tensor (in a signature, or because an op carries a network) makes the
script one for tensors of these very types; there is another one for others.

A choice of modules that means the same wherever it stands (`closed.py`) is a step `PART`: it has scripts of its own. A
choice of values, and one whose meaning depends on what is around it or that shares its weights, is a step `PICK`: what
comes of it belongs to the script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from archc.grammar.calls import bundle_of
from archc.grammar.choices import Choices, Decision, Grid, Production, Table
from archc.grammar.drawer import Choice, Drawer, Unfit
from archc.grammar.modules import OpCall
from archc.grammar.naming import Scope
from archc.grammar.program import Program
from archc.grammar.requirements import QUANTITIES
from archc.grammar.scope import Env
from archc.grammar.syntax import Expr, Ref, Require, walk
from archc.grammar.transfer import Applied, Atom, Transfer
from archc.grammar.values import Frame, Place, Result, Tensor, tensors_of
from archc.ir.canonical import canonical
from archc.ir.cost import node_flops
from archc.ir.diagnostics import CompileError, Span
from archc.ir.dims import symbol
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.types import TensorType

if TYPE_CHECKING:
    from archc.grammar.derive import Deriver, Site

OP, KNOWN, PART, PICK, NUMBER, EXPECT, END, FAIL = range(8)
"""Kinds of steps."""

MOST_NUMBERS = 256
"""Values of one `range` whose scripts are kept."""


class Step:
    """A step of a script.

    OP      applies `atom` to the values `operands`
    KNOWN   an op whose outcome is known, as the script is for these types only: `applied`
    PART    applies the choice `site` to `operands`; `again` is the number of the choice that it repeats, or -1
    PICK    a choice among the alternatives of `menu`, at a depth `deeper` below the script's own
    NUMBER  a choice of a number of `grid`
    EXPECT  demands that a value has the type of the number `wanted`
    END     the results are the values `operands`
    FAIL    a mistake, whatever the types

    `path` is that of a choice, below the script's own; `level` tells how deep the elaborator is there. `source` is the
    part (its number among the choices, and a path in it) that has made the choice before. `next` is the step behind one
    that does not choose, `after` those behind a choice, by what it came to.
    """

    __slots__ = (
        "after", "again", "applied", "atom", "deeper", "error", "grid", "kind", "level", "menu", "next", "one",
        "operands", "path", "site", "source", "span", "wanted",
    )  # fmt: skip

    def __init__(self, kind: int, operands: tuple[int, ...] = (), span: Span | None = None) -> None:
        self.kind, self.operands, self.span = kind, operands, span
        self.one = operands[0] if len(operands) == 1 else -1
        self.next: Step | None = None
        self.after: dict[Any, Step] = {}
        self.again, self.deeper, self.level, self.path = -1, 0, 0, ""
        self.source: tuple[int, str] | None = None
        self.atom: Atom
        self.applied: Applied
        self.site: Site
        self.menu: Menu
        self.grid: Grid
        self.wanted: int
        self.error: Callable[[TensorType], CompileError]


class Menu:
    """The alternatives of a choice. `table` holds them where none has a guard that depends on where it stands."""

    def __init__(self, choice: Choice, weights: Sequence[tuple[int, float, bool | Expr]]) -> None:
        self.choice = choice
        self._weights = weights
        self._guards = [g for _, _, g in weights if not isinstance(g, bool)]
        names = {n.name for g in self._guards for n in walk(g) if isinstance(n, Ref)}
        self.quantities = tuple(q for q in QUANTITIES if q in names and q != "depth")
        self._by_depth: dict[int, Table] = {}
        self.table = None if self._guards else self._open({})

    def at(self, depth: int, measured: Callable[[Sequence[str]], dict[str, Any]], e: Drawer) -> Table:
        """Those that are open at a depth, and where quantities are what `measured` says."""
        if self.table is not None:
            return self.table
        if self.quantities:
            return self._open({**measured(self.quantities), "depth": depth}, e)
        if depth not in self._by_depth:
            self._by_depth[depth] = self._open({"depth": depth}, e)
        return self._by_depth[depth]

    def _open(self, known: dict[str, Any], e: Drawer | None = None) -> Table:
        def allows(guard: bool | Expr) -> bool:
            if isinstance(guard, bool):
                return guard
            assert e is not None
            return e.truth_of(guard, Env(self.choice.env, known))

        kept = [(n, w) for n, w, guard in self._weights if allows(guard)]
        return Table([n for n, _ in kept], [w for _, w in kept])


class Pause(Exception):
    """The answers end here."""


class Body(Protocol):
    """What a script is of."""

    def elaborate(self, probe: Probe, inputs: Sequence[TensorType]) -> Sequence[Tensor]:
        """Apply it to tensors that `probe` is to make of these types."""


class Script:
    """The steps of one body, from the first on, by the kinds of its inputs; by their types once `typed`."""

    def __init__(self, body: Body, transfer: Transfer) -> None:
        self.body, self._transfer = body, transfer
        self.typed = False
        self._starts: dict[Any, Step] = {}

    def key(self, values: Sequence[int]) -> Any:
        """What steps behind values of these types are found by."""
        if self.typed:
            return tuple(values)
        kinds = self._transfer.types.kinds
        return kinds[values[0]] if len(values) == 1 else tuple([kinds[v] for v in values])

    def start(self, deriver: Deriver, inputs: Sequence[int]) -> Step:
        return self._starts.get(self.key(inputs)) or self.explore(deriver, inputs, ())

    def explore(self, deriver: Deriver, inputs: Sequence[int], log: Sequence[tuple[Step, Any]]) -> Step:
        """The step behind those of a log."""
        answers = [
            made if step.kind != PART else made.results for step, made in log if step.kind in (PART, PICK, NUMBER)
        ]
        probe = Probe(deriver, self, inputs, answers)
        probe.explore()
        if probe.peeked and not self.typed:
            self.typed = True
            self._starts.clear()
        found = probe.steps
        step = wanted = self._starts.setdefault(self.key(inputs), found[0])
        given = iter(answers)
        for place, following in enumerate(found[1:], 1):
            if step.kind in (PART, PICK, NUMBER):
                answer = next(given)
                key = self.key(answer) if step.kind == PART else answer
                behind = step.after.get(key, following)
                if step.kind != NUMBER or len(step.after) < MOST_NUMBERS:
                    step.after[key] = behind
                step = behind
            else:
                step.next = step.next or following
                step = step.next
            if place == len(log):
                wanted = step
        return wanted


class _Watched(Value):
    """A value that tells when its type is looked at."""

    __slots__ = ("_type", "probe")

    def __init__(
        self, probe: Probe, name: str, type_: TensorType, producer: Node | None = None, index: int = 0
    ) -> None:
        self.probe = probe
        super().__init__(name, type_, producer, index)

    @property
    def type(self) -> TensorType:
        if self.probe.watching:
            self.probe.peeked = True
        return self._type

    @type.setter
    def type(self, type_: TensorType) -> None:
        self._type = type_

    @property
    def rank(self) -> int:
        return self._type.rank


def _type_of(value: Value) -> TensorType:
    return value._type if isinstance(value, _Watched) else value.type


class _Answers(Choices):
    """Choices as a probe makes them: by asking."""

    probe: Probe

    def among(self, path: str, weights: Any) -> int:
        if path not in self.made:
            step = Step(PICK)
            step.menu, step.path = weights, path
            step.deeper = weights.choice.depth
            self.made[path] = Decision(path, self.probe.ask_inside(step))
        return int(self.made[path].chosen)

    def number(self, path: str, grid: Grid) -> Production:
        if path not in self.made:
            step = Step(NUMBER)
            step.grid, step.path = grid, path
            self.made[path] = Decision(path, self.probe.ask_inside(step))
        return self.made[path].chosen


class Probe(Drawer):
    """Elaborates a body with given answers, and notes the steps."""

    choices: _Answers

    def __init__(self, deriver: Deriver, script: Script, inputs: Sequence[int], answers: Sequence[Any]) -> None:
        super().__init__(deriver.limits, _Answers(""))
        self.choices.probe = self
        self.deriver, self.script, self.transfer = deriver, script, deriver.transfer
        self.steps: list[Step] = []
        self.watching, self.peeked = True, False
        self._inputs = inputs
        self._answers = list(answers)
        self._asked = 0
        self._values: dict[Value, int] = {}
        self._parts: dict[str, int] = {}
        self._weights: set[Parameter] = set()

    def explore(self) -> None:
        """Elaborate as far as the answers go."""
        try:
            results = self.script.body.elaborate(self, [self.transfer.types.all[i] for i in self._inputs])
            self.note(Step(END, tuple([self.place_of(t.value) for t in results])))
        except Pause:
            pass
        except (Unfit, CompileError) as wrong:
            error = wrong.error if isinstance(wrong, Unfit) else wrong
            if not (self.steps and self._explains(self.steps[-1])):
                step = Step(FAIL)
                step.error = lambda found: error
                self.note(step)

    def _explains(self, step: Step) -> bool:
        """Does the last step fail, with these types?"""
        if step.kind == EXPECT:
            return step.next is None
        if step.kind != OP:
            return False
        types = self.transfer.types
        operands = tuple([types.number(self._type_at(i)) for i in step.operands])
        return self.transfer.apply(step.atom, operands) is None

    def _type_at(self, place: int) -> TensorType:
        for value, at in self._values.items():
            if at == place:
                return _type_of(value)
        raise AssertionError(f"no value at {place}")

    # Values

    def tensor(self, name: str, type_: TensorType, frame: Frame) -> Tensor:
        """A tensor that nothing here makes."""
        return Tensor(self.keep(_Watched(self, name, type_)), frame)

    def keep(self, value: Value) -> Value:
        self._values[value] = len(self._values)
        return value

    def place_of(self, value: Value) -> int:
        return self._values[value]

    def note(self, step: Step) -> None:
        self.steps.append(step)

    # Asking

    def ask(self, step: Step) -> Any:
        """Note a choice, and tell what it came to.

        Raises: Pause when that is not known.
        """
        step.level = self._depth
        self.note(step)
        if self._asked == len(self._answers):
            raise Pause
        self._asked += 1
        return self._answers[self._asked - 1]

    def ask_inside(self, step: Step) -> Any:
        """Ask for a choice that belongs to this script, unless it stands within a part that was drawn before."""
        for path, number in self._parts.items():
            if step.path == path or step.path.startswith(f"{path}:"):
                step.source = number, step.path[len(path) :]
        return self.ask(step)

    def choose(self, choice: Choice, inputs: tuple[Tensor, ...], at: Place) -> Result:
        inside = at.frame.parent is not None or at.scope.tied or choice.path in self.choices.made
        site = None if inside else self.deriver.site(choice)
        if site is None:
            return super().choose(choice, inputs, at)
        step = Step(PART, tuple([self.place_of(t.value) for t in inputs]), choice.span)
        step.site, step.path, step.deeper = site, choice.path, choice.depth
        step.again = self._parts.get(choice.path, -1)
        self._parts.setdefault(choice.path, self._asked)
        results = self.ask(step)
        types = self.transfer.types.all
        return bundle_of([self.tensor(choice.name, types[i], at.frame) for i in results])  # type: ignore[no-any-return]

    def open(self, choice: Choice) -> Any:
        return self.menu(choice)

    def menu(self, choice: Choice) -> Menu:
        """The alternatives of a choice; guards are decided where nothing but the program's parameters matters."""
        weights: list[tuple[int, float, bool | Expr]] = []
        for i, alternative in enumerate(choice.alternatives):
            weight = 1.0 if alternative.weight is None else float(alternative.weight.value)
            guard = alternative.guard
            if guard is None or weight <= 0:
                weights += [(i, weight, True)] if weight > 0 else []
            elif {n.name for n in walk(guard) if isinstance(n, Ref)} & {*QUANTITIES}:
                weights.append((i, weight, guard))
            else:
                weights.append((i, weight, self.truth_of(guard, choice.env)))
        return Menu(choice, weights)

    # Ops

    def operand(self, value: Any, operands: Sequence[Any], span: Span, at: Place) -> Value:
        self.watching = False  # a number has the dtype of the tensors beside it, which scripts are told apart by
        try:
            made = super().operand(value, operands, span, at)
        finally:
            self.watching = True
        if made.producer is not None and made not in self._values and at.frame.parent is None:
            step = Step(OP, (), span)
            step.atom = self.transfer.atom(made.producer.op, made.producer.params)
            self.note(step)
            self.keep(made)
        return made

    def emit(self, call: OpCall, operands: Sequence[Value], at: Place, **given: Any) -> Result:
        if at.frame.parent is not None:  # a part of the op that carries it
            return super().emit(call, operands, at, **given)
        tied = at.scope.tied or call.bound.weights or any(w.tied for w in call.op.weights.values())
        special = bool(tied or given.get("regions"))
        places = tuple([self.place_of(v) for v in (*operands, *given.get("captures", ()))])
        step = Step(KNOWN if special else OP, places, call.span)
        self.watching = False
        try:
            if not special:
                step.atom = self.transfer.atom(call.op, self._params(call, None))
                self.note(step)
            super().emit(call, operands, at, **given)
        finally:
            self.watching = True
        node = at.frame.graph.nodes[-1]
        if special:
            self.peeked = True
            step.applied = self._outcome(node, bool(tied))
            self.note(step)
        node.outputs = tuple([_Watched(self, v.name, v.type, node, v.index) for v in node.outputs])
        return bundle_of([Tensor(self.keep(v), at.frame) for v in node.outputs])  # type: ignore[no-any-return]

    def _outcome(self, node: Node, tied: bool) -> Applied:
        """The costs of a node that stands in the graph, regions included; weights that were met before are free."""
        inner = [n for region in node.regions for n in region.walk()]
        weights = {p for n in (node, *inner) for p in n.weights.values()}
        fresh = weights - self._weights
        self._weights |= weights
        return self.transfer.record(
            [v.type for v in node.outputs],
            params=sum(p.size for p in fresh if p.trainable),
            flops=node_flops(node),
            nodes=1 + len(inner),
            label=None if tied else _label(node),
        )

    def expect(self, tensor: Tensor, type_: TensorType, wrong: Callable[[TensorType], CompileError]) -> None:
        step = Step(EXPECT, (self.place_of(tensor.value),))
        step.wanted, step.error = self.transfer.types.number(type_), wrong
        self.note(step)
        self.watching = False
        try:
            super().expect(tensor, type_, wrong)
        finally:
            self.watching = True


def _label(node: Node) -> bytes:
    """A digest of a node alone, with its regions."""
    graph = Graph("")
    inputs = [graph.add_input(f"x{i}", _type_of(v)) for i, v in enumerate(node.inputs)]
    count = len(node.operands)
    alone = graph.add(
        node.op, inputs[:count], node.params, weights=node.weights, regions=node.regions, captures=inputs[count:]
    )
    graph.outputs = list(alone.outputs)
    return bytes.fromhex(canonical(graph).hash)


class Production_(Body):
    """An alternative of a choice."""

    def __init__(self, choice: Choice, number: int) -> None:
        self.choice, self.number = choice, number

    def elaborate(self, probe: Probe, inputs: Sequence[TensorType]) -> Sequence[Tensor]:
        frame = Frame(Graph(self.choice.name))
        frame.symbols.update({s: symbol(s) for s in probe.deriver.symbols})
        at = Place(frame, Scope.root(probe.names))
        tensors = tuple([probe.tensor(f"x{i}", t, frame) for i, t in enumerate(inputs)])
        body = self.choice.alternatives[self.number].body
        found = tensors_of(self.choice.fed(probe, body, tensors, at)) or ()
        assert all(isinstance(t, Tensor) for t in found)
        return found  # type: ignore[return-value]


class Whole(Body):
    """The program of a space."""

    def __init__(self, make: Callable[[Probe], Program]) -> None:
        self._make = make

    def elaborate(self, probe: Probe, inputs: Sequence[TensorType]) -> Sequence[Tensor]:
        program = self._make(probe)
        probe.program = program
        program.check()
        if probe.sink.has_errors:
            raise CompileError(*probe.sink.in_order())
        return [Tensor(v, program.frame) for v in program.graph.outputs]


class ProbedProgram(Program):
    """A program whose inputs a probe knows, and whose requirements are met elsewhere."""

    def _check_dims(self) -> None:
        super()._check_dims()
        assert isinstance(self.e, Probe)
        for value in self.graph.inputs:
            self.e.keep(value)
        self.e.deriver.met_inputs(self)

    def _require(self, item: Require) -> None:
        """Asked of what was drawn: see `Deriver`."""
