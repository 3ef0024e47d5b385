"""ModelFolder: the files of a training, and how a later call of the same command finds them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from rept.config.compose import read_yaml, to_yaml
from rept.config.schema import TrainConfig
from rept.errors import UsageError
from rept.model.optimizer_state import save_optimizer_state
from rept.training.recipe import RECIPE, changes
from rept.types import PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.files import move_durably
from rept.utils.json_files import read_json, write_json, write_jsonl, write_text
from rept.utils.ranks import own_rank
from rept.utils.text import clip

_LAST_WRITTEN = ("config.json", "adapter_config.json")


class ModelFolder:
    """The folder of one training. Besides the files of Transformers, PEFT and the tokenizer it has:

        training.yaml          the composed configuration
        training.json          hyperparameters, rows, losses, seconds, versions, hardware; base_weights, the fingerprint
                               of the pretrained model that the training started from
        optimizer.safetensors  AdamW's moments by parameter name; optimizer.json has its settings
        behaviours.json        how often each behaviour shows; answers.jsonl has the model's answers
        checkpoints/last.ckpt  Lightning's, from which an interrupted training resumes

    The model's config.json, or an adapter's adapter_config.json, is written last: a folder that has one is complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / RECIPE
        self.record = self.path / "training.json"
        self.behaviours = self.path / "behaviours.json"
        self.answers = self.path / "answers.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.ckpt"

    @property
    def complete(self) -> bool:
        return any((self.path / name).is_file() for name in _LAST_WRITTEN)

    @property
    def base_weights(self) -> str | None:
        """The fingerprint of the pretrained model that the training started from; None if it is not known."""
        known: str | None = read_json(self.record).get("base_weights") if self.record.is_file() else None
        return known

    def other_data(self, wanted: Mapping[str, Any]) -> str:
        """Returns which of the wanted data settings the model was not trained with, in words; empty if none."""
        known = read_yaml(self.config)["datamodule"] if self.config.is_file() else {}
        return "; ".join(
            f"datamodule.{name} was {clip(str(known.get(name)), 60)}, now {value}"
            for name, value in wanted.items()
            if name not in known or known[name] != value
        )

    def other_recipe(self, config: TrainConfig) -> str:
        """Returns how the model's recipe differs from ``config``, in words; empty if only the rows left out differ."""
        if not self.config.is_file():
            return f"{self.path} has no {self.config.name}, so its recipe is not known"
        return changes(read_yaml(self.config), asdict(config), ["datamodule.exclude"])

    def begin(self, config: TrainConfig) -> None:
        """Records the configuration; only rank 0 writes.

        Raises UsageError if the folder has a training with other settings, or a model of another program.
        """
        if own_rank():
            return
        started = self.complete or self.last_checkpoint.is_file()
        if started and self.config.is_file():
            if different := changes(read_yaml(self.config), asdict(config)):
                raise UsageError(
                    f"{self.path} holds a model trained with other settings: {different}. Name another folder by out=."
                )
        elif self.complete:
            raise UsageError(f"{self.path} holds a model that was not trained here; name another folder by out=.")
        write_text(self.config, to_yaml(config))

    def finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        record: Mapping[str, Any],
        behaviours: Mapping[str, Any],
        answers: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes everything into a temporary folder and moves it here, the model's configuration last."""
        unfinished = self.path / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        save_optimizer_state(unfinished, optimizer, model)
        write_json(unfinished / self.behaviours.name, behaviours)
        write_jsonl(unfinished / self.answers.name, answers)
        write_json(unfinished / self.record.name, record)
        mode = (unfinished / self.record.name).stat().st_mode  # by the umask; safetensors' are for the owner alone
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name in _LAST_WRITTEN):
            if file.is_file():
                file.chmod(mode)
            move_durably(file, self.path / file.name)
        unfinished.rmdir()
