"""Processes into networks and copies."""

import pytest
import torch.distributed as dist

from pararealize.distributed.mesh import make_mesh, started_by_torchrun
from pararealize.errors import DistributedError
from tests.ranks import on_ranks


def test_a_launcher_sets_the_world(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not started_by_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_by_torchrun()


@pytest.mark.parametrize("world, n, options, told", [
    (3, 2, {}, r"3 processes cannot be divided into networks of 2 ranks \(2 segments\).*--ranks 1"),
    (2, 3, {}, r"2 processes cannot be divided into networks of 3 ranks \(3 segments\).*--ranks 2"),
    (4, 2, {"ranks": 4}, "4 ranks cannot hold 2 segments"),
    (4, 2, {"ranks": 0}, "0 ranks cannot hold 2 segments"),
    (2, 2, {"device": "cuda:0"}, "the device is 'cuda:0'; over several processes it is 'cpu' or 'cuda'"),
])  # fmt: skip
def test_refusals(monkeypatch, world, n, options, told):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(DistributedError, match=told):
        make_mesh(n, **options)


def meshes():
    import os

    os.environ["WORLD_SIZE"] = str(dist.get_world_size())
    made = [make_mesh(2, device="cpu"), make_mesh(1, device="cpu"), make_mesh(6, ranks=2, device="cpu")]
    return [(mesh.mesh_dim_names, tuple(mesh.mesh.shape), mesh["dp"].get_local_rank()) for mesh in made]


def test_meshes():
    first, second = on_ranks(2, meshes)
    names = ("dp", "parareal")
    assert first == [(names, (1, 2), 0), (names, (2, 1), 0), (names, (1, 2), 0)]
    assert [copy for _, _, copy in second] == [0, 1, 0]
