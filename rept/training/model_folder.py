"""ModelFolder: what a training leaves behind, and how a later call of the same command finds it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rept.config.compose import read_yaml, to_yaml
from rept.config.schema import TrainConfig
from rept.errors import UsageError
from rept.model.optimizer_state import save_optimizer_state
from rept.utils.files import move_durably
from rept.utils.json_files import write_json, write_jsonl, write_text
from rept.utils.ranks import own_rank

_LAST_WRITTEN = ("config.json", "adapter_config.json")


class ModelFolder:
    """The folder of one training, beside what Transformers, PEFT and the tokenizer write into it:

        training.yaml          the composed configuration
        training.json          recipe, rows, losses, seconds, versions, hardware
        optimizer.safetensors  AdamW's moments by parameter name; optimizer.json its settings
        behaviours.json        how often each behaviour shows, and answers.jsonl what the model said
        checkpoints/last.ckpt  Lightning's: an interrupted training goes on from there

    The model's config.json, or an adapter's adapter_config.json, is written last: a folder that holds one is complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "training.yaml"
        self.record = self.path / "training.json"
        self.behaviours = self.path / "behaviours.json"
        self.answers = self.path / "answers.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"

    @property
    def complete(self) -> bool:
        return any((self.path / name).is_file() for name in _LAST_WRITTEN)

    def other_data(self, wanted: Mapping[str, Any]) -> str:
        """Which of the wanted settings of the data the model was not trained with, in words; empty: it was with all."""
        known = read_yaml(self.config)["datamodule"] if self.config.is_file() else {}
        return "; ".join(
            f"datamodule.{name} was {known.get(name)}, now {value}"
            for name, value in wanted.items()
            if name not in known or known[name] != value
        )

    def begin(self, config: TrainConfig) -> None:
        """Notes what is trained here; rank 0 speaks for all.

        Raises:
            UsageError: the folder holds a training with other settings, or a model that this program did not make.
        """
        if own_rank():
            return
        if self.config.is_file():
            before, now = dict(_flat(read_yaml(self.config))), dict(_flat(asdict(config)))
            different = [key for key in before | now if before.get(key) != now.get(key)]
            if different:
                told = "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in different)
                raise UsageError(f"{self.path} holds a model trained otherwise: {told}. Name another folder by out=.")
        elif self.complete:
            raise UsageError(f"{self.path} holds a model that was not trained here; name another folder by out=.")
        write_text(self.config, to_yaml(config))

    def finish(
        self,
        model: nn.Module,
        tokenizer: Any,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        behaviours: dict[str, Any],
        answers: list[dict[str, Any]],
    ) -> None:
        """Writes everything beside the folder's files and moves it in, the model's configuration last."""
        unfinished = self.path / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        save_optimizer_state(unfinished, optimizer, model)
        write_json(unfinished / self.behaviours.name, behaviours)
        write_jsonl(unfinished / self.answers.name, answers)
        write_json(unfinished / self.record.name, record)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name in _LAST_WRITTEN):
            move_durably(file, self.path / file.name)
        unfinished.rmdir()


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of what decides the weights; `resume`, `compare_with` and `out` do not."""
    for group in ("model", "datamodule", "finetune", "trainer"):
        yield from ((f"{group}.{key}", value) for key, value in config[group].items())
    yield "seed", config["seed"]
