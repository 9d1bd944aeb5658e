"""Small programs that are unusual in one respect each: those that convert, and those that are refused and how."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.masked import masked_tensor
from torch.nn.utils import parametrizations, prune

from pararealize.errors import CaptureError, CutError, ExampleError, ModelError, PararealizeError

__all__ = ["CONVERTED", "REFUSED", "Program", "Residuals", "perceptron"]

Program = tuple[Any, Any]  # a model and its example inputs
Block = Callable[[], nn.Module]
WIDTH = 8


def ordinary_block() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Residuals(nn.Module):
    """Residual blocks without a stem: the first one reads the model's input itself, and so does the sum behind it.

    Args:
        block: makes a block.
        before: what is done to a block's input, of a tensor kept as ``state`` and the input.
        after: what the model returns, of its input and the last block's value.
        state: makes a tensor that is kept under ``name``.
        kept: what it is kept as.
        name: of the tensor.
    """

    def __init__(
        self,
        block: Block = ordinary_block,
        *,
        before: Callable[[Any, Tensor], Tensor] = lambda state, x: x,
        after: Callable[[Tensor, Tensor], Any] = lambda x, y: y,
        state: Callable[[], Tensor | None] = lambda: None,
        kept: str = "buffer",
        name: str = "state",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(5))
        self.before, self.after, self.name = before, after, name
        if kept == "attribute":
            self.__dict__[name] = state()
        else:
            self.register_buffer(name, state(), persistent=kept == "buffer")

    def forward(self, x: Tensor) -> Any:
        y = x
        state = self.__dict__[self.name] if self.name in self.__dict__ else self._buffers[self.name]
        for layer in self.layers:
            y = y + layer(self.before(state, y))
        return self.after(x, y)


def perceptron() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())])


def vectors(rows: int = 3) -> Tensor:
    return torch.randn(rows, WIDTH)


def with_input_called(name: str) -> Program:
    """The same network, the parameter of whose forward has this name."""
    scope: dict[str, Any] = {}
    exec(f"def forward(module, {name}):\n    return super(kind, module).forward({name})", scope)
    kind = scope["kind"] = type("Named", (Residuals,), {"forward": scope["forward"]})
    return kind(), vectors()


def with_keyword_called(name: str) -> Program:
    class Keywords(Residuals):
        def forward(self, x: Tensor, **others: Tensor) -> Any:
            return super().forward(x + others[name])

    return Keywords(), {"x": vectors(), name: vectors()}


def with_norm(**settings: Any) -> Program:
    return Residuals(lambda: nn.Sequential(nn.BatchNorm1d(WIDTH, **settings), nn.Linear(WIDTH, WIDTH))), vectors(4)


def with_state(
    make: Callable[[], Tensor | None], use: Callable[[Any, Tensor], Tensor], kept: str = "buffer"
) -> Program:
    return Residuals(before=use, state=make, kept=kept), vectors(10)


def with_output(after: Callable[[Tensor, Tensor], Any]) -> Program:
    return Residuals(after=after), vectors()


def with_child_called(name: str, *, of_block: bool) -> Program:
    """A network that has a submodule of this name, at its top or in each block."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
            self.inner = nn.Identity() if of_block else Residuals()

        def forward(self, x: Tensor) -> Any:
            return torch.tanh(self.inner(self._modules[name](x)))

    return (Residuals(Named) if of_block else Named()), vectors()


def with_layer(change: Callable[[nn.Linear], Any]) -> Program:
    def block() -> nn.Module:
        linear = nn.Linear(WIDTH, WIDTH)
        return nn.Sequential(change(linear) or linear, nn.Tanh())

    return Residuals(block), vectors()


def changed(change: Callable[[Residuals], Any]) -> Program:
    model = Residuals()
    change(model)
    return model, vectors()


def share_layers(model: Residuals) -> None:
    for block in model.layers[1:]:
        block[1] = model.layers[0][1]


def share_weights(model: Residuals) -> None:
    for block in model.layers[1:]:
        block[1].weight = model.layers[0][1].weight


def views_of_one_tensor(model: Residuals) -> None:
    base = torch.randn(2 * WIDTH, WIDTH)
    for i, block in enumerate(model.layers[:2]):
        block[1].weight = nn.Parameter(base[4 * i : 4 * i + WIDTH])


def patch_forward(module: Any) -> None:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def symmetric(linear: nn.Linear) -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).T

    nn.utils.parametrize.register_parametrization(linear, "weight", Symmetric())


def made_in_inference_mode() -> Program:
    with torch.inference_mode():
        return Residuals().requires_grad_(False), vectors()


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-8, 8, (WIDTH, WIDTH), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight.to(x.dtype) * self.scale[:, None]))


class Slotted(nn.Linear):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.factor = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(0.3 * torch.randn(WIDTH, WIDTH)) for _ in range(5)])
        self.scales = nn.ParameterDict({"scale": torch.rand(WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + self.scales["scale"] * torch.tanh(x @ weight)
        return x


class Uncopyable(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is only one of it")


class Kind(Tensor):
    """A class of tensors with no meaning of its own."""


def adjacency() -> Tensor:
    return (torch.rand(10, 10) > 0.7).float()


def propagate(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ x


def ignore(state: Any, x: Tensor) -> Tensor:
    return x


NAMES = "x z u input x_1 x_2 y_1 c_1 r_1 F_1 output stem head context adapters segments torch operator device type add"
CHILDREN = "stem head context plan iterate distribute network_parts T placements"
FX_NAMES = "code graph recompile adapters coarse segments"
STATES: dict[str, tuple[Callable[[], Tensor | None], Callable[[Any, Tensor], Tensor]]] = {
    "coo": (lambda: adjacency().to_sparse(), torch.sparse.mm),
    "coo, not coalesced": (
        lambda: torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 2]], [1.0, 2.0, 3.0], (10, 10), check_invariants=True),
        propagate,
    ),
    "csr": (lambda: adjacency().to_sparse_csr(), propagate),
    "csr, not read": (lambda: adjacency().to_sparse_csr(), ignore),
    "complex": (lambda: torch.randn(WIDTH, dtype=torch.cfloat), lambda state, x: x + state.real),
    "bool": (lambda: torch.rand(WIDTH) > 0.5, lambda state, x: x * state),
    "integer": (lambda: torch.arange(WIDTH), lambda state, x: x + state),
    "float8": (lambda: torch.randn(WIDTH).to(torch.float8_e4m3fn), lambda state, x: x + state.float()),
    "scalar": (lambda: torch.tensor(2.0), lambda state, x: x * state),
    "empty": (lambda: torch.empty(0), lambda state, x: x + state.sum()),
    "nan": (lambda: torch.full((WIDTH,), float("nan")), lambda state, x: torch.nan_to_num(x + state)),
    "expanded": (lambda: torch.randn(1).expand(WIDTH), lambda state, x: x + state),
    "none": (lambda: None, ignore),
}

CONVERTED: dict[str, Callable[[], Program]] = {
    "no stem": lambda: (Residuals(), vectors()),
    **{f"an input {name}": lambda name=name: with_input_called(name) for name in NAMES.split()},
    **{
        f"batch norm, {settings}": lambda settings=settings: with_norm(**settings)
        for settings in (
            {"momentum": None},
            {"track_running_stats": False},
            {"affine": False},
            {"affine": False, "momentum": None, "track_running_stats": False},
        )
    },
    **{f"state, {kind}": lambda pair=pair: with_state(*pair) for kind, pair in STATES.items()},
    **{
        f"{kept} csr or coo": lambda kind=kind, kept=kept: with_state(*STATES[kind], kept=kept)
        for kind, kept in (("csr", "attribute"), ("coo", "attribute"), ("coo", "non-persistent buffer"))
    },
    **{f"a child {name}": lambda name=name: with_child_called(name, of_block=False) for name in CHILDREN.split()},
    **{
        f"a child {name} of blocks": lambda name=name: with_child_called(name, of_block=True)
        for name in (CHILDREN + " " + FX_NAMES).split()
    },
    "weight norm, old": lambda: with_layer(nn.utils.weight_norm),
    "weight norm": lambda: with_layer(parametrizations.weight_norm),
    "spectral norm": lambda: with_layer(parametrizations.spectral_norm),
    "orthogonal": lambda: with_layer(parametrizations.orthogonal),
    "parametrised": lambda: with_layer(symmetric),
    "pruned": lambda: with_layer(lambda linear: prune.l1_unstructured(linear, "weight", 0.3)),
    "shared layers": lambda: changed(share_layers),
    "shared weights": lambda: changed(share_weights),
    "parameters that are views": lambda: changed(views_of_one_tensor),
    "frozen": lambda: changed(lambda model: model.requires_grad_(False)),
    "an integer parameter": lambda: changed(
        lambda model: model.register_parameter("bits", nn.Parameter(torch.tensor([4]), requires_grad=False))
    ),
    "an alias": lambda: changed(lambda model: model.add_module("alias", model.layers[0])),
    "an unused part on meta": lambda: changed(lambda model: model.add_module("unused", nn.Linear(8, 8, device="meta"))),
    "quantised weights": lambda: (nn.Sequential(*[Quantised() for _ in range(5)]), vectors()),
    "slots": lambda: (Residuals(Slotted), vectors()),
    "parameter lists": lambda: (Listed(), vectors()),
    "double": lambda: (Residuals().double(), vectors().double()),
    "traced before": lambda: (torch.fx.symbolic_trace(perceptron()), vectors()),
    "made in inference mode": made_in_inference_mode,
    "an inference tensor": lambda: (perceptron(), torch.inference_mode()(vectors)()),
    "a subclass without a meaning": lambda: (perceptron(), vectors().as_subclass(Kind)),
    "a parameter as input": lambda: (perceptron(), nn.Parameter(vectors())),
    **{
        f"returns {what}": lambda after=after: with_output(after)
        for what, after in {
            "a scalar": lambda x, y: y.sum(),
            "a tuple with None": lambda x, y: (y, None),
            "a dict with a number": lambda x, y: {"y": y, "steps": 3},
            "its input too": lambda x, y: (x, y),
            "integers": lambda x, y: y.argmax(-1),
            "booleans": lambda x, y: y > 0,
            "complex numbers": lambda x, y: torch.complex(y, y),
            "one tensor twice": lambda x, y: (y, y),
            "nested lists": lambda x, y: [y, [y]],
            "a size": lambda x, y: (y, y.shape),
            "a sparse tensor": lambda x, y: y.to_sparse(),
        }.items()
    },
}


def fake_vectors() -> Tensor:
    with torch._subclasses.FakeTensorMode():
        return vectors()


def depends_on_values(change: Callable[[Tensor], Tensor]) -> Callable[[], Program]:
    return lambda: (Residuals(before=lambda state, x: change(x)), vectors())


REFUSED: dict[str, tuple[Callable[[], Program], type[PararealizeError], str]] = {
    **{
        f"an input {name}": (lambda name=name: with_keyword_called(name), ExampleError, "rename them")
        for name in ("class", "a-b", "self")
    },
    **{
        f"a {what} as input": (lambda make=make: (perceptron(), make()), ExampleError, words)
        for what, make, words in (
            (
                "nested tensor",
                lambda: torch.nested.nested_tensor([vectors(3), vectors(5)], layout=torch.jagged),
                "nested tensor",
            ),
            ("nested strided tensor", lambda: torch.nested.nested_tensor([vectors(3), vectors(5)]), "nested tensor"),
            ("coo tensor", lambda: vectors().to_sparse(), "layout torch.sparse_coo"),
            ("csr tensor", lambda: vectors().to_sparse_csr(), "layout torch.sparse_csr"),
            ("quantised tensor", lambda: torch.quantize_per_tensor(vectors(), 0.1, 0, torch.qint8), "quantised tensor"),
            ("tensor of MKL-DNN", lambda: vectors().to_mkldnn(), "layout torch._mkldnn"),
            ("tensor on meta", lambda: vectors().to("meta"), "meta device for a model on cpu"),
            ("fake tensor", fake_vectors, "a FakeTensor"),
            ("masked tensor", lambda: masked_tensor(vectors(), torch.ones(3, WIDTH, dtype=torch.bool)), "MaskedTensor"),
            ("functional tensor", lambda: torch._to_functional_tensor(vectors()), "transformation of torch.func"),
            ("list of numbers", lambda: [[1.0] * WIDTH], "hold no tensor"),
            ("word", lambda: "tensor", "example_inputs is a str"),
            ("number", lambda: 3, "example_inputs is a int"),
            ("set", lambda: {1}, "example_inputs is a set"),
            ("tuple of nothing", lambda: (None,), "hold no tensor"),
            ("batch of nothing", lambda: vectors(0), "hold no sample"),
            ("dict of another name", lambda: {"y": vectors()}, "do not fit"),
            ("dict of a number", lambda: {0: vectors()}, "does not accept"),
            ("tensor too many", lambda: (vectors(), vectors()), "do not fit"),
            ("tensor of integers", lambda: vectors().long(), "does not accept"),
            ("tensor of doubles", lambda: vectors().double(), "does not accept"),
            ("tensor of another shape", lambda: torch.randn(3, 5), "does not accept"),
        )
    },
    **{
        f"{what} as model": (lambda make=make: (make(), vectors()), ModelError, words)
        for what, make, words in (
            ("a function", lambda: torch.tanh, "the model is a builtin"),
            ("a class", lambda: Residuals, "the class Residuals"),
            ("nothing", lambda: None, "NoneType"),
            ("a scripted module", lambda: torch.jit.script(perceptron()), "scripted modules"),
            ("a lazy module", lambda: nn.Sequential(nn.LazyLinear(8)), "without a shape yet"),
            ("a module without parameters", lambda: nn.Tanh(), "no parameters"),
        )
    },
    **{
        f"state, {kind}": (lambda make=make: with_state(make, ignore), ModelError, words)
        for kind, make, words in (
            ("quantised", lambda: torch.quantize_per_tensor(vectors(), 0.1, 0, torch.qint8), r"state \(quantised\)"),
            ("nested", lambda: torch.nested.nested_tensor([vectors(3), vectors(5)]), r"state \(nested\)"),
            ("MKL-DNN", lambda: vectors().to_mkldnn(), r"state \(of MKL-DNN\)"),
        )
    },
    **{
        f"{what} that cannot be copied": (lambda change=change: changed(change), ModelError, "cannot be copied")
        for what, change in (
            ("a block", lambda model: model.layers.append(Uncopyable())),
            ("a lock", lambda model: model.__dict__.update(lock=threading.Lock())),
            ("a generator", lambda model: model.__dict__.update(numbers=(i for i in range(3)))),
            ("a computed tensor", lambda model: model.__dict__.update(cache=2 * model.layers[0][1].weight)),
        )
    },
    # the closure holds the model itself, whose parameters a copy of the model would go on to use
    "a patched forward": (lambda: changed(patch_forward), CaptureError, "differs from the model"),
    "a patched block": (
        lambda: changed(lambda model: patch_forward(model.layers[1])),
        CaptureError,
        "differs from the model",
    ),
    **{
        f"a child {name}": (lambda name=name: with_child_called(name, of_block=False), ModelError, name)
        for name in FX_NAMES.split()
    },
    **{
        f"returns {what}": (lambda after=after: with_output(after), kind, "return|pass|numpy")
        for what, after, kind in (
            ("nothing", lambda x, y: None, CutError),
            ("its input", lambda x, y: x, CutError),
            ("a number", lambda x, y: 3.0, CutError),
            ("an empty tuple", lambda x, y: (), CutError),
            ("a set", lambda x, y: {y}, CaptureError),
            ("a generator", lambda x, y: (item for item in [y]), CaptureError),
            ("an array", lambda x, y: y.detach().numpy(), CaptureError),
        )
    },
    **{
        f"values decide, {what}": (depends_on_values(change), CaptureError, "")
        for what, change in {
            "allclose": lambda x: x if torch.allclose(x, 0 * x) else x + 1,
            "equal": lambda x: x if torch.equal(x, 0 * x) else x + 1,
            "item": lambda x: x * x.sum().item(),
            "tolist": lambda x: x * x[0].tolist()[0],
            "numpy": lambda x: x + torch.from_numpy(x.detach().numpy()),
            "unique": lambda x: x + x.unique().sum(),
            "bool": lambda x: x if (x > 0).all() else 2 * x,
            "int": lambda x: x * int(x.sum()),
            "index": lambda x: x * (1.0, 2.0)[int(x.sum() > 0)],
            "is_nonzero": lambda x: x if torch.is_nonzero(x.sum()) else 2 * x,
            "masked_select": lambda x: x.masked_select(x > -1e9).view(x.shape),
            "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 1, 1]), 0),
            "bincount": lambda x: x + torch.bincount((x > 0).long().flatten()).sum(),
            "where": lambda x: x + torch.where(x > 0)[0].sum(),
            "contains": lambda x: x if 3.0 in x else 2 * x,
            "apply_": lambda x: x.detach().clone().apply_(lambda value: value),
            "map_": lambda x: x.detach().clone().map_(x.detach(), lambda value, other: value),
        }.items()
    },
}
