"""What crosses the interfaces is what the original and the network themselves compute."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from pararealize import PararealModule, pararealize
from pararealize.calibration.interfaces import (
    InterfaceRecord,
    Interfaces,
    InterfaceValues,
)
from pararealize.errors import CalibrationError
from pararealize.network.parareal import messages
from tests.models import InPlace, MaskedTransformer, Perceptron, SharedBias, SmallResNet

NETWORKS = {
    "convolutions": (SmallResNet, torch.randn(4, 3, 8, 8)),
    "masks": (MaskedTransformer, torch.randint(0, 11, (4, 5))),
    "shared values": (SharedBias, torch.randn(4, 6)),
}
IMAGES = NETWORKS["convolutions"][1]


def converted(name: str, coarse: str = "linear", **options: object) -> tuple[nn.Module, PararealModule, Tensor]:
    make, x = NETWORKS[name]
    model = make().eval()
    return model, pararealize(model, 3, example_inputs=x, coarse=coarse, **options), x  # type: ignore[arg-type]


def computed(interfaces: Interfaces, x: Tensor) -> InterfaceValues:
    """The values of a network of one window, with x and y."""
    return interfaces.with_fine(interfaces.in_sequence(x), interfaces.windows[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coarse", ["linear", "exact", "block"])
def test_values_are_those_of_the_original_and_of_the_network(name: str, coarse: str) -> None:
    model, net, x = converted(name, coarse)
    interfaces = Interfaces(net)
    values = computed(interfaces, x)
    assert torch.equal(values.output, model(x))
    assert torch.equal(interfaces.result(values), net(x))
    assert not values.output.requires_grad
    assert sorted(values.x) == [(0, 2), (0, 3)]
    assert sorted(values.true) == sorted(values.y) == sorted(values.z) == [(0, 1), (0, 2), (0, 3)]


def test_corrected_values_are_those_of_the_mathematics() -> None:
    _, net, x = converted("convolutions")
    interfaces = Interfaces(net)
    values = computed(interfaces, x)
    adapters, segments = [net.stem, *net.adapters.values()], list(net.segments.values())
    z = messages(x, adapters, segments, list(net.coarse.values()))
    for j in (1, 2, 3):
        assert torch.equal(interfaces.corrected(values, (0, j)), z[j - 1])
    assert torch.equal(interfaces.residual(values, (0, 1)), z[0] - net.adapters["C2"](x))
    assert torch.equal(values.true[0, 2], segments[1](segments[0](net.stem(x))))


def test_corrections_read_what_the_first_segment_changes_in_place() -> None:
    x = torch.randn(4, 6)
    net = pararealize(InPlace().eval(), 2, example_inputs=x, coarse="dense", source="input")
    values = Interfaces(net).in_sequence(x)
    assert torch.equal(values.begins[1], net.stem(x)[0])


def test_what_is_there_is_not_computed_again() -> None:
    _, net, x = converted("convolutions")
    interfaces = Interfaces(net)
    values = computed(interfaces, x)
    y = dict(values.y)
    interfaces.corrected(values, (0, 3))
    with torch.no_grad():
        for parameter in (*net.adapters.parameters(), *net.coarse.parameters()):
            parameter.add_(1.0)
    assert all(interfaces.with_fine(values, interfaces.windows[0]).y[j] is y[j] for j in y)
    assert torch.equal(interfaces.corrected(values, (0, 2)), values.z[0, 2])
    again = computed(interfaces, x)
    assert not torch.equal(again.x[0, 2], values.x[0, 2])
    assert torch.equal(again.true[0, 3], values.true[0, 3])


def test_values_are_on_the_segments_devices() -> None:
    _, net, x = converted("convolutions", devices=["cpu", "cpu", "cpu"])
    interfaces = Interfaces(net)
    values = computed(interfaces, x)
    assert torch.equal(interfaces.result(values), net.eval()(x))


def test_values_that_are_not_finite_are_refused_with_their_place() -> None:
    _, net, x = converted("convolutions")
    with pytest.raises(CalibrationError, match=r"the output of segment 1 of the network in sequence .* in batch 7"):
        Interfaces(net).in_sequence(x * float("inf"), 7)


@pytest.mark.parametrize("keep, held", [(0, 1), (1 << 30, 3), ("two", 2)])
def test_a_record_holds_what_fits_and_computes_the_others_anew(keep: int | str, held: int) -> None:
    _, net, x = converted("convolutions")
    interfaces = Interfaces(net)
    room = 2 * interfaces.in_sequence(x).bytes if isinstance(keep, str) else keep
    passes = []

    def batches():
        passes.append(1)
        return iter([x, x + 1, x + 2])

    record = InterfaceRecord(interfaces, batches, keep=room)
    assert (len(record.in_memory), record.complete, record.count, record.samples) == (held, held == 3, 3, 12)
    outputs = [values.output for values in record]
    assert len(passes) == (1 if held == 3 else 2)
    assert all(torch.equal(output, interfaces.in_sequence(x + i).output) for i, output in enumerate(outputs))
    assert all(len(values.y) == 3 for values in record.with_fine(interfaces.windows[0]))
    fine = [dict(values.y) for values in record.in_memory]
    for values, before in zip(record.part(0, held), fine, strict=True):
        assert all(values.y[index] is y for index, y in before.items()), "what is in memory is not computed anew"


def test_windows_of_batches_that_are_not_in_memory_begin_where_they_began() -> None:
    """Later passes run no window again that a pass before them has run."""
    torch.manual_seed(0)
    net = pararealize(Perceptron(12), 2, windows=4, example_inputs=torch.randn(4, 8), coarse="linear", source="stem")
    interfaces, given = Interfaces(net.eval()), [torch.randn(4, 8) for _ in range(3)]
    keep = 2 * interfaces.in_sequence(given[0]).bytes + given[0].nbytes
    record = InterfaceRecord(interfaces, lambda: iter(given), keep=keep)
    assert len(record.in_memory) == 2
    ended: list[int] = []
    end = interfaces.end
    interfaces.end = lambda values, window: ended.append(window.m) or end(values, window)
    room = record.room
    for again in (False, True):
        ended.clear()
        for values in record:
            w = interfaces.begin(values, interfaces.windows[2])
            counted = len(ended)
            torch.testing.assert_close(w, interfaces.begin(values.anew(), interfaces.windows[2]), rtol=0, atol=0)
            del ended[counted:]
        assert ended == [1, 2] * (0 if again else 3)
    assert record.room < room
    record.forget(interfaces.windows[1])
    assert record.room == room


@pytest.mark.parametrize("own", [False, True])
def test_a_loader_that_shuffles_gives_the_same_batches_in_every_pass(own: bool) -> None:
    """Samples of the first pass's last fifth, which are held out, were fitted to in later passes."""
    _, net, _ = converted("shared values")
    generator = torch.Generator().manual_seed(0) if own else None
    loader = DataLoader(torch.randn(40, 6), batch_size=8, shuffle=True, generator=generator)
    record = InterfaceRecord(Interfaces(net), loader, keep=0, seed=3)
    torch.manual_seed(9)
    if own:
        with pytest.raises(
            CalibrationError, match=r"batch 2 is another one in a later pass .* no generator of its own"
        ):
            list(record)
        return
    passes = [torch.stack([values.output for values in record]) for _ in range(2)]
    assert torch.equal(*passes)
    held = torch.cat([values.output for values in record.part(4, 5)])
    assert torch.equal(held, passes[0][4])


def test_memory_of_windows_has_room_for_their_values() -> None:
    torch.manual_seed(0)
    net = pararealize(Perceptron(12), 2, windows=4, example_inputs=torch.randn(64, 8), coarse="linear", source="stem")
    interfaces = Interfaces(net)
    values = interfaces.in_sequence(torch.randn(64, 8))
    reserved = values.bytes
    interfaces.result(values)
    tensors = pytree.tree_leaves([getattr(values, field.name) for field in dataclasses.fields(values)])
    sizes = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)
    }
    assert 0.6 * reserved < sum(sizes.values()) <= reserved


def test_memory_is_that_of_all_values() -> None:
    _, net, x = converted("convolutions")
    interfaces = Interfaces(net)
    values = interfaces.in_sequence(x)
    before = values.bytes
    activations = sum(value.nbytes for value in values.true.values())
    assert before == x.nbytes + values.output.nbytes + 4 * activations, "adapters read one and the same input"
    interfaces.result(values)
    assert values.bytes == before
