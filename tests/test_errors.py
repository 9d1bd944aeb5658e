"""Every error is one of ours and one of Python's, can be copied to another process, and is in the list."""

from __future__ import annotations

import inspect
import pickle

import pytest

from pararealize import errors
from pararealize.errors import PararealizeError, RankError, RestackWarning, TrainingError

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
ERRORS = [kind for kind in CLASSES if issubclass(kind, PararealizeError) and kind is not PararealizeError]


def test_the_list_is_complete_and_in_order() -> None:
    assert errors.__all__ == sorted(kind.__name__ for kind in CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_says_in_its_docstring_when_it_is_raised(kind: type[Exception]) -> None:
    assert inspect.getdoc(kind) != inspect.getdoc(kind.__mro__[1])


@pytest.mark.parametrize("kind", ERRORS)
def test_one_clause_catches_all_and_pythons_own_catches_each(kind: type[Exception]) -> None:
    """Code that does not know this library still catches a bad argument as ValueError, a failed run as RuntimeError."""
    assert issubclass(kind, (ValueError, RuntimeError, OSError, NotImplementedError))
    assert not issubclass(kind, AssertionError)


def test_a_warning_is_no_error() -> None:
    assert issubclass(RestackWarning, UserWarning)
    assert not issubclass(RestackWarning, PararealizeError)


@pytest.mark.parametrize(
    "error, attributes",
    [
        (TrainingError("the loss is nan at step 3", 3, "g2"), {"step": 3, "where": "g2"}),
        (RankError("rank 2 died", 2), {"rank": 2}),
    ],
)
def test_what_an_error_knows_survives_a_copy(error: PararealizeError, attributes: dict[str, object]) -> None:
    """Errors travel from a worker process to its parent pickled, by their ``args``."""
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error) == error.args[0]
    assert {name: getattr(copied, name) for name in attributes} == attributes


@pytest.mark.parametrize("kind", ERRORS)
def test_a_message_can_be_read(kind: type[Exception]) -> None:
    """Whatever a name out of a file holds: it acts on no terminal, and leaves room for the fact and the remedy."""
    more = {"TrainingError": (1, "g2"), "RankError": (1,)}.get(kind.__name__, ())
    error = kind(f"the plan is of \x1b]0;title\x07{'n' * 100_000}\u202e\nline 2; pass another", *more)
    assert str(error).startswith(r"the plan is of \x1b]0;title\x07nnn")
    assert str(error).endswith("nnn\\u202e\nline 2; pass another")
    assert len(str(error)) < 8000
    assert "characters more" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
