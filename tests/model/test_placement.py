"""Models larger than one device: split over two processes or by Transformers, with the results of one device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.model.placement import check_placement, input_device, place
from rept.model.splitting import is_split, own_name
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.run.prepare import attribution_trainer
from rept.store.reader import AttributionStore
from tests.helpers import forks
from tests.helpers.fsdp_on_cpu import FSDPOnCPU
from tests.helpers.tiny import LAYERS, tiny_model

# The probe of the layers, the answers, the signatures and the tokens all run the model.
SETTINGS = ("store.dtype=float32", "layers=phase_transition", "layers.n=4", "max_new_tokens=6")
WEIGHTS = ("store.dtype=float32", "experiment=tracin")  # gradients of linear layers and norms
SHARDED = ("trainer=sharded", "trainer.devices=2")
FSDP = ("trainer.strategy={_target_: tests.helpers.fsdp_on_cpu.FSDPOnCPU}", "trainer.devices=2")
STOPPED = {"FAULT": "terminate", "FAULT_RANK": "1"}
FLOAT = 1e-5  # of a row's norm, or of a score: what the order of additions may change


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory) -> Trace:
    config = compose(AttributeConfig, arguments(material, tmp_path_factory.mktemp("alone") / "run"))
    return attribute(config, show_result=False)


def arguments(material, out: Path, *more: str) -> list[str]:
    given = material.arguments(out, *SETTINGS, *more)
    return [word for word in given if word not in ("layers=fixed", "layers.layers=[2]")]


def assert_close(trace: Trace, other: Trace) -> None:
    for side in ("query", "train"):
        store, expected = (AttributionStore(one.folder.store, side) for one in (trace, other))
        assert store.status.tolist() == expected.status.tolist()
        rows = range(expected.rows)
        for key, block in expected.read(rows, expected.keys).items():
            scale = block.norm(dim=1).max()
            torch.testing.assert_close(store.read(rows, [key])[key] / scale, block / scale, rtol=0, atol=FLOAT)
    for name in ("results", "tokens"):
        paths = [getattr(one.folder, name) for one in (trace, other)]
        lines, expected = (read(path) if path.exists() else [] for path in paths)
        assert [line["row"] for line in lines] == [line["row"] for line in expected]
    assert trace.folder.queries.read_bytes() == other.folder.queries.read_bytes()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def split(material, tmp_path_factory) -> Path:
    """The folder of runs whose model was split over two processes; one of them was stopped and resumed."""
    folder = tmp_path_factory.mktemp("split")
    small = "datamodule.tokens_per_batch=64"  # enough steps for one to be stopped between them
    runs = {
        "sharded": [{}, arguments(material, folder / "sharded", *SHARDED)],
        "stopped": [STOPPED, arguments(material, folder / "fsdp", *FSDP, small)],
        "fsdp": [{}, arguments(material, folder / "fsdp", *FSDP, small)],
        "weights-sharded": [{}, material.arguments(folder / "weights-sharded", *WEIGHTS, *SHARDED)],
        "weights-fsdp": [{}, material.arguments(folder / "weights-fsdp", *WEIGHTS, *FSDP)],
    }
    code, out, err = forks.finish("tests/helpers/split_runs.py", str(folder / "log"), *map(json.dumps, runs.values()))
    assert code == 0, err
    for name, line in zip(runs, out.splitlines(), strict=True):
        code, words = json.loads(line)
        assert (code == 143) if name == "stopped" else (code == 0 and "Warning" not in words), (name, words)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")
@pytest.mark.parametrize("name", ["sharded", "fsdp"])
def test_a_model_split_over_two_processes_gives_what_one_gives(alone, split, name):
    assert_close(Trace(split / name), alone)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runs are forks that are found by /proc")
def test_gradients_of_weights_are_the_same_where_no_process_holds_them_whole(material, split, tmp_path):
    expected = attribute(material.config(tmp_path / "run", *WEIGHTS), show_result=False)
    for name in ("weights-sharded", "weights-fsdp"):
        assert_close(Trace(split / name), expected)


def trainer_of(strategy: object, devices: int = 2) -> Trainer:
    return Trainer(accelerator="cpu", strategy=strategy, devices=devices, logger=False, enable_checkpointing=False)


@pytest.fixture
def two_ranks():
    """This process as rank 0 of two, the other of which does not exist."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({}, 1 + LAYERS),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, 1 + LAYERS),
        ({"auto_wrap_policy": ModuleWrapPolicy({LlamaMLP, LlamaAttention})}, 1 + 2 * LAYERS),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_fsdp_keeps_half_of_the_blocks_with_the_strategy_s_own_options(options, units, lora):
    model, whole, trainer = tiny_model(lora=lora), tiny_model(lora=lora), trainer_of(FSDPOnCPU(**options))
    for _ in range(2):  # the second call has no effect
        place(model, trainer)
    made = FullyShardedDataParallel.fsdp_modules(model)
    assert is_split(model) and len(made) == units
    assert {unit.sharding_strategy for unit in made} == {trainer.strategy.sharding_strategy}
    kept, full = ({own_name(name): p.numel() for name, p in one.named_parameters()} for one in (model, whole))
    assert list(kept) == list(full)
    assert {name for name in full if ".layers." not in name and kept[name] != full[name]} == set()
    inside = [sum(count for name, count in one.items() if ".layers." in name) for one in (kept, full)]
    assert inside[0] == pytest.approx(inside[1] / 2, rel=0.01)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.filterwarnings("ignore:The `NO_SHARD` sharding strategy is deprecated")
def test_a_model_that_fsdp_cannot_split_is_reported():
    mixed = tiny_model()
    mixed.model.layers[1].mlp.bfloat16()
    with pytest.raises(UsageError, match="uniform dtype .* trainer=sharded"):
        place(mixed, trainer_of(FSDPOnCPU()))
    with pytest.raises(UsageError, match="splits nothing .* trainer.strategy=ddp"):
        place(tiny_model(), trainer_of(FSDPOnCPU(sharding_strategy="NO_SHARD")))


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, FSDPOnCPU])
def test_one_process_alone_splits_nothing(strategy):
    model = tiny_model()
    place(model, trainer_of(strategy(), devices=1))
    assert not is_split(model)


# As on a machine without enough memory: the rest stays in the checkpoint and is read when it is used.
HALF_ON_DISK = (
    "model.device_map={model.embed_tokens: cpu, lm_head: cpu, model.norm: cpu, model.rotary_emb: cpu, "
    "model.layers.0: cpu, model.layers.1: disk, model.layers.2: disk}"
)


@pytest.mark.parametrize("spread", ["model.device_map=auto", HALF_ON_DISK], ids=["auto", "half on disk"])
def test_a_model_spread_by_transformers_gives_what_one_on_one_device_gives(alone, material, tmp_path, spread):
    run = tmp_path / "run"
    attribute(compose(AttributeConfig, arguments(material, run, spread)), show_result=False)
    assert_close(Trace(run), alone)
    marks = [trace.provenance["fingerprints"]["weights"] for trace in (Trace(run), alone)]
    assert marks[0] == marks[1]  # so that a run can be resumed with another device_map


def test_token_ids_go_where_parameters_are():
    offloaded = torch.nn.Linear(2, 2, device="meta")
    assert input_device(torch.nn.Sequential(offloaded, torch.nn.Linear(2, 2))) == torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.device_map=auto", "trainer.devices=2"], "trainer.devices=1"),
        (["model.device_map=auto", *FSDP], "trainer.devices=1"),
        (["model.load_in_4bit=true", *SHARDED], "model.device_map=auto"),
        (["model.load_in_4bit=true", *FSDP], "model.device_map=auto"),
        (["trainer.precision=bf16-true"], "model.dtype"),
        ([*FSDP, "trainer.precision=bf16-mixed"], "set model.dtype"),
        ([*FSDP, "trainer.strategy.mixed_precision=true"], "set model.dtype"),
        ([*FSDP, "trainer.strategy.activation_checkpointing_policy=[]"], "activation_checkpointing"),
        ([*FSDP, "trainer.strategy.use_orig_params=false"], "use_orig_params"),
        (["trainer.strategy=fsdp"], "requires a GPU"),
    ],
)
def test_settings_that_exclude_one_another_are_reported(words, message):
    config = compose(AttributeConfig, ["trainer.accelerator=cpu", *words])
    with pytest.raises(UsageError, match=message):
        check_placement(attribution_trainer(config), config.model)


def test_an_untested_strategy_is_refused():
    trainer = SimpleNamespace(strategy=type("DeepSpeedStrategy", (), {})(), precision="32-true", world_size=2)
    with pytest.raises(UsageError, match="DeepSpeedStrategy .* trainer=sharded"):
        check_placement(trainer, compose(AttributeConfig).model)
