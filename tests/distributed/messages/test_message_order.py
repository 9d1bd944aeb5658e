"""Messages by name: what is learnt in the first step, what is posted ahead, and what disagrees is named."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.distributed.messages import message_order
from pararealize.distributed.messages.message_order import StepMessages, message_tags
from pararealize.distributed.messages.point_to_point import PointToPoint
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError
from tests.ranks import on_ranks


def channel_of():
    watch = Watch(dist.group.WORLD, who=["rank 0", "rank 1"], timeout=20.0)
    return PointToPoint(
        dist.group.WORLD, dist.group.WORLD, torch.device("cpu"), timedelta(seconds=20), "number {}".format, watch
    )


def value_of(step):
    return {"a": torch.full((2, 3), float(step)), "b": (torch.arange(2), f"step {step}", None)}


def test_every_name_has_an_even_tag_of_its_own() -> None:
    tags = message_tags(["x_1", "z_1", "s_1", "z_1"])
    assert list(tags) == ["x_1", "z_1", "s_1"]
    assert all(tag > 0 and tag % 2 == 0 for tag in tags.values())
    assert len(set(tags.values())) == 3


@settings(max_examples=20)
@given(st.integers(0, 1 << 40), st.integers(0, 30))
def test_messages_of_different_signatures_have_different_tags(signature: int, names: int) -> None:
    """What fits no receive is neither taken for something else nor written over the end of its memory."""
    tags: dict[int, set[int]] = {}
    for number in (signature, signature + 1):
        channel = mock.create_autospec(PointToPoint, instance=True, rank=0, device=torch.device("cpu"))
        messages = StepMessages(channel, message_tags(f"v{i}" for i in range(names)), number)
        for name in [f"v{i}" for i in range(names)] + ["ordered"]:
            messages.send(name, torch.ones(2), 1)
            messages.send_gradients(name, [None], 1)
        tags[number] = {call.args[3] for call in channel.isend.call_args_list}
        assert len(tags[number]) == 2 * (names + 1)
        assert all(0 <= tag < 1 << 30 for tag in tags[number])
    assert not tags[signature] & tags[signature + 1]


def back_and_forth():
    """Three steps: descriptions go along in the first one alone; messages of two names may overtake each other."""
    channel = channel_of()
    messages = StepMessages(channel, message_tags(["v", "w"]))
    seen, objects = [], []
    send_object = channel.send_object
    channel.send_object = lambda *arguments: (objects.append(arguments[0]), send_object(*arguments))
    for step in range(3):
        if channel.rank == 0:
            messages.send("v", value_of(step), 1)
            if step == 0:
                messages.send("w", torch.ones(0), 1)
            pending = messages.expect_gradients("v", 1)
            seen.append([gradient.tolist() for gradient in messages.receive_gradients(pending)])
        else:
            pending = messages.expect("v", 0)
            assert (pending.works is not None) == messages.formats_known
            value = messages.receive(pending)
            if step == 0:
                assert messages.receive(messages.expect("w", 0)).shape == (0,)
            seen.append((value["a"].mean().item(), value["b"][0].tolist(), value["b"][1]))
            messages.send_gradients("v", [None if step == 1 else value["a"] * 2], 0)
        channel.flush()
        messages.formats_known = True
    return seen, objects


def test_formats_are_sent_once_and_gradients_go_back() -> None:
    (gradients, objects), (values, _) = on_ranks(2, back_and_forth)
    assert objects == ["v", "w"]
    assert [mean for mean, _, _ in values] == [0.0, 1.0, 2.0]
    assert {text for _, _, text in values} == {"step 0"}  # what is no tensor is part of the format
    assert gradients == [[[[number] * 3] * 2] for number in (0.0, 0.0, 4.0)]  # None stood for zeros in the second step


def disagreements():
    channel = channel_of()
    messages = StepMessages(channel, {})
    if channel.rank == 0:
        messages.send("z_1", torch.ones(2), 1)
        channel.flush()
        messages.formats_known = True
        with pytest.raises(DistributedError) as error:
            messages.send("z_1", torch.ones(3), 1)
    else:
        with pytest.raises(DistributedError) as error:
            messages.receive(messages.expect("s_1", 0))
        work = channel.irecv(torch.empty(2), 0, 0)  # so that the sender's message leaves
        channel.wait_for_message(work, "z_1", 0)
    return str(error.value)


def test_what_does_not_fit_is_named_on_both_sides() -> None:
    sender, receiver = on_ranks(2, disagreements)
    assert sender.startswith("number 0: z_1 is (3,) float32, and with inputs like these it was (2,) float32 before")
    assert receiver == "number 1 expected s_1 from number 0, which sent z_1"


def for_all():
    channel = channel_of()
    messages = StepMessages(channel, {})
    shared = []
    for step, dtype in enumerate([torch.float32, torch.float64, torch.bfloat16]):
        loss = torch.full((1,) * step, 1.5 + step, dtype=dtype)
        value, work = messages.share("loss", loss if channel.rank == 1 else None, 1)
        channel.wait(work, "loss", 1)
        assert (value.dtype, value.shape) == (torch.float32, ())
        shared.append(value.item())
        messages.formats_known = True
    copy = messages.copy_to_all(value_of(7) if channel.rank == 0 else None, 0)
    return shared, copy["a"].tolist(), copy["b"][1:]


def sums():
    """Of parts in two types, twice, and of their gradients; then of parts that do not fit."""
    channel, found = channel_of(), []
    for direct in (4, 0):  # to each other, and by the backend
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(message_order, "_DIRECT", direct)
            messages = StepMessages(channel, message_tags(["w_1"]), direct)
            for step in range(2):
                part = torch.tensor([0.5, step + 1 / 3]) * (channel.rank + 1)
                part = part.half() if channel.rank else part
                total = messages.sum_over_ranks("w_1", part, messages.expect_parts("w_1"))
                pending = messages.expect_parts("w_1", gradients=True)
                assert len(pending) == (direct > 0)
                gradient = messages.sum_over_ranks("w_1", total if channel.rank else None, pending, gradients=True)
                assert total.dtype is torch.float32
                assert torch.equal(gradient, total)
                found.append(total.tolist())
                channel.flush()
                messages.formats_known = True
            for faulty in (messages, StepMessages(channel, message_tags(["w_1"]), direct + 1)):
                with pytest.raises(DistributedError) as error:
                    faulty.sum_over_ranks("w_1", torch.ones(3 + channel.rank), [])
                found.append(str(error.value))
    return found


def test_a_loss_an_output_and_a_sum_are_given_to_all() -> None:
    shared, totals = zip(*on_ranks(2, for_all_and_sums), strict=True)
    assert shared == (([1.5, 2.5, 3.5], [[7.0] * 3] * 2, ("step 7", None)),) * 2
    first, last = totals
    for ours, theirs in zip(first[:2] + first[4:6], last[:2] + last[4:6], strict=True):
        assert ours == theirs
    assert first[:2] == first[4:6] == [[1.5, pytest.approx(1.0, rel=1e-3)], [1.5, pytest.approx(4.0, rel=1e-3)]]
    assert last[2].startswith("number 1: its part of w_1 is (4,) float32, and with inputs like these it was (2,)")
    assert "the ranks' parts of w_1 are (3,) float32, (4,) float32, and cannot be summed" in first[3]


def for_all_and_sums():
    return for_all(), sums()
