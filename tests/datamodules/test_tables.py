import os
from pathlib import Path

import datasets
import pytest

from datamodules.files import tables
from rept.errors import UsageError

ROWS = [{"prompts": "a", "response": "b"}, {"prompts": None, "response": "d"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_an_arrow_folder_is_read_row_by_row(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "a")
    table = tables.arrow_folder(tmp_path / "a", "train")
    assert table.columns == ["prompts", "response"] and [table[i] for i in range(len(table))] == ROWS


def test_a_folder_with_splits_gives_the_chosen_one(tmp_path: Path) -> None:
    whole = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    whole.save_to_disk(tmp_path / "a")
    assert [len(tables.arrow_folder(tmp_path / "a", split)) for split in ("train", "test")] == [2, 1]
    with pytest.raises(UsageError, match="to have the split 'dev'; splits found: train, test"):
        tables.arrow_folder(tmp_path / "a", "dev")


def test_a_damaged_folder_is_reported_in_a_sentence(tmp_path: Path) -> None:
    assert not tables.is_arrow_folder(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    assert tables.is_arrow_folder(tmp_path)
    with pytest.raises(UsageError, match="cannot be read as an Arrow folder: ") as error:
        tables.arrow_folder(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_parquet_is_never_read_from_the_cache_of_another_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.parquet"
    for text in ("a", "b", "c"):  # files of one size, with one time
        datasets.disable_progress_bars()
        datasets.Dataset.from_list([{"prompts": text}]).to_parquet(path)
        datasets.enable_progress_bars()
        os.utime(path, (1, 1))
        assert tables.parquet(path)[0] == {"prompts": text}
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_a_damaged_parquet_file_is_reported_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(UsageError, match="a.parquet cannot be read as Parquet: .*smaller than the minimum") as error:
        tables.parquet(tmp_path / "a.parquet")
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_hub_ids_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert all(map(tables.is_hub_id, ["owner/name", "owner/na.me-1:main"]))
    assert not any(map(tables.is_hub_id, ["data/x", "name", "a/b/c", "../a", "/a", ""]))


def test_an_unavailable_hub_data_set_is_reported_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*asked: object, **more: object) -> None:
        raise ConnectionError(f"Couldn't reach {asked}\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UsageError, match=r"owner/name:part is neither.*reach \('owner/name', 'part'\)$"):
        tables.from_hub("owner/name:part", "train", "datamodule.train")
