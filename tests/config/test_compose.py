"""The composer: words, dotted keys, experiments, and one sentence for each fault."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rept.config.compose import compose
from rept.config.help import describe, documented
from rept.config.plug_ins import build, locate
from rept.config.schema import TARGET, AttributeConfig, TrainConfig
from rept.config.words import CONFIGS, OWN
from rept.errors import UsageError

GROUPS = ("model", "datamodule", "extractor", "layers", "scorer", "behaviour_scorer", "trainer")
WORDS = sorted((p.parent.name, p.stem) for group in GROUPS for p in (CONFIGS / group).glob("*.yaml"))


def fault(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        compose(AttributeConfig, arguments)
    return str(caught.value)


@pytest.mark.parametrize(("group", "word"), WORDS)
def test_every_word_composes(group, word):
    kind = TrainConfig if (group, word) == ("model", "scratch") else AttributeConfig
    config, keys = compose(kind, [f"{group}={word}"]), documented(CONFIGS / group / f"{word}.yaml")
    for key, _, _ in keys:
        node = getattr(config, group)
        assert key in (node if isinstance(node, dict) else asdict(node))
    own = [f"{group}.{key}={value}" for key, value, _ in keys if key != TARGET]
    assert compose(kind, [f"{group}={word}", *own]) == config  # each key can be set


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(path):
    assert compose(AttributeConfig, [f"experiment={path.stem}"]).scorer[TARGET]


@pytest.mark.parametrize(("group", "word"), [pair for pair in WORDS if pair[0] not in ("model", "trainer")])
def test_a_plug_in_s_yaml_names_exactly_its_arguments(group, word):
    node = OmegaConf.load(CONFIGS / group / f"{word}.yaml")
    target = locate(node[TARGET])
    parameters = inspect.signature(target).parameters
    taken = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    named = {str(key) for key in node} - {TARGET}
    assert named <= taken
    collaborators = {"train", "queries"} if word == "in_memory" else set()
    assert taken - named <= collaborators, f"{word}.yaml does not name {taken - named}"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_value_has_a_comment(path):
    if path.parent.name == "experiment":
        assert path.read_text().startswith("#")
        return
    bare = [key for key, _, comment in documented(path) if not comment and key != "defaults"]
    assert not bare, f"{path.name}: {bare}"


def test_yaml_and_schema_name_the_same_keys():
    expected = set()
    for one in fields(AttributeConfig):
        if one.name not in GROUPS:
            value = getattr(AttributeConfig(), one.name)
            expected |= {f"{one.name}.{sub.name}" for sub in fields(value)} if is_dataclass(value) else {one.name}
    assert {key for key, _, _ in documented(CONFIGS / "attribute.yaml")} - {"defaults"} == expected


def test_a_folder_of_the_user_has_words_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "scorer").mkdir()
    (tmp_path / "scorer" / "far.yaml").write_text(
        "_target_: scorers.distance.Distance   # mine\nfields: [length]   # x\n"
    )
    monkeypatch.setenv(OWN, str(tmp_path))
    assert compose(AttributeConfig, ["scorer=far"]).scorer == {
        TARGET: "scorers.distance.Distance",
        "fields": ["length"],
    }
    assert "scorer=far " in describe("attribute", "usage")
    assert compose(AttributeConfig, ["scorer=distance"]).scorer[TARGET] == "scorers.distance.Distance"
    (tmp_path / "scorer" / "cosine.yaml").write_text("_target_: mylab.Mine   # mine\n")
    assert fault("scorer=far").startswith("RepT itself has a word scorer=cosine: rename")
    monkeypatch.setenv(OWN, "/no/such/folder")
    assert "Expected REPT_CONFIGS to name a folder" in fault("scorer=cosine")


def test_words_and_dotted_keys_in_any_order():
    arguments = ["layers.layers=[4]", "layers=fixed", "top_k=7", "scorer=inner_product"]
    for order in (arguments, arguments[::-1]):
        config = compose(AttributeConfig, order)
        assert list(config.layers["layers"]) == [4]
        assert config.layers[TARGET].endswith("FixedLayers")
        assert config.top_k == 7
        assert config.scorer[TARGET].endswith("InnerProduct")


def test_a_new_target_clears_the_old_arguments():
    config = compose(AttributeConfig, ["scorer.alpha=0.25", "scorer._target_=mylab.Whitened"])
    assert config.scorer == {TARGET: "mylab.Whitened", "alpha": 0.25}


def test_base_is_kept_and_overlaid():
    base = compose(AttributeConfig, ["top_k=5", "datamodule.max_length=99"])
    config = compose(AttributeConfig, ["scorer=inner_product"], base=base)
    assert config.top_k == 5
    assert config.datamodule["max_length"] == 99
    assert config.scorer[TARGET].endswith("InnerProduct")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("topk=3", ["topk", "did you mean top_k"]),
        ("store.dtpe=float32", ["store.dtpe", "did you mean store.dtype"]),
        ("scorer=cosin", ["did you mean scorer=cosine", "inner_product"]),
        ("datamodule.train=a.jsonl", ["datamodule=instructions", "add the word"]),
        ("extractor.positon=x", ["did you mean extractor.position"]),
        ("top_k=many", ["top_k", "many"]),
        ("top_k.x=3", ["top_k=VALUE"]),
        ("store=1", ["store.NAME"]),
        ("whatever", ["key=value", "--help"]),
        ("experiment=nothing-like-it", ["experiment=nothing-like-it"]),
    ],
)
def test_faults_are_reported_in_words(argument, words):
    said = fault(argument)
    assert "\n" not in said
    for word in words:
        assert word in said


def test_a_wrong_word_is_reported_once():
    assert len(fault("datamodule=instruction", "datamodule.train=a", "datamodule.window=4").splitlines()) == 1


def test_all_faults_are_reported_together():
    assert len(fault("topk=3", "scorer=cosin", "store.dtpe=1").splitlines()) == 3


class Plug:
    def __init__(self, size: int, other: object = None, *, name: str = "x") -> None:
        self.size, self.other, self.name = size, other, name


HERE = f"{__name__}.Plug"


def test_build_calls_the_target_with_nested_nodes_and_collaborators():
    made = build({TARGET: HERE, "size": 3, "other": {TARGET: HERE, "size": 4}}, object, name="given")
    assert (made.size, made.other.size, made.name) == (3, 4, "given")


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({TARGET: HERE, "size": 1, "nmae": 2}, ["nmae", "did you mean name"]),
        ({TARGET: HERE}, ["needs size"]),
        ({TARGET: "rept.no_such.Thing"}, ["rept.no_such"]),
        ({TARGET: "rept.config.compose.composer"}, ["did you mean compose"]),
        ({TARGET: "nodots"}, ["dotted path"]),
        ({}, ["dotted path"]),
    ],
)
def test_build_faults(node, words):
    with pytest.raises(UsageError) as caught:
        build(node, object)
    for word in words:
        assert word in str(caught.value)


def test_help_names_every_key_with_its_default():
    text = describe("attribute", "usage")
    for key in (
        "top_k=100",
        "store.dtype=float16",
        "datamodule=instructions",
        "scorer=cosine",
        "tokens.form=distinctive",
    ):
        assert key in text


@pytest.mark.parametrize(("group", "word"), [pair for pair in WORDS if pair[0] not in ("model", "trainer")])
def test_every_plug_in_builds(group, word):
    given = {"train": [{"prompt": "a", "response": "b"}], "queries": [{"prompt": "a"}]} if word == "in_memory" else {}
    path = {"path": "some/model"} if word == "sentence_embedding" else {}  # which only a user can name
    node = getattr(compose(AttributeConfig, [f"{group}={word}"]), group)
    try:
        assert build({**node, **path}, object, **given) is not None
    except UsageError as lacking:
        assert "pip install" in str(lacking), lacking  # an extra that is not installed here


KEYS = ["top_k", "each", "seed", "out", "store.dtype", "store.shard_rows", "model.path", "tokens.layer", "max_wait"]
KEYS += ["extractor.fields", "extractor.position", "layers.layers", "scorer.fields", "scorer.alpha", "trainer.devices"]
KEYS += ["datamodule.window", "scorer._target_", "layers._target_", "extractor", "scorer", "layers", "experiment"]
NAMES = st.sampled_from(KEYS) | st.text(max_size=8) | st.lists(st.text(max_size=5), min_size=2).map(".".join)
TEXTS = [
    "null",
    "???",
    "${top_k}",
    "${no}",
    "${",
    "[1,2]",
    "{a: 1}",
    "1e400",
    ".nan",
    "&a [*a]",
    "'",
    "../scorer/cosine",
]
VALUES = st.sampled_from([*TEXTS, "rept.config.compose.compose", "scorers.cosine.Cosine", *(w for _, w in WORDS)])
VALUES |= st.text(max_size=8) | st.integers().map(str) | st.floats().map(str) | st.booleans().map(str)


@pytest.fixture(scope="module")
def files_read_once():
    """Most of the time of `compose` is taken by the YAML parser."""
    plain = {path: OmegaConf.to_container(OmegaConf.load(path)) for path in CONFIGS.rglob("*.yaml")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", lambda path: OmegaConf.create(plain[path]))
        yield plain


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES).map("=".join) | st.text(max_size=12), max_size=4))
def test_any_command_line_is_composed_as_it_says_or_refused_in_sentences(files_read_once, arguments):
    try:
        composed = OmegaConf.create(asdict(compose(AttributeConfig, arguments)))
    except UsageError as refused:
        assert str(refused).strip()
        return
    for i, argument in enumerate(arguments):
        key, _, text = argument.partition("=")
        if "." in key and "[" not in key and "$" not in text and not any(x.startswith(key) for x in arguments[i + 1 :]):
            given_value, held = OmegaConf.from_dotlist([f"value={text}"]).value, OmegaConf.select(composed, key)
            # A typed field may hold the same as a string, or a number as such: 7 and "7".
            assert held == given_value or str(held).lower() == str(given_value).lower() or str(held) == text


def test_a_value_of_another_kind_takes_the_place_of_a_list():
    assert compose(AttributeConfig, ["scorer=standout", "scorer.fields={a: 1}"]).scorer["fields"] == {"a": 1}


@pytest.mark.parametrize("argument", ["store.dtype=???", "top_k=???", "scorer.fields=[gradient, '???']"])
def test_a_missing_value_does_not_leave_the_default_without_a_word(argument):
    with pytest.raises(UsageError, match=r"^(store.dtype|top_k|scorer.fields): expected a value, but got \?\?\?"):
        compose(AttributeConfig, [argument])


def test_a_key_below_a_list_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="scorer.fields.x=1 does not fit what is there"):
        compose(AttributeConfig, ["scorer=standout", "scorer.fields.x=1"])


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
ANY |= st.lists(st.integers() | st.text(max_size=6)) | st.dictionaries(st.text(max_size=3), st.integers())
PLUG_INS = [pair for pair in WORDS if pair[0] in ("extractor", "layers", "scorer")]


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(PLUG_INS), st.data())
def test_any_argument_of_a_plug_in_is_taken_or_refused_in_a_sentence(files_read_once, plug_in, data):
    group, word = plug_in
    node = dict(files_read_once[CONFIGS / group / f"{word}.yaml"])
    for name in node.keys() - {TARGET}:
        if data.draw(st.booleans(), f"set {name}"):
            node[name] = data.draw(ANY, name)
    try:
        build(node, object)
    except UsageError as refused:
        assert str(refused).strip()
