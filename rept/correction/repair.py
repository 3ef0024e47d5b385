"""Repair: corrections that switch behaviours off at inference, for one model; how they are applied and stored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from rept.correction.correction import Correction, LayerCorrections
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.signatures.fingerprint import of_adapter, of_tokenizer, of_weights
from rept.types import PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.files import make_folder, publish
from rept.utils.json_files import write_text

TENSORS, DESCRIPTION = "repair.safetensors", "repair.yaml"
_STORED = ("read", "offset", "write", "gate", "threshold")


class Repair:
    """Corrections of one model's hidden states, which switch behaviours off while it runs.

    Args:
        corrections: one or several for each behaviour.
        made_for: fingerprints of the model and tokenizer, see :func:`identity`.
        about: what the repair is and how it was made, as YAML can hold it.

    Example:
        >>> repair = Repair.load("runs/demo/repair")                 # doctest: +SKIP
        >>> with repair.on(model, tokenizer):                        # doctest: +SKIP
        ...     model.generate(**tokenizer("Hello", return_tensors="pt"))
    """

    def __init__(
        self, corrections: Sequence[Correction], made_for: Mapping[str, str], about: Mapping[str, Any] | None = None
    ) -> None:
        self.corrections = list(corrections)
        self.made_for = dict(made_for)
        self.about = dict(about or {})

    @property
    def behaviours(self) -> list[str]:
        """The behaviours that it switches off."""
        return list(dict.fromkeys(one.behaviour for one in self.corrections))

    @contextmanager
    def on(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[None]:
        """Applies the repair inside the ``with`` block, to every position of every forward pass.

        Args:
            model: the model that the repair was made for, or one with the same weights and dtype.
            tokenizer: compared too, if given.

        Raises:
            UsageError: it is another model, adapter, number of layers, dtype or tokenizer.
        """
        self.check(model, tokenizer)
        with corrected(model, self.corrections):
            yield

    def to_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
        """Returns a copy of the model with the repair in its weights, as biases of MLPs.

        Only a repair that adds one vector to all states (``gradient``, ``contrast``) is equal to a change of weights:
        others read the state that they change, after the residual is added, where a decoder block has no weights.

        Raises:
            UsageError: another model, a repair of another kind, or MLPs whose last layer cannot have a bias.
        """
        self.check(model, tokenizer)
        if not all(one.is_shift for one in self.corrections):
            raise UsageError(
                "This repair reads the states that it changes, so no change of weights is equal to it: use "
                "`with repair.on(model):`. Only the methods gradient and contrast fold into weights."
            )
        folded = copy.deepcopy(model)
        for one in self.corrections:
            _add_bias(folded, one.layer, one.write[0] * one.offset[0])
        return folded

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Raises UsageError, naming each difference, unless the repair was made for this model and tokenizer."""
        now = identity(model, tokenizer)
        pairs = [(name, self.made_for[name], now[name]) for name in now if name in self.made_for]
        if different := [f"{name} was {old}, now {new}" for name, old, new in pairs if old != new]:
            raise UsageError(
                f"This repair was made for another model: {'; '.join(different)}. Load the model that it was made for, "
                "or make a repair for this one: python -m rept repair."
            )

    def save(self, folder: str | Path) -> None:
        """Writes ``repair.safetensors`` and ``repair.yaml`` into the folder."""
        folder = Path(folder)
        make_folder(folder)
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self.corrections):
            threshold = torch.tensor(one.threshold, dtype=torch.float64)
            parts = {name: getattr(one, name) for name in _STORED} | {"threshold": threshold}
            tensors |= {f"{number}.{name}": part.contiguous() for name, part in parts.items() if part is not None}
        places = [{"behaviour": one.behaviour, "layer": one.layer} for one in self.corrections]
        content = {"made_for": self.made_for, "corrections": places, "about": self.about}
        publish(folder / TENSORS, save(tensors))
        write_text(folder / DESCRIPTION, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @classmethod
    def load(cls, folder: str | Path) -> Repair:
        """Returns the repair that `save` wrote.

        Raises:
            UsageError: there is none in the folder, or a file is damaged.
        """
        folder = Path(folder)
        for name in (TENSORS, DESCRIPTION):
            if not (folder / name).is_file():
                raise UsageError(
                    f"Expected {folder} to have a repair, but there is no {name}: make one by "
                    "python -m rept repair RUN."
                )
        try:
            tensors, content = (
                load((folder / TENSORS).read_bytes()),
                yaml.safe_load((folder / DESCRIPTION).read_text("utf-8")),
            )
            corrections = [_restored(tensors, i, place) for i, place in enumerate(content["corrections"])]
        except (SafetensorError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(
                f"The repair in {folder} is damaged ({error}): make it again by python -m rept repair RUN."
            ) from error
        return cls(corrections, content["made_for"], content["about"])


def identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, str]:
    """Returns what a repair depends on: dtype, layers, width, and fingerprints of weights, adapter and tokenizer."""
    found = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": str(len(Architecture.of(model))),
        "weights": of_weights(model),
        "adapter": of_adapter(model),
    }
    return found if tokenizer is None else found | {"tokenizer": of_tokenizer(tokenizer)}


@contextmanager
def corrected(
    model: PreTrainedModel, corrections: Sequence[Correction], watching: bool = False
) -> Iterator[list[LayerCorrections]]:
    """Applies corrections inside the ``with`` block, and yields the hook of each block that has some.

    Args:
        watching: record where gates are open, see `LayerCorrections.opened`.
    """
    blocks = Architecture.of(model).blocks
    by_layer: dict[int, list[Correction]] = {}
    for one in corrections:
        by_layer.setdefault(one.layer, []).append(one)
    hooks = [LayerCorrections(found, watching) for found in by_layer.values()]
    with ExitStack() as registered:
        for layer, hook in zip(by_layer, hooks, strict=True):
            registered.enter_context(blocks[layer - 1].register_forward_hook(hook))
        yield hooks


def _restored(tensors: Mapping[str, Tensor], number: int, place: Mapping[str, Any]) -> Correction:
    parts = {name: tensors.get(f"{number}.{name}") for name in _STORED}
    read, offset, write, threshold = (tensors[f"{number}.{name}"] for name in ("read", "offset", "write", "threshold"))
    return Correction(place["behaviour"], place["layer"], read, offset, write, parts["gate"], threshold.item())


def _add_bias(model: PreTrainedModel, layer: int, vector: Tensor) -> None:
    """Adds ``vector`` (D) to the output of a block, as a bias of the last linear layer of its MLP."""
    mlp = Architecture.of(model).mlp_output(layer)
    linears = [module for module in mlp.modules() if isinstance(module, nn.Linear)]
    last = linears[-1] if linears and linears[-1].out_features == len(vector) else None
    if last is None:
        raise UsageError(
            f"The MLP of layer {layer} does not end in a linear layer that can take a bias: use "
            "`with repair.on(model):`."
        )
    if last.bias is None:
        settings = model.config.get_text_config()
        if "mlp_bias" not in settings.to_dict():  # else the bias would be lost when the model is saved and loaded
            raise UsageError(
                f"{type(model).__name__} has no biases in its MLPs, so a saved copy would lose the repair: use "
                "`with repair.on(model):`."
            )
        settings.mlp_bias = True
        for number in range(1, len(Architecture.of(model)) + 1):
            for module in Architecture.of(model).mlp_output(number).modules():
                if isinstance(module, nn.Linear) and module.bias is None:
                    empty = torch.zeros(module.out_features, dtype=module.weight.dtype, device=module.weight.device)
                    module.bias = nn.Parameter(empty, requires_grad=False)
    bias = cast("Tensor", last.bias)
    bias.data += vector.to(bias)
