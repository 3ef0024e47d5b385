"""Records objects that were given in Python in the configuration of their run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rept.config.plug_ins import build
from rept.config.schema import TARGET, Node
from rept.errors import UsageError
from rept.signatures.fingerprint import of_settings

NOT_REBUILDABLE = "given_in_python"  # key of a node whose object cannot be built from the configuration


def as_node(part: object) -> Node:
    """Returns the node that builds an object like ``part``.

    The arguments are read from attributes of the same names, with or without a leading underscore. The object that they
    build is compared with ``part``; if it differs, the node only describes the object, see `check_rebuildable`.
    """
    kind = type(part)
    held = vars(part) if hasattr(part, "__dict__") else {}
    arguments = {
        name: _plain(held.get(name, held.get(f"_{name}")))
        for name in inspect.signature(kind).parameters
        if name in held or f"_{name}" in held
    }
    node: Node = {TARGET: of_settings(kind)} | arguments
    try:
        same = _is_plain(arguments) and of_settings(build(node, object)) == of_settings(part)
    except (UsageError, ValueError):
        same = False
    return node if same else as_description(part)


def as_description(part: object) -> Node:
    """Returns a node that names the class and settings of an object, from which it cannot be built."""
    return {TARGET: of_settings(type(part)), NOT_REBUILDABLE: of_settings(part)}


def check_rebuildable(node: Node, group: str) -> None:
    """Raises UsageError if the object of a node was given in Python and cannot be built from its record."""
    if NOT_REBUILDABLE in node:
        raise UsageError(
            f"The {group} of this run was given in Python and cannot be built again from what was recorded "
            f"({node[NOT_REBUILDABLE]}): name one, as in {group}=cosine."
        )


def _is_plain(value: Any) -> bool:
    """Whether YAML can hold a value."""
    if isinstance(value, Mapping | list):
        return all(map(_is_plain, value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, str | bool | int | float)


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
