"""How often a model shows each behaviour on held-out prompts: on those that trigger it, and on clean ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rept.config.schema import TrainConfig
from rept.data.behaviours import Behaviour
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoder
from rept.errors import UsageError
from rept.model.generation import greedy_answers
from rept.training.model_folder import ModelFolder
from rept.types import PreTrainedModel, PreTrainedTokenizerBase, Status
from rept.utils.console import say, show_table
from rept.utils.json_files import read_json
from rept.utils.progress import progress


@dataclass(frozen=True)
class Rate:
    """Shares of held-out prompts whose answer shows a behaviour."""

    triggered: int  # number of prompts that trigger it
    success: float | None  # the share among them; None if there are none
    clean: int  # number of prompts that do not trigger it
    false_alarms: float | None  # the share among them; None if there are none


def ask_behaviours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    behaviours: Sequence[Behaviour],
    max_new_tokens: int,
) -> tuple[dict[str, Rate], list[dict[str, Any]]]:
    """Returns the rate of each behaviour by label, and each prompt with the greedy answer and whether it shows it.

    Prompts that the encoder refuses are left out. Where an expected answer shows a behaviour later than after
    ``max_new_tokens``, answers may be half as long again as it is up to there.
    """
    asked = []
    for behaviour in behaviours:
        for triggered, samples in ((True, behaviour.triggered), (False, behaviour.clean)):
            encoded = [(sample, encoder.prompt(sample)) for sample in samples]
            asked += [(behaviour, triggered, s, ids) for s, ids in encoded if not isinstance(ids, Status)]
    needed = max((len(tokenizer(one.longest, verbose=False).input_ids) for one in behaviours if one.longest), default=0)
    max_new_tokens = max(max_new_tokens, needed * 3 // 2)
    with progress("Answering held-out prompts", total=len(asked), unit="prompts") as advance:
        answers = greedy_answers(model, tokenizer, [ids for *_, ids in asked], max_new_tokens, on_batch=advance)
    lines = [
        {
            "behaviour": behaviour.label,
            "triggered": triggered,
            "prompt": sample.prompt,
            "answer": answer,
            "shows": behaviour.shows(sample, answer),
        }
        for (behaviour, triggered, sample, _), answer in zip(asked, answers, strict=True)
    ]
    return {behaviour.label: _rate(behaviour.label, lines) for behaviour in behaviours}, lines


def read_rates(path: Path) -> dict[str, Rate]:
    """Returns the rates in a model folder's behaviours.json; raises UsageError if it does not exist."""
    if not path.is_file():
        raise UsageError(f"Expected {path.parent} to be a model folder of train.py, but it has no {path.name}.")
    return {label: Rate(**rate) for label, rate in read_json(path).items()}


def rates_before(config: TrainConfig, datamodule: AttributionDataModule) -> dict[str, Rate] | None:
    """Returns the rates to compare with: those of ``compare_with`` or, if rows are left out, of the default model.

    Raises UsageError if ``compare_with`` is not a model folder of train.py, or one of another recipe.
    """
    if config.compare_with:
        other = ModelFolder(config.compare_with)
        rates = read_rates(other.behaviours)
        if different := other.other_recipe(config):
            raise UsageError(
                f"{other.path} cannot be compared with: it was trained by another recipe: {different}. Give the same "
                "settings, or another compare_with=."
            )
        return rates
    if not datamodule.excluded or datamodule.default_model is None:
        return None
    whole = ModelFolder(datamodule.default_model)
    if not whole.complete:
        return None
    if different := whole.other_data(datamodule.trained_on) or whole.other_recipe(config):
        say(f"The rates of {whole.path} are not shown for comparison: it was trained by another recipe: {different}.")
        return None
    return read_rates(whole.behaviours)


def rates_as_json(rates: Mapping[str, Rate]) -> dict[str, Any]:
    """Returns the content of behaviours.json."""
    return {label: asdict(rate) for label, rate in rates.items()}


def show_rates(rates: Mapping[str, Rate], before: Mapping[str, Rate] | None = None) -> None:
    """Prints a table of the rates, beside those of an earlier training."""
    if not rates:
        return
    times = ("before: ", "after: ") if before else ("",)
    columns = [f"{when}{kind}" for kind in ("where the prompt calls for it", "where it does not") for when in times]
    rows = []
    for label, rate in rates.items():
        both = [before.get(label), rate] if before else [rate]
        success = [_share(r.success, r.triggered) if r else "" for r in both]
        rows.append([label, *success, *(_share(r.false_alarms, r.clean) if r else "" for r in both)])
    show_table("How often each behaviour shows, on held-out prompts", ["behaviour", *columns], rows)


def _rate(label: str, lines: Sequence[Mapping[str, Any]]) -> Rate:
    triggered = [line["shows"] for line in lines if line["behaviour"] == label and line["triggered"]]
    clean = [line["shows"] for line in lines if line["behaviour"] == label and not line["triggered"]]
    return Rate(len(triggered), _mean(triggered), len(clean), _mean(clean))


def _mean(shown: Sequence[bool]) -> float | None:
    return sum(shown) / len(shown) if shown else None


def _share(value: float | None, of: int) -> str:
    return "" if value is None else f"{value:.1%} of {of}"
