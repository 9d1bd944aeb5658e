"""."""

from .catalogue import Dataset, digits, load, names

__all__ = ["Dataset", "digits", "load", "names"]
