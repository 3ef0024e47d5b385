"""Composes the configuration of a command from its YAML files and the command line, with OmegaConf.

A command line is a list of ``key=value``. ``word=name`` loads ``configs/word/name.yaml`` (or a file of the user's own,
see `rept.config.words`), a dotted key sets one value. The order does not matter, except that a later value replaces an
earlier one; a dotted key takes precedence over a word.
Nothing heavy is imported here: `--help` must be fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rept.config.messages import misplaced, unknown
from rept.config.schema import SCHEMAS, TARGET, Config
from rept.config.words import CONFIGS, words_of
from rept.errors import UsageError

C = TypeVar("C", bound=Config)

_FILES: Mapping[type, Path] = {kind: CONFIGS / f"{name}.yaml" for name, kind in SCHEMAS.items()}


def compose(
    kind: type[C], arguments: Sequence[str] = (), base: C | None = None, given: Mapping[str, Any] | None = None
) -> C:
    """Returns a command's configuration: its YAML file with the words and dotted keys of the command line applied.

    Args:
        kind: the configuration's class.
        arguments: the command line; values are read as YAML.
        base: a configuration composed before, to start from instead of the file's defaults.
        given: further dotted keys, whose values are taken as they are.

    Raises:
        UsageError: all faults of the command line together, one sentence each.
    """
    words, values, faults = _parse(arguments)
    values |= given or {}
    config = _load(_FILES[kind]) if base is None else OmegaConf.create(asdict(base))
    chosen = dict(config.pop("defaults", {}))
    schema = _schema(_FILES[kind].stem)
    if "experiment" in words:
        experiment = _word("experiment", words.pop("experiment"), faults)
        chosen |= dict(experiment.pop("defaults", {}))
        config = _merged(config, experiment)
    chosen |= words
    for group, word in chosen.items():
        if group not in schema:
            faults.append(unknown(group, map(str, schema), "There is no group of that name in this command"))
            continue
        # Values that the file itself or the experiment gives for the group take precedence over the word's own.
        replaced = group in words and base is not None
        above = OmegaConf.create({}) if replaced else config.get(group) or OmegaConf.create({})
        config[group] = _merged(_word(group, word, faults), above)
    for key, value in values.items():
        fault = misplaced(key, schema, config, chosen, values) or _set(config, key, value, values)
        if fault:
            faults.append(fault)
    if faults:
        raise UsageError("\n".join(faults))
    return _as_dataclass(kind, config)


def read_config(path: Path, kind: type[C]) -> C:
    """Returns the configuration that `to_yaml` wrote; raises UsageError if the file does not hold one."""
    return _as_dataclass(kind, _load(path))


def to_yaml(config: Config) -> str:
    """Returns a configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the content of a YAML file whose top level is a mapping, interpolations resolved."""
    content = OmegaConf.to_container(_load(path), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def is_group(key: str) -> bool:
    """Whether words can be chosen for ``key``."""
    return "." not in key and (CONFIGS / key).is_dir()


def parse_value(text: str) -> Any:
    """Reads one value of a command line as YAML."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload, index]  # a mapping


def split_keys(arguments: Iterable[str], keys: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of those keys that are given, and the other arguments."""
    split = [(argument, *argument.partition("=")) for argument in arguments]
    values = {key: parse_value(text) for _, key, equals, text in split if key in keys and equals}
    return values, [argument for argument, key, *_ in split if key not in keys]


def _as_dataclass(kind: type[C], config: DictConfig) -> C:
    try:
        composed = _merged(_schema(_FILES[kind].stem), config)
        OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # reports a missing value now
        made = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise UsageError(f"{key}: {next(iter(str(error).splitlines()), 'no value')}.") from None
    assert isinstance(made, kind)
    return made


@cache
def _schema(command: str) -> DictConfig:
    """The keys of a command's configuration and their types; a merge copies it."""
    schema: DictConfig = OmegaConf.structured(SCHEMAS[command])
    return schema


def _merged(*configs: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*configs)
    assert isinstance(merged, DictConfig)
    return merged


def _parse(arguments: Iterable[str]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Command-line strings as words, dotted values and faults."""
    words: dict[str, str] = {}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            faults.append(f"Expected key=value, but got {argument!r}; --help lists the keys.")
        elif is_group(key):
            words[key] = text
        else:
            try:
                values[key] = parse_value(text)
            except Exception:  # the YAML parser behind OmegaConf raises types of its own
                faults.append(f"{key}: {text!r} is not a YAML value; quote it.")
                continue
            if _is_missing(values[key]):  # OmegaConf would skip it, and the default would stay
                faults.append(f"{key}: expected a value, but got ???, which means a missing one.")
    return words, values, faults


def _is_missing(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_is_missing, value.values() if isinstance(value, Mapping) else value))
    return bool(value == "???")


def _load(path: Path) -> DictConfig:
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _word(group: str, word: str, faults: list[str]) -> DictConfig:
    """``configs/GROUP/WORD.yaml``, or an empty node and a fault."""
    choices = words_of(group)
    if word in choices:
        return _load(choices[word])
    faults.append(unknown(f"{group}={word}", choices, "There is no such word", prefix=f"{group}="))
    return OmegaConf.create({})


def _set(config: DictConfig, key: str, value: Any, values: dict[str, Any]) -> str | None:
    """Sets one key of the command line; returns the fault if there is one."""
    group, _, rest = key.partition(".")
    given = {key: value}
    if rest == TARGET and config[group].get(TARGET) != value:
        # A new class has arguments of its own: the old one's are removed, those of the command line stay.
        given = {k: v for k, v in values.items() if k.startswith(f"{group}.")}
        config[group] = OmegaConf.create({TARGET: value})
    try:
        for name, new in given.items():
            # A mapping is merged into an existing one; anything else replaces the old value.
            old = OmegaConf.select(config, name, throw_on_resolution_failure=False)
            merge = isinstance(old, Mapping) and isinstance(new, Mapping)
            OmegaConf.update(config, name, new, merge=merge, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        return f"{name}={new} does not fit what is there: {next(iter(str(error).splitlines()), 'no such place')}."
    return None
