"""Folders of `fit` as they are read, and those whose files do not agree."""

import json
import shutil

import pytest

from virnucpro_pl.errors import InputError
from virnucpro_pl.plot.classifier import read_classifier


def test_folder_is_read_with_the_sizes_and_metrics_of_its_parts(write_classifier, tmp_path):
    read = read_classifier(write_classifier(tmp_path / "c"))
    assert (read.epoch, read.measured_on, read.learnt_on) == (7, "test", "validation")
    assert read.training["orfs"] == (20, 40)
    assert {part: sizes["records"] for part, sizes in read.held_out.items()} == {
        "validation": (7, 13),
        "test": (7, 13),
    }
    assert read.metrics["test"]["orfs"]["loss"] == 0.4
    assert "loss" not in read.metrics["test"]["records"]
    assert read.calibration["temperature"] == 3
    assert read.reliability["records_after"].n.sum() == read.thresholds["records"].n[0] == 20


@pytest.mark.parametrize("name", ["metrics.json", "calibration.tsv", "thresholds.tsv"])
def test_folder_that_lacks_a_file_raises(write_classifier, tmp_path, name):
    folder = write_classifier(tmp_path / "c")
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}, which fit writes beside best.ckpt"):
        read_classifier(folder)


@pytest.mark.parametrize("name", ["calibration.tsv", "thresholds.tsv"])
def test_table_of_another_training_raises(write_classifier, tmp_path, name):
    folder, other = write_classifier(tmp_path / "c"), write_classifier(tmp_path / "d", 61, 20)
    shutil.copy(other / name, folder)
    message = rf"{name} is not of the training that metrics.json is of: it has 61 orfs\w*, 21 of"
    with pytest.raises(InputError, match=message):
        read_classifier(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("held_out"),
        lambda content: content["held_out_records"].pop("test"),
        lambda content: content["split"].pop("train"),
        lambda content: content["split"]["test"].pop("virus"),
        lambda content: content["calibration"].update(measured_on="training"),
        lambda content: content.update(epoch="last"),
        lambda content: content.update(prevalence=0.5),
        lambda content: content.update(calibration=None),
        lambda content: content.update(held_out=[]),
        lambda content: content.update(options="none"),
    ],
)
def test_metrics_of_another_form_raise(write_classifier, tmp_path, edit):
    file = write_classifier(tmp_path / "c") / "metrics.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"metrics.json is damaged, or not as fit writes it"):
        read_classifier(tmp_path / "c")


def test_metrics_cut_off_raise(write_classifier, tmp_path):
    file = write_classifier(tmp_path / "c") / "metrics.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match=r"metrics.json cannot be read as JSON"):
        read_classifier(tmp_path / "c")
