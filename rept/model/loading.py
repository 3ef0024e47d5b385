"""Loads a causal language model, its adapter and its tokenizer.

Transformers and PEFT are imported inside functions: they take seconds, and a command's ``--help`` must not wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch

from rept.data.chat_template import ChatTemplate
from rept.errors import UsageError
from rept.model.architecture import peft_wrapper
from rept.model.freezing import freeze
from rept.types import PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.console import say
from rept.utils.files import read_user_text
from rept.utils.json_files import read_json
from rept.utils.library_logging import silence

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
HUB_SECONDS = 10.0  # timeout of the question whether the hub has a model


def load_model(
    path: str | None,
    adapter: str | None = None,
    dtype: Dtype = "auto",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    attn_implementation: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Returns a causal language model in evaluation mode whose parameters need no gradient.

    Args:
        path: folder as Transformers saves it, or hub id; a folder with only a PEFT adapter loads the base model that it
            names, and the adapter.
        adapter: folder or hub id of a PEFT adapter to apply to the model.
        dtype: of the weights; ``auto`` is the one they were saved in, or float32 for half-precision weights on a CPU
            that computes slowly with them.
        load_in_4bit, load_in_8bit: quantize by bitsandbytes, on a GPU; ``dtype`` is then that of the computation.
        attn_implementation, device_map: as in Transformers. Without a device_map the model is loaded to the CPU, from
            where `rept.model.placement.place` moves it.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        UsageError: no model or adapter there, an encoder, weights missing, or an option that does not apply here.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in get_args(Dtype):
        raise UsageError(f"model.dtype must be one of {', '.join(get_args(Dtype))}, not {dtype!r}.")
    path, adapter = _base_of(path, adapter)
    options: dict[str, Any] = {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "quantization_config": _quantization(load_in_4bit, load_in_8bit, dtype),
    }
    given = {name: value for name, value in options.items() if value is not None}
    with silence("transformers"), _reported(path, "causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **given)
    model, info = cast("tuple[PreTrainedModel, dict[str, set[Any]]]", loaded)
    _check_whole(path, model, [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))])
    if dtype == "auto" and not load_in_4bit and not load_in_8bit and slow_here(model.dtype):
        _report_float32(path, model.dtype)
        model = model.float()
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return freeze(to_float64(model) if model.dtype == torch.float64 else model)


def _check_whole(path: str, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Raises UsageError for an encoder, and for weights that Transformers has initialized at random."""
    for name in model.config.architectures or ():
        if name.endswith("ForMaskedLM"):
            raise UsageError(
                f"Expected {path} to be a causal language model, but it is an encoder ({name}), which generates no "
                "responses."
            )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"Expected {path} to be a whole causal language model, but it lacks {', '.join(missing[:3])}{more}."
        )


def load_tokenizer(
    path: str | None, adapter: str | None = None, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model; an adapter's own if one was saved with it, because the training used that one.

    Args:
        chat_template: file of a Jinja chat template that replaces the tokenizer's own.

    Raises:
        UsageError: there is no tokenizer, or the template is missing or cannot render an answer.
    """
    from transformers import AutoTokenizer

    path, adapter = _base_of(path, adapter)
    if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file():
        path = adapter
    with silence("transformers"), _reported(path, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        _set_template(tokenizer, chat_template)
    return tokenizer


def _set_template(tokenizer: PreTrainedTokenizerBase, file: str) -> None:
    text = read_user_text(file, "model.chat_template", "a file with a Jinja chat template")
    if not text.strip():
        raise UsageError(f"model.chat_template={file} is empty; expected a Jinja chat template.")
    tokenizer.chat_template = text
    try:
        ChatTemplate(tokenizer)
    except UsageError as error:
        raise UsageError(f"model.chat_template={file}: {error}") from None


def slow_here(dtype: torch.dtype) -> bool:
    """Whether models of a half-precision type would run on a CPU without units for it: about ten times slower."""
    if dtype not in (torch.bfloat16, torch.float16) or torch.accelerator.is_available():
        return False
    if not torch._C._has_mkldnn:
        return True
    units = torch.ops.mkldnn
    supported = units._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else units._is_mkldnn_fp16_supported
    return not supported()


@cache
def _report_float32(path: str, dtype: torch.dtype) -> None:
    """Says once for a model in which type it is loaded instead."""
    name = str(dtype).removeprefix("torch.")
    say(
        f"{path} is loaded in float32: this CPU computes slowly in {name}. model.dtype={name} keeps it as it was saved."
    )


def to_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Converts a model to float64 in place; experts are then computed one by one, as grouped kernels lack float64."""
    wrapper = peft_wrapper(model)
    cast("PreTrainedModel", wrapper.get_base_model() if wrapper else model).set_experts_implementation("eager")
    return model.double()


def _base_of(path: str | None, adapter: str | None) -> tuple[str, str | None]:
    """``path`` and ``adapter``, where ``path`` may be an adapter's folder that names its base model."""
    if path is None:
        raise UsageError("model.path is not set: give a folder with a model, or a hub id.")
    folder = Path(path).expanduser()
    if adapter is not None:
        return str(folder), str(Path(adapter).expanduser())
    if not folder.exists():
        return path, None
    described = folder / "adapter_config.json"
    if described.is_file() and not (folder / "config.json").is_file():
        return read_json(described)["base_model_name_or_path"], str(folder)
    return str(folder), None


def _quantization(four: bool, eight: bool, dtype: Dtype) -> BitsAndBytesConfig | None:
    if not (four or eight):
        return None
    if four and eight:
        raise UsageError("model.load_in_4bit and model.load_in_8bit exclude one another: choose one.")
    option = "model.load_in_4bit" if four else "model.load_in_8bit"
    if find_spec("bitsandbytes") is None:
        raise UsageError(f"{option} needs bitsandbytes: pip install bitsandbytes (extra `quantized`).")
    if not torch.cuda.is_available():
        raise UsageError(f"{option} needs a GPU, and none was found (bitsandbytes, extra 'quantized').")
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=eight, bnb_4bit_compute_dtype=compute)


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    from peft import PeftModel

    with silence("transformers"), _reported(adapter, "PEFT adapter for this model"):
        wrapped = PeftModel.from_pretrained(model, adapter)
    if wrapped.active_peft_config.is_prompt_learning:
        raise UsageError(
            f"The adapter {adapter} inserts virtual tokens before the prompt, which shifts every position that is "
            "read: use one that changes weights, such as LoRA."
        )
    return cast("PreTrainedModel", wrapped)


@contextmanager
def _reported(path: str, what: str) -> Iterator[None]:
    """Turns the exceptions of libraries about a wrong path into one sentence."""
    from safetensors import SafetensorError

    if not Path(path).exists():
        _check_hub(path)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UnpicklingError as error:  # of torch, which unpickles only tensors
        raise UsageError(
            f"{path} contains a {what} as pickled objects, which are not read: save it as safetensors."
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "custom code" in str(error):
            raise UsageError(
                f"{path} comes with its own code, which runs only with model.trust_remote_code=true (for a base model "
                "extractor.trust_remote_code=true): read it before you set that."
            ) from error
        if what == "tokenizer" and (Path(path) / "config.json").is_file() and not any(Path(path).glob("tokenizer*")):
            raise UsageError(
                f"{path} contains a model but no tokenizer: save the one that the model was trained with there, by "
                f"tokenizer.save_pretrained({str(path)!r}); a fine-tuned model has that of its base model."
            ) from error
        raise UsageError(f"{path} contains no {what} that can be loaded: {_first_line(error)}.") from error


def _check_hub(path: str) -> None:
    """Asks once whether ``path`` is on the hub or in its cache: the libraries would retry for minutes."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = ("config.json", "adapter_config.json")
    try:
        if any(isinstance(try_to_load_from_cache(path, name), str) for name in names):
            return
        HfApi().model_info(path, timeout=HUB_SECONDS)
    except HFValidationError:
        raise UsageError(f"There is no folder {path}, and it cannot be a hub id either.") from None
    except Exception as error:  # network failures have many classes, of two libraries
        reason = _first_line(error)
        raise UsageError(f"There is no folder {path}, and as a hub id it could not be found: {reason}.") from error


def _first_line(error: Exception) -> str:
    """The first line of its message, and the next if the first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(" :.,")
