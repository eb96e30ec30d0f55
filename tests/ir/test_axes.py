"""Axis classes of small programs, spelled out; the numeric check is in tests/metanet."""

from __future__ import annotations

from archc.grammar.load import loads
from archc.ir.axes import Axes, derive_axes


def axes_of(text: str) -> Axes:
    return derive_axes(loads("arch a()\n" + text))


def shown(axes: Axes) -> set[str]:
    """Each class as `size|indexed by: members`."""
    return {
        f"{c.size}{''.join(f'|{o.size}' for o in c.indexed_by)}: "
        + " ".join(sorted(f"{m.parameter}.{m.axis}" for m in c.members))
        for c in axes.classes
    }


def test_a_hidden_layer_is_one_class() -> None:
    axes = axes_of("input x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(8) -> relu -> linear(2)")
    assert shown(axes) == {"8: linear.bias.0 linear.weight.0 linear1.weight.1"}
    reasons = {(p.member.parameter, p.member.axis): p.pin.reason for p in axes.pinned}
    assert reasons[("linear.weight", 1)] == "`x` is an input of the network"
    assert reasons[("linear1.weight", 0)] == "`y` is an output of the network"


def test_a_residual_joins_and_a_concat_adds() -> None:
    axes = axes_of(
        "input x: f32[N, 4]\noutput y: f32[N, 2]\n"
        "let a = x -> linear(6)\nlet b = a + (a -> linear(6))\nlet c = x -> linear(3)\n"
        "y = concat(b, c, axis = 1) -> linear(2)"
    )
    assert shown(axes) == {
        "6: a.linear.bias.0 a.linear.weight.0 b.linear.bias.0 b.linear.weight.0 b.linear.weight.1 linear.weight.1",
        "3: c.linear.bias.0 c.linear.weight.0 linear.weight.1",
    }


def test_flatten_keeps_channels_as_a_factor() -> None:
    axes = axes_of(
        "input x: f32[N, 1, 4, 4]\noutput y: f32[N, 2]\ny = x -> conv(8, kernel = 3) -> relu -> flatten -> linear(2)"
    )
    assert shown(axes) == {"8: conv.bias.0 conv.weight.0 linear.weight.1"}


def test_heads_permute_and_each_head_inside() -> None:
    axes = axes_of(
        "input x: f32[N, T, 6]\noutput y: f32[N, T, 6]\ny = x -> attention(heads = 4, kv_heads = 2, head_dim = 3)"
    )
    sizes = sorted((c.size, tuple(int(str(o.size)) for o in c.indexed_by)) for c in axes.classes)
    # two groups of key heads; in each two query heads, and 3 channels of q·k and of v apart
    assert sizes == [(2, ()), (2, (2,)), (3, (2,)), (3, (2,))]


def test_groups_permute_and_each_group_inside() -> None:
    axes = axes_of(
        "input x: f32[N, 4, 8, 8]\noutput y: f32[N, 2]\n"
        "y = x -> conv(12, kernel = 1) -> group_norm(3) -> relu -> global_avg_pool -> linear(2)"
    )
    assert sorted((c.size, c.copies) for c in axes.classes) == [(3, 1), (4, 3)]


def test_a_gain_shared_by_all_heads_is_not_indexed() -> None:
    """The same gain of each head: the channels of all heads move together."""
    axes = axes_of(
        "input x: f32[N, T, 6]\noutput y: f32[N, T, 6]\n"
        "y = x -> linear(12) -> reshape([N, T, 3, 4]) -> rms_norm -> reshape([N, T, 12]) -> linear(6)"
    )
    assert sorted((c.size, c.copies) for c in axes.classes) == [(3, 1), (4, 1)]


def test_softmax_over_heads_keeps_channels_together() -> None:
    """A softmax looks across the outer axis, so the inner one is not permuted differently for each of its elements."""
    program = (
        "input x: f32[N, 6]\noutput y: f32[N, 2]\n"
        "y = x -> linear(12) -> reshape([N, 3, 4]) -> {} -> reshape([N, 12]) -> linear(2)"
    )
    assert [(c.size, c.copies) for c in axes_of(program.format("softmax(1)")).classes] == [(3, 1), (4, 1)]
    # negative control: an elementwise op looks across nothing
    assert [(c.size, c.copies) for c in axes_of(program.format("relu")).classes] == [(3, 1), (4, 3)]


def test_a_recurrent_state_is_one_class() -> None:
    axes = axes_of(
        "input x: f32[N, T, 3]\noutput y: f32[N, T, 2]\n"
        "def cell = fn(x, h) { let new = tanh((x -> linear(5)) + (h -> linear(5))) return new, new }\n"
        "let s, last = x -> scan(cell, state = [[5]], axis = 1)\ny = s -> linear(2)"
    )
    (only,) = axes.classes
    assert only.size == 5
    assert len(only.members) == 6  # both weights' rows, their biases, the recurrent weight's columns, the last layer


def test_cuts_that_fit_are_cut_further() -> None:
    """Sixes of two and threes of four are both twos of two of three; whichever cut comes first is cut by the other."""
    program = (
        "input x: f32[N, 6]\noutput y: f32[N, 2]\nlet h = x -> linear(12)\n"
        "let a = h -> reshape([N, {}]) -> softmax(1) -> reshape([N, 12])\n"
        "let b = h -> reshape([N, {}]) -> softmax(1) -> reshape([N, 12])\n"
        "y = (a + b) -> linear(2)"
    )
    for first, second in (("2, 6", "4, 3"), ("4, 3", "2, 6")):
        assert sorted(c.size for c in axes_of(program.format(first, second)).classes) == [2, 2, 3]
    assert axes_of(program.format("3, 4", "4, 3")).classes == (), "the control"


def test_cuts_that_do_not_fit_pin() -> None:
    axes = axes_of(
        "input x: f32[N, 6]\noutput y: f32[N, 2]\nlet h = x -> linear(12)\n"
        "let a = h -> reshape([N, 3, 4]) -> softmax(1) -> reshape([N, 12])\n"
        "let b = h -> concat(h -> slice(1, to = 5), h -> slice(1, from = 5), axis = 1)\n"
        "y = (a + b) -> linear(2)".replace("h -> concat(", "concat(")
    )
    assert axes.classes == ()
    assert any("divide it in ways that do not fit" in p.pin.reason for p in axes.pinned)
