"""A seed -> one random network with random effects, as the source code of a program that can be printed and run alone.

A program defines ``make()``, the network; ``inputs(batch, size)``, a call's arguments; and what is to be tried with
them. It is text first and last: what a run tries is what is printed.
"""

from __future__ import annotations

import dataclasses
import random
import re
from textwrap import indent

from .effects import EFFECTS, HELPERS, Effect

__all__ = ["Program", "program"]

_LAYERS = {  # layers of a block by kind of input; every one keeps the shape
    "vector": [
        "nn.Linear(6, 6), nn.Tanh()",
        "nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()",
        "nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()",
        "nn.Linear(6, 12), nn.ReLU(inplace=True), nn.Linear(12, 6)",
    ],
    "sequence": [
        "nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()",
        "nn.LayerNorm(6), Attention()",
        "Turned(nn.Conv1d(6, 6, 3, padding=1)), nn.Tanh()",
    ],
    "tokens": ["nn.LayerNorm(6), Attention(), nn.Linear(6, 6)", "nn.Linear(6, 6), nn.GELU()"],
    "causal": [
        "nn.LayerNorm(6), Attention(causal=True)",
        "Turned(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(6, 6, 3)), nn.Tanh()",
        "Running(), nn.Linear(6, 6)",
    ],
    "image": [
        "nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()",
        "nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)",
        "nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.GroupNorm(2, 6), nn.SiLU()",
    ],
}
_STEMS = {
    "vector": "nn.Linear(5, 6)",
    "sequence": "nn.Linear(5, 6)",
    "causal": "nn.Linear(5, 6)",
    "tokens": "nn.Embedding(11, 6)",
    "image": "nn.Conv2d(3, 6, 3, padding=1)",
}
_HEADS = {
    "vector": ["self.head(x)"],
    "sequence": ["self.head(x.mean(1))", "self.head(x)", "self.head(x[:, -1])"],
    "causal": ["self.head(x)"],
    "tokens": ["self.head(x)", "self.head(x[:, 0])"],
    "image": ["self.head(x.mean((2, 3)))", "self.head(x.flatten(2).transpose(1, 2))"],
}
_INPUTS = {
    "vector": "torch.randn(batch, 5, generator=g)",
    "sequence": "torch.randn(batch, size, 5, generator=g)",
    "causal": "torch.randn(batch, size, 5, generator=g)",
    "tokens": "torch.randint(11, (batch, size), generator=g)",
    "image": "torch.randn(batch, 3, size, size + 1, generator=g)",
}
_CLASSES = {
    "Attention": """
class Attention(nn.Module):
    def __init__(self, causal=False):
        super().__init__()
        self.qkv, self.causal = nn.Linear(6, 18), causal

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
""",
    "Turned": """
class Turned(nn.Sequential):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)
""",
    "Running": """
class Running(nn.Module):
    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
""",
}
_FORMS = ("one",) * 6 + ("two", "dict", "nested", "optional", "default")
_OUTPUTS = ("y", "y", "y", "(y, x.mean())", '{"logits": y, "hidden": x}', "(y, None)", "(y, x.shape[0])")
_COARSE = ("linear", "bottleneck", "paper", "depthwise", "block", "exact", "auto")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One example: its seed, the effects in it, and its source code."""

    seed: int
    effects: tuple[str, ...]
    source: str


def program(seed: int) -> Program:
    """The program of a seed, which is the same for ever."""
    r = random.Random(f"fuzz {seed}")
    domain = r.choice(list(_LAYERS))
    number = r.choices([0, 1, 2, 3], [1, 5, 3, 1])[0]
    effects = r.sample([effect for effect in EFFECTS if domain in effect.domains], number)
    source = _Source(r, domain, effects)
    return Program(seed=seed, effects=tuple(e.name for e in effects), source=source.text(seed))


class _Source:
    """Draws what an example is made of and writes it down."""

    def __init__(self, r: random.Random, domain: str, effects: list[Effect]) -> None:
        self.r, self.domain, self.effects = r, domain, effects
        self.depth = r.randint(3, 5)
        self.layers = r.choice(_LAYERS[domain])
        self.form = r.choice(_FORMS)
        # the effects of blocks stand in all of them, or in one
        self.places = tuple(range(self.depth)) if r.random() < 0.6 else (r.randrange(self.depth),)

    def text(self, seed: int) -> str:
        body = "\n\n".join([*self._blocks(), self._network(), self._make(), self._inputs(), self._settings(seed)])
        helpers = {**_CLASSES, **HELPERS}
        used = [name for name in helpers if re.search(rf"\b{name}\b", body)]
        if any("scaled(" in helpers[name] for name in used) and "scaled" not in used:
            used.insert(0, "scaled")
        header = [
            f"# Effects: {', '.join(e.name for e in self.effects) or 'none'}",
            "import math, random, torch, torch.utils.checkpoint",
            "import torch.nn.functional as F",
            "from torch import nn",
            "from torch.utils._pytree import tree_map_only",
            "",
            "SEEN = []  # what hooks saw",
        ]
        return "\n".join(header) + "\n" + "\n".join(f"\n{helpers[name].strip()}\n" for name in used) + "\n\n" + body

    def _blocks(self) -> list[str]:
        classes = [_block("Block", self.effects, self.layers, self.r)]
        plain = len(self.places) < self.depth and any(
            e.init or e.pre or e.post or e.wrap or e.layer for e in self.effects
        )
        if plain:
            classes.append(_block("Plain", [], self.layers, self.r))
        self.make_blocks = (
            f"Block() if i in {self.places} else Plain() for i in range({self.depth})"
            if plain
            else f"Block() for i in range({self.depth})"
        )
        return classes

    def _network(self) -> str:
        of = {part: [e.root_wrap for e in self.effects if e.root_wrap and e.root_part == part]
              for part in ("stem", "blocks", "head", "all")}  # fmt: skip
        signature, unpack = {
            "one": ("x", ""),
            "two": ("x, shift", "x = x + shift" if self.domain != "tokens" else "x = (x + shift) % 11"),
            "dict": ("batch", 'x = batch["x"]'),
            "nested": (
                "items",
                "x, (scale,) = items\nx = x * scale" if self.domain != "tokens" else "x, (scale,) = items",
            ),
            "optional": ("x, mask=None", "if mask is not None:\n    x = x * mask" if self.domain != "tokens" else ""),
            "default": ("x, factor=2", "x = x * factor" if self.domain != "tokens" else ""),
        }[self.form]
        container = "nn.ModuleList"
        loop = next((e.loop for e in self.effects if e.loop), "block(x)")
        stem = _wrapped("x = self.stem(x)", of["stem"])
        loops = [f"x = {loop}", *(e.root_loop for e in self.effects if e.root_loop)]
        middle = "for i, block in enumerate(self.blocks):\n" + indent("\n".join(loops), "    ")
        simple = loops == ["x = block(x)"] and self.r.random() < 0.4
        if simple:
            container, middle = "nn.Sequential", "x = self.blocks(x)"
        self.container = container
        pre = "\n".join(e.root_pre for e in self.effects if e.root_pre)
        post = "\n".join(e.root_post for e in self.effects if e.root_post)
        head = _wrapped(f"y = {self.r.choice(_HEADS[self.domain])}", of["head"])
        body = "\n".join(filter(None, [unpack, stem, pre, _wrapped(middle, of["blocks"]), post, head]))
        output = self.r.choice(_OUTPUTS)
        blocks = self.make_blocks if container == "nn.ModuleList" else f"*({self.make_blocks})"
        init = [
            f"self.stem = {_STEMS[self.domain]}",
            f"self.blocks = {container}({blocks})",
            "self.head = nn.Linear(6, 4)",
            *(e.root_init for e in self.effects if e.root_init),
        ]
        return _class("Net", "\n".join(init), signature, f"{_wrapped(body, of['all'])}\nreturn {output}")

    def _make(self) -> str:
        places = [f"model.blocks[{i}]" for i in range(self.depth)]
        places += [f"{place}.layers" for place in places] + [f"{place}.layers[0]" for place in places] + ["model.stem"]
        if self.container == "nn.Sequential":
            places.append("model.blocks")
        lines = ["torch.manual_seed(0)", "model = Net()"]
        for effect in self.effects:
            if effect.setup:
                at = self.r.choice([*places, *(["model"] * 4 if effect.at else [])])
                if "parameters()" in effect.setup and self.domain == "causal":
                    at = "model.stem"
                lines.append(effect.setup.replace("{at}", at))
        return "def make():\n" + indent("\n".join([*lines, "return model"]), "    ")

    def _inputs(self) -> str:
        x, ones = _INPUTS[self.domain], "torch.ones(batch, *[1] * (x.ndim - 1))"
        result = {
            "one": "(x,), {}",
            "two": f"(x, {ones}.to(x.dtype)), {{}}",
            "dict": '({"x": x, "unused": torch.ones(batch)},), {}',
            "nested": f"([x, ({ones},)],), {{}}",
            "optional": self.r.choice(
                ["(x,), {}", '(x,), {"mask": torch.ones(batch, *[1] * (x.ndim - 1))}', "(x, None), {}"]
            ),
            "default": self.r.choice(["(x,), {}", '(x,), {"factor": 3}', "(x, 3), {}"]),
        }[self.form]
        return (
            "def inputs(batch, size, seed=0):\n"
            "    g = torch.Generator().manual_seed(seed)\n"
            f"    x = {x}\n"
            f"    return {result}"
        )

    def _settings(self, seed: int) -> str:
        r = self.r
        batch, size = r.choice([1, 2, 2, 3, 4, 5]), r.choice([3, 4, 5, 6])
        steps = [
            {
                "training": r.choice([True, True, False, "mixed"]),
                "batch": r.choice([batch, batch, 1, 2, 3, 6]),
                "size": r.choice([size, size, size, 3, 4, 5, 6, 7]),
                "mode": r.choice(["gradients"] * 4 + ["no_grad", "autocast", "inference_mode"]),
            }
            for _ in range(r.randint(3, 5))
        ]
        steps.append({"training": True, "batch": batch, "size": size, "mode": "gradients"})
        steps.append({"training": False, "batch": batch, "size": size, "mode": "gradients"})
        r.shuffle(steps)
        n = 1 if seed % 2 else r.randint(2, self.depth)
        lines = [
            f"EXAMPLE = {(batch, size)}  # batch size, length or height",
            f"CONVERTED_IN = {r.choice(['train', 'train', 'eval'])!r}",
            f"DTYPE = torch.{r.choice(['float32', 'float32', 'float32', 'bfloat16', 'float64'])}  # from conversion on",
            "STEPS = [",
            *(f"    {step}," for step in steps),
            "]",
            f"N = {n}",
            f"COARSE = {r.choice(_COARSE)!r}",
            f"CAUSAL = {self.domain == 'causal' and not any(effect.everywhere for effect in self.effects)}",
            "",
            'if __name__ == "__main__":',
            "    from types import SimpleNamespace",
            "",
            "    from benchmarks.fuzz.oracle import judge",
            "",
            "    print(judge(SimpleNamespace(**globals())))",
        ]
        return "\n".join(lines) + f"  # seed {seed}\n"


def _block(name: str, effects: list[Effect], layers: str, r: random.Random) -> str:
    init = [f"self.layers = nn.Sequential({layers})", *(e.init for e in effects if e.init)]
    layer = next((e.layer for e in effects if e.layer), "self.layers(x)")
    body = [*(e.pre for e in effects if e.pre), _wrapped(f"h = {layer}", [e.wrap for e in effects if e.wrap])]
    body += [e.post for e in effects if e.post]
    residual = r.choice(["return x + h", "return x + h", "h = h * 1\nh += x\nreturn h", "return h"])
    text = _class(name, "\n".join(init), "x", "\n".join([*body, residual]))
    if "self.run" in text:
        text += "\n    def run(self, x):\n        return self.layers(x)\n"
    return text


def _class(name: str, init: str, signature: str, body: str) -> str:
    return (
        f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{indent(init, ' ' * 8)}\n\n"
        f"    def forward(self, {signature}):\n{indent(body, ' ' * 8)}\n"
    )


def _wrapped(lines: str, contexts: list[str]) -> str:
    for context in contexts:
        lines = f"{context}\n{indent(lines, '    ')}"
    return lines
