"""The two tables of receptive-field rules: from a module's class, and from the name of a function, to its rule.

A name stands for a function, the method of that name and its in-place form: ``add`` for ``torch.add``,
``operator.add``, ``Tensor.add_``. Both tables check on import that nothing is named twice.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from . import rules_convolution as kernel
from . import rules_shape as shape
from .reach import Rule

__all__ = ["MODULES", "NO_VALUES", "OPERATIONS", "POINTWISE_CLASSES"]

Key = TypeVar("Key")


def _table(rows: Iterable[tuple[Rule, Iterable[Key]]]) -> Mapping[Key, Rule]:
    """Rules by key; a key named twice is our own bug."""
    table: dict[Key, Rule] = {}
    for rule, keys in rows:
        for key in keys:
            assert key not in table, f"{key} has two receptive-field rules"
            table[key] = rule
    return table


def _classes(patterns: str) -> list[type[nn.Module]]:
    """Classes of torch.nn by name; ``#`` stands for 1, 2 and 3 axes. What this torch has not is left out."""
    names = [pattern.replace("#", axes) for pattern in patterns.split() for axes in ("123" if "#" in pattern else "0")]
    return [getattr(nn, name) for name in names if hasattr(nn, name)]


_LIKE = "empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like randn_like zeros_like"
# Results that depend on the shape of their argument, not on its values.
NO_VALUES = frozenset(_LIKE.split())

# Modules from outside torch.nn that capture keeps as one node because they read their mode, and that are pointwise.
POINTWISE_CLASSES = frozenset(["BatchNormAct2d", "DropPath", "FrozenBatchNorm2d", "StochasticDepth"])

_POINTWISE = """
    BatchNorm#d SyncBatchNorm LocalResponseNorm Identity ChannelShuffle Dropout Dropout#d AlphaDropout
    FeatureAlphaDropout Softmax2d ReLU ReLU6 RReLU LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid
    Hardsigmoid Hardswish Hardtanh Tanh Tanhshrink Softplus Softsign Softshrink Hardshrink Threshold
"""

MODULES: Mapping[type[nn.Module], Rule] = _table(
    [
        *((kernel.convolution(n), _classes(f"Conv{n}d")) for n in (1, 2, 3)),
        *((kernel.transposed(n), _classes(f"ConvTranspose{n}d")) for n in (1, 2, 3)),
        *((kernel.pooling(n, dilated=True), _classes(f"MaxPool{n}d")) for n in (1, 2, 3)),
        *((kernel.pooling(n, dilated=False), _classes(f"AvgPool{n}d")) for n in (1, 2, 3)),
        *((kernel.norm_pooling(n), _classes(f"LPPool{n}d")) for n in (1, 2, 3)),
        *((kernel.adaptive(n), _classes(f"AdaptiveAvgPool{n}d AdaptiveMaxPool{n}d")) for n in (1, 2, 3)),
        (kernel.interpolation, _classes("Upsample UpsamplingNearest2d UpsamplingBilinear2d")),
        (kernel.rescaling(upwards=True), _classes("PixelShuffle")),
        (kernel.rescaling(upwards=False), _classes("PixelUnshuffle")),
        (kernel.padding, _classes("ConstantPad#d ZeroPad#d ReflectionPad#d ReplicationPad#d CircularPad#d")),
        (shape.pointwise, _classes(_POINTWISE)),
        (shape.layer_norm, _classes("LayerNorm RMSNorm")),
        (shape.space_norm, _classes("GroupNorm InstanceNorm#d")),
        (shape.along(1, "dim", None), _classes("Softmax LogSoftmax Softmin")),
        (shape.along(1, "dim", -1), _classes("GLU")),
        (shape.linear, _classes("Linear LazyLinear")),
        (shape.unchanged, _classes("Embedding")),
        (shape.reshaping, _classes("Flatten Unflatten")),
        (shape.everything, _classes("MultiheadAttention TransformerEncoderLayer TransformerDecoderLayer")),
        (shape.everything, _classes("RNN LSTM GRU Unfold Fold FractionalMaxPool2d FractionalMaxPool3d")),
    ]
)

_ELEMENTWISE = """
    abs add addcdiv addcmul alpha_dropout and atan2 batch_norm bernoulli bfloat16 bitwise_and bitwise_not bitwise_or
    bool ceil celu channel_shuffle clamp clamp_max clamp_min clip clone conj contiguous copysign cos cosh cpu
    cuda detach div divide double drop_block_2d drop_path dropout dropout1d dropout2d dropout3d elu eq
    erf erfc exp exp2 expm1 feature_alpha_dropout feature_dropout fill float floor floor_divide floordiv fmod
    ge gelu gt half hardshrink hardsigmoid hardswish hardtanh heaviside hypot iadd iand ifloordiv imag
    imod imul invert ior ipow isfinite isinf isnan isub itruediv ixor le leaky_relu lerp local_response_norm log
    log10 log1p log2 logical_and logical_not logical_or logit logsigmoid lt masked_fill maximum minimum mish mod mul
    multiply nan_to_num ne neg negative not or pos positive pow prelu real reciprocal
    relu relu6 remainder requires_grad round rrelu rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink
    softsign sqrt square stochastic_depth sub subtract tan tanh tanhshrink threshold to true_divide truediv trunc
    where xor """
_SHAPES = "view reshape flatten unflatten ravel view_as reshape_as"
_PARTITIONS = "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split"
_REDUCTIONS = """
    all amax amin aminmax any argmax argmin logsumexp max mean median min nanmean nansum prod std std_mean sum var
    var_mean
"""
_EVERYTHING = """
    affine_grid argsort as_strided bincount cdist cosine_similarity cumprod cumsum einsum embedding_bag fft fft2
    fftn fold gather grid_sample ifft ifft2 ifftn index_add index_copy index_fill index_put index_select irfft
    irfft2 irfftn linalg_norm linalg_vector_norm masked_scatter multi_dot multi_head_attention_forward one_hot
    pairwise_distance rfft rfft2 rfftn scatter scatter_add shifted_window_attention sort take take_along_dim
    tensordot topk tril_indices unfold view_as_complex view_as_real
"""

OPERATIONS: Mapping[str, Rule] = _table(
    [
        *((kernel.convolution(n), [f"conv{n}d"]) for n in (1, 2, 3)),
        *((kernel.transposed(n), [f"conv_transpose{n}d"]) for n in (1, 2, 3)),
        *((kernel.pooling(n, dilated=True), [f"max_pool{n}d", f"max_pool{n}d_with_indices"]) for n in (1, 2, 3)),
        *((kernel.pooling(n, dilated=False), [f"avg_pool{n}d"]) for n in (1, 2, 3)),
        *((kernel.norm_pooling(n), [f"lp_pool{n}d"]) for n in (1, 2, 3)),
        *((kernel.adaptive(n), [f"adaptive_{k}_pool{n}d" for k in ("avg", "max")]) for n in (1, 2, 3)),
        *((kernel.adaptive(n), [f"adaptive_max_pool{n}d_with_indices"]) for n in (1, 2, 3)),
        (kernel.interpolation, ["interpolate", "upsample"]),
        (kernel.rescaling(upwards=True), ["pixel_shuffle"]),
        (kernel.rescaling(upwards=False), ["pixel_unshuffle"]),
        (kernel.padding, ["pad"]),
        (shape.pointwise, _ELEMENTWISE.split()),
        (shape.layer_norm, ["layer_norm", "rms_norm"]),
        (shape.space_norm, ["group_norm", "instance_norm"]),
        (shape.along(1, "dim", None), ["softmax", "log_softmax", "softmin", "logcumsumexp"]),
        (shape.along(1, "dim", -1), ["glu", "gumbel_softmax"]),
        (shape.along(2, "dim", 1), ["normalize"]),
        (shape.along(2, "dims", None), ["roll", "rot90"]),
        (shape.along(1, "dims", None), ["flip"]),
        (shape.linear, ["linear"]),
        (shape.product(0), ["matmul", "bmm", "mm"]),
        (shape.product(1), ["addmm", "baddbmm"]),
        (shape.attention, ["scaled_dot_product_attention"]),
        (shape.reducing(1), _REDUCTIONS.split()),
        (shape.reducing(2), ["norm"]),
        (shape.unchanged, ["embedding", "tril", "triu"]),
        (shape.reshaping, _SHAPES.split()),
        (shape.permutation, ["permute"]),
        (shape.transposition, ["transpose", "swapaxes", "swapdims", "t"]),
        (shape.moving, ["movedim", "moveaxis"]),
        (shape.inserting, ["unsqueeze", "stack"]),
        (shape.removing, ["select", "unbind"]),
        (shape.squeezing, ["squeeze"]),
        (shape.concatenation, ["cat", "concat", "concatenate"]),
        (
            shape.along(2, "dim", 0),
            ["chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"],
        ),
        (shape.narrowing, ["narrow"]),
        (shape.item, ["getitem"]),
        (shape.replacing, ["setitem"]),
        (shape.ordering, ["after"]),
        (shape.attribute, ["getattr"]),
        (shape.first_alone, ["expand", "expand_as", "type_as", "broadcast_to", "type"]),
        (shape.repeating, ["repeat", "tile", "repeat_interleave"]),
        (shape.everything, _EVERYTHING.split()),
    ]
)
