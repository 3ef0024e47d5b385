"""Several real processes: the same rows, scores and order as one process, also after failures."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rept.errors import RESUME
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.store.reader import AttributionStore
from tests.helpers import commands, forks
from tests.helpers.commands import free_port

Process = subprocess.Popen[str] | forks.Fork

DDP = ("trainer.devices=2", "trainer.strategy=ddp")
SHARDS = ("store.shard_rows=4", "each=true")


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory) -> Trace:
    return attribute(material.config(tmp_path_factory.mktemp("alone") / "run", *SHARDS), show_result=False)


def assert_same(trace: Trace, other: Trace) -> None:
    """Bit for bit: every process computes with one thread."""
    for name in ("results", "behaviours", "tokens", "queries", "metrics"):
        assert getattr(trace.folder, name).read_bytes() == getattr(other.folder, name).read_bytes(), name


def test_two_processes_give_what_one_gives(alone, material, tmp_path):
    code, _, err = commands.finish("attribute.py", *material.arguments(tmp_path / "run", *SHARDS, *DDP))
    assert code == 0, err
    assert_same(Trace(tmp_path / "run"), alone)
    ranks = {path.name[:4] for path in (tmp_path / "run/store/train/shards").glob("*.h5")}
    assert ranks == {"r000", "r001"}


def torchrun(start: Callable[..., Process], script: str, *arguments: str, **more: str) -> list[Process]:
    """Starts a run on two nodes, which are both this machine."""
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    command += [f"--master_port={free_port()}"]
    run = [script, *arguments, "trainer.num_nodes=2", *DDP[1:]]
    return [start(*command, f"--node_rank={rank}", *run, **more) for rank in (0, 1)]


def test_two_nodes_by_torchrun_give_what_one_process_gives(alone, material, tmp_path):
    nodes = torchrun(commands.start, "attribute.py", *material.arguments(tmp_path / "run", *SHARDS))
    ended = [node.communicate(timeout=150) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ended
    assert_same(Trace(tmp_path / "run"), alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_on_one_torchrun_node_ends_the_other(material, tmp_path, killed):
    """torchrun ends its own node, and reports the reason; the other node has many batches of its own left."""
    arguments = material.arguments(tmp_path / "run", *SHARDS, "datamodule.tokens_per_batch=32")
    nodes = torchrun(forks.start, "tests/helpers/slow.py", *arguments, KILL_RANK=str(killed))
    while nodes[killed].poll() is None:
        time.sleep(0.1)
    begin = time.monotonic()
    err = [node.communicate(timeout=150)[1] for node in nodes]
    assert time.monotonic() - begin < 30
    assert [node.returncode for node in nodes] == [1, 1], err
    assert "Signal 9 (SIGKILL)" in err[killed]
    seen = "Rank 0 lost its connection to another rank" if killed else "Rank 0 has died"
    assert f"{seen}. {RESUME}\n" in err[1 - killed]
    assert not (tmp_path / "run/store/train/index.h5").exists()


def test_a_rank_that_dies_on_one_slurm_node_ends_the_other(material, tmp_path):
    """SLURM is simulated by its environment variables, without what supervises a node."""
    run = ["tests/helpers/slow.py", *material.arguments(tmp_path / "run", *SHARDS), "trainer.num_nodes=2", *DDP[1:]]
    slurm = {"JOB_NAME": "rept", "JOB_ID": str(free_port()), "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    slurm |= {"NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "LOCALID": "0"}
    common = {f"SLURM_{name}": value for name, value in slurm.items()} | {"MASTER_PORT": str(free_port())}
    nodes = [forks.start(*run, SLURM_PROCID=rank, SLURM_NODEID=rank, KILL_RANK="1", **common) for rank in "01"]
    err = [node.communicate(timeout=150)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [1, -signal.SIGKILL], err
    assert err[0].splitlines()[-1] == f"Rank 0 lost its connection to another rank. {RESUME}"
    assert not (tmp_path / "run/store/train/index.h5").exists()


def test_a_script_may_trace_again_and_again_with_two_processes(alone, material, tmp_path):
    """Lightning starts the script again for the second rank, which makes the same calls; in the last of them there are
    fewer rows than processes."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import json
from pathlib import Path
import rept
from rept.model.loading import load_model, load_tokenizer

model, tokenizer = load_model({str(material.model)!r}), load_tokenizer({str(material.model)!r})
train, queries = ([json.loads(line) for line in Path(path).read_text().splitlines()]
                  for path in ({str(material.train)!r}, {str(material.queries)!r}))
same = dict(layers="fixed", layers__layers=[2], top_k=8, max_length=64, tokens__hits=1,
            datamodule__tokens_per_batch=256, datamodule__window=16, trainer__devices=2, trainer__strategy="ddp",
            trainer__accelerator="cpu")
for name, scorer in (("first", "inner_product"), ("second", "cosine")):
    rept.trace(model, tokenizer, train, queries, scorer=scorer, out=Path({str(tmp_path)!r}) / name, **same)
rept.trace(model, tokenizer, train[:1], queries, out=Path({str(tmp_path)!r}) / "few", **same)
""")
    code, _, err = forks.finish(str(script))
    assert code == 0, err
    first, second = (Trace(tmp_path / name).folder for name in ("first", "second"))
    assert second.results.read_bytes() == alone.folder.results.read_bytes() != first.results.read_bytes()
    assert second.tokens.read_bytes() == alone.folder.tokens.read_bytes()
    assert Trace(tmp_path / "few").metrics["rows"]["attributed"] == 1


def test_a_stopped_run_resumes_with_fewer_processes(alone, material, tmp_path, capsys):
    run = tmp_path / "run"
    stored = stop_when_stored(material.arguments(run, *SHARDS, *DDP), run, shards=2, number=signal.SIGKILL)
    attribute(material.config(run, *SHARDS), show_result=False)
    assert f"{stored} of 41 training rows: stored before, reused" in capsys.readouterr().out
    assert_same(Trace(run), alone)


def test_a_stopped_run_resumes_with_more_processes(alone, material, tmp_path):
    run = tmp_path / "run"
    stored = stop_when_stored(material.arguments(run, *SHARDS), run, shards=2, number=signal.SIGKILL)
    code, out, err = forks.finish("attribute.py", *material.arguments(run, *SHARDS, *DDP))
    assert code == 0, err
    assert f"{stored} of 41 training rows: stored before, reused" in out
    assert_same(Trace(run), alone)


def stop_when_stored(arguments: list[str], run: Path, shards: int, number: int) -> int:
    """Starts a run slowed down by tests/helpers/slow.py, signals all its processes once it has written some shards.

    Returns:
        The training rows that are stored.
    """
    process = forks.start("tests/helpers/slow.py", *arguments)
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
def test_a_signal_closes_the_shard_and_says_how_to_resume(alone, material, tmp_path, number, code):
    run = tmp_path / "run"
    process = forks.start("tests/helpers/slow.py", *material.arguments(run, "store.shard_rows=1000", "each=true"))
    while not (run / "store/train/shards").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Run the same command again to resume" in err and "Traceback" not in err
    done = AttributionStore.stored_rows(run / "store", "train", 41)
    assert done is not None and 0 < done.sum() < 41
    assert_same(attribute(material.config(run, "store.shard_rows=1000", "each=true"), show_result=False), alone)
