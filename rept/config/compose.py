"""The run configuration: schema, compose() and build(). OmegaConf alone; nothing heavy is imported here.

A command line is a list of ``key=value``. ``word=name`` loads ``configs/word/name.yaml``, a dotted key sets one value;
both may stand in any order, later wins over earlier, and a dotted key wins over a word.
Plug-ins are nodes with a ``_target_`` (a dotted path to a class) and that class's arguments.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rept.config.messages import CONFIGS, TARGET, did_you_mean, misplaced, unknown
from rept.errors import UsageError


@dataclass
class ModelConfig:
    path: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    attn_implementation: str | None = None
    device_map: Any = None
    trust_remote_code: bool = False
    blocks: str | None = None
    final_norm: str | None = None
    attention: str | None = None
    mlp: str | None = None


@dataclass
class StoreConfig:
    dtype: str = "float16"
    shard_rows: int | None = None
    repair: bool = False


@dataclass
class TokensConfig:
    hits: int = 3
    layer: int | None = None
    form: str = "matched"


@dataclass
class CalibrationConfig:
    rate: float | None = None
    references: str | None = None
    count: int = 400


@dataclass
class AttributeConfig:
    """What `python attribute.py` reads; each field is explained in configs/attribute.yaml."""

    model: ModelConfig = field(default_factory=ModelConfig)
    datamodule: dict[str, Any] = field(default_factory=dict)
    extractor: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    store: StoreConfig = field(default_factory=StoreConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    top_k: int = 100
    bottom_k: int = 0
    each: bool = False
    max_new_tokens: int = 48
    seed: int = 0
    max_wait: float = 1800.0
    report: bool = True
    out: str = "runs/demo"


@dataclass
class TrainConfig:
    """What `python train.py` reads; each field is explained in configs/train.yaml."""

    model: dict[str, Any] = field(default_factory=dict)
    datamodule: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    resume: str | None = None
    compare_with: str | None = None
    out: str = "runs/demo/model"


SCHEMAS: dict[str, type] = {"attribute": AttributeConfig, "train": TrainConfig}


def compose(
    name: str,
    arguments: Sequence[str] = (),
    base: DictConfig | None = None,
    given: Mapping[str, Any] | None = None,
) -> DictConfig:
    """The configuration of ``configs/NAME.yaml`` with the command line's words and dotted keys laid over it.

    ``base`` is a configuration composed earlier (a run's ``config.yaml``) to start from instead of the file's defaults.
    ``given`` are further dotted keys, their values taken as they are; those of ``arguments`` are read as YAML.

    Raises:
        UsageError: all faults of the command line together, one sentence each.
    """
    words, values, faults = _parse(arguments)
    values |= given or {}
    # Copied without its types: a composed configuration would refuse the words laid over it here.
    config = _load(CONFIGS / f"{name}.yaml") if base is None else OmegaConf.create(OmegaConf.to_container(base))
    chosen = dict(config.pop("defaults", {}))
    schema = OmegaConf.structured(SCHEMAS[name])
    if "experiment" in words:
        experiment = _word("experiment", words.pop("experiment"), faults)
        chosen |= dict(experiment.pop("defaults", {}))
        config = OmegaConf.merge(config, experiment)
    chosen |= words
    for group, word in chosen.items():
        if group not in schema:
            faults.append(unknown(group, schema.keys(), "There is no group of that name in this command"))
            continue
        # Values given for the group by the file itself or the experiment stand above the word's own.
        replaced = group in words and base is not None
        above = OmegaConf.create({}) if replaced else config.get(group) or OmegaConf.create({})
        config[group] = OmegaConf.merge(_word(group, word, faults), above)
    for key, value in values.items():
        fault = misplaced(key, schema, config, chosen, values) or _set(config, key, value, values)
        if fault:
            faults.append(fault)
    if faults:
        raise UsageError("\n".join(faults))
    try:
        composed = OmegaConf.merge(schema, config)
        OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # a value that is none is told now
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise UsageError(f"{key}: {next(iter(str(error).splitlines()), 'no value')}.") from None
    return composed


def build(node: DictConfig | dict, **collaborators: Any) -> Any:
    """The object that ``node`` names: its ``_target_`` called with the node's other keys and ``collaborators``.

    Nested nodes with a ``_target_`` are built first. Arguments are held against the signature before it is called.

    Raises:
        UsageError: no such module or class; an argument that it does not take, or that it lacks.
    """
    arguments = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    target = locate(arguments.pop(TARGET, None))
    arguments = {name: _build_nested(value) for name, value in arguments.items()} | collaborators
    path = f"{target.__module__}.{target.__qualname__}"
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
    try:
        return target(**arguments)
    except TypeError as error:
        raise UsageError(f"{path} does not take these arguments: {error}.") from error


def locate(path: Any) -> Any:
    """The class or function at a dotted path."""
    if not isinstance(path, str) or not all(path.split(".")[:-1]) or "." not in path:
        raise UsageError(f"Expected {TARGET} to be a dotted path such as scorers.cosine.Cosine, but got {path!r}.")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{TARGET}={path}: there is no module {error.name!r}; is it installed?") from None
    except AttributeError:
        found = difflib.get_close_matches(name, dir(importlib.import_module(module)), n=1)
        raise UsageError(f"{TARGET}={path}: {module} holds no {name!r}{did_you_mean(found)}.") from None


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping) and TARGET in value:
        return build(value)
    return [_build_nested(item) for item in value] if isinstance(value, list) else value


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
                values[key] = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
            except Exception:  # the YAML parser behind OmegaConf raises types of its own
                faults.append(f"{key}: {text!r} is no YAML value; quote it.")
                continue
            if _is_missing(values[key]):  # OmegaConf would pass over it, and the default would stay
                faults.append(f"{key}: expected a value, but got ???, which stands for none.")
    return words, values, faults


def _is_missing(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_is_missing, value.values() if isinstance(value, Mapping) else value))
    return value == "???"


def is_group(key: str) -> bool:
    """Whether words can be chosen for ``key``."""
    return "." not in key and (CONFIGS / key).is_dir()


def _load(path: Path) -> DictConfig:
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _word(group: str, word: str, faults: list[str]) -> DictConfig:
    """``configs/GROUP/WORD.yaml``, or an empty node and a fault."""
    choices = sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))
    if word in choices:
        return _load(CONFIGS / group / f"{word}.yaml")
    faults.append(unknown(f"{group}={word}", choices, "There is no such word", prefix=f"{group}="))
    return OmegaConf.create({})


def _set(config: DictConfig, key: str, value: Any, values: dict[str, Any]) -> str | None:
    """Sets one key of the command line; what is wrong with it, if anything is."""
    group, _, rest = key.partition(".")
    given = {key: value}
    if rest == TARGET and config[group].get(TARGET) != value:
        # A new class has arguments of its own: the old one's are cleared, the command line's stay.
        given = {k: v for k, v in values.items() if k.startswith(f"{group}.")}
        config[group] = OmegaConf.create({TARGET: value})
    try:
        for name, new in given.items():
            # A mapping is merged into one that is there; anything else takes the old value's place.
            old = OmegaConf.select(config, name, throw_on_resolution_failure=False)
            merge = isinstance(old, Mapping) and isinstance(new, Mapping)
            OmegaConf.update(config, name, new, merge=merge, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        return f"{name}={new} does not fit what is there: {next(iter(str(error).splitlines()), 'no such place')}."
    return None
