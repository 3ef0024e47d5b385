"""Models larger than one device: split over two processes, or spread by Transformers, with the results of one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rept.config import compose
from rept.errors import UsageError
from rept.pipeline import attribute
from rept.placement import check_placement, input_device
from rept.preparation import build_trainer
from rept.results import Trace
from rept.store import AttributionStore
from tests.commands import finish

# The probe of the layers, the answers, the signatures and the tokens all run the model.
SETTINGS = ("store.dtype=float32", "layers=phase_transition", "layers.n=4", "max_new_tokens=6")
SHARDED = ("trainer=sharded", "trainer.devices=2")
FLOAT = 1e-5  # of a row's norm, or of a score: what the order of additions may change


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory) -> Trace:
    config = compose("attribute", arguments(material, tmp_path_factory.mktemp("alone") / "run"))
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
        lines, expected = (read(getattr(one.folder, name)) for one in (trace, other))
        assert [line["row"] for line in lines] == [line["row"] for line in expected]
    assert trace.folder.queries.read_bytes() == other.folder.queries.read_bytes()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_split_over_two_processes_gives_what_one_gives(alone, material, tmp_path):
    code, _, err = finish("attribute.py", *arguments(material, tmp_path / "run", *SHARDED))
    assert code == 0, err
    assert_close(Trace(tmp_path / "run"), alone)


# As a machine without enough memory would have it: the rest stays in the checkpoint and is read when its turn comes.
HALF_ON_DISK = (
    "model.device_map={model.embed_tokens: cpu, lm_head: cpu, model.norm: cpu, model.rotary_emb: cpu, "
    "model.layers.0: cpu, model.layers.1: disk, model.layers.2: disk}"
)


@pytest.mark.parametrize("spread", ["model.device_map=auto", HALF_ON_DISK], ids=["auto", "half on disk"])
def test_a_model_spread_by_transformers_gives_what_one_on_one_device_gives(alone, material, tmp_path, spread):
    run = tmp_path / "run"
    attribute(compose("attribute", arguments(material, run, spread)), show_result=False)
    assert_close(Trace(run), alone)
    marks = [trace.provenance["fingerprints"]["weights"] for trace in (Trace(run), alone)]
    assert marks[0] == marks[1]  # so that a run may go on where its model is spread in another way


def test_token_ids_go_where_parameters_are():
    offloaded = torch.nn.Linear(2, 2, device="meta")
    assert input_device(torch.nn.Sequential(offloaded, torch.nn.Linear(2, 2))) == torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.device_map=auto", "trainer.devices=2"], "trainer.devices=1"),
        (["model.load_in_4bit=true", "trainer=sharded"], "model.device_map=auto"),
        (["trainer.precision=bf16-true"], "model.dtype"),
    ],
)
def test_settings_that_exclude_one_another_are_told(words, told):
    config = compose("attribute", ["trainer.accelerator=cpu", *words])
    with pytest.raises(UsageError, match=told):
        check_placement(build_trainer(config), config.model)


def test_a_strategy_that_nobody_tried_is_refused():
    trainer = SimpleNamespace(strategy=type("FSDPStrategy", (), {})(), precision="32-true", world_size=2)
    with pytest.raises(UsageError, match="FSDPStrategy .* trainer=sharded"):
        check_placement(trainer, compose("attribute").model)
