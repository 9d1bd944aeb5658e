"""Calls of converted networks: nested inputs, optional ones, defaults; what does not fit is a typed error."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize import LocalModule, layer_parallel, pararealize, restack
from pararealize.calibration import calibrate
from pararealize.errors import ExampleError, RecordingWarning
from pararealize.network.local import run_local
from pararealize.network.measurement import measure_network
from pararealize.tracing.call_signature import as_call, binds
from pararealize.tracing.containers import leaves_of, map_leaves

Pair = namedtuple("Pair", ["cat", "num"])
ODD = object()


@dataclasses.dataclass
class Batch:
    cat: Tensor
    num: Tensor
    scale: float = 1.0


class Blocks(nn.Module):
    """Residual blocks behind an embedding of categories and a linear map of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(5, 8), nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(5))
        self.last = nn.Linear(8, 2)

    def rest(self, cat: Tensor, num: Tensor) -> Tensor:
        x = self.embed(cat).sum(1) + self.linear(num)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class OfDict(Blocks):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.rest(batch["cat"], batch["num"])


class OfNamed(Blocks):
    def forward(self, batch: Any, factor: float = 1.0) -> Tensor:
        return self.rest(batch.cat, batch.num) * factor


class OfList(Blocks):
    def forward(self, tensors: list[Tensor]) -> Tensor:
        return self.rest(*tensors)


class Deep(Blocks):
    def forward(self, *, data: dict[str, Any]) -> Tensor:
        inner = data["inner"][1]
        return self.rest(inner["cat"], inner["num"][0]) + data["inner"][0]


CAT, NUM = torch.randint(0, 5, (4, 2)), torch.randn(4, 3)
CASES: list[tuple[type[Blocks], Any, str]] = [
    (OfDict, ({"cat": CAT, "num": NUM},), "batch['cat']"),
    (OfDict, {"cat": CAT, "num": NUM}, "batch['num']"),  # no keyword arguments of the forward, so the one argument
    (OfDict, (OrderedDict(num=NUM, cat=CAT),), "batch['num']"),
    (OfNamed, (Pair(CAT, NUM),), "batch.cat"),
    (OfNamed, (Batch(CAT, NUM), 2.0), "batch.num"),
    (OfNamed, {"batch": Batch(CAT, NUM)}, "factor = 1.0"),
    (OfList, ([CAT, NUM],), "tensors[0]"),
    (Deep, {"data": {"inner": (1.5, {"cat": CAT, "num": [NUM]})}}, "data_inner_1['num']"),
]


def call(net: nn.Module, inputs: Any, original: nn.Module | None = None) -> Any:
    args, kwargs = arguments(original or net, inputs)
    return net(*args, **kwargs)


def arguments(net: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_call(inputs)
    return (args, kwargs) if binds(inspect.signature(net.forward), args, kwargs) else ((inputs,), {})


def others(inputs: Any, rows: int) -> Any:
    """Inputs of another batch size and other values."""
    return map_leaves(lambda leaf: leaf.flip(0)[:rows] if isinstance(leaf, Tensor) else leaf, inputs)


@pytest.mark.parametrize("model, inputs, code", CASES)
def test_every_way_to_run_takes_nested_inputs(model: type[Blocks], inputs: Any, code: str) -> None:
    torch.manual_seed(0)
    original = model().eval()
    one, net = (pararealize(original, n=n, example_inputs=inputs, coarse="linear") for n in (1, 3))
    assert code in net.code, net.code
    y = call(net, inputs)
    for batch in (inputs, others(inputs, 3)):
        true = call(original, batch)
        assert torch.equal(call(one, batch), true)
        assert torch.equal(net.iterate(batch, 2), true)
        assert torch.equal(call(restack(original, "euler", example_inputs=inputs), batch), true)
        layers = layer_parallel(original, coarsening=2, example_inputs=inputs)
        with layers.serially():
            assert torch.equal(call(layers, batch, original), true)
        layers.forward_iterations = 5
        torch.testing.assert_close(call(layers, batch, original), true)
    assert torch.equal(call(copy.deepcopy(net), inputs), y)
    assert torch.equal(call(run_local(net), inputs, original), y)
    assert torch.equal(call(run_local(net, inputs, stack="auto"), inputs, original), y)
    torch.testing.assert_close(call(torch.compile(net, backend="eager", fullgraph=True), inputs, original), y)
    times, _ = measure_network(net, inputs, repeats=1, warmup=0, beside={"original": (original, inputs)})
    assert len(times.segments) == 3


@pytest.mark.parametrize("inputs", [CASES[0][1], CASES[3][1], CASES[5][1]])
def test_export_takes_nested_inputs(inputs: Any) -> None:
    model = OfDict if isinstance(inputs[0] if isinstance(inputs, tuple) else inputs, dict) else OfNamed
    if isinstance(inputs, dict):
        torch.export.register_dataclass(Batch)
        model = OfNamed
    net = pararealize(model().eval(), n=2, example_inputs=inputs, coarse="linear").eval()
    args, kwargs = arguments(net, inputs)
    torch.testing.assert_close(torch.export.export(net, args, kwargs).module()(*args, **kwargs), call(net, inputs))


def test_gradients_reach_nested_inputs() -> None:
    net = pararealize(OfDict(), n=1, example_inputs={"cat": CAT, "num": NUM})
    num = NUM.clone().requires_grad_()
    net({"cat": CAT, "num": num}).sum().backward()
    (expected,) = torch.autograd.grad(OfDict.forward(net_of(net), {"cat": CAT, "num": num}).sum(), num)
    assert num.grad is not None
    torch.testing.assert_close(num.grad, expected)


def net_of(net: Any) -> OfDict:
    model = OfDict()
    model.load_state_dict(net.original_state_dict())
    return model


@pytest.mark.parametrize("labels", [False, True])
def test_calibration_takes_nested_inputs(labels: bool) -> None:
    inputs = {"cat": CAT, "num": NUM}
    net = pararealize(OfDict().eval(), n=2, example_inputs=inputs, coarse="linear")
    y = torch.zeros(4, dtype=torch.long)
    for batch in ((inputs, y), {"batch": inputs, "labels": y}, {**inputs, "labels": y} if labels else inputs):
        report = calibrate(net, [batch])
        assert report is not None
    with pytest.raises(ExampleError, match=r"no input|dict of cat"):
        calibrate(net, [{"labels": y}])


def test_items_of_star_arguments_are_arguments() -> None:
    class Positional(Blocks):
        def forward(self, cat: Tensor, scale: float = 2.0, *rest: Tensor) -> Tensor:
            return self.rest(cat, rest[0] + rest[1]) * scale

    class ByName(Blocks):
        def forward(self, cat: Tensor, **more: Tensor) -> Tensor:
            return self.rest(cat, more["num"] + more["shift"])

    shift = torch.randn(4, 3)
    positional, by_name = Positional().eval(), ByName().eval()
    net = pararealize(positional, n=1, example_inputs=(CAT, 2.0, NUM, shift))
    assert torch.equal(net(CAT, 2.0, NUM, shift), positional(CAT, 2.0, NUM, shift))
    for args in ((CAT,), (CAT, 2.0, NUM)):  # which the original does not take either
        with pytest.raises(ExampleError, match=r"rest_\d|does not take"):
            net(*args)
    with pytest.warns(RecordingWarning, match="other arguments"):
        y = net(CAT, 2.0, NUM, shift, shift)
    assert torch.equal(y, positional(CAT, 2.0, NUM, shift, shift))
    net = pararealize(by_name, n=1, example_inputs={"cat": CAT, "num": NUM, "shift": shift})
    assert torch.equal(net(CAT, shift=shift, num=NUM), by_name(CAT, num=NUM, shift=shift))
    with pytest.raises(ExampleError, match=r"does not accept.*'shift'"):
        net(CAT, num=NUM)


class Optional(Blocks):
    """A forward of the usual kind: optional tensors, flags, a default that no code can show."""

    def forward(
        self, num: Tensor, mask: Tensor | None = None, flag: bool = False, odd: object = ODD, *, cat: Tensor
    ) -> Tensor:
        x = self.rest(cat, num)
        if mask is not None:
            x = x * mask
        return x if odd is ODD else x + 1


MASK = torch.rand(4, 1)


def test_calls_in_every_way_that_fits() -> None:
    model = Optional().eval()
    plain = pararealize(model, n=1, example_inputs={"num": NUM, "cat": CAT})
    masked = pararealize(model, n=1, example_inputs={"num": NUM, "cat": CAT, "mask": MASK})
    y = model(NUM, cat=CAT)
    for kwargs in ({}, {"mask": None}, {"flag": False}, {"odd": ODD}, {"odd": None}):
        assert torch.equal(plain(NUM, cat=CAT, **kwargs), y)
    assert torch.equal(plain(cat=CAT, num=NUM), y)
    y = model(NUM, MASK, cat=CAT)
    for args, kwargs in (((NUM, MASK), {}), ((NUM,), {"mask": MASK}), ((), {"num": NUM, "mask": MASK, "flag": False})):
        assert torch.equal(masked(*args, **kwargs, cat=CAT), y)


@pytest.mark.parametrize(
    "captured, args, kwargs, words",
    [
        ({}, (NUM, MASK), {}, "'mask' is a tensor, and the network was captured without it .None."),
        ({"mask": MASK}, (NUM,), {}, "'mask' is None, and the network was captured with a tensor"),
        ({"mask": MASK}, (NUM, None), {}, "'mask' is None, and the network was captured with a tensor"),
        ({"mask": None}, (NUM, MASK), {}, "'mask' is a tensor, and the network was captured with None"),
        ({}, (NUM,), {"flag": True}, "'flag' is True, and the network was captured without it .False."),
        ({"flag": True}, (NUM,), {}, "'flag' is False, and the network was captured with True"),
        ({}, (NUM,), {"odd": 1}, "'odd' is 1, and the network was captured without it"),
        ({}, (None,), {}, "'num' is None, and the network was captured with a tensor"),
        ({}, ([NUM],), {}, "'num' is a list of 0, and the network was captured with a tensor"),
        ({}, (), {}, r"Optional does not take this call: missing.*'num'; pass .* \(num, mask=None"),
        ({}, (NUM,), {"masks": MASK}, "Optional does not take this call: got an unexpected.*'masks'"),
        ({}, (NUM,) * 6, {}, "Optional does not take this call: "),
    ],
)
def test_other_arguments_are_recorded_anew_or_refused(
    captured: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], words: str, capsys: Any
) -> None:
    model, example = Optional().eval(), {"num": NUM, "cat": CAT, **captured}
    net = pararealize(model, n=2, example_inputs=example, coarse="linear")
    ways = [
        pararealize(model, n=1, example_inputs=example),
        run_local(net),
        layer_parallel(model, coarsening=2, example_inputs=example, exact=True),
        restack(model, "euler", example_inputs=example),
    ]
    try:
        expected = model(*args, **{"cat": CAT, **kwargs})
    except (TypeError, AttributeError):
        expected = None
    for way in ways:
        if expected is None:
            with pytest.raises(ExampleError, match=words):
                way(*args, **{"cat": CAT, **kwargs})
        else:
            with pytest.warns(RecordingWarning, match=words):
                y = way(*args, **{"cat": CAT, **kwargs})
            assert y.shape == expected.shape
            assert isinstance(way, LocalModule) or torch.equal(y, expected)
    with pytest.raises(ExampleError):
        net.iterate({**dict(zip(("num", "mask"), args, strict=False)), "cat": CAT, **kwargs, "none": ODD}, 1)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "batch, words",
    [
        ({"cat": CAT}, "'batch' is a dict of cat, and the network was captured with a dict of cat, num"),
        ({"cat": CAT, "number": NUM}, "a dict of cat, number"),
        ({"cat": CAT, "num": [NUM]}, r"batch\['num'\] is a list of 0, and the network was captured with a tensor"),
        ({"cat": CAT, "num": None}, r"batch\['num'\] is None"),
        ([CAT, NUM], "'batch' is a list of 0, 1"),
        (Pair(CAT, NUM), "'batch' is a Pair of cat, num"),
        (CAT, "'batch' is a tensor, and the network was captured with a dict"),
        (None, "'batch' is None"),
    ],
)
def test_other_nesting_is_refused(batch: Any, words: str) -> None:
    net = pararealize(OfDict(), n=1, example_inputs=({"cat": CAT, "num": NUM},))
    with pytest.raises(ExampleError, match=words):
        net(batch)
    assert net({"num": NUM, "cat": CAT}).shape == (4, 2)  # in any order


def test_a_list_may_come_as_a_tuple() -> None:
    model = OfList().eval()
    net = pararealize(model, n=1, example_inputs=([CAT, NUM],))
    assert torch.equal(net((CAT, NUM)), model([CAT, NUM]))
    with pytest.raises(ExampleError, match="a list of 0, and the network"):
        net([CAT])


def test_keys_that_code_cannot_show_are_refused() -> None:
    with pytest.raises(ExampleError, match="with the key"):
        pararealize(OfDict(), n=1, example_inputs=({ODD: CAT, "num": NUM},))


leaves = st.sampled_from(["tensor", "tensor", "tensor", None, 2, "text", True])
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "a-b", "a_b", "x", 0]), inner, min_size=1, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Batch, inner, inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


class OfAnything(Blocks):
    """Every tensor of its inputs has a part in its output, with another weight; a plain value, too."""

    def forward(self, x: Tensor, nest: Any, last: Any = None) -> Tensor:
        total = torch.zeros_like(x)
        for i, leaf in enumerate(leaves_of((nest, last))):
            total = total + (i + 1) * (leaf if isinstance(leaf, Tensor) else float(len(str(leaf))))
        x = self.linear(x + total)
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.filterwarnings("ignore::pararealize.errors.RecordingWarning")
@settings(max_examples=8, deadline=None)
@given(nests, nests, st.booleans(), st.data())
def test_random_nested_inputs(nest: Any, last: Any, by_keyword: bool, data: st.DataObject) -> None:
    """n = 1 is the original, and no other nesting gives a number or another exception than ``ExampleError``."""

    def filled(value: Any) -> Any:
        return map_leaves(lambda leaf: torch.randn(4, 3) if isinstance(leaf, str) and leaf == "tensor" else leaf, value)

    x, model = torch.randn(4, 3), OfAnything().eval()
    inputs = {"x": x, "nest": filled(nest), "last": filled(last)} if by_keyword else (x, filled(nest), filled(last))
    net = pararealize(model, n=1, example_inputs=inputs)
    batch = map_leaves(lambda leaf: torch.randn_like(leaf) if isinstance(leaf, Tensor) else leaf, inputs)
    assert torch.equal(call(net, batch), call(model, batch))
    other = filled(data.draw(nests))
    assert torch.equal(
        net(x, other, inputs["last"] if by_keyword else inputs[2]),
        model(x, other, inputs["last"] if by_keyword else inputs[2]),
    )
