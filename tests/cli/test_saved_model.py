"""A folder in the place of MODEL: names of models go before it, and what it says need not be said again."""

import pytest
import torch

from pararealize import pararealize
from pararealize.errors import ModelError
from pararealize_cli.saved_model import check_options, example, is_saved, leaf_modules, original, segments
from tests.models import Perceptron

CODE = "from tests.models import Perceptron\ndef deep(): return Perceptron()\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    net = pararealize(Perceptron(), 2, example_inputs=torch.randn(2, 8))
    return net, str(net.save(tmp_path / "net", model="nets.py:deep"))


def test_which_words_are_folders(folder, tmp_path):
    net, path = folder
    assert is_saved(path)
    assert is_saved("net")
    net.save(tmp_path / "resnet20")
    assert not is_saved("resnet20")
    assert is_saved("./resnet20")
    (tmp_path / "run").mkdir()
    assert not is_saved("run")
    net.save(tmp_path / "run" / "network")
    assert is_saved("run")
    assert not is_saved("n" * 300)


def test_what_a_folder_says(folder):
    net, path = folder
    assert (segments(path), leaf_modules(path)) == (2, [])
    assert [value.shape for value in example(path)] == [(2, 8)]
    assert example(path, meta=True)[0].is_meta
    model, doubt = original(path, "nets.py:deep")
    assert torch.equal(model.state_dict()["0.weight"], net.state_dict()["0.weight"])
    assert doubt == ""
    with torch.no_grad():
        net.get_submodule("0").weight.add_(1)
    net.save("trained", model="nets.py:deep")
    assert "have changed since it was converted" in original("trained", "nets.py:deep")[1]


def test_options_that_say_nothing(folder):
    check_options(folder[1], num_classes=None, built_by="nets.py:deep")
    with pytest.raises(ModelError, match="says how its model is built; leave it out"):
        check_options(folder[1], num_classes=3, built_by=None)
    with pytest.raises(ModelError, match="is no network's folder"):
        check_options("resnet20", num_classes=None, built_by="nets.py:deep")


def test_a_folder_without_a_network_is_told(tmp_path, monkeypatch):
    """What restack wrote is named by its model.py; of any other folder it is not said that nothing has such a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rs").mkdir()
    with pytest.raises(ModelError, match=r"the folder rs is there, and holds no saved network: there is no manifest"):
        check_options("rs", num_classes=None, built_by=None)
    for name in ("restacking.json", "model.py"):
        (tmp_path / "rs" / name).touch()
    with pytest.raises(ModelError, match=r"restack wrote, .*; write rs/model.py:load in the place of MODEL"):
        check_options("rs", num_classes=None, built_by=None)
