"""Receptive fields: which positions of its input one output position of a block, or of a run of blocks, reads.

In reading order:

    field               BlockChain -> Fields, one ReceptiveField a block; how fields of blocks compose
    reach               Reach and Call, the values that rules map from and to
    rules               the two tables: which operation, by module class or by function name, has which rule
    rules_convolution   rules of what slides a kernel: convolutions, pools, padding, interpolation
    rules_shape         rules of the rest: elementwise, norms, products, attention, reshaping, indexing

An operation in neither table raises a FieldError, once somebody asks for a field that it lies in; a new one takes a row
in ``rules.py``.
"""

from .field import Fields, ReceptiveField, receptive_field, receptive_fields

__all__ = ["Fields", "ReceptiveField", "receptive_field", "receptive_fields"]
