"""Whole runs in this process: what is written, what is reused, and that nothing moves the numbers."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tempfile

import pytest
import torch

import rept
from datamodules.instructions import InstructionData
from extractors.sites.residual_stream import ResidualStream
from rept.config.compose import compose
from rept.config.schema import AttributeConfig
from rept.data.behaviours import Behaviour
from rept.errors import Stopped, UsageError
from rept.evaluation import oracle
from rept.model.loading import load_model, load_tokenizer
from rept.results.trace import Trace
from rept.run import pipeline, stages
from rept.run.pipeline import attribute
from rept.run.prepare import Given, prepare
from rept.run.rescore import score
from rept.store.reader import AttributionStore
from rept.types import SIDES, Key, Status
from rept.utils.json_files import read_json, read_jsonl
from scorers.cosine import Cosine
from tests.helpers import oracle_scores
from tests.helpers.terminal import print_to


@pytest.fixture(scope="module")
def done(material, tmp_path_factory) -> Trace:
    folder = tmp_path_factory.mktemp("run") / "whole"
    return attribute(material.config(folder, "bottom_k=3", "store.shard_rows=10"), show_result=False)


def scores_of(trace: Trace) -> dict[tuple[int, int], float]:
    return {(hit.query, hit.row): hit.score for i in range(len(trace.queries)) for hit in trace.hits(i)}


def test_every_row_ends_as_a_result_or_with_a_reason(done, material):
    store = AttributionStore(done.folder.store, "train")
    expected = {5: Status.EMPTY_PROMPT, 11: Status.EMPTY_RESPONSE, 17: Status.NOT_A_STRING, 23: Status.PROMPT_TOO_LONG}
    for row in range(len(material.rows)):
        assert store.status[row] == expected.get(row, Status.CUT if row == 29 else Status.ATTRIBUTED)
    rows = done.metrics["rows"]
    assert rows == {"read": 41, "attributed": 37, "cut": 1, "set_aside": {s.reason: 1 for s in expected.values()}}


def test_hits_are_ranked_and_carry_their_text(done, material):
    for query in range(4):  # the fifth is answered by the model, whose answer may be empty
        hits = done.hits(query)
        assert [hit.rank for hit in hits] == list(range(1, 9))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            assert hit.prompt == material.rows[hit.row]["prompt"]
            assert hit.label == material.rows[hit.row]["label"]
        opponents = done.opponents(query)
        assert len(opponents) == 3
        assert [hit.score for hit in opponents] == sorted(hit.score for hit in opponents)
        assert opponents[-1].score <= hits[-1].score


def test_a_query_that_is_a_training_row_is_marked_and_first(done):
    best = done.hits(3)[0]
    assert (best.row, best.same_as_query) == (3, True)
    assert best.score == pytest.approx(1, abs=1e-3)
    assert not any(hit.same_as_query for query in (0, 1, 2, 4) for hit in done.hits(query))
    assert done.best(3) == done.hits(3)[1] and done.best(0) == done.hits(0)[0]


def test_the_measures_leave_out_the_query_itself_and_problems_of_labels_are_recorded(material, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"Name the king {i}", "response": f"It is {i}", "label": ("odd", "even")[i % 2]} for i in range(9)
    ]
    asked = [rows[0], rows[3], rows[4] | {"label": "od"}]
    files = []
    for name, lines in (("train", rows), ("queries", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(f"datamodule.{name}={tmp_path / name}.jsonl")
    shown = [Behaviour("odd", (), (), lambda _, answer: False)]
    monkeypatch.setattr(InstructionData, "behaviours", lambda _: shown)
    stream = io.StringIO()
    print_to(stream, monkeypatch)
    trace = attribute(material.config(tmp_path / "run", *files, "tokens.hits=0"))
    found = trace.metrics
    assert found["overall"]["reciprocal_rank"] < 1 == found["with_same"]["overall"]["reciprocal_rank"]
    assert found["queries"]["query"] == found["with_same"]["queries"]["query"] == [0, 1, 2]
    assert found["missing_labels"] == {"queries": {"od": 1}, "training": ["even", "odd"]}
    assert found["not_shown"] == [0] and trace.not_shown == {0}
    assert "No training row has the label od (1 query); the training rows have: even, odd." in stream.getvalue()
    assert "does not show odd" in stream.getvalue()
    again = score([str(tmp_path / "run"), f"out={tmp_path / 'again'}"]).metrics
    assert again == found


def test_labels_of_queries_are_reported_where_no_training_row_has_one(material, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"Name the king {i}", "response": f"It is {i}", "label": ("clean", None)[i % 2]} for i in range(6)
    ]
    asked = [rows[0] | {"label": "odd"}, rows[1] | {"label": "odd"}, rows[2]]
    files = []
    for name, lines in (("train", rows), ("queries", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(f"datamodule.{name}={tmp_path / name}.jsonl")
    print_to(stream := io.StringIO(), monkeypatch)
    trace = attribute(material.config(tmp_path / "run", *files, "tokens.hits=0"))
    assert trace.metrics["missing_labels"] == {"queries": {"odd": 2}, "training": []} and "overall" not in trace.metrics
    printed = "No training row has the label odd (2 queries); no training row has a label of a behaviour."
    assert printed in stream.getvalue() and "No measures: they need labels of behaviours" in stream.getvalue()


def test_rows_that_cannot_be_attributed_are_counted_by_reason(material, tmp_path):
    chats = [{"messages": [{"role": "user", "content": "Name"}]}] * 3 + [{"prompt": "", "response": "fine"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    given = [one for one in material.arguments(tmp_path / "run") if not one.startswith("layers")]
    config = compose(AttributeConfig, [*given, f"datamodule.train={tmp_path / 'train.jsonl'}"])
    with pytest.raises(UsageError, match="No training row can be attributed: 3 empty response, 1 empty prompt."):
        attribute(config, show_result=False)


def test_a_query_without_response_is_answered_by_the_model(done):
    asked = done.queries
    assert [line["generated"] for line in asked] == [False, False, False, False, True]
    assert done.hits(4) or asked[4]["status"] == Status.EMPTY_RESPONSE.reason


def test_scores_are_the_oracle_s(done, material):
    model, module = rebuilt(material)
    signatures = {}
    for side, total in (("query", 4), ("train", 8)):
        for batch in module.batches(side, range(total)):
            for i, (ids, labels) in enumerate(oracle.samples(batch)):
                states = oracle.states(model, ids, labels, 2)
                signatures[side, int(batch.row[i])] = oracle.signature(states, labels)
    found = scores_of(done)
    compared = [(q, r) for q, r in found if ("query", q) in signatures and ("train", r) in signatures]
    assert compared
    for query, row in compared:
        expected = oracle_scores.pair_score(signatures["train", row], signatures["query", query])
        assert found[query, row] == pytest.approx(expected, abs=2e-4)  # float16 in the store moves cosines by 1.3e-4


def rebuilt(material):
    from datamodules.instructions import InstructionData
    from rept.model.loading import load_model, load_tokenizer

    module = InstructionData(str(material.train), str(material.queries), max_length=64, tokens_per_batch=256)
    module.attach(load_tokenizer(str(material.model)))
    return load_model(str(material.model)), module


def assert_equal_scores(first: dict, second: dict) -> None:
    """At the end of a ranking, rounding may exchange hits."""
    common = first.keys() & second.keys()
    assert len(common) >= 0.9 * len(first)
    assert all(first[pair] == pytest.approx(second[pair], abs=1e-5) for pair in common)


@pytest.mark.parametrize("change", ["datamodule.tokens_per_batch=64", "datamodule.window=41", "store.shard_rows=3"])
def test_batches_windows_and_shards_do_not_move_the_scores(done, material, tmp_path, change):
    other = attribute(material.config(tmp_path / "run", change), show_result=False)
    assert_equal_scores(scores_of(done), scores_of(other))


def test_row_order_does_not_move_the_scores(done, material, tmp_path):
    order = torch.randperm(len(material.rows), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = tmp_path / "train.jsonl"
    shuffled.write_text("".join(json.dumps(material.rows[i]) + "\n" for i in order))
    other = attribute(material.config(tmp_path / "run", f"datamodule.train={shuffled}"), show_result=False)
    second = {(query, order[row]): value for (query, row), value in scores_of(other).items()}
    assert_equal_scores(scores_of(done), second)


def test_the_same_command_again_reuses_everything(done, material, capsys):
    before = {p: p.stat().st_mtime_ns for p in done.folder.store.rglob("*.h5")}
    attribute(material.config(done.folder.path, "bottom_k=3", "store.shard_rows=10"), show_result=False)
    assert {p: p.stat().st_mtime_ns for p in done.folder.store.rglob("*.h5")} == before
    assert capsys.readouterr().out.count("reused") == 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("datamodule.max_length=32", "max_length was 64, now 32"),
        ("layers.layers=[1]", "layers was [2], now [1]"),
        ("extractor=mlp_output", "extractor was"),
        ("store.dtype=float32", "store dtype was float16, now float32"),
        ("max_new_tokens=3", "max_new_tokens was 48, now 3"),
    ],
)
def test_a_store_made_differently_is_refused_in_words(done, material, change, word):
    with pytest.raises(UsageError, match="made differently") as caught:
        attribute(material.config(done.folder.path, change), show_result=False)
    assert word in str(caught.value)


def test_answers_are_not_taken_for_others_when_the_run_was_stopped_before_it_extracted(material, tmp_path, monkeypatch):
    def stop(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "select_layers", stop)
        attribute(material.config(tmp_path / "run", "max_new_tokens=2"), show_result=False)
    with pytest.raises(UsageError, match="max_new_tokens was 2, now 3"):
        attribute(material.config(tmp_path / "run", "max_new_tokens=3"), show_result=False)


class Learner(ResidualStream):
    fit_rows = 2


def test_the_seed_belongs_to_signatures_only_where_the_extractor_learns_from_rows_it_draws(material, tmp_path):
    config = material.config(tmp_path / "run", "seed=3")
    given = {
        extractor: stages.initial_fingerprints(prepare(config, Given(extractor=extractor())))
        for extractor in (ResidualStream, Learner)
    }
    assert "seed" not in given[ResidualStream] and given[Learner]["seed"] == 3


def test_another_scorer_over_the_same_store_needs_no_model(done, tmp_path, capsys):
    other = score([str(done.folder.path), "scorer=gradient_representation", f"out={tmp_path / 'product'}"])
    capsys.readouterr()
    assert other.folder.path == tmp_path / "product"
    assert scores_of(other) != scores_of(done)
    again = score([str(done.folder.path), "scorer=cosine", f"out={tmp_path / 'again'}"])
    assert scores_of(again) == scores_of(done)


def test_what_belongs_to_a_replaced_ranking_goes(done, tmp_path, capsys):
    run, out = str(done.folder.path), tmp_path / "out"
    page, words, each = out / "report.html", out / "words.jsonl", out / "results-residual_stream-2.jsonl"
    score([run, "each=true", f"out={out}"])
    page.touch()
    words.touch()
    assert each.is_file() and Trace(out).opponents(0)
    other = score([run, "scorer=inner_product", "bottom_k=0", "each=false", f"out={out}"])
    assert not any(path.exists() for path in (each, page, words)) and not other.opponents(0)
    assert f"All results are in {out}." in "".join(capsys.readouterr().out.split("\n"))


def test_ranking_again_replaces_nothing_that_it_did_not_make(done, material, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(done.folder.path, run)
    (run / "report.html").touch()
    shutil.copytree(run, other)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"such as out={run}-again, because those in {run} stay"):
        score([str(run), "scorer=inner_product"])
    for out in (other, material.model):
        with pytest.raises(UsageError, match=f"out={out} to be a new folder .* other files, such as"):
            score([str(run), f"out={out}"])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_ranking_stopped_while_it_is_written_is_reported_and_one_that_is_refused_changes_nothing(
    done, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    score([str(done.folder.path), f"out={run}"])
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".yaml", ".jsonl", ".json")}
    with pytest.raises(UsageError, match="top_k to be at least 1, but got -1"):
        score([str(done.folder.path), "top_k=-1", f"out={run}"])
    with pytest.raises(UsageError):
        score([str(done.folder.path), "scorer=bm25", f"out={run}"])
    with pytest.raises(UsageError, match="behaviours=none.yaml cannot be read"):
        score([str(done.folder.path), "behaviours=none.yaml", f"out={run}"])
    settings = ("behaviour_scorer=fisher", "behaviour_scorer.shrinkage=0")
    with pytest.raises(UsageError, match="behaviour_scorer.shrinkage to be above 0"):
        score([str(done.folder.path), *settings, f"out={run}"])
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.name in before}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rept.run.rank_stage.write_jsonl", stop)
        score([str(done.folder.path), "scorer=inner_product", f"out={run}"])
    with pytest.raises(UsageError, match="is not finished"):
        Trace(run)


@pytest.mark.parametrize(
    "argument", ["extractor=mlp_output", "datamodule.train=other", "tokens.hits=2", "experiment=repsim"]
)
def test_ranking_again_takes_only_what_ranks(done, argument):
    before = done.folder.config.read_bytes()
    with pytest.raises(UsageError, match=f"{argument}: .* scorer, top_k, bottom_k"):
        score([str(done.folder.path), argument])
    assert done.folder.config.read_bytes() == before


def test_a_run_folder_that_was_moved_can_be_read_resumed_and_ranked_again(done, material, tmp_path, capsys):
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(done.folder.path, tmp_path / "copy")
    moved.parent.mkdir()
    (tmp_path / "copy").rename(moved)
    assert scores_of(Trace(moved)) == scores_of(done)
    assert scores_of(score([str(moved), f"out={tmp_path / 'again'}"])) == scores_of(done)
    capsys.readouterr()
    again = attribute(material.config(moved, "bottom_k=3", "store.shard_rows=10"), show_result=False)
    assert capsys.readouterr().out.count("reused") == 3 and scores_of(again) == scores_of(done)


def test_several_layers_give_their_mean_and_each_on_request(material, tmp_path):
    trace = attribute(
        material.config(tmp_path / "run", "layers.layers=[1,2,-1]", "each=true", "top_k=37"), show_result=False
    )
    assert set(trace.metrics["each"]) == {f"residual_stream/{layer}" for layer in (1, 2, 3)}
    alone = [
        {(line["query"], line["row"]): line["score"] for line in read_jsonl(path)}
        for path in sorted(trace.folder.path.glob("results-residual_stream-*.jsonl"))
    ]
    assert len(alone) == 3
    for pair, value in scores_of(trace).items():
        assert value == pytest.approx(sum(one[pair] for one in alone) / 3, abs=1e-6)


def test_token_scores_are_the_oracle_s(material, tmp_path):
    done = attribute(material.config(tmp_path / "run", "tokens.form=matched"), show_result=False)
    model, module = rebuilt(material)
    query, best = 0, done.hits(0)[0].row
    states = {}
    for side, row in (("query", query), ("train", best)):
        batch = next(iter(module.batches(side, [row])))
        ids, labels = next(iter(oracle.samples(batch)))
        states[side] = oracle.states(model, ids, labels, 2), labels
    found = done.tokens(query, best)
    for side, other in (("train", "query"), ("query", "train")):
        expected = oracle_scores.token_scores(states[side][0], *states[other], "matched")
        assert found[side].scores == pytest.approx([float(x) for x in expected], abs=1e-4)
        assert "".join(found[side].tokens).count("assistant") >= 1


def test_files_of_the_run_folder(done):
    assert {p.name for p in done.folder.path.iterdir() if not p.name.startswith(".")} == {
        "config.yaml", "provenance.json", "queries.jsonl", "layers.json", "store",
        "results.jsonl", "opponents.jsonl", "behaviours.jsonl", "tokens.jsonl", "words.jsonl", "metrics.json",
    }  # fmt: skip
    known = done.provenance
    assert known["schema"] == 2
    assert set(known["stages"]) == {"answers", "layers", "extract query", "extract train", "rank", "tokens"}
    assert {"weights", "tokenizer", "training data", "layers"} <= set(known["fingerprints"])
    assert read_json(done.folder.layers)["layers"] == [2]


def test_the_norms_and_shares_of_blocks_are_recorded(done):
    blocks = done.provenance["blocks"]
    assert len(blocks) == 2 and sum(one["share"] for one in blocks.values()) == pytest.approx(1)
    for side in SIDES:
        store = AttributionStore(done.folder.store, side)
        for key, rows in store.read(store.attributed, store.keys).items():
            assert blocks[key.path][f"{side}_norm"] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-3)


def test_measures_exist_only_with_labels(done, material, tmp_path):
    marked = any(hit.row > 36 for query in range(5) for hit in done.hits(query)[:1])
    assert set(done.metrics) == {"overall", "labels", "queries", "with_same", "behaviours", "rows", "scores"} | (
        {"tokens"} if marked else set()
    )
    bare = tmp_path / "queries.jsonl"
    bare.write_text(json.dumps({"prompt": "Name the king", "response": "fine"}) + "\n")
    trace = attribute(material.config(tmp_path / "run", f"datamodule.queries={bare}"), show_result=False)
    assert "overall" not in trace.metrics


def test_a_scorer_that_needs_what_is_not_extracted_is_reported_before_the_model_is_loaded(material, tmp_path):
    config = material.config(tmp_path, "extractor.fields=[representation]", "model.path=/no/such/model")
    with pytest.raises(UsageError, match="reads gradient, but ResidualStream gives only representation"):
        attribute(config)


@pytest.mark.parametrize("mistake", [{"trainer__devices": 2, "trainer__strategy": "ddp"}, {"top_k": 0}])
def test_a_trace_that_cannot_be_made_leaves_no_temporary_folder(material, tmp_path, monkeypatch, mistake):
    """And several processes cannot share one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    with pytest.raises(UsageError, match=r"out= to name a folder that all 2 processes share|top_k to be at least 1"):
        rept.trace(model, tokenizer, material.rows, material.asked, trainer__accelerator="cpu", **mistake)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_page_is_written_says_how_to_resume(material, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "write_report", lambda trace: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match="what was computed is stored. Run the same command again to resume") as stopped:
        attribute(material.config(tmp_path / "run", "report=true"), show_result=False)
    assert stopped.value.exit_code == 130


def test_trace_from_python_with_objects_and_words(material):
    from rept.model.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    model.requires_grad_(True).train()
    trace = rept.trace(
        model,
        tokenizer,
        material.rows,
        material.asked,
        extractor=ResidualStream(fields=["representation"]),
        scorer=Cosine(fields=["representation"]),
        layers="last",
        top_k=3,
        tokens__hits=1,
        max_length=64,
    )
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert trace.hits(3)[0].row == 3
    assert "5 queries over 37 training rows" in repr(trace)
    assert len(trace.to_pandas()) == sum(len(trace.hits(i)) for i in range(5))
    store = AttributionStore(trace.folder.store, "train")
    assert store.keys == [Key("residual_stream", 3, "representation")]
    with pytest.raises(KeyError, match="rows scored for this query"):
        trace.tokens(0, 40)
    with pytest.raises(IndexError):
        trace.hits(5)


def test_settings_from_python_are_taken_as_they_are(monkeypatch):
    def configured(**settings):
        class Composed(Exception):
            pass

        def stop(config, *_, **__):
            raise Composed(config)

        monkeypatch.setattr(pipeline, "attribute", stop)
        with pytest.raises(Composed) as caught:
            rept.trace(torch.nn.Linear(1, 1), None, [{"prompt": "a", "response": "b"}], [{"prompt": "a"}], **settings)
        return caught.value.args[0]

    for out in ("runs/a #b", "runs/x: y", "runs/[z", "null"):
        assert configured(out=out).out == out
    config = configured(tokens__layer=None, calibration__references=None, top_k=5, each=True, trainer="sharded")
    assert (config.tokens.layer, config.calibration.references, config.top_k, config.each) == (None, None, 5, True)
    assert config.trainer["strategy"] != configured().trainer["strategy"]
    assert configured(layers="fixed", layers__layers=[1, 2]).layers["layers"] == [1, 2]
    with pytest.raises(UsageError, match="tokens.layr.*did you mean tokens.layer"):
        rept.trace(None, None, [], [], tokens__layr=None)


def test_a_table_without_pandas_is_a_usage_error(done, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="to_pandas needs pandas"):
        done.to_pandas()


def test_an_empty_list_is_a_usage_error(material):
    with pytest.raises(UsageError, match="`queries`"):
        rept.trace(None, None, material.rows, [])


def test_a_rank_faster_than_the_first_finds_no_provenance_yet_and_resumes(material, tmp_path, monkeypatch):
    class Checked(Exception):
        pass

    def check(known, marks, folder):
        raise Checked(known)

    monkeypatch.setattr("rept.results.run_folder.RunFolder.update_provenance", lambda self, **_: None)
    monkeypatch.setattr("rept.run.pipeline.check_fingerprints", check)
    with pytest.raises(Checked, match="^{}$"):
        attribute(material.config(tmp_path / "run"), show_result=False)
