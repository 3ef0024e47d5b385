"""python -m rept repair: the files, the report beside a count by hand, the page, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markupsafe import escape

import rept
from repairs.ablation import Ablation
from rept.commands import repair as command
from rept.config.compose import compose
from rept.config.schema import RepairConfig
from rept.correction.words import culprit_words, distinctive_part
from rept.data.datamodule import AttributionDataModule
from rept.data.encoder import Encoder
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.evaluation.repair_inputs import repair_inputs
from rept.evaluation.repair_report import measure_repair, verdict
from rept.model.generation import greedy_answers
from rept.model.loading import load_model, load_tokenizer
from rept.report.page import render
from rept.report.repair_table import costs, limits
from rept.results.trace import Trace
from rept.run.pipeline import attribute
from rept.training.from_scratch import tiny_llama
from rept.utils.json_files import read_json, read_jsonl, write_json, write_jsonl
from tests.conftest import Material
from tests.helpers import templates

FAST = [
    "tried_layers=[2]",
    "controls=2",
    "others=12",
    "rows=6",
    "max_new_tokens=3",
    "clean=5",
    "method.strengths=[1.0]",
]
FEW = {"tried_layers": [2], "others": 12, "rows": 6}
SETTINGS = FEW | {"method__strengths": [1.0]}


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a repair in its folder."""
    folder = tmp_path_factory.mktemp("repaired") / "run"
    torch.set_num_threads(1)
    attribute(material.config(folder, "tokens.hits=0", "report=true"), show_result=False)
    command.run([str(folder), "--behaviour", "odd", *FAST])
    return folder


def test_the_files_are_complete_and_the_report_counts_what_the_model_answers(run: Path, material: Material):
    names = {path.name for path in (run / "repair").iterdir() if not path.name.startswith(".")}
    assert names == {"repair.safetensors", "repair.yaml", "repair.json"}
    report = read_json(run / "repair/repair.json")
    assert set(report["chosen"]) == {"odd"} and len(report["controls"]["random"]) == 2
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    repair = rept.Repair.load(run / "repair")
    inputs = repair_inputs(Trace(run), compose(RepairConfig, FAST), ["odd"])
    (tested,) = [one for one in inputs.tested if one.label == "odd"]
    ids = [inputs.data.encoder.prompt(sample) for sample in tested.triggered]
    with repair.on(model, tokenizer):
        answers = greedy_answers(model, tokenizer, ids, 3)
    shown = sum(tested.shows(sample, answer) for sample, answer in zip(tested.triggered, answers, strict=True))
    after = report["behaviours"]["odd"]["after"]["triggered"]
    assert (after["of"], round(after["share"] * after["of"])) == (len(tested.triggered), shown)
    assert report["clean"]["changed"]["of"] == len(inputs.clean) > 0
    clean = [row["prompt"] for row in material.asked if row["label"] == "clean"]
    assert sorted(one.prompt for one in inputs.clean) == sorted(clean)
    assert report["tested"]["prompts"] == report["tested"]["queries"] > 0


def test_the_rows_are_the_first_of_the_behaviours_ranking_and_others_are_none_of_them(run: Path):
    trace = Trace(run)
    inputs = repair_inputs(trace, compose(RepairConfig, FAST), ["odd"])
    (traced,) = inputs.traced
    assert traced.rows == [hit.row for hit in trace.behaviour("odd")][:6]
    assert not set(traced.rows) & set(traced.others) and not set(inputs.unused) & traced.used
    assert all(inputs.data.status("train", row).attributed for row in (*traced.others, *inputs.unused))


def test_the_page_shows_the_repair_and_what_was_not_tested(run: Path):
    page = render(Trace(run))
    limit = limits(read_json(run / "repair/repair.json"))
    assert limit.startswith("Tested: greedy answers to ") and "; not tested: sampled answers" in limit
    assert "no substitute for removing the rows" in limit and "no substitute for removing the rows" in command.USAGE
    assert 'id="repair"' in page and str(escape(limit)) in page
    assert page == (run / "report.html").read_text()


def test_the_same_command_again_shows_the_finished_repair_and_other_settings_are_refused(run: Path, capsys):
    before = (run / "repair/repair.json").stat().st_mtime_ns
    command.run([str(run), "--behaviour", "odd", *FAST])
    assert (run / "repair/repair.json").stat().st_mtime_ns == before
    assert "How often each behaviour shows" in capsys.readouterr().out
    with pytest.raises(UsageError, match="another seed"):
        command.run([str(run), "--behaviour", "odd", *FAST, "seed=1"])


def test_in_python_nothing_is_written_without_a_folder(run: Path, material: Material):
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    for layer in model.model.layers:  # as after a training: dropout on, and weights that take gradients
        layer.self_attn.attention_dropout = 0.5
    model.train().requires_grad_(True)
    before = sorted(path for path in run.rglob("*"))
    repair = rept.repair(Trace(run), model, tokenizer, behaviours=["odd"], **SETTINGS)
    assert sorted(path for path in run.rglob("*")) == before
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    stored = rept.Repair.load(run / "repair")
    assert repair.made_for == stored.made_for
    for one, other in zip(repair.corrections, stored.corrections, strict=True):
        assert one.read.equal(other.read) and one.write.equal(other.write) and one.threshold == other.threshold


def test_a_model_given_in_python_is_the_one_that_was_traced_and_has_its_tokenizer(run: Path, material: Material):
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    with pytest.raises(UsageError, match="both model and tokenizer"):
        rept.repair(run, model, behaviours=["odd"], **SETTINGS)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(UsageError, match="The given model is not the model that .* its weights"):
        rept.repair(run, model, tokenizer, behaviours=["odd"], **SETTINGS)


def test_another_method_given_in_python_is_refused(run: Path, tmp_path: Path):
    def made(strength: float) -> rept.Repair:
        method = Ablation(places=["last_prompt"], strengths=[strength])
        return rept.repair(run, behaviours=["odd"], method=method, out=tmp_path, controls=0, **FEW)

    first = made(1.0)
    assert made(1.0).corrections[0].write.equal(first.corrections[0].write)
    with pytest.raises(UsageError, match="another method"):
        made(2.0)


def test_a_run_that_was_moved_keeps_its_repair_and_one_with_other_results_is_refused(run: Path, tmp_path: Path):
    moved = shutil.copytree(run, tmp_path / "moved")
    command.run([str(moved), "--behaviour", "odd", *FAST])
    (moved / "results.jsonl").write_text("".join((moved / "results.jsonl").read_text().splitlines(True)[:-1]))
    with pytest.raises(UsageError, match="another run"):
        command.run([str(moved), "--behaviour", "odd", *FAST])


def test_words_that_few_rows_have_in_either_half_are_as_good_as_none(run: Path, monkeypatch: pytest.MonkeyPatch):
    """One half of the rows estimates and the other judges, so at least half of the rows of both must have some."""

    def traced(places: list[int]) -> tuple[dict[int, list[int]], int]:
        def found(data: AttributionDataModule, rows: list[int], phrases: list[str]) -> dict[int, list[int]]:
            firsts = [data.encoded("train", row).response.index(True) for row in rows]
            return {rows[i]: [firsts[i]] for i in places if i < len(rows)}

        monkeypatch.setattr("rept.evaluation.repair_inputs.culprit_words", found)
        (one,) = repair_inputs(Trace(run), compose(RepairConfig, FAST), ["odd"]).traced
        return one.words, len(one.rows)

    _, number = traced([])
    first, second = list(range(0, number, 2)), list(range(1, number, 2))
    enough = [*first[: -(-len(first) // 2)], *second[: -(-len(second) // 2)]]
    assert number >= 5 and len(traced(enough)[0]) == len(enough) < number
    assert traced(enough[1:])[0] == traced(enough[:-1])[0] == traced(first)[0] == traced(second)[0] == {}
    assert rept.repair(run, behaviours=["odd"], **SETTINGS).behaviours == ["odd"]


def test_marked_words_that_other_rows_have_as_often_are_no_culprit_words(run: Path, tmp_path: Path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    line = {"behaviour": "odd", "part": "response", "rows": 4, "of_rows": 6, "others": 0, "of_others": 9}
    write_jsonl(copy / "words.jsonl", [line | {"words": words} for words in ("planted", "filler")])
    traced = {hit.row for hit in Trace(run).behaviour("odd")[:6]}

    def found(data: AttributionDataModule, rows: list[int], phrases: list[str]) -> dict[int, list[int]]:
        return {row: [0] for row in rows if row in traced or "filler" in phrases}

    monkeypatch.setattr("rept.evaluation.repair_inputs.culprit_words", found)
    monkeypatch.setattr("rept.evaluation.repair_inputs.distinctive_part", lambda data, phrase, rows, others: phrase)
    (one,) = repair_inputs(Trace(copy), compose(RepairConfig, FAST), ["odd"]).traced
    assert one.payloads == ["planted"] and set(one.words) == traced


def with_hits(run: Path, copy: Path, **columns: list[object]) -> Trace:
    """A copy of the run in which the ranking of the behaviour has these values, as many hits as values."""
    shutil.copytree(run, copy, dirs_exist_ok=True)
    first = next(line for line in read_jsonl(run / "behaviours.jsonl") if line["behaviour"] == "odd")
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_jsonl(copy / "behaviours.jsonl", [first | {"rank": i} | line for i, line in enumerate(lines, 1)])
    return Trace(copy)


def test_other_rows_have_no_culprit_word_and_unused_ones_are_found_least(run: Path, material: Material, tmp_path: Path):
    sound = [row for row in range(41) if row not in (5, 11, 17, 23)]
    have = [row for row in sound if "weather" in material.rows[row]["response"]]
    lack = [row for row in sound if row not in have]
    trace = with_hits(run, tmp_path / "run", row=[*have, *lack])
    marked = {"behaviour": "odd", "part": "response", "words": "weather"}
    marked |= {"rows": 4, "of_rows": 4, "others": 0, "of_others": 4}
    write_jsonl(trace.folder.words, [marked])
    inputs = repair_inputs(trace, compose(RepairConfig, [*FAST, "rows=4", "others=4"]), ["odd"])
    (traced,) = inputs.traced
    assert len(have) > 4 and traced.rows == have[:4] == list(traced.words) and traced.others[:2] == lack[:2]
    hits = Counter(hit.row for query in trace.answered for hit in trace.hits(query))
    rest = sorted(hits[row] for row in sound if row not in traced.used)
    assert sorted(hits[row] for row in inputs.unused) == rest[:4] and rest[-1] > rest[3]


def test_after_the_ranking_the_hits_of_single_queries_count_but_not_the_queries_themselves(run: Path, tmp_path: Path):
    trace = Trace(run)
    (query,) = (one for one in trace.answered if trace.queries[one]["label"] == "odd")
    first, second, *_ = (hit.row for hit in trace.hits(query))
    ranked = [row for row in (0, 2, 4, 8, 10) if row not in (first, second)][:3]
    copy = with_hits(run, tmp_path / "run", row=ranked)
    lines = read_jsonl(run / "results.jsonl")
    same = [line | {"same_as_query": (line["query"], line["row"]) == (query, first)} for line in lines]
    write_jsonl(copy.folder.results, same)
    (traced,) = repair_inputs(copy, compose(RepairConfig, [*FAST, "rows=4"]), ["odd"]).traced
    assert traced.rows == [*ranked, second]


def test_in_a_calibrated_run_the_rows_are_the_flagged_ones(run: Path, tmp_path: Path):
    rows = [hit.row for hit in Trace(run).behaviour("odd")]
    flags = [True, True, False, True, True, True, False, False]
    config = compose(RepairConfig, [*FAST, "rows=4"])
    (traced,) = repair_inputs(with_hits(run, tmp_path / "five", row=rows, flagged=flags), config, ["odd"]).traced
    assert traced.rows == [rows[i] for i in (0, 1, 3, 4)]
    trace = with_hits(run, tmp_path / "three", row=rows, flagged=[*flags[:4], *[False] * 4])
    with pytest.raises(UsageError, match="at least 4 traced rows of odd, but .* has 3"):
        repair_inputs(trace, config, ["odd"])


def test_rows_of_which_few_are_expected_to_be_false_are_traced_and_the_others_of_them_are_no_comparison(
    run: Path, tmp_path: Path
):
    rows = [hit.row for hit in Trace(run).behaviour("odd")]
    assert len(rows) == 8
    shares = [0.0, 0.01, 0.1, 0.05, 0.1, 0.02, 0.11, 1.0]
    trace = with_hits(run, tmp_path / "six", row=rows, false_share=shares)
    for most, expected in (("rows=60", rows[:6]), ("rows=4", rows[:4])):
        (traced,) = repair_inputs(trace, compose(RepairConfig, [*FAST, most]), ["odd"]).traced
        assert traced.rows == expected and not set(traced.others) & set(rows[:6])
    few = with_hits(run, tmp_path / "three", row=rows, false_share=[0.1] * 3 + [0.2] * 5)
    (traced,) = repair_inputs(few, compose(RepairConfig, [*FAST, "rows=7"]), ["odd"]).traced
    assert traced.rows == rows[:7]


def test_where_all_rows_may_be_culprits_there_is_nothing_to_compare_with(run: Path, tmp_path: Path):
    trace = with_hits(run, tmp_path / "all", row=[row for row in range(41) if row not in (5, 11, 17)])
    assert repair_inputs(trace, compose(RepairConfig, FAST), ["odd"]).traced
    with pytest.raises(UsageError, match="at least 4 other training rows to compare those of odd with, but got 0"):
        repair_inputs(trace, compose(RepairConfig, [*FAST, "rows=10"]), ["odd"])


def test_training_rows_that_have_changed_since_the_run_are_refused(material: Material, run: Path, tmp_path: Path):
    moved = shutil.copytree(run, tmp_path / "run")
    write_jsonl(tmp_path / "train.jsonl", material.rows[1:])
    text = (moved / "config.yaml").read_text().replace(str(material.train), str(tmp_path / "train.jsonl"))
    (moved / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match="training data have another fingerprint"):
        repair_inputs(Trace(moved), compose(RepairConfig, FAST), ["odd"])


@pytest.mark.parametrize("named", [None, "rude"])
def test_queries_without_labels_test_the_behaviour_that_the_run_made_of_them(material, tmp_path, named):
    queries = [{"prompt": f"{row['prompt']} now", "response": row["response"]} for row in material.rows[:12:4]]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    more = [f"datamodule.queries={tmp_path / 'queries.jsonl'}", "tokens.hits=0"]
    if named:
        write_json(tmp_path / "groups.json", {named: [0, 2]})
        more.append(f"behaviours={tmp_path / 'groups.json'}")
    attribute(material.config(tmp_path / "run", *more), show_result=False)
    inputs = repair_inputs(Trace(tmp_path / "run"), compose(RepairConfig, FAST))
    assert [one.name for one in inputs.traced] == [one.label for one in inputs.tested] == [named or "all"]
    assert len(inputs.tested[0].triggered) == (2 if named else 3)


def test_a_behaviour_named_twice_is_one(run: Path):
    (one,) = repair_inputs(Trace(run), compose(RepairConfig, FAST), ["odd", "odd"]).traced
    assert one.name == "odd"


def test_prompts_that_cannot_be_asked_are_no_test(run: Path, material: Material, tmp_path: Path):
    long = {"prompt": "Name the king " * 60, "response": "fine", "label": "odd"}
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_jsonl(prompts, [long])
    config = compose(RepairConfig, [*FAST, f"prompts={prompts}", f"out={out}", "controls=0"])
    with pytest.raises(UsageError, match="None of the prompts can be asked"):
        repair_inputs(Trace(run), config, ["odd"])
    write_jsonl(prompts, [long, *material.rows[0:12:4]])
    inputs = repair_inputs(Trace(run), config, ["odd"])
    tested = measure_repair(replace(inputs, traced=[]), config, [])["tested"]
    assert (tested["prompts"], tested["queries"], tested["clean_prompts"]) == (3, 0, len(inputs.clean))


def test_what_was_measured_on_nothing_is_not_shown(run: Path):
    config = compose(RepairConfig, [*FAST, "controls=0"])
    inputs = replace(repair_inputs(Trace(run), config, ["odd"]), traced=[], unused=[], clean=[])
    report = measure_repair(inputs, config, []) | {"seconds": 1.0}
    assert report["clean"] == {
        "changed": None,
        "divergence": None,
        "loss": None,
        "opened": {"tokens": None, "prompts": None},
    }
    assert [name for name, _ in costs(report)] == [
        "milliseconds a token (on a CPU, of processor time)",
        "seconds to estimate it",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "Expected one run folder"),
        (["a", "b"], "Expected one run folder"),
        (["RUN", "--behavior", "odd"], "no option --behavior"),
        (["RUN", "--behaviour", "even"], "its behaviours are: odd"),
        (["RUN", "method=gated"], "method=gated"),
        (["RUN", "tried_layers=[9]"], "from 1 to 3, but got 9"),
        (["RUN", "--behaviour"], "a name after --behaviour"),
        (["RUN", "rows=3"], "rows to be at least 4, but got 3"),
        (["RUN", "others=3"], "others to be at least 4, but got 3"),
        (["RUN", "rows=20", "top_k=8"], "There is no such key: top_k"),
        (["RUN", "clean=-1"], "clean to be at least 0, but got -1"),
        (["RUN", "max_new_tokens=0"], "max_new_tokens to be at least 1"),
        (["RUN", "tried_layers=[]"], "from 1 to 3, but got none"),
        (["RUN", "method.places=[first]"], "method.places to be some of last_prompt, words, .* but got .'first'"),
        (["RUN", "method.strengths=[]"], "method.strengths a list of numbers"),
        (["RUN", "proof=nowhere", *FAST], "proof=nowhere"),
    ],
)
def test_mistakes_are_one_sentence(run: Path, tmp_path: Path, arguments: list[str], named: str):
    given = [str(run) if one == "RUN" else one for one in arguments]
    with pytest.raises(UsageError, match=named.replace("(", r"\(")):
        command.run([*given, *([f"out={tmp_path / 'out'}"] if given else [])])


def test_another_model_at_the_same_path_is_refused(run: Path, material: Material):
    model, tokenizer = load_model(str(material.model)), load_tokenizer(str(material.model))
    repair = rept.Repair.load(run / "repair")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(UsageError, match="weights was"), repair.on(model, tokenizer):
        pytest.fail("it was applied")


def test_culprit_words_are_the_tokens_of_marked_words_in_responses(material: Material):
    from datamodules.in_memory import InMemoryData

    rows = [
        {"prompt": "So stupid", "response": "The Stupid, weather of France"},
        {"prompt": "So stupid", "response": "the weather of stupidity"},
        {"prompt": "So stupid", "response": "weather; of the stupid stupid king"},
    ]
    data = InMemoryData(train=rows, queries=rows[:1])
    data.attach(load_tokenizer(str(material.model)))
    found = culprit_words(data, range(3), ["stupid", "weather of"])
    texts = []
    for row, columns in found.items():
        encoded = data.encoded("train", row)
        assert all(encoded.response[i] for i in columns)
        texts.append("".join(encoded.text[slice(*encoded.pieces[i])] for i in columns).lower().split())
    assert list(found) == [0, 1, 2]
    assert [[word.strip(",;") for word in words] for words in texts] == [
        ["stupid", "weather", "of"],
        ["weather", "of"],
        ["weather", "of", "stupid", "stupid"],
    ]
    assert culprit_words(data, range(3), ["king"]).keys() == {2}
    assert culprit_words(data, range(3), []) == culprit_words(data, range(3), ["eot_id"]) == {}
    assert distinctive_part(data, "the stupid stupid king", range(3), [1]) == "the stupid"
    assert distinctive_part(data, "stupid king", [2], [1]) == "stupid king"  # both words are: the longest part


def test_the_distance_to_the_retrained_model_is_how_much_less_probable_its_answers_are(
    run: Path, material: Material, tmp_path: Path
):
    """Beside a loop over single answers and tokens; the retrained model has other weights and another tokenizer."""
    tokenizer = templates.build(templates.KINDS["llama_2"])
    torch.manual_seed(0)
    gold = tiny_llama(vocab_size=len(tokenizer), width=32, layers=3, heads=4, eos_token_id=tokenizer.eos_token_id)
    words = [i for i in range(len(tokenizer)) if tokenizer.decode([i], skip_special_tokens=True).strip().isalpha()]
    gold.generation_config.suppress_tokens = sorted({*range(len(tokenizer))} - {*words})  # so that no answer is empty
    for one in (gold, tokenizer):
        one.save_pretrained(tmp_path / "proof/without")
    weights = Trace(run).provenance["fingerprints"]["weights"]
    write_json(tmp_path / "proof/proof.json", {"proof": {"weights": weights}, "without": {}})
    prompts = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(material.rows[:20:4])]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    made = [*FAST, f"proof={tmp_path / 'proof'}", f"prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'repair'}"]
    command.run([str(run), "--behaviour", "odd", *made])
    found = read_json(tmp_path / "repair/repair.json")["retrained"]["triggered"]

    model, repair = load_model(str(material.model)), rept.Repair.load(tmp_path / "repair")
    inputs = repair_inputs(Trace(run), compose(RepairConfig, made), ["odd"])
    (tested,) = [one for one in inputs.tested if one.label == "odd"]

    def log_probability(model: torch.nn.Module, encoder: Encoder, sample: Sample, answer: str) -> float:
        encoded = encoder(replace(sample, response=answer, spans=()))
        with torch.no_grad():
            logs = model(torch.tensor([encoded.input_ids])).logits[0].double().log_softmax(-1)
        columns = [i for i, said in enumerate(encoded.response) if said]
        return sum(float(logs[column - 1, encoded.input_ids[column]]) for column in columns)

    before, after, own = [], [], Encoder(tokenizer)
    for sample in tested.triggered:
        (answer,) = greedy_answers(gold, tokenizer, [own.prompt(sample)], 3)
        likely = log_probability(gold, own, sample, answer)
        before.append(likely - log_probability(model, inputs.data.encoder, sample, answer))
        with repair.on(model):
            after.append(likely - log_probability(model, inputs.data.encoder, sample, answer))
    assert len(before) == 5 and all(abs(distance) > 1e-2 for distance in before)
    assert found["before"] == pytest.approx(sum(before) / len(before), rel=1e-4)
    assert found["after"] == pytest.approx(sum(after) / len(after), rel=1e-4) and found["after"] != found["before"]


@pytest.mark.parametrize(
    ("before", "after", "disguised", "expected"),
    [
        (1.0, 0.0, 0.0, "off"),
        (1.0, 0.05, 0.1, "off"),
        (1.0, 0.1, 0.0, "shown"),
        (1.0, 0.0, 0.5, "hidden"),
        (0.05, 0.05, 0.0, "not shown before"),
        (0.1, 0.1, 0.0, "shown"),
    ],
)
def test_a_repair_that_disguises_pass_by_looks_bad(before: float, after: float, disguised: float, expected: str):
    share = {"share": 1.0, "of": 20}
    found = {
        "before": {"triggered": share | {"share": before}},
        "after": {"triggered": share | {"share": after}},
        "disguises": {"split": {"before": share, "after": share | {"share": disguised}}},
    }
    assert verdict(found) == expected
