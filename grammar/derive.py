"""Deriving architectures from a space on types alone: what is drawn is known to fit before a graph of it is built.

The law
- A choice is drawn by weight among its alternatives that are open (guards) and fit. An alternative does not fit when
  its own part of the network cannot be made from the tensors that it is given, whatever is drawn in it.
- A part that fits by itself may not fit what stands around it: two branches whose results do not meet. Then it is drawn
  again by its own law, but small (of at most SMALL choices of modules), up to TRIES times, before the part ahead of it
  is, and so on back to the beginning of the production. So a part has its own law on condition that it fits what was
  drawn ahead of it, where parts are small; a large one that does not fit gives way to a small one.
- An architecture that has too many nodes, or breaks a `require`, is dropped as soon as that is seen, and begun afresh:
  what is drawn has the law above on condition that it keeps within bounds.

All random numbers of attempt k at draw `key` come from one generator, seeded by a digest of `key/k`, in the order in
which choices are made. What is remembered (scripts, transfer functions) are functions of the space, so that a draw is
the same whatever was drawn before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from random import Random
from typing import Any

from archc.grammar.choices import Production, Table, Trace
from archc.grammar.closed import fixes_names, free_names, meaning_key
from archc.grammar.drawer import Choice
from archc.grammar.expressions import MAX_DEPTH
from archc.grammar.imports import Importer
from archc.grammar.limits import Limits
from archc.grammar.probe import (
    END,
    EXPECT,
    KNOWN,
    NUMBER,
    OP,
    PART,
    PICK,
    Menu,
    Probe,
    ProbedProgram,
    Production_,
    Script,
    Step,
    Whole,
)
from archc.grammar.program import Program
from archc.grammar.requirements import is_measured
from archc.grammar.scope import Env
from archc.grammar.syntax import Compare, Node, Ref, Require
from archc.grammar.syntax import Program as Syntax
from archc.grammar.transfer import Applied, Transfer
from archc.ir.diagnostics import CompileError, Diagnostic, fail
from archc.ir.types import TensorType

TRIES = 16
"""How often a part is drawn that does not fit what stands around it."""
SMALL = 12
"""Choices of modules in a part that is drawn again."""
MOST_WORK = 500
"""Choices of modules that are drawn at one attempt, those included that did not fit."""
PATIENCE = 64
"""Failures in one production before it is given up."""
RANGE_TRIES = 8
"""Values of one `range` that are tried."""


class Derivation:
    """A choice of modules as it was made, and all that follows from it.

    log      the steps of its script, with what came of each: `Applied`, a production, or the derivation of a part
    """

    __slots__ = (
        "activation_bytes", "ends", "flops", "inputs", "log", "nodes", "number", "params", "results", "site", "term",
    )  # fmt: skip

    def __init__(
        self,
        site: Site | None,
        number: int,
        inputs: tuple[int, ...],
        log: list[tuple[Step, Any]],
        results: tuple[int, ...],
        ends: tuple[int, ...],
        costs: tuple[int, int, int, int],
    ) -> None:
        self.site, self.number, self.inputs, self.log = site, number, inputs, log
        self.results, self.ends = results, ends
        self.params, self.flops, self.activation_bytes, self.nodes = costs
        self.term: Any = None

    def trace(self, path: str = "") -> Iterator[tuple[str, Production]]:
        """The choices by path, in the order in which they were made; `path` is its own."""
        if path:
            yield path, self.number
        pending = [self._below(path)]
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            below, made = found
            if isinstance(made, Derivation):
                yield below, made.number
                pending.append(made._below(below))
            else:
                yield below, made

    def _below(self, path: str) -> Iterator[tuple[str, Any]]:
        prefix = f"{path}:{self.number}/" if path else ""
        for step, made in self.log:
            if step.kind in (PICK, NUMBER):
                if step.source is None:
                    yield prefix + step.path, made
            elif step.kind == PART and step.again < 0:
                yield prefix + step.path, made


class Site:
    """A choice of modules that means the same wherever it stands. `known` has the alternatives that hold no choices, by
    the types that they are given: what comes of them, or None where they do not fit."""

    __slots__ = ("choice", "known", "menu", "scripts")

    def __init__(self, choice: Choice, menu: Menu, transfer: Transfer) -> None:
        self.choice, self.menu = choice, menu
        self.scripts = [Script(Production_(choice, i), transfer) for i in range(len(choice.alternatives))]
        self.known: dict[tuple[int, ...], dict[int, Derivation | None]] = {}


class Beyond(Exception):
    """What is drawn is beyond a bound."""


class _Large(Exception):
    """More was drawn than may be."""


class _Known(Exception):
    """The inputs of the program are known."""


class Deriver:
    """Draws from one space."""

    def __init__(self, syntax: Syntax, values: Any, dims: Any, limits: Limits, symbols: Sequence[str] = ()) -> None:
        self.syntax, self.values, self.dims, self.limits = syntax, values, dims, limits
        self._importer: Importer | None = None
        self._sites: dict[Any, Site | None] = {}
        self.symbols: tuple[str, ...] = ()
        self.transfer = Transfer(())
        self.params = self.flops = self.activation_bytes = self.nodes = 0
        self.work, self.most_work = 0, MOST_WORK
        self.random: Callable[[], float] = Random(0).random
        self.given: Trace = {}
        self.strict = False
        self.failures: dict[Any, int] = {}
        self.chose = False  # has a random number ever been needed?
        self.inputs: tuple[int, ...] = ()
        self._knows_inputs = False
        self.env = Env()
        self.whole = Script(Whole(self._program), self.transfer)
        with suppress(_Known):
            Probe(self, self.whole, (), ()).explore()
        self.whole = Script(Whole(self._program), self.transfer)
        self._reader: Probe = Probe(self, self.whole, (), ())
        self._read_requirements()

    def _program(self, probe: Probe) -> Program:
        program = ProbedProgram(self.syntax, self.values, self.dims, self.limits, probe)
        program.is_resolved = True
        if self._importer is None:
            self._importer = program.importer
        program.importer = self._importer
        return program

    def met_inputs(self, program: Program) -> None:
        """The inputs of the program, told by a probe."""
        if not self._knows_inputs:
            self._knows_inputs = True
            self.symbols = tuple(program.frame.symbols)
            self.transfer = Transfer(self.symbols)
            self.inputs = tuple([self.transfer.types.number(v.type) for v in program.graph.inputs])
            self.env = program.env
            self.is_of_one = all(str(s) == str(v.type.shape[0]) for v in program.graph.inputs for s in v.type.symbols)
            raise _Known

    # Bounds

    def _read_requirements(self) -> None:
        """What `require` says of quantities that add up is watched on the way; the rest, once the graph stands."""
        self.bounds: dict[str, tuple[float, Require]] = {}
        self.conditions: list[Require] = []
        self.late = False
        own = {f.name.text for f in self.syntax.formals}
        for item in self.syntax.items:
            if not isinstance(item, Require) or is_measured(item.condition):
                continue
            names = free_names(item.condition)
            if not names <= own | {"params", "flops", "activation_bytes"} or not self.is_of_one:
                self.late = True
                continue
            self.conditions.append(item)
            condition = item.condition
            if (
                isinstance(condition, Compare)
                and condition.operator in ("<", "<=")
                and isinstance(condition.left, Ref)
                and condition.left.name not in own
                and free_names(condition.right) <= own
            ):
                most = self._reader.evaluate(condition.right, self.env, self._reader._nowhere)
                most -= condition.operator == "<"
                name = condition.left.name
                if name not in self.bounds or most < self.bounds[name][0]:
                    self.bounds[name] = most, item

    def measured(self, names: Sequence[str] = ("params", "flops", "activation_bytes")) -> dict[str, Any]:
        """Quantities of what stands so far, for one sample."""
        scale = self.transfer.scale
        known = {"params": self.params, "flops": self.flops, "activation_bytes": self.activation_bytes}
        return {n: known[n] if n == "params" else scale.at_one(known[n]) for n in names}

    def _check(self) -> None:
        """Drop what is beyond the bounds.

        Raises: Beyond.
        """
        if self.nodes > self.limits.nodes:
            self._failed("nodes")
            raise Beyond
        for name, found in self.measured(tuple(self.bounds)).items():
            if found > self.bounds[name][0]:
                self._failed(("bound", name, found))
                raise Beyond

    def _meets_requirements(self) -> None:
        for item in self.conditions:
            known = self.measured()
            if not self._reader.truth_of(item.condition, Env(self.env, dict(known))):
                self._failed(("condition", item))
                raise Beyond

    # Sites

    def site(self, choice: Choice) -> Site | None:
        """The site of a choice; None when it means something else elsewhere."""
        nodes: list[Node] = [n for a in choice.alternatives for n in (a.body, a.guard) if n is not None]
        if choice.signature is not None:
            nodes.append(choice.signature)
        key: Any = meaning_key(nodes, choice.env)
        if key is None:
            return None
        key = id(choice.alternatives), choice.is_rule, key
        if key not in self._sites:
            own = not any(fixes_names(a.body) for a in choice.alternatives)
            self._sites[key] = Site(choice, self._reader.menu(choice), self.transfer) if own else None
        return self._sites[key]

    # Drawing

    def derive(self, key: str, given: Trace) -> Derivation | None:
        """One attempt at draw `key`: None when nothing fits.

        Raises: Beyond when it is out of bounds.
        """
        seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
        self.random = Random(seed).random
        self.chose = False
        self.given, self.strict = given, False
        self.params = self.flops = self.activation_bytes = self.nodes = 0
        self.work, self.most_work = 0, MOST_WORK + len(given)  # what is given is no work
        try:
            made = self._follow(None, 0, self.whole, self.inputs, 0, 0, "" if given else None)
        except _Large:
            self._failed("work")
            raise Beyond from None
        if made is not None and self.conditions:
            self._meets_requirements()
        return made

    def _draw(self, site: Site, inputs: tuple[int, ...], depth: int, level: int, path: str | None) -> Derivation | None:
        """Make a choice of modules, for tensors of these types; None when nothing fits."""
        wanted = self.given.get(path) if path is not None else None
        self.work += wanted is None
        if self.work > self.most_work:
            raise _Large
        place = self.random()
        menu = site.menu
        table = menu.table or menu.at(depth, self.measured, self._reader)
        known = site.known.get(inputs)
        if known is None:
            known = site.known[inputs] = {}
        while table.numbers:
            if wanted in table.numbers:
                number, wanted = int(wanted), None
            elif self.strict:
                return None
            else:
                at = place * table.total
                i = bisect_right(table.cumulative, at, 0, table.last)
                number, weight = table.numbers[i], table.weights[i]
                place = (at - table.cumulative[i] + weight) / weight
            if number in known:
                made = known[number]
                if made is not None:
                    self._add(made)
                    return made
            else:
                made = self._follow(site, number, site.scripts[number], inputs, depth, level, path)
                if made is not None:
                    return made
            table = table.without(number)
        if not menu.at(depth, self.measured, self._reader).numbers:
            self._failed(("closed", site, depth))
        return None

    def _follow(
        self,
        site: Site | None,
        number: int,
        script: Script,
        inputs: tuple[int, ...],
        depth: int,
        level: int,
        path: str | None,
    ) -> Derivation | None:
        """Follow a script to its end, drawing where it asks; None when it cannot be done."""
        before = self.params, self.flops, self.activation_bytes, self.nodes
        prefix = f"{path}:{number}/" if path else path
        inner = depth + site.choice.is_rule if site is not None else 0
        values = list(inputs)
        log: list[tuple[Step, Any]] = []
        asked: list[Any] = []
        trail: list[tuple[Step, Any, int, int, int, int, int, int, int]] = []
        patience = PATIENCE
        is_open = False  # was there a choice?
        retry: Any = None
        step = script.start(self, inputs)
        while True:
            kind = step.kind
            if kind == OP:
                atom = step.atom
                key: Any = values[step.one] if step.one >= 0 else tuple([values[i] for i in step.operands])
                known = atom.known
                if key in known:
                    applied = known[key]
                else:
                    operands = key if isinstance(key, tuple) else (key,)
                    applied = known[key] = self.transfer.apply(atom, operands)
                if applied is not None:
                    self.params += applied.params
                    self.flops += applied.flops
                    self.activation_bytes += applied.activation_bytes
                    self.nodes += 1
                    if self.bounds or self.nodes > self.limits.nodes:
                        self._check()
                    values += applied.results
                    log.append((step, applied))
                    step = step.next or script.explore(self, inputs, log)
                    continue
                self._failed((step, key))
            elif kind == PART:
                is_open = self.chose = True
                found = step
                one = step.one
                given = (values[one],) if one >= 0 else tuple([values[i] for i in step.operands])
                below = None if prefix is None else prefix + step.path
                made: Derivation | None
                tries = 0
                if step.again < 0:
                    tries, retry = retry or TRIES, None
                    if level + step.level > MAX_DEPTH - 100:
                        self._failed("deep")
                        raise Beyond
                    state = (
                        self.params, self.flops, self.activation_bytes, self.nodes,
                    )  # fmt: skip
                    if tries == TRIES:
                        made = self._draw(step.site, given, inner + step.deeper, level + step.level, below)
                    else:  # what a trace says of it does not fit
                        below = None
                        most, self.most_work = self.most_work, min(self.most_work, self.work + SMALL)
                        try:
                            made = self._draw(step.site, given, inner + step.deeper, level + step.level, below)
                        except _Large:
                            if self.work > most:
                                raise
                            made = None
                            trail.append((found, tries - 1, len(values), len(log), len(asked), *state))
                        finally:
                            self.most_work = most
                else:
                    state = self.params, self.flops, self.activation_bytes, self.nodes
                    made = self._repeat(asked[step.again], step, given, inner + step.deeper, level)
                if made is not None:
                    trail.append((step, tries - 1, len(values), len(log), len(asked), *state))
                    values += made.results
                    log.append((step, made))
                    asked.append(made)
                    step = step.after.get(script.key(made.results)) or script.explore(self, inputs, log)
                    continue
            elif kind == PICK:
                is_open = self.chose = True
                state = self.params, self.flops, self.activation_bytes, self.nodes
                if step.source is not None:
                    taken: Any = dict(asked[step.source[0]].trace("."))["." + step.source[1]]
                    table, place = Table((), ()), 0.0
                else:
                    wanted = None
                    if retry is None:
                        table, place = step.menu.at(inner + step.deeper, self.measured, self._reader), self.random()
                        wanted = self.given.get(prefix + step.path) if prefix is not None else None
                    else:
                        table, place = retry
                        retry = None
                    if not table.numbers or (self.strict and wanted not in table.numbers):
                        taken = None
                        self._failed(("closed", step, inner + step.deeper))
                    elif wanted in table.numbers:
                        taken = wanted
                    else:
                        taken, place = table.draw(place)
                if taken is not None:
                    rest = (table.without(taken), place)
                    trail.append((step, rest, len(values), len(log), len(asked), *state))
                    log.append((step, taken))
                    asked.append(taken)
                    step = step.after.get(taken) or script.explore(self, inputs, log)
                    continue
            elif kind == NUMBER:
                is_open = self.chose = True
                state = self.params, self.flops, self.activation_bytes, self.nodes
                tries, retry = retry or RANGE_TRIES, None
                grid = step.grid
                wanted = self.given.get(prefix + step.path) if prefix is not None else None
                if tries == RANGE_TRIES and wanted is not None and grid.low <= wanted <= grid.high:
                    taken = wanted
                else:
                    taken = None if self.strict else grid(self.random())
                if taken is not None:
                    trail.append((step, tries - 1, len(values), len(log), len(asked), *state))
                    log.append((step, taken))
                    asked.append(taken)
                    step = step.after.get(taken) or script.explore(self, inputs, log)
                    continue
            elif kind == KNOWN:
                applied = step.applied
                self.params += applied.params
                self.flops += applied.flops
                self.activation_bytes += applied.activation_bytes
                self.nodes += applied.nodes
                if self.bounds or self.nodes > self.limits.nodes:
                    self._check()
                values += applied.results
                log.append((step, applied))
                step = step.next or script.explore(self, inputs, log)
                continue
            elif kind == EXPECT:
                if values[step.operands[0]] == step.wanted:
                    log.append((step, None))
                    step = step.next or script.explore(self, inputs, log)
                    continue
                self._failed((step, values[step.operands[0]]))
            elif kind == END:
                costs = (
                    self.params - before[0],
                    self.flops - before[1],
                    self.activation_bytes - before[2],
                    self.nodes - before[3],
                )
                results = tuple([values[i] for i in step.operands])
                made = Derivation(site, number, inputs, log, results, step.operands, costs)
                if not is_open and site is not None:
                    site.known[inputs][number] = made
                return made
            else:
                self._failed((step, None))
            # what was drawn last and can be drawn otherwise is drawn again
            while trail:
                step, retry, held, logged, answered, *state = trail.pop()  # type: ignore[assignment]
                patience -= 1
                del values[held:], log[logged:], asked[answered:]
                self.params, self.flops, self.activation_bytes, self.nodes = state
                if patience < 0:
                    self.params, self.flops, self.activation_bytes, self.nodes = before
                    return None
                if retry[0].numbers if step.kind == PICK else retry > 0 and not self.strict:
                    break
            else:
                self.params, self.flops, self.activation_bytes, self.nodes = before
                if not is_open and site is not None:
                    site.known[inputs][number] = None
                return None

    def _add(self, made: Derivation) -> None:
        """Count what a part that is known costs."""
        self.params += made.params
        self.flops += made.flops
        self.activation_bytes += made.activation_bytes
        self.nodes += made.nodes
        if self.bounds or self.nodes > self.limits.nodes:
            self._check()

    def _repeat(
        self, made: Derivation, step: Step, inputs: tuple[int, ...], depth: int, level: int
    ) -> Derivation | None:
        """A part once more: what was drawn, applied to other tensors."""
        if inputs == made.inputs:
            self._add(made)
            return made
        before = self.given, self.strict
        self.given, self.strict = dict(made.trace(".")), True
        try:
            return self._draw(step.site, inputs, depth, level + step.level, ".")
        finally:
            self.given, self.strict = before

    # What does not fit

    def _failed(self, what: Any) -> None:
        self.failures[what] = self.failures.get(what, 0) + 1

    def diagnostics(self) -> list[tuple[Diagnostic, int]]:
        """What did not fit, and how often, since `failures` was last cleared."""
        return [(self._diagnostic(what), count) for what, count in self.failures.items()]

    def _diagnostic(self, what: Any) -> Diagnostic:
        types = self.transfer.types.all
        if what == "nodes":
            return self.limits.exceeded("nodes", self.limits.nodes + 1).diagnostics[0]
        if what == "work":
            return fail("E0008", f"more than {MOST_WORK} choices of modules are made").diagnostics[0]
        if what == "deep":
            return fail("E0009", f"parts are more than {MAX_DEPTH - 100} deep").diagnostics[0]
        if what[0] == "bound":
            _, name, found = what
            item = self.bounds[name][1]
            return fail("E0336", "a requirement is not met", item.condition.span,
                        label=f"{name} = {found} or more").diagnostics[0]  # fmt: skip
        if what[0] == "condition":
            return fail("E0336", "a requirement is not met", what[1].condition.span).diagnostics[0]
        if what[0] == "closed":
            _, at, depth = what
            choice = at.menu.choice
            return fail("E0706", f"no alternative of `{choice.name}` is open here", choice.span,
                        label=f"at depth {depth}").diagnostics[0]  # fmt: skip
        step, found = what
        if step.kind == OP:
            operands = found if isinstance(found, tuple) else (found,)
            return self.transfer.mistake(step.atom, operands, step.span)
        error: CompileError = step.error(types[found] if found is not None else TensorType(()))
        return error.diagnostics[0]


__all__ = ["Applied", "Beyond", "Derivation", "Deriver", "Site"]
