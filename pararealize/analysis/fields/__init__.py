"""Receptive fields: which positions of its input one output position of a block, or of a run of blocks, reads.

In reading order:

    field               BlockChain -> Fields, one ReceptiveField a block; how fields of blocks compose
    reach               Reach and Call, the values that rules map from and to
    rules               the two tables: which operation, by module class or by function name, has which rule
    rules_convolution   rules of what slides a kernel: convolutions, pools, padding, interpolation
    rules_shape         rules of the rest: elementwise, norms, products, attention, reshaping, indexing
    dependency          BlockChain -> Dependencies: how far before and behind its own position each block reads
    independence        BlockChain -> IndependentAxes: axes along which the network mixes no positions
    witness             a block -> whether it surely sees both sides, and whether its rules can be trusted
    probe               a block -> how far it reads, by trying a copy of it out

An operation in neither table raises a FieldError, once somebody asks for a field that it lies in; a new one takes a row
in ``rules.py``.
"""

from .dependency import Dependencies, Dependency, PieceDependency, dependencies
from .field import Fields, ReceptiveField, receptive_field, receptive_fields

__all__ = [
    "Dependencies",
    "Dependency",
    "Fields",
    "PieceDependency",
    "ReceptiveField",
    "dependencies",
    "receptive_field",
    "receptive_fields",
]
