"""Networks over images as public repositories write them, each in its author's manner."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

__all__ = [
    "EDSR",
    "FCN",
    "SRGAN",
    "VAE",
    "DnCNN",
    "Frozen",
    "Hooked",
    "MLPMixer",
    "PatchGAN",
    "Siamese",
    "UNet",
    "ViT",
    "WideResNet",
]  # fmt: skip


class DoubleConv(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    """Pads what it upsampled to the skip's size."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(n_in, n_out)

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        x1 = self.up(x1)
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    """Four levels, and residual blocks at the bottom."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width]
        self.inc = DoubleConv(3, width)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b)) for a, b in itertools.pairwise(sizes)
        )
        self.middle = nn.Sequential(*(ResidualUnit(8 * width) for _ in range(6)))
        self.ups = nn.ModuleList(Up(a + b, a) for a, b in zip(sizes[-2::-1], sizes[:0:-1], strict=True))
        self.outc = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.inc(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = self.middle(skips.pop())
        for up in self.ups:
            x = up(x, skips.pop())
        return self.outc(x)


class ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class SRGAN(nn.Module):
    """The generator: a long skip around all blocks, and pixel shuffling."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualUnit(width) for _ in range(6)))
        self.block7 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.last = nn.Conv2d(width, 3, 9, padding=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.block1(x)
        return (torch.tanh(self.last(self.up(first + self.block7(self.blocks(first))))) + 1) / 2


class EDSR(nn.Module):
    """Mean shift by a frozen convolution, scaled residuals, a plain tensor as attribute."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)
            )
            self.res_scale = 0.1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            res = self.body(x).mul(self.res_scale)
            res += x
            return res

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.sub_mean = nn.Conv2d(3, 3, 1)
        self.sub_mean.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.sub_mean.bias.data = -torch.tensor([0.45, 0.44, 0.40])
        self.sub_mean.requires_grad_(False)
        self.head = nn.Conv2d(3, width, 3, padding=1)
        body = [self.Block(width) for _ in range(8)]
        self.body = nn.Sequential(*body, nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.sub_mean(x))
        res = self.body(x)
        res += x
        return self.tail(res)


class DnCNN(nn.Module):
    def __init__(self, depth: int = 10, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=True), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=0.0001, momentum=0.95),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(width, 1, 3, padding=1, bias=False))
        self.dncnn = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        return y - self.dncnn(x)


class FCN(nn.Module):
    """A strided encoder, upsampled to the size of the picture, and a mean that is divided by its extent."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(ResidualUnit(width) for _ in range(6))
        self.classifier = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
        _, _, h, w = y.shape
        pooled = y.sum(dim=(2, 3)) / (h * w)
        out = F.interpolate(self.classifier(y), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": out, "pooled": pooled}


class MLPMixer(nn.Module):
    """einops' rearrangements written out."""

    class Mixer(nn.Module):
        def __init__(self, patches: int, d: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.tokens = nn.Sequential(
                nn.Conv1d(patches, 2 * patches, 1), nn.GELU(), nn.Conv1d(2 * patches, patches, 1)
            )
            self.channels = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.tokens(self.norm1(x))
            return x + self.channels(self.norm2(x))

    def __init__(self, side: int = 32, patch: int = 8, d: int = 32) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch * 3, d)
        self.mixers = nn.Sequential(*(self.Mixer((side // patch) ** 2, d) for _ in range(5)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        b, c, h, w = image.shape
        p = self.patch
        x = (
            image.reshape(b, c, h // p, p, w // p, p)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(b, (h // p) * (w // p), p * p * c)
        )
        return self.head(self.norm(self.mixers(self.embed(x))).mean(dim=1))


class ViT(nn.Module):
    """lucidrains' manner: a class token by repeat, positions cut to the length, heads by chunk."""

    class Attention(nn.Module):
        def __init__(self, dim: int, heads: int = 4, dim_head: int = 8) -> None:
            super().__init__()
            self.heads, self.scale = heads, dim_head**-0.5
            self.norm, self.attend, self.dropout = nn.LayerNorm(dim), nn.Softmax(dim=-1), nn.Dropout(0.1)
            self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
            self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2)
                for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
            )
            attention = self.dropout(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale))
            return self.to_out(torch.matmul(attention, v).transpose(1, 2).flatten(2))

    def __init__(self, side: int = 32, patch: int = 8, dim: int = 32) -> None:
        super().__init__()
        self.patch_embedding = nn.Sequential(nn.Unfold(patch, stride=patch), nn.Flatten(2))
        self.project = nn.Sequential(nn.LayerNorm(3 * patch**2), nn.Linear(3 * patch**2, dim), nn.LayerNorm(dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    self.Attention(dim),
                    nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)),
                ]
            )
            for _ in range(5)
        )
        self.mlp_head = nn.Linear(dim, 10)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        x = self.project(self.patch_embedding(img).transpose(1, 2))
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x += self.pos_embedding[:, : (n + 1)]
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.mlp_head(x[:, 0])


class PatchGAN(nn.Module):
    """A discriminator under spectral normalisation, whose vectors move with every call in train mode."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(3, width, 4, stride=2, padding=1))
        self.middle = nn.ModuleList(spectral_norm(nn.Conv2d(width, width, 3, padding=1)) for _ in range(5))
        self.last = spectral_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        for conv in self.middle:
            x = F.leaky_relu(conv(x), 0.2)
        return self.last(x)


class VAE(nn.Module):
    """The encoder, with a sample by reparametrisation in train mode and the mean in eval mode."""

    def __init__(self, width: int = 16, latent: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(*(ResidualUnit(width) for _ in range(5)))
        self.fc_mu, self.fc_var = nn.Linear(width * 64, latent), nn.Linear(width * 64, latent)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = torch.flatten(self.blocks(self.stem(x)), start_dim=1)
        mu, log_var = self.fc_mu(y), self.fc_var(y)
        std = torch.exp(0.5 * log_var)
        return [torch.randn_like(std) * std + mu, mu, log_var]


class Siamese(nn.Module):
    """One trunk that is called on each of two pictures."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), *(ResidualUnit(width) for _ in range(4)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 8),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x, y = self.trunk(a), self.trunk(b)
        return self.head(torch.cat([torch.abs(x - y), x * y], dim=-1))


class WideResNet(nn.Module):
    """Pre-activation blocks with dropout as a function, and weights' standardisation."""

    class StdConv(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.weight
            v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
            return F.conv2d(x, (w - m) / torch.sqrt(v + 1e-5), self.bias, self.stride, self.padding)

    class Basic(nn.Module):
        def __init__(self, n_in: int, n_out: int, stride: int) -> None:
            super().__init__()
            conv = WideResNet.StdConv
            self.bn1, self.conv1 = nn.BatchNorm2d(n_in), conv(n_in, n_out, 3, stride, 1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(n_out), conv(n_out, n_out, 3, 1, 1, bias=False)
            self.equal = n_in == n_out
            self.short = None if self.equal else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.equal:
                x = F.relu(self.bn1(x))
                out = x
            else:
                out = F.relu(self.bn1(x))
            out = F.relu(self.bn2(self.conv1(out)))
            out = F.dropout(out, p=0.3, training=self.training)
            return torch.add(x if self.equal else self.short(x), self.conv2(out))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        sizes = [(width, width, 1), (width, width, 1), (width, 2 * width, 2), *[(2 * width, 2 * width, 1)] * 3]
        self.blocks = nn.Sequential(*(self.Basic(*size) for size in sizes))
        self.bn, self.fc = nn.BatchNorm2d(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn(self.blocks(self.conv1(x))))
        out = F.avg_pool2d(out, out.shape[-1])
        return self.fc(out.view(out.size(0), -1))


class Hooked(nn.Module):
    """Forward hooks that keep activations for a perceptual loss, and one that scales a gradient."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualUnit(width) for _ in range(5)))
        self.head = nn.Conv2d(width, 3, 1)
        self.features: dict[str, torch.Tensor] = {}
        self.blocks[3].register_forward_hook(lambda _module, _inputs, output: output * 1.01)
        self.blocks[1].register_full_backward_hook(lambda _module, grad_in, _grad_out: (0.5 * grad_in[0],))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


class Frozen(nn.Module):
    """A backbone that runs without gradients, and blocks upon it that learn."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), *(ResidualUnit(width) for _ in range(2)))
        self.blocks = nn.Sequential(*(ResidualUnit(width) for _ in range(5)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(self.blocks(features).mean(dim=(-2, -1)))
