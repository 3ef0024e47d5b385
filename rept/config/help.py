"""`--help`, generated from the YAML files: the comment of a key is its documentation."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from rept.config.schema import TARGET
from rept.config.words import CONFIGS, words_of

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w_]+):(?: +(?P<value>[^#]*?))?(?:\s+# (?P<comment>.*))?$")


def documented(path: Path) -> list[tuple[str, str, str]]:
    """Returns (dotted key, default, comment) of each line of a YAML file that sets a value."""
    entries, parent = [], ""
    for line in path.read_text().splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        key, value, comment = found["key"], found["value"], found["comment"] or ""
        if not found["indent"]:
            parent = key
        if value is None:
            continue
        entries.append((f"{parent}.{key}" if found["indent"] else key, value, comment))
    return entries


def describe(name: str, usage: str, keys: Collection[str] | None = None) -> str:
    """Returns the help text of the command configured by ``configs/NAME.yaml``.

    Args:
        keys: the top-level keys that the command takes; None: all.
    """
    entries = documented(CONFIGS / f"{name}.yaml")
    defaults = dict(re.findall(r"(\w+): (\w+)", next(value for key, value, _ in entries if key == "defaults")))
    lines = [usage.strip(), "", "Keys (key=default: meaning):"]
    lines += [_entry(*entry) for entry in entries if entry[0] != "defaults" and _taken(entry[0], keys)]
    for group in filter(partial(_taken, keys=keys), [*defaults, "experiment"]):
        words = words_of(group)
        if not words:
            continue
        question = "Which experiment should I use? " if group == "experiment" else ""
        lines += ["", f"{question}{group}=WORD (default: {defaults.get(group, 'none')}; one of {', '.join(words)}):"]
        for word, path in words.items():
            for key, value, comment in documented(path):
                if key == TARGET:
                    lines.append(f"  {group}={word:<28} {comment}")
                elif group != "experiment":
                    lines.append("  " + _entry(f"{group}.{key}", value, comment))
            if group == "experiment":
                lines.append(f"  {group}={word:<28} {_first_sentence(path)}")
    lines += ["", f"{TARGET}: any plug-in group takes {TARGET}=your.module.Class and that class's own arguments."]
    return "\n".join(lines)


def _taken(key: str, keys: Collection[str] | None) -> bool:
    return keys is None or key.partition(".")[0] in keys


def _first_sentence(path: Path) -> str:
    """The first sentence of the comment at the head of a YAML file."""
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return " ".join(lines).partition(". ")[0].rstrip(".")


def _entry(key: str, value: str, comment: str) -> str:
    return f"  {key + '=' + value:<40} {comment}"
