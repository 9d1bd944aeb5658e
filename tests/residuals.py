"""Networks of residual blocks, and what one pass of a network gives."""

import copy

import torch
import torchvision
from torch import Tensor, nn

F64 = torch.float64


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side)


def tiny_vit(layers: int = 4, dropout: float = 0.0) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, layers, 2, 32, 64, dropout=dropout)


def run(model: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradients and state after one pass of a copy."""
    net = copy.deepcopy(model).train(training)
    torch.manual_seed(3)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return y.detach(), grads, net.state_dict()


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, *, exact: bool, modes=(True, False)) -> None:
    for training in modes:
        (y, grads, state), (y2, grads2, state2) = run(ours, x, training), run(theirs, x, training)
        close = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-9, atol=1e-11)
        assert close(y, y2)
        assert list(grads) == list(grads2)
        assert all(close(grads[name], grads2[name]) for name in grads)
        assert list(state) == list(state2)
        assert all(close(state[name], state2[name]) for name in state)


class Branch(nn.Module):
    """The paper's f: conv(relu(norm(conv(relu(norm(z))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(z))))))


class Step(nn.Module):
    """One residual block of the network that is restacked."""

    def __init__(self, width: int, post: bool) -> None:
        super().__init__()
        self.f, self.post = Branch(width), nn.ReLU(inplace=True) if post else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.f(x)
        out += x
        return self.post(out)


class Stack(nn.Module):
    image_size = 32

    def __init__(self, depth: int, post: bool = True, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Step(width, post) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Tanh(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Bare(nn.Module):
    """Residual blocks without any norm."""

    def __init__(self, depth: int = 14, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4) if norm else nn.Tanh(), nn.Linear(4, 4), nn.Dropout(drop))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x
