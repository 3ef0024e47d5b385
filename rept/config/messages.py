"""Messages about wrong words and keys of a command line, with the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rept.config.schema import TARGET
from rept.config.words import words_of


def misplaced(
    key: str, schema: DictConfig, config: DictConfig, words: dict[str, str], values: dict[str, Any]
) -> str | None:
    """Returns the fault of a dotted key, or None. Keys of a user's own class are checked when it is built."""
    group, _, rest = key.partition(".")
    if group not in schema:
        return unknown(key, map(str, schema), "There is no such key")
    name = rest.partition(".")[0]
    if not rest:
        is_group = OmegaConf.is_dict(schema[group])
        return f"{key} is a group: set its keys as {key}.NAME=VALUE, or a word as {key}=WORD." if is_group else None
    if not OmegaConf.is_dict(schema[group]):
        return f"There is no key {key}: {group} holds one value; set it as {group}=VALUE."
    if is_dataclass(OmegaConf.get_type(schema[group])):  # its fields are known
        is_known = name in schema[group]
        return None if is_known else unknown(key, map(str, schema[group]), "There is no such key", f"{group}.")
    if group == "trainer" or name == TARGET or f"{group}.{TARGET}" in values or name in config.get(group, {}):
        return None
    if group in words and words[group] not in words_of(group):
        return None  # the word itself is wrong, which is reported already
    known = {name: OmegaConf.load(path) for name, path in words_of(group).items()}
    others = sorted((word for word in known if name in known[word]), key=lambda word: -len(known[word]))
    if others:
        given = f", but {group}={words[group]} was chosen" if group in words else ""
        choice = " or ".join(f"{group}={word}" for word in others)  # the word with most keys, the general one, first
        return f"{key} is a key of {' or '.join(others)}{given}; add the word {choice}."
    return unknown(key, map(str, config.get(group, {})), "There is no such key", f"{group}.")


def unknown(name: str, choices: Iterable[str], sentence: str, prefix: str = "") -> str:
    """Returns ``sentence`` with the name, its nearest choice, and all choices, which may share a prefix with it."""
    choices = sorted(str(choice) for choice in choices if choice != TARGET)
    found = difflib.get_close_matches(name.removeprefix(prefix), choices, n=1, cutoff=0.6)
    return f"{sentence}: {name}{did_you_mean([prefix + f for f in found])}. Choices: {', '.join(choices) or 'none'}."


def did_you_mean(found: Sequence[str]) -> str:
    """Returns a suggestion of the first name found; empty if there is none."""
    return f" (did you mean {found[0]}?)" if found else ""
