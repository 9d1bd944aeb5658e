"""Options of the data: counts, channels that fit the model, means, batches of one's own, refusals."""

import pytest

from pararealize.data import OwnBatches
from pararealize.errors import DataError
from pararealize_cli.data_options import DataOptions
from tests.archive_files import listed, write_mnist


def test_images_come_with_the_models_channels(tmp_path, monkeypatch):
    write_mnist(tmp_path, (20, 10), "FashionMNIST")
    listed("fashion_mnist", tmp_path, monkeypatch)
    options = {"data": "fashion_mnist", "data_dir": tmp_path, "count": "16,4"}
    data = DataOptions(**options).load(0, model="resnet20")
    assert (data.shape, data.train_count, data.test_count) == ((3, 28, 28), 16, 4)
    assert DataOptions(**options).load(0).shape == (1, 28, 28)
    assert DataOptions(**options, channels=1).load(0, model="resnet20").shape == (1, 28, 28)
    assert DataOptions(**options, mean="0.5", std="0.5").load(0).example().abs().max() <= 1


def test_batches_of_ones_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import torch\ndef batches(): return [(torch.zeros(4, 2), torch.arange(4))] * 2\n")
    options = DataOptions(data=f"{file}:batches", count="6")
    assert options.is_own
    assert isinstance(options.load(0), OwnBatches)
    assert options.for_training(0).train_count == 6
    with pytest.raises(DataError, match=r"--image-size, --mean is said of images of a set by name"):
        DataOptions(data=f"{file}:batches", image_size=8, mean="0").load(0)


def test_a_data_set_of_ones_own_is_as_options_say(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from pararealize.data import load\ndef points(): return load('peaks', batch_size=50, seed=2)\n")
    data = DataOptions(data=f"{file}:points").for_training(0)
    assert (data.train_count, data.batch_size, data.seed) == (5000, 50, 2)
    data = DataOptions(data=f"{file}:points", count="100,40", batch_size=10).for_training(3)
    assert (data.train_count, data.test_count, data.batch_size, data.seed) == (100, 40, 10, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"count": "many"}, "--count 'many' are no numbers"),
        ({"count": "1,2,3"}, "--count '1,2,3' are no numbers"),
        ({"count": "1,²"}, "--count '1,²' are no numbers"),
        ({"count": "9" * 5000}, "are no numbers"),
        ({"count": "1,,2"}, "are no numbers"),
        ({"count": "0,5"}, "--count '0,5' are no numbers"),
        ({"mean": "a", "std": "1"}, "--mean 'a' are no numbers"),
        ({"mean": "0.5"}, "are no means and deviations"),
        ({"mean": "123.7", "std": "58"}, "write both, numbers from 0 to 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(DataError, match=message):
        DataOptions(**options).load(0)


def test_data_by_options():
    data = DataOptions(batch_size=100, image_size=8).load(seed=1)
    assert "batches of 100" in str(data)
    assert data.example().shape[-1] == 8


def test_names_of_sets_are_no_code():
    assert not any(DataOptions(data=name).is_own for name in ("digits", "glyphs:dirty", "imagefolder:some.folder"))
    assert DataOptions(data="package:batches").is_own
