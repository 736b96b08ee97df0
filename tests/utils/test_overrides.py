"""Keys that nothing reads are refused, on the command line and in override files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbisl.utils import InputError, check_overrides

CONFIG: dict[str, Any] = {
    "imports": ["$import math"],
    "epochs": 3,
    "num_labeled": None,
    "learning_rate": "$0.1 * @scale",
    "scale": 1,
    "loss_weights": {"segmentation": 1.0},
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    "train": {"trainer": {"_target_": "Trainer", "max_epochs": "@epochs"}, "handlers": [{"_target_": "Stats"}]},
    "dataset_dir": "$@data_root + '/data'",
    "initialize": ["$print('initialize')"],
    "training": ["$print(@epochs)"],
}


class Command:
    """Config of a bundle on disk, checked as ``python -m monai.bundle run training`` would check it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = self.write("train.json", CONFIG)

    def write(self, name: str, content: dict[str, Any]) -> str:
        path = self.root / name
        path.write_text(json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content))
        return str(path)

    def run(self, *options: str, files: list[str] | None = None) -> None:
        config = self.config if files is None else str([self.config, *files])
        check_overrides(
            ["/site-packages/monai/bundle/__main__.py", "run", "training", f"--config_file={config}", *options]
        )

    def assert_accepted(self, *options: str, files: list[str] | None = None) -> None:
        """Assert that these options are accepted, and that one wrong key beside them is the only one refused."""
        self.run(*options, files=files)
        (line,) = self.refusal("--zzz", "1", *options, files=files).splitlines()
        assert line.startswith("--zzz overrides nothing")

    def refusal(self, *options: str, files: list[str] | None = None) -> str:
        with pytest.raises(InputError) as caught:
            self.run(*options, files=files)
        return str(caught.value)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--epochs", "5"],
        ["--epochs=5", "--num_labeled", "4"],
        ["--num-labeled", "4"],
        ["--loss_weights#segmentation", "-0.5"],
        ["--loss_weights::segmentation=2"],
        ["--train#trainer#max_epochs", "5", "--train#handlers#0#_disabled_", "True"],
        ["--epochs"],
        ["--loss_weights", "{'other': 1}", "--loss_weights#other", "2"],
        ["--_meta_#version", "1.0.0"],
        ["--run_id", "training", "--logging_file", "False", "--workflow_type", "train", "--epochs", "5"],
        ["--epochs", "5", "--", "--verbose"],
    ],
)
def test_keys_of_the_config_are_accepted(command: Command, options: list[str]) -> None:
    command.assert_accepted(*options)


def test_new_keys_are_accepted_if_something_reads_them(command: Command) -> None:
    command.assert_accepted("--network_def#bias", "False")  # by a constructor
    command.assert_accepted("--data_root", "/data")  # by an expression of the config
    command.assert_accepted("--rate", "0.1", "--learning_rate", "@rate")  # by another override
    command.assert_accepted("--finalize", "['$print(1)']")  # by MONAI
    command.assert_accepted("--tracking", "mlflow", "--experiment_name", "demo")  # by MONAI's tracking


@pytest.mark.parametrize("form", [["--epoch", "5"], ["--epoch=5"], ["--epoch"], ["-epoch", "5"]])
def test_a_misspelled_key_is_refused(command: Command, form: list[str]) -> None:
    message = command.refusal(*form)
    assert message.startswith(f"--epoch overrides nothing: {command.config} has no 'epoch' at the top level")
    assert message.endswith("expected an existing key, such as epochs.")


def test_a_key_with_dashes_is_named_with_underscores(command: Command) -> None:
    assert command.refusal("--num-labelled", "4").startswith("--num_labelled overrides nothing")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("loss_weights#segmentatoin", "such as loss_weights#segmentation"),
        ("loss_weights::segmentatoin", "such as loss_weights#segmentation"),
        ("train#trainr#max_epochs", "such as train#trainer"),
        ("trian#trainer#max_epochs", "such as train"),
        ("train#handlers#1", "has no '1' under train#handlers"),
        ("epochs#value", "has no 'value' under epochs"),
        ("max_epochs", "such as epochs."),
        ("in_features", "such as network_def#in_features."),
        ("loss_weights#zzz", "such as loss_weights#segmentation."),
        ("zzz", "expected an existing key."),
    ],
)
def test_similar_keys_are_suggested(command: Command, key: str, nearest: str) -> None:
    message = command.refusal(f"--{key}", "5")
    assert message.startswith(f"--{key.replace('::', '#')} overrides nothing") and nearest in message


def test_a_new_key_in_a_plain_dictionary_is_refused(command: Command) -> None:
    assert "has no 'boundary' under loss_weights" in command.refusal("--loss_weights#boundary", "0.1")


def test_every_misspelled_key_is_named(command: Command) -> None:
    lines = command.refusal("--epoch", "5", "--scale", "2", "--lerning_rate", "1").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["--epoch", "--lerning_rate"]


def test_bundle_properties_that_the_config_lacks_are_refused_on_the_command_line(command: Command) -> None:
    assert "such as dataset_dir" in command.refusal("--dataset", "/data")
    assert command.refusal("--device", "cpu").startswith("--device overrides nothing")


@pytest.mark.parametrize("name", ["args.json", "args.yaml"])
def test_misspelled_keys_in_an_args_file_are_refused(command: Command, name: str) -> None:
    good = command.write(name, {"epochs": 5, "logging_file": False})
    command.run("--args_file", good)
    bad = command.write(name, {"epoch": 5})
    assert command.refusal("--args_file", bad).startswith("--epoch overrides nothing")
    whole = command.write(name, {"config_file": command.config, "run_id": "training", "epoch": 5})
    with pytest.raises(InputError, match="--epoch overrides nothing"):
        check_overrides(["monai/bundle/__main__.py", "run", "--args_file", whole])


def test_override_files_may_override_and_add_what_is_read(command: Command) -> None:
    method = command.write(
        "method.yaml",
        {
            "epochs": 5,
            "base": 2,
            "scale": "$@base ** 2",
            "copied": {"lr": 1},
            "optimizer": "%copied",
            "+loss_weights": {"boundary": 0.1},
            "network_def#bias": False,
            "train#key_metric": {},
            "train#handlers#-1": {"_target_": "Other"},
            "evaluating": ["$@optimizer"],
            "device": "cpu",
            "more_imports": ["$import os"],
            "_meta_": {"version": "1.0.0"},
        },
    )
    command.assert_accepted("--base", "3", files=[method])
    later = command.write("later.json", {"base": 4, "loss_weights#boundary": 0.2})
    command.assert_accepted(files=[method, later])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 5}, "epoch overrides nothing"),
        ({"lr": 1, "epoch": {"value": "@epoch_"}}, "lr overrides nothing"),
        ({"+epoch": [5]}, "epoch overrides nothing"),
        ({"loss_weights#segmentatoin": 0}, "such as loss_weights#segmentation"),
        ({"train#handler": []}, "such as train#handlers"),
    ],
)
def test_a_misspelled_key_in_an_override_file(command: Command, content: dict[str, Any], found: str) -> None:
    file = command.write("method.yaml", content)
    message = command.refusal(files=[file])
    assert message.startswith(f"{file}: ") and found in message


def test_keys_that_a_macro_brings_from_another_file_are_accepted(command: Command) -> None:
    other = command.write("other.json", {"optimizer": {"lr": "@rate"}})
    method = command.write("method.json", {"rate": 0.1, "scale": f"%{other}#optimizer"})
    command.assert_accepted(files=[method])
    command.assert_accepted("--scale", f"%{other}::optimizer", "--rate", "2")


def test_relative_references_are_read(command: Command) -> None:
    command.assert_accepted(files=[command.write("method.json", {"scale": {"a": {"b": "@###rate"}}, "rate": 2})])


@pytest.mark.parametrize("place", ["command line", "file"])
def test_a_key_that_follows_from_others_is_refused(command: Command, place: str) -> None:
    if place == "file":
        message = command.refusal(files=[command.write("other.yaml", {"iterations": 10})])
    else:
        message = command.refusal("--iterations", "10")
    assert "iterations follows from epochs and iterations_per_epoch: expected these instead." in message


def test_an_unquoted_list_is_refused(command: Command) -> None:
    lines = command.refusal("--scale", "[96,", "96,", "64]").splitlines()
    assert lines[0].startswith("init_id is (96,), which is no key of the config")
    assert lines[1].startswith("final_id is '64]'") and '--patch_size "[96, 96, 64]"' in lines[1]


@pytest.mark.parametrize(
    "start",
    [
        ["pytest", "run"],
        ["monai/bundle/__main__.py"],
        ["monai/bundle/__main__.py", "verify_metadata"],
        ["other/__main__.py", "run"],
        ["monai/bundle/__main__.py", "run", "training"],
    ],
)
def test_other_programs_are_not_checked(command: Command, start: list[str]) -> None:
    config = [] if start[-1] == "training" else ["--config_file", command.config]
    arguments = ["--epoch", "5", *config]
    check_overrides([*start, *arguments])
    with pytest.raises(InputError, match="--epoch overrides nothing"):
        check_overrides(["monai/bundle/__main__.py", "run", "training", "--config_file", command.config, *arguments])


def test_nothing_is_changed_or_printed(command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    before, argv = Path(command.config).read_text(), copy.copy(sys.argv)
    check_overrides()  # started by pytest
    command.run("--epochs", "5")
    assert (Path(command.config).read_text(), sys.argv) == (before, argv)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    config = {
        "imports": ["$from dbisl.utils import check_overrides"],
        "epochs": 3,
        "initialize": ["$check_overrides()"],
        "training": ["$print('trained for', @epochs)"],
    }
    (tmp_path / "train.json").write_text(json.dumps(config))
    bundle = str(Path(__file__).parents[2] / "bundle")

    def run(option: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "train.json", option, "5"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": bundle, "OMP_NUM_THREADS": "1"},
        )

    good, bad = run("--epochs"), run("--epoch")
    assert good.returncode == 0 and "trained for 5" in good.stdout
    assert bad.returncode == 1 and "trained" not in bad.stdout and "Traceback" not in bad.stderr
    assert bad.stderr.splitlines()[-1].startswith("--epoch overrides nothing: train.json has no 'epoch'")
