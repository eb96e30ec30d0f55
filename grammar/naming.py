"""Names of nodes and weights: the path of scopes that lead to an application.

The rule
- A call of an op adds the op's name, a call of a `def` the def's name: `stage.block.conv_bn.conv`. A node's weights are
  `path.role`: `stage.block.conv_bn.conv.weight`.
- Equal names in one scope are numbered from 0 in the order of application, and the number 0 is left out: `block`,
  `block1`, `block2`. `repeat`, `sequential`, `residual`, `branch` add nothing: their bodies are numbered on, so
  `block(16) -> repeat(2) { block(16) }` makes the same three. (Behind a digit the number is set off: `conv1`,
  `conv1_1`.) A first use keeps its name when a second one is written behind it.
- `let gate = …`, the shortcut of a `residual`, and regions add their own name: `gate.linear`, `shortcut.conv`,
  `moe.router.linear`, `moe.experts.0.linear`, `skip.body.…`. So does the binding of an output, except that of the
  output declared first. A statement therefore never renames what another one makes.
- `share table = embedding(…)` is named `table`, whatever stands behind the `=`, by the scope that holds the `share`.
  A second use of it has the same weights; its nodes are told apart by `table@1`.
- `name = "…"` on a call replaces all this: the path is the given text, behind the path of the innermost `def` only.
  On a call of a `def` it replaces the def's name, and `name = ""` adds nothing.
"""

from __future__ import annotations

from archc.ir.diagnostics import CompileError, Note, Span, fail
from archc.ir.graph import Parameter


class Names:
    """All names given so far in one program, and the parameter behind each weight name."""

    def __init__(self) -> None:
        self.taken: dict[str, Span | None] = {}
        self.parameters: dict[str, tuple[Parameter, Span | None]] = {}

    def claim(self, name: str, span: Span | None) -> None:
        """Raises: CompileError (E0209) when the name is taken."""
        if name in self.taken:
            raise _twice(name, span, self.taken[name])
        self.taken[name] = span

    def add_parameter(self, parameter: Parameter, span: Span | None) -> None:
        """Raises: CompileError (E0209) when another parameter has this name."""
        known, place = self.parameters.setdefault(parameter.name, (parameter, span))
        if known is not parameter:
            raise _twice(parameter.name, span, place)


def _twice(name: str, span: Span | None, first: Span | None) -> CompileError:
    return fail(
        "E0209",
        f"the name `{name}` is given twice",
        span,
        label="the second one",
        notes=[Note("the first one", first)] if first is not None and first != span else (),
        help="fixed names must differ; in a copied body, put the call in a `def`, whose uses are numbered",
    )


class Scope:
    """One level of the path. Its own name is found when something inside it is named first: a scope in which nothing
    happens takes no number.

    path     of the nodes
    weights  of the weights: the same, except below a second use of a share
    tied     below a share: weights already made under a name are used again
    """

    __slots__ = ("_base", "_counts", "_kind", "_parent", "_path", "_weights", "names", "owner", "single", "tied")

    def __init__(
        self,
        names: Names,
        path: str | None,
        weights: str | None,
        parent: Scope | None,
        kind: str,
        base: str,
        tied: bool,
    ) -> None:
        self.names, self.tied, self.single = names, tied, False
        self._path, self._weights, self._parent, self._kind, self._base = path, weights, parent, kind, base
        self._counts: dict[tuple[str, str], int] = {}
        self.owner: Scope = self if kind in ("def", "placed") or parent is None else parent.owner

    @staticmethod
    def root(names: Names) -> Scope:
        return Scope(names, "", "", None, "def", "", False)

    @property
    def path(self) -> str:
        if self._path is None:
            self._find()
        assert self._path is not None
        return self._path

    @property
    def weights(self) -> str:
        if self._weights is None:
            self._find()
        assert self._weights is not None
        return self._weights

    def _find(self) -> None:
        chain = [self]
        while (above := chain[-1]._parent) is not None and above._path is None:
            chain.append(above)
        for scope in reversed(chain):
            above, base = scope._parent, scope._base
            assert above is not None
            scope._path, scope._weights = (
                (_join(above.path, base), _join(above.weights, base)) if scope._kind == "placed"
                else above._number(scope._kind, base)
            )  # fmt: skip

    def definition(self, name: str) -> Scope:
        """The scope of a call of a `def`."""
        return Scope(self.names, None, None, self, "def", name, self.tied)

    def statement(self, name: str) -> Scope:
        """The scope of a `let`, or another one that only takes part in numbered names."""
        return Scope(self.names, None, None, self, "let", name, self.tied)

    def fixed(self, name: str) -> Scope:
        """The scope of a call of a `def` with `name = "…"`."""
        return Scope(self.names, None, None, self.owner, "placed", name, self.tied)

    def region(self, path: str, weights: str) -> Scope:
        """The scope of a region of the node so named."""
        return Scope(self.names, path, weights, self, "region", "", self.tied)

    def share(self, path: str, weights: str, single: bool) -> Scope:
        """The scope of one use of a share. In a `single` one stands one op alone, which has the name of the scope."""
        scope = Scope(self.names, path, weights, self, "def", "", True)
        scope.single = single
        return scope

    def transparent(self) -> Scope:
        """A scope that is a `def`'s, but adds nothing to the path."""
        return Scope(self.names, None, None, self, "placed", "", self.tied)

    def node(self, op: str, fixed: str | None, span: Span | None) -> tuple[str, str]:
        """A new node's name, and the one that its weights begin with.

        Raises: CompileError (E0209) when a fixed name is taken.
        """
        if self.single:
            return self.path, self.weights
        path, weights = self._number("node", op) if fixed is None else self._absolute(fixed)
        if fixed is not None:
            self.names.claim(path, span)
        else:
            self.names.taken[path] = span
        return path, weights

    def _absolute(self, name: str) -> tuple[str, str]:
        return _join(self.owner.path, name), _join(self.owner.weights, name)

    def _number(self, kind: str, base: str) -> tuple[str, str]:
        key = ("let" if kind == "let" else "", base)
        count = self._counts.get(key, 0)
        while True:
            name = base if count == 0 else f"{base}_{count}" if base[-1:].isdigit() else f"{base}{count}"
            path = _join(self.path, name)
            count += 1
            if kind == "let" or path not in self.names.taken:
                break
        self._counts[key] = count
        if kind == "def":
            self.names.taken[path] = None
        return path, _join(self.weights, name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
