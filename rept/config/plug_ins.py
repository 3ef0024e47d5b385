"""Builds the objects that a configuration names by their dotted paths."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from rept.config.messages import did_you_mean, unknown
from rept.config.schema import TARGET
from rept.errors import UsageError

T = TypeVar("T")


def build(node: Mapping[str, Any], kind: type[T], **collaborators: object) -> T:
    """Returns the object that ``node`` names: its ``_target_`` called with the node's other keys and ``collaborators``.

    Nested nodes with a ``_target_`` are built first. Arguments are compared with the signature before the call.

    Raises:
        UsageError: no such module or class, an unknown or missing argument, or an object that is not of ``kind``.
    """
    arguments = dict(node)
    target = locate(arguments.pop(TARGET, None))
    arguments = {name: _build_nested(value) for name, value in arguments.items()} | collaborators
    path = f"{target.__module__}.{target.__qualname__}"
    _check_arguments(target, arguments, path)
    try:
        built = target(**arguments)
    except TypeError as error:
        raise UsageError(f"{path} does not take these arguments: {error}.") from error
    if not isinstance(built, kind):
        raise UsageError(f"Expected {TARGET} to name a {kind.__name__}, but {path} gives a {type(built).__name__}.")
    return built


def locate(path: object) -> Any:
    """Returns the class or function at a dotted path."""
    if not isinstance(path, str) or not all(path.split(".")[:-1]) or "." not in path:
        raise UsageError(f"Expected {TARGET} to be a dotted path such as scorers.cosine.Cosine, but got {path!r}.")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{TARGET}={path}: there is no module {error.name!r}; is it installed?") from None
    except AttributeError:
        found = difflib.get_close_matches(name, dir(importlib.import_module(module)), n=1)
        raise UsageError(f"{TARGET}={path}: {module} has no {name!r}{did_you_mean(found)}.") from None


def _check_arguments(target: Any, arguments: Mapping[str, Any], path: str) -> None:
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise UsageError(unknown(name, parameters, f"{path} takes no argument of that name"))
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in arguments
    ]
    if missing:
        raise UsageError(f"{path} needs {', '.join(missing)}, which the configuration does not give.")


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping) and TARGET in value:
        return build(value, object)
    return [_build_nested(item) for item in value] if isinstance(value, list) else value
