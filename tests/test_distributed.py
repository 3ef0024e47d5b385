"""Several real processes: the same rows, scores and order as one, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

from rept.meeting import GO_ON
from rept.pipeline import attribute, score
from rept.results import Trace
from rept.store import AttributionStore
from tests.commands import ROOT, finish, free_port, start

DDP = ("trainer.devices=2", "trainer.strategy=ddp")
SHARDS = "store.shard_rows=4"


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory) -> Trace:
    return attribute(material.config(tmp_path_factory.mktemp("alone") / "run", SHARDS), show_result=False)


def assert_same(trace: Trace, other: Trace) -> None:
    """Bit for bit: every process computes with one thread."""
    for name in ("results", "tokens", "queries", "metrics"):
        assert getattr(trace.folder, name).read_bytes() == getattr(other.folder, name).read_bytes(), name


def test_two_processes_give_what_one_gives(alone, material, tmp_path):
    code, _, err = finish("attribute.py", *material.arguments(tmp_path / "run", SHARDS, *DDP))
    assert code == 0, err
    assert_same(Trace(tmp_path / "run"), alone)
    ranks = {path.name[:4] for path in (tmp_path / "run/store/train/shards").glob("*.h5")}
    assert ranks == {"r000", "r001"}


def test_two_processes_measure_each_layer_alone_as_one_does(alone, material, tmp_path):
    """One ranking follows another, and no process begins the next while rank 0 still reads its scores."""
    arguments = ("each=true", "tokens.hits=0")
    code, _, err = finish("attribute.py", *material.arguments(tmp_path / "run", SHARDS, *arguments, *DDP))
    assert code == 0, err
    whole = score([str(alone.folder.path), "each=true", f"out={tmp_path / 'alone'}"])
    assert set(whole.metrics["each"]) == {"residual_stream/2"}
    assert Trace(tmp_path / "run").metrics == whole.metrics


def on_two_nodes(script: str, *arguments: str, **variables: str) -> list[tuple[int, str]]:
    """Exit code and errors of each of two nodes of one process, by torchrun on loopback."""
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    command.append(f"--master_port={free_port()}")
    run = [script, *arguments, "trainer.num_nodes=2", "trainer.strategy=ddp"]
    nodes = [start(*command, f"--node_rank={rank}", *run, **variables) for rank in (0, 1)]
    ended = [node.communicate(timeout=150) for node in nodes]
    return [(node.returncode, err) for node, (_, err) in zip(nodes, ended, strict=True)]


def test_two_nodes_by_torchrun_give_what_one_process_gives(alone, material, tmp_path):
    ended = on_two_nodes("attribute.py", *material.arguments(tmp_path / "run", SHARDS))
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same(Trace(tmp_path / "run"), alone)


def test_a_rank_that_dies_on_one_node_ends_the_other(material, tmp_path):
    """The other has its own batches to do, and would only miss it at the end of them."""
    ended = on_two_nodes("tests/slow.py", *material.arguments(tmp_path / "run", SHARDS), KILL_RANK="1")
    assert [code for code, _ in ended] == [1, 1], ended
    assert f"Rank 1 has died. {GO_ON}" in ended[0][1].splitlines()
    assert not (tmp_path / "run/store/train/index.h5").exists()


def test_a_folder_in_use_ends_the_nodes_that_do_not_hold_the_lock(material, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        ended = on_two_nodes("attribute.py", *material.arguments(tmp_path / "run"))
    assert [code for code, _ in ended] == [1, 1], ended
    refused = f"{tmp_path / 'run'} is in use by another run; wait for it, or name another folder by out=."
    assert refused in ended[0][1].splitlines() and f"Rank 0: {refused}" in ended[1][1].splitlines()


def test_a_script_may_trace_twice_with_two_processes(alone, material, tmp_path):
    """Lightning starts the script again for the second rank, which follows the first from call to call."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import json
from pathlib import Path
import rept
from rept.models import load_model, load_tokenizer

model, tokenizer = load_model({str(material.model)!r}), load_tokenizer({str(material.model)!r})
train, queries = ([json.loads(line) for line in Path(path).read_text().splitlines()]
                  for path in ({str(material.train)!r}, {str(material.queries)!r}))
same = dict(layers="fixed", layers__layers=[2], top_k=8, max_length=64, tokens__hits=1,
            datamodule__tokens_per_batch=256, datamodule__window=16, trainer__devices=2, trainer__strategy="ddp",
            trainer__accelerator="cpu")
for name, scorer in (("first", "inner_product"), ("second", "cosine")):
    rept.trace(model, tokenizer, train, queries, scorer=scorer, out=Path({str(tmp_path)!r}) / name, **same)
""")
    code, _, err = finish(str(script), PYTHONPATH=str(ROOT))
    assert code == 0, err
    first, second = (Trace(tmp_path / name).folder for name in ("first", "second"))
    assert second.results.read_bytes() == alone.folder.results.read_bytes() != first.results.read_bytes()
    assert second.tokens.read_bytes() == alone.folder.tokens.read_bytes()


def test_fewer_rows_than_processes(material, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(material.train.read_text().splitlines(keepends=True)[:1]))
    code, _, err = finish("attribute.py", *material.arguments(tmp_path / "run", f"datamodule.train={few}", *DDP))
    assert code == 0, err
    assert Trace(tmp_path / "run").metrics["rows"]["attributed"] == 1


@pytest.mark.parametrize(("first", "second"), [(DDP, ()), ((), DDP)], ids=["from 2 to 1", "from 1 to 2"])
def test_a_stopped_run_goes_on_with_another_number_of_processes(alone, material, tmp_path, first, second):
    run = tmp_path / "run"
    stored = stop_when_stored(material.arguments(run, SHARDS, *first), run, shards=2, number=signal.SIGKILL)
    code, out, err = finish("attribute.py", *material.arguments(run, SHARDS, *second))
    assert code == 0, err
    assert f"{stored} of 41 training rows: stored before, reused" in out
    assert_same(Trace(run), alone)


def stop_when_stored(arguments: list[str], run: Path, shards: int, number: int) -> int:
    """Starts a run slowed down by tests/slow.py, signals all its processes once it has written some shards.

    Returns:
        The training rows that are stored.
    """
    process = start("tests/slow.py", *arguments)
    deadline = time.monotonic() + 90
    while len(list((run / "store/train/shards").glob("r*.h5"))) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    done = AttributionStore.stored_rows(run / "store", "train", 41)
    assert done is not None and 0 < done.sum() < 41
    return int(done.sum())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_closes_the_shard_and_says_how_to_go_on(alone, material, tmp_path, number, code):
    run = tmp_path / "run"
    process = start("tests/slow.py", *material.arguments(run, "store.shard_rows=1000"))
    while not (run / "store/train/shards").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Give the same command again to go on" in err and "Traceback" not in err
    done = AttributionStore.stored_rows(run / "store", "train", 41)
    assert done is not None and 0 < done.sum() < 41
    code, out, err = finish("attribute.py", *material.arguments(run, "store.shard_rows=1000"))
    assert code == 0, err
    assert_same(Trace(run), alone)


def test_a_rank_that_fails_ends_the_run_with_its_reason(material, tmp_path):
    run = tmp_path / "run"
    start_time = time.monotonic()
    process = start("tests/slow.py", *material.arguments(run, *DDP), FAIL_RANK="1")
    _, err = process.communicate(timeout=90)
    assert process.returncode not in (0, None)
    assert err.splitlines()[-1].startswith("Rank 1: RuntimeError: rank 1 fails on purpose. ")
    assert time.monotonic() - start_time < 90
    assert not (run / "store/train/index.h5").exists()
