"""One file of tensors: read as it was written, or refused; every bit of it counts, and nothing is unpickled."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.torch import load_file, save_file

from pararealize.distributed.checkpoint.tensor_file import ENTRY, open_tensors, write_tensors
from pararealize.errors import CheckpointError
from pararealize.manifest import tensors_digest

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "count": torch.tensor(7),
    "none": torch.empty(0, 3),
    "complex": torch.ones(2, dtype=torch.complex64),
}


def read(path):
    with open_tensors(path) as file:
        return {name: file.tensor(name) for name in file.forms}


def same(values):
    return values.keys() == TENSORS.keys() and all(
        torch.equal(values[name], tensor) and values[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def write_torch(path, values=None):
    torch.save(TENSORS if values is None else values, path)


@pytest.fixture(scope="module", params=[lambda path: write_tensors(path, TENSORS), write_torch], ids=["ours", "torch"])
def content(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "file"
    request.param(path)
    assert same(read(path))
    with open_tensors(path) as file:
        assert all(
            (file.forms[name].dtype, file.forms[name].shape) == (t.dtype, t.shape) for name, t in TENSORS.items()
        )
    return path.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=strategies.floats(0, 1, exclude_max=True), bit=strategies.integers(0, 7))
def test_a_flipped_bit_is_harmless_or_told(content, tmp_path, place, bit):
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= 1 << bit
    file = tmp_path / "file"
    file.write_bytes(damaged)
    try:
        values = read(file)
    except CheckpointError:
        return
    assert same(values)


def test_no_bit_of_the_metadata_turns_the_digests_off(tmp_path):
    file = tmp_path / "file"
    write_tensors(file, TENSORS, {"n": 2})
    with open_tensors(file) as opened:
        assert opened.facts == {"n": 2}
    content = file.read_bytes()
    for _ in range(4):
        write_tensors(file, TENSORS, {"n": 2})
        assert file.read_bytes() == content
    begin = content.index(ENTRY.encode())
    for place in range(begin - 1, begin + 150):  # its name, and the beginning of its value
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            with open_tensors(file) as opened:
                assert opened.facts == {"n": 2}
        except CheckpointError:
            continue
    save_file(TENSORS, file, metadata={ENTRY: json.dumps({n: tensors_digest({n: t}) for n, t in TENSORS.items()})})
    assert same(read(file))  # of an earlier version


def test_a_file_ends_early(content, tmp_path):
    for size in (0, 3, 9, len(content) // 2, len(content) - 1):
        (tmp_path / "file").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(tmp_path / "file")


def test_other_programs_read_and_write_such_files(tmp_path):
    write_tensors(tmp_path / "ours", TENSORS)
    assert same(load_file(tmp_path / "ours"))
    save_file(TENSORS, tmp_path / "theirs")
    assert same(read(tmp_path / "theirs"))
    (tmp_path / "link").symlink_to("theirs")
    assert same(read(tmp_path / "link"))


@pytest.mark.parametrize("digests", ["[]", "{}", '{"weight": 1}', json.dumps(dict.fromkeys(TENSORS, "0" * 64)), "{"])
def test_digests_that_do_not_fit(tmp_path, digests):
    save_file(TENSORS, tmp_path / "file", metadata={ENTRY: digests})
    with pytest.raises(CheckpointError, match=r"other tensors than were|is not what was written|cannot be read"):
        read(tmp_path / "file")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/unpickled"),)


@pytest.mark.parametrize("values, told", [
    ({"weight": Trap()}, "file of torch.save with more in it than tensors by name"),
    (torch.nn.Linear(2, 2), "such as a whole module.*save model.state_dict"),
    ({"model": TENSORS}, r"more than tensors with values \(1 others: 'model'\)"),
    ({"weight": torch.ones(2).to_sparse()}, "more than tensors with values"),
    ([torch.ones(2)], "holds a list, and no tensors by name"),
])  # fmt: skip
def test_what_is_no_state_dict(tmp_path, values, told):
    write_torch(tmp_path / "file", values)
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path / "file")


def test_the_oldest_files_of_torch_have_no_checksums(tmp_path):
    torch.save(TENSORS, tmp_path / "file", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6, without checksums; load it with"):
        read(tmp_path / "file")
    for protocol in (2, 3, 4, 5):
        torch.save(TENSORS, tmp_path / "file", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6, without checksums; load it with"):
            read(tmp_path / "file")
        (tmp_path / "file").write_bytes(pickle.dumps({"weight": 1}, protocol))
        with pytest.raises(CheckpointError, match=r"is a pickle, and no file of torch\.save"):
            read(tmp_path / "file")
