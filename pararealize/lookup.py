"""``package.module:name`` or ``file.py:name`` -> the Python object of that name; names like it where there is none."""

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ModelError
from .files import kind_of

__all__ = ["brief", "find", "unknown"]

_FILES: dict[Path, tuple[ModuleType, int]] = {}  # files that were run, as modules, and when each was written


def find(name: str) -> Any:
    """What ``package.module:name`` or ``file.py:name`` stands for; the name may have dots.

    Raises:
        ModelError: there is no such module, file or name in it, or importing it fails.

    Example:
        >>> find("math:gcd")(12, 18)
        6
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise ModelError(f"{name!r} names no Python object; write package.module:name or file.py:name")
    value: Any = _import(name, where)
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [key for key in dir(value) if not key.startswith("_") and callable(getattr(value, key, None))]
            raise ModelError(unknown(part, names, f"in {where!r} (model {name!r})"))
        value = getattr(value, part)
    return value


def _import(name: str, where: str) -> ModuleType:
    """The Python module of ``where:callable``: a file that ends in ``.py``, or a dotted name."""
    try:
        if where.endswith(".py"):
            return _import_file(name, Path(where))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # as `python -m` does, but last, so that nothing is shadowed
        return importlib.import_module(where)
    except ModelError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{where}.".startswith(f"{missing}."):
            raise ModelError(f"importing {where!r} for the model {name!r} failed: {brief(error)}") from error
        raise ModelError(
            f"there is no Python module {where!r} (model {name!r}); a model is a built-in name, torchvision:NAME, "
            f"timm:NAME, package.module:callable or file.py:callable, where the package is installed or stands in "
            f"{Path.cwd()}"
        ) from error


def _import_file(name: str, path: Path) -> ModuleType:
    """Run a file as a module, under a name that hides no other; it stays in ``sys.modules``, where pickle looks."""
    try:
        kind = kind_of(path, follow=True)
    except OSError as error:
        raise ModelError(f"no file can be called {str(path)!r} (model {name!r}): {error.strerror}; name one") from error
    if kind != "file":
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ModelError(unknown(path.name, beside, f"a file in {path.parent.resolve()} (model {name!r})"))
    written = path.stat().st_mtime_ns
    if _FILES.get(path.resolve(), (None, 0))[1] == written:  # run once: a class of it is the same class each time
        return _FILES[path.resolve()][0]
    spec = importlib.util.spec_from_file_location(f"pararealize_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    _FILES[path.resolve()] = module, written
    return module


def brief(error: Exception) -> str:
    """The error in one line, with the file and line it came from: the user's own code is to blame."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def unknown(name: str, candidates: Iterable[str], what: str) -> str:
    """The message for a name that nothing has: what it is not, up to three candidates like it, and the remedy.

    Example:
        >>> unknown("resnet51", ["resnet50", "resnet56"], "a built-in model").split("?")[0]
        "'resnet51' is not a built-in model; did you mean resnet56 or resnet50"
    """
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join([', '.join(close[:-1]), close[-1]] if len(close) > 1 else close)}?"
    else:
        hint = "nothing has a name like it."
    return (
        f"{name!r} is not {what}; {hint} A model is a built-in name (pararealize ls lists them), torchvision:NAME, "
        f"timm:NAME, package.module:callable or file.py:callable"
    )
