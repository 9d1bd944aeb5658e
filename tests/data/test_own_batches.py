"""Batches of the user's own: every form that the commands take, part by part, and refusals."""

import pytest
import torch

from pararealize.data import OwnBatches, digits, own_data
from pararealize.errors import DataError

CODE = """
import torch
from pararealize.data import digits

CALLS = []

def stream():
    CALLS.append(1)
    for i in range(3):
        yield torch.full((4, 2), float(i)), torch.arange(4)

def listed(): return [(torch.zeros(4, 2), torch.arange(4)), (torch.ones(4, 2), torch.arange(4))]
def parts(): return stream, [(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))]
def dicts(): return [{"ids": torch.zeros(4, 3, dtype=torch.long), "labels": torch.arange(4)}] * 2
def unlabelled(): return [torch.zeros(4, 2)] * 3, [torch.ones(4, 2)] * 4
def either(): return [torch.zeros(4, 2)] * 2, [torch.ones(4, 2)] * 2
def triples(): return [(torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(4))] * 3
def wrapped(): return [[torch.zeros(4, 2)]] * 3
def plain(): return [torch.zeros(4, 2)]
def named(): return digits(image_size=8)
def nothing(): return []
def number(): return 3
def broken(): raise RuntimeError("no disk")
value = 3
"""


@pytest.fixture
def code(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(CODE)
    return lambda name: f"{file}:{name}"


def sizes(batches):
    return [len(batch[0]) for batch in batches]


def test_a_generator_is_called_anew_for_every_pass(code):
    data = own_data(code("stream"))
    assert isinstance(data, OwnBatches)
    for _ in range(2):
        assert sizes(data.batches()) == sizes(data.test_batches()) == [4, 4, 4]
    assert torch.equal(data.example(), torch.zeros(2, 2))


def test_a_list_of_two_batches_is_no_pair_of_parts(code):
    assert not own_data(code("listed")).has_test
    data = own_data(code("parts"))
    assert data.has_test
    assert (sizes(data.batches()), sizes(data.test_batches())) == ([4, 4, 4], [3])


def test_parts_may_be_lists_of_tensors(code):
    data = own_data(code("unlabelled"))
    assert data.has_test
    assert [len(list(batches)) for batches in (data.batches(), data.test_batches())] == [3, 4]
    assert sizes(own_data(code("wrapped")).batches()) == [4, 4, 4]


def test_a_data_set_has_as_many_samples_as_were_asked_for(code):
    data = own_data(code("named"), count=(20, 10))
    assert (data.train_count, data.test_count) == (20, 10)


def test_count_cuts_within_a_batch(code):
    data = own_data(code("parts"), count=(6, 2))
    assert (sizes(data.batches()), sizes(data.test_batches())) == ([4, 2], [2])
    assert [len(batch["labels"]) for batch in own_data(code("dicts"), count=(5, 5)).batches()] == [4, 1]


def test_all_samples_for_training(code):
    data = own_data(code("parts")).dataset(5, seed=1)
    assert (data.train_count, data.test_count, data.classes, data.batch_size) == (12, 3, 4, 5)
    assert torch.equal(data.images[4:8], torch.ones(4, 2))
    for name in ("dicts", "plain"):
        with pytest.raises(DataError, match="they have to be pairs of a tensor and whole numbers"):
            own_data(code(name)).dataset(5, seed=1)


def test_examples_have_no_labels(code):
    assert list(own_data(code("dicts")).example()) == ["ids"]
    assert own_data(code("plain")).example(3).shape == (3, 2)
    assert own_data(code("named")).name == digits().name


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "gives no batch"),
        ("number", "gives a int; give batches"),
        ("broken", "failed: RuntimeError: no disk"),
        ("either", r"may be two parts of two batches or two batches with labels; write batches with labels as tuples"),
        ("triples", r"gives a batch of 3 things, .*; give inputs, \(inputs, labels\)"),
        ("value", "is a int, which cannot be called"),
    ],
)
def test_refusals(code, name, message):
    with pytest.raises(DataError, match=message):
        own_data(code(name))
