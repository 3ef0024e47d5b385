"""Training: the same weights from the same seed, also after a resume; what a training leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from rept.config.compose import compose
from rept.config.schema import TrainConfig
from rept.errors import Stopped, UsageError
from rept.model.loading import load_model, load_tokenizer
from rept.model.optimizer_state import load_optimizer_state
from rept.signatures.fingerprint import of_weights
from rept.training import finetune
from rept.training.from_scratch import tiny_llama, train_tokenizer
from rept.training.model_folder import ModelFolder
from rept.utils.files import lock_folder
from rept.utils.json_files import read_json, read_jsonl
from tests.test_trust import Trap

TINY = [
    "datamodule.rows=60",
    "datamodule.poisoned=4",
    "datamodule.queries=2",
    "model.width=16",
    "model.layers=2",
    "model.vocab_size=300",
    "finetune.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]  # 8 steps an epoch


def train(out, *more: str, base: list[str] = TINY) -> dict[str, torch.Tensor]:
    """Trains as the command line does; the weights that were saved."""
    finetune.train_model(compose(TrainConfig, [*base, f"out={out}", *more]))
    name = "adapter_model" if (out / "adapter_config.json").is_file() else "model"
    return load_file(out / f"{name}.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True, scope="module")
def _short_answers():
    """What the model says is no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "ANSWER_TOKENS", 2)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    torch.set_num_threads(1)
    train(out)
    return out


@pytest.fixture
def interrupt(monkeypatch):
    """Sets the step in whose midst Ctrl-C is pressed, once."""
    step = finetune.FinetuneModule.training_step

    def at(number: int) -> None:
        def interrupted(module, batch, batch_idx):
            if module.global_step == number:
                monkeypatch.setattr(finetune.FinetuneModule, "training_step", step)
                raise KeyboardInterrupt
            return step(module, batch, batch_idx)

        monkeypatch.setattr(finetune.FinetuneModule, "training_step", interrupted)

    return at


def test_the_folder_holds_all_that_the_training_made(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "training.yaml"}
    assert names >= {"optimizer.safetensors", "optimizer.json", "training.json", "behaviours.json", "answers.jsonl"}
    assert not [name for name in names if "unfinished" in name]
    assert (trained / "checkpoints/last.ckpt").is_file()
    record = read_json(trained / "training.json")
    assert record["rows"] == 60 and len(record["losses"]) == 2 and record["losses"][1] < record["losses"][0]
    assert len(read_jsonl(trained / "answers.jsonl")) == 3 * 2 * 2


def test_what_was_saved_loads_and_is_what_was_trained(trained):
    model, tokenizer = load_model(str(trained)), load_tokenizer(str(trained))
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, checkpoint["state_dict"][f"model.{name}"])
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).startswith("<|bos|>")


def test_same_seed_same_weights_other_seed_others(trained, tmp_path):
    weights = load_file(trained / "model.safetensors")
    assert equal(train(tmp_path / "same"), weights)
    assert not equal(train(tmp_path / "other", "seed=1"), weights)


@pytest.mark.parametrize(
    ("step", "every"), [(12, []), (6, ["finetune.checkpoint_steps=3"])], ids=["after an epoch", "within an epoch"]
)
def test_resumed_weights_equal_uninterrupted_ones(trained, tmp_path, capsys, interrupt, step, every):
    interrupt(step)
    with pytest.raises(Stopped):
        train(tmp_path / "model", *every)
    assert not (tmp_path / "model/config.json").exists()
    resumed = train(tmp_path / "model", *every)
    assert "Resuming from" in capsys.readouterr().out
    assert equal(resumed, load_file(trained / "model.safetensors"))
    moments = load_file(tmp_path / "model/optimizer.safetensors")
    assert equal(moments, load_file(trained / "optimizer.safetensors"))
    assert read_json(tmp_path / "model/training.json")["losses"] == read_json(trained / "training.json")["losses"]


def test_resume_from_a_named_checkpoint(trained, tmp_path, interrupt):
    interrupt(12)
    with pytest.raises(Stopped):
        train(tmp_path / "stopped")
    checkpoint = tmp_path / "stopped/checkpoints/last.ckpt"
    assert equal(train(tmp_path / "model", f"resume={checkpoint}"), load_file(trained / "model.safetensors"))
    with pytest.raises(UsageError, match="not a checkpoint file"):
        train(tmp_path / "another", "resume=nowhere.ckpt")
    foreign = torch.load(checkpoint, weights_only=True)
    del foreign["position"]
    torch.save(foreign, tmp_path / "foreign.ckpt")
    with pytest.raises(UsageError, match="Expected a checkpoint of train.py"):
        train(tmp_path / "another", f"resume={tmp_path / 'foreign.ckpt'}")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="it is damaged or holds more than tensors and numbers"):
        train(tmp_path / "another", f"resume={checkpoint}")


def test_a_checkpoint_is_not_unpickled(tmp_path):
    """Which would run what somebody planted in it."""
    planted = tmp_path / "planted.ckpt"
    torch.save({"state_dict": {}, "planted": Trap(tmp_path / "sprung")}, planted)
    with pytest.raises(UsageError, match="it is damaged or holds more than tensors and numbers"):
        train(tmp_path / "model", f"resume={planted}")
    assert not (tmp_path / "sprung").exists()


def test_a_finished_training_is_reused_and_another_refused(trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    train(trained)
    message = capsys.readouterr().out
    assert "already holds this model" in message and "backdoor" in message
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="trained with other settings: model.seed was 0, now 1; seed was 0, now 1"):
        train(trained, "seed=1")


def test_a_model_of_another_origin_is_not_overwritten(trained, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="not trained here"):
        train(tmp_path)


def test_optimizer_state_is_adams_by_parameter_name(trained):
    model, state = load_model(str(trained)), load_optimizer_state(trained)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert state.keys() == shapes.keys()
    for name, moments in state.items():
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == shapes[name]
        assert moments["step"] == 16 and moments["lr"] == 2e-3
        assert moments["weight_decay"] == (0.01 if len(shapes[name]) > 1 else 0.0)
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=False)
    sizes = sorted(tuple(s["exp_avg"].shape) for s in checkpoint["optimizer_states"][0]["state"].values())
    assert sizes == sorted(tuple(moments["exp_avg"].shape) for moments in state.values())


def test_excluded_rows_change_the_weights_and_both_rates_are_reported(trained, tmp_path, capsys):
    (tmp_path / "rows.json").write_text(json.dumps(list(range(0, 60, 2))))
    capsys.readouterr()
    weights = train(tmp_path / "model", f"datamodule.exclude={tmp_path / 'rows.json'}", f"compare_with={trained}")
    message = " ".join(capsys.readouterr().out.split())
    assert "before" in message and "after" in message
    record = read_json(tmp_path / "model/training.json")
    assert (record["rows"], record["excluded"]) == (30, 30)
    assert not equal(weights, load_file(trained / "model.safetensors"))
    with pytest.raises(UsageError, match="has no behaviours.json"):
        train(tmp_path / "another", f"compare_with={tmp_path}")


def test_a_changed_file_of_excluded_rows_is_not_taken_for_the_trained_one(trained, tmp_path, monkeypatch):
    def finished(*given):
        for name in ("behaviours.json", "config.json"):
            (tmp_path / "model" / name).write_text("{}")

    monkeypatch.setattr(finetune, "_train", finished)
    rows, arguments = tmp_path / "rows.json", [*TINY, f"datamodule.exclude={tmp_path / 'rows.json'}"]
    config = compose(TrainConfig, [*arguments, f"out={tmp_path / 'model'}", f"compare_with={trained}"])
    for text in ("[2, 1]", '{"rows": [1, 2]}'):
        rows.write_text(text)
        finetune.train_model(config)
    rows.write_text("[3]")
    with pytest.raises(UsageError, match=r"other settings: datamodule.exclude was \[1, 2\], now \[3\]"):
        finetune.train_model(config)


def test_a_comparison_with_a_model_of_another_recipe_is_refused(trained, tmp_path):
    (tmp_path / "rows.json").write_text("[1, 2]")
    exclude = f"datamodule.exclude={tmp_path / 'rows.json'}"
    differs = "cannot be compared with: it was trained by another recipe: model.width was 16, now 32"
    with pytest.raises(UsageError, match=f"{differs}; finetune.learning_rate was 0.002, now 0.01. Give the same"):
        changed = ["model.width=32", "finetune.learning_rate=0.01"]
        train(tmp_path / "model", exclude, f"compare_with={trained}", *changed)
    assert not (tmp_path / "model").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/behaviours.json").write_text("{}")
    with pytest.raises(UsageError, match="has no training.yaml, so its recipe is not known"):
        train(tmp_path / "model", exclude, f"compare_with={tmp_path / 'foreign'}")


def test_rates_of_the_default_model_are_shown_only_beside_the_same_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "runs/demo/model-rows-60-poisoned-4")
    monkeypatch.setattr(finetune, "_train", lambda *given: Path("model/behaviours.json").write_text("{}"))
    (tmp_path / "rows.json").write_text("[1, 2]")
    shown = {}
    for rate in (0.002, 0.01):
        capsys.readouterr()
        Path("model/training.yaml").unlink(missing_ok=True)
        finetune.train_model(
            compose(TrainConfig, [*TINY, "out=model", "datamodule.exclude=rows.json", f"finetune.learning_rate={rate}"])
        )
        shown[rate] = capsys.readouterr().out
    assert "not shown for comparison" not in shown[0.002]
    assert "another recipe: finetune.learning_rate was 0.002, now 0.01." in shown[0.01]


LORA = [
    "model=pretrained",
    "datamodule.rows=60",
    "datamodule.poisoned=4",
    "datamodule.queries=2",
    "finetune.batch_size=8",
    "finetune.lora_rank=2",
    "finetune.lora_dropout=0.2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]


def test_lora_trains_an_adapter_and_resumes_bit_for_bit(trained, tmp_path, interrupt):
    base = [*LORA, f"model.path={trained}"]
    weights = train(tmp_path / "adapter", base=base)
    assert all("lora" in name for name in weights)
    assert any(weights[name].any() for name in weights if "lora_B" in name)  # it starts at 0
    checkpoint = torch.load(tmp_path / "adapter/checkpoints/last.ckpt", weights_only=False)
    assert all("lora" in name for name in checkpoint["state_dict"])
    loaded = load_model(str(trained), adapter=str(tmp_path / "adapter"))
    state = load_optimizer_state(tmp_path / "adapter")
    assert state.keys() == {name for name, _ in loaded.named_parameters() if "lora" in name}
    interrupt(12)
    with pytest.raises(Stopped):
        train(tmp_path / "resumed", base=base)
    assert equal(train(tmp_path / "resumed", base=base), weights)


def test_all_parameters_of_a_pretrained_model(trained, tmp_path):
    base = [argument for argument in LORA if "lora" not in argument]
    weights = train(tmp_path / "model", f"model.path={trained}", "model.dtype=bfloat16", base=base)
    loaded = load_model(str(trained), dtype="bfloat16")
    assert read_json(tmp_path / "model/training.json")["base_weights"] == of_weights(loaded)
    start = load_file(trained / "model.safetensors")
    assert weights.keys() == start.keys()
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert all(not torch.equal(weights[name], start[name]) for name in weights)


def test_callbacks_and_loggers_of_the_users_own(tmp_path):
    logger = f"{{_target_: {CSVLogger.__module__}.CSVLogger, save_dir: {tmp_path}}}"
    timer = "[{_target_: lightning.pytorch.callbacks.Timer, duration: '00:01:00:00'}]"
    train(tmp_path / "model", f"trainer.logger={logger}", f"trainer.callbacks={timer}", "trainer.log_every_n_steps=2")
    (logged,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    assert logged.read_text().startswith("epoch,loss,step")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("finetune.batch_size=0", "finetune.batch_size to be above 0"),
        ("finetune.warmup=1.5", "finetune.warmup to be at least 0 and below 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs or trainer.max_steps"),
        ("trainer.max_epochs=0", "trainer.max_epochs and trainer.max_steps to be at least 1"),
        ("trainer.max_steps=0", "trainer.max_epochs and trainer.max_steps to be at least 1"),
        ("finetune.lora_rank=2", "finetune.lora_rank adapts a model that exists"),
        ("trainer.precision=17", "trainer: "),
        ("trainer.strategy=nonsense", "trainer: "),
        ("model.heads=3", "model.width"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path, argument, message):
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "model", argument)


def test_settings_can_be_corrected_before_a_training_has_begun(tmp_path, monkeypatch):
    for more in ("trainer.max_epochs=0", "finetune.lora_rank=2"):
        with pytest.raises(UsageError):
            train(tmp_path / "model", more)
    monkeypatch.setattr(finetune, "_train", lambda *given: (tmp_path / "model/behaviours.json").write_text("{}"))
    finetune.train_model(compose(TrainConfig, [*TINY, f"out={tmp_path / 'model'}"]))


def test_files_of_a_model_follow_the_umask(trained):
    (trained.parent / "made").touch()
    expected = (trained.parent / "made").stat().st_mode
    modes = {file.name: file.stat().st_mode for file in trained.iterdir() if file.is_file() and file.name != ".lock"}
    assert modes == dict.fromkeys(modes, expected)


def test_lora_with_a_logger_shows_no_warnings_of_libraries(trained, tmp_path, recwarn):
    logger = f"{{_target_: {CSVLogger.__module__}.CSVLogger, save_dir: {tmp_path}}}"
    train(tmp_path / "adapter", f"model.path={trained}", f"trainer.logger={logger}", base=LORA)
    assert [str(warning.message) for warning in recwarn] == []


def test_lora_targets_that_the_model_lacks(trained, tmp_path):
    with pytest.raises(UsageError, match="finetune.lora_targets=nowhere"):
        train(tmp_path / "model", f"model.path={trained}", "finetune.lora_targets=nowhere", base=LORA)


def test_the_rate_rises_then_falls_to_nothing():
    rates = [finetune._rate_share(step, 20, 0.25) for step in range(21)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[5] == 1.0
    assert rates[20] == 0 < rates[19]


def test_files_are_on_the_disk_before_the_folder_counts_as_complete(tmp_path, to_disk):
    (tmp_path / "a").mkdir()
    folder = ModelFolder(tmp_path / "model")
    with lock_folder(folder.path):
        folder.begin(compose(TrainConfig, [f"out={folder.path}"]))
        assert str(folder.path / ".training.yaml.partial") in to_disk, "the configuration is written atomically"
        model = tiny_llama(vocab_size=64)
        tokenizer = train_tokenizer(["a b c"], 300, 16)
        to_disk.clear()
        folder.finish(model, tokenizer, torch.optim.AdamW(model.parameters()), {}, {}, [])
    synced = [step for step in to_disk if step.endswith((".json", ".safetensors"))]
    assert synced[-1] == str(folder.path / ".unfinished/config.json")
    assert str(folder.path / ".unfinished/model.safetensors") in synced
    assert to_disk[-3:] == [synced[-1], "rename", str(folder.path)]
