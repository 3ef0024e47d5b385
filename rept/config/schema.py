"""The configuration of a command as dataclasses; each field is explained in the YAML file of the command.

A plug-in group (``datamodule``, ``extractor``, ...) is a dictionary: a ``_target_``, which is the dotted path of a
class, and that class's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TARGET = "_target_"
Node = dict[str, Any]  # a plug-in: its TARGET and arguments


@dataclass
class ModelConfig:
    path: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    attn_implementation: str | None = None
    device_map: Any = None  # a word, or a dictionary of modules and devices, as in Transformers
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
    form: str = "distinctive"


@dataclass
class CalibrationConfig:
    rate: float | None = None
    references: str | None = None
    count: int = 400


@dataclass
class AttributeConfig:
    """What `python attribute.py` reads; see configs/attribute.yaml."""

    model: ModelConfig = field(default_factory=ModelConfig)
    datamodule: Node = field(default_factory=dict)
    extractor: Node = field(default_factory=dict)
    layers: Node = field(default_factory=dict)
    scorer: Node = field(default_factory=dict)
    # Runs from before there were behaviour rankings have none in their config.yaml.
    behaviour_scorer: Node = field(default_factory=lambda: {TARGET: "scorers.adaptive.Adaptive"})
    trainer: Node = field(default_factory=dict)
    store: StoreConfig = field(default_factory=StoreConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    top_k: int = 100
    bottom_k: int = 0
    behaviours: str | None = None
    each: bool = False
    max_new_tokens: int = 48
    seed: int = 0
    max_wait: float = 1800.0
    report: bool = True
    out: str = "runs/demo"


@dataclass
class TrainConfig:
    """What `python train.py` reads; see configs/train.yaml."""

    model: Node = field(default_factory=dict)
    datamodule: Node = field(default_factory=dict)
    trainer: Node = field(default_factory=dict)
    finetune: Node = field(default_factory=dict)
    seed: int = 0
    resume: str | None = None
    compare_with: str | None = None
    out: str = "runs/demo/model"


@dataclass
class RepairConfig:
    """What `python -m rept repair` reads; see configs/repair.yaml."""

    method: Node = field(default_factory=dict)
    rows: int = 60
    others: int = 400
    tried_layers: list[int] | None = None
    likelihood: float = 0.05
    clean_kl: float = 0.02
    prompts: str | None = None
    clean: int = 120
    controls: int = 20
    proof: str | None = None
    max_new_tokens: int = 32
    seed: int = 0
    out: str | None = None


Config = AttributeConfig | TrainConfig | RepairConfig
SCHEMAS: dict[str, type[Config]] = {"attribute": AttributeConfig, "train": TrainConfig, "repair": RepairConfig}

# Top-level keys that can be set when the stored signatures of a run are ranked again, exactly or approximately.
RANKING = ("scorer", "top_k", "bottom_k", "behaviour_scorer", "behaviours", "each", "calibration", "max_wait", "out")
APPROXIMATE_RANKING = ("scorer", "top_k", "out")
