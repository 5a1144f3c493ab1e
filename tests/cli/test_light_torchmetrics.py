"""The command imports what it needs of torchmetrics, and all of it stays within reach."""

import subprocess
import sys
from importlib.util import find_spec
from textwrap import dedent

import pytest

HEAVY = (
    *("huggingface_hub.hf_api", "matplotlib", "scipy", "sklearn", "torchmetrics.functional"),
    *("torchvision", "transformers"),
)
LIGHT = "from virnucpro_pl.cli.light_torchmetrics import lighten_torchmetrics as lighten\n"
SMALL = (
    *("predict", "--config", "esm2.yaml", "--model.name", "esm2_t6_8M_UR50D"),
    *("--model.weights", "random", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
)


@pytest.fixture
def python(tmp_path):
    """Run lines of Python in a process of its own, in a folder of its own; what it prints."""

    def run(lines, *words):
        ended = subprocess.run(
            [sys.executable, "-c", dedent(lines), *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split()

    return run


@pytest.fixture
def stand_in(tmp_path):
    """Write a package in the place of torchmetrics: files by name, and what is in them."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / "torchmetrics" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))

    return write


SHAPE = {
    "__about__.py": "__version__ = '1'",
    "utilities/__init__.py": "from torchmetrics.metric import Metric",
    "utilities/plot.py": "",
    "metric.py": "import torchmetrics.utilities\nclass Metric: pass",
    "collections.py": "from torchmetrics.metric import Metric\nclass MetricCollection: pass",
}
"""What the command knows of torchmetrics."""


@pytest.mark.parametrize("words", [SMALL, ("predict", "--config", "demo.yaml")])
def test_predict_imports_nothing_that_only_metrics_need(python, write_fasta, tmp_path, words):
    assert find_spec("transformers"), "or this would say nothing"
    assert find_spec("matplotlib"), "or this would say nothing"
    if words is SMALL:
        words = *words, "--data.path", write_fasta(tmp_path / "in.faa", ["MKVLAAGIV", "MKW"])
    lines = f"""
        import sys
        from virnucpro_pl.__main__ import main
        main(sys.argv[1:])
        print(*sorted(set({HEAVY}) & set(sys.modules)), "done")
    """
    assert python(lines, *words, "--writer.path", "out") == ["done"]
    assert list(tmp_path.glob("out*"))


def test_whole_torchmetrics_is_there_when_asked_for(python):
    names = """
        import lightning.pytorch, torchmetrics
        from torchmetrics import *
        print(*sorted(torchmetrics.__all__), *sorted(n for n in dir(torchmetrics) if n[0] != "_"))
        print(torchmetrics.__version__, torchmetrics._logger.handlers, type(torchmetrics))
    """
    usual = python(names)
    assert "Accuracy" in usual
    assert python(f"{LIGHT}lighten()\n{dedent(names)}") == usual


def test_metrics_draw_themselves(python):
    lines = """
        import sys
        lighten()
        import lightning.pytorch, torch
        from torchmetrics import Metric, MetricCollection
        class Two(Metric):
            def update(self):
                pass
            def compute(self):
                return torch.tensor(2.0)
            def plot(self, value=None, ax=None):
                return self._plot(value, ax)
        two = Two()
        two.update()
        print("torchmetrics.functional" in sys.modules, "matplotlib" in sys.modules)
        import matplotlib
        matplotlib.use("agg")
        figure, axes = two.plot()
        print(axes.get_ylabel(), *axes.lines[0].get_ydata())
        figure, axes = MetricCollection([two]).plot()[0]
        print(axes.get_ylabel())
        from torchmetrics.classification import BinaryConfusionMatrix
        matrix = BinaryConfusionMatrix()
        matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        print(*sorted(text.get_text() for text in matrix.plot()[1].texts))
    """
    drawn = python(LIGHT + dedent(lines))
    assert drawn == ["False", "False", "Two", "2.0", "Two", "0", "1", "1", "1"]


def test_other_packages_are_imported_as_ever_afterwards(python):
    lines = """
        lighten()
        import lightning.pytorch
        from transformers import EsmConfig
        import matplotlib.pyplot, torchmetrics
        print(EsmConfig(vocab_size=33).vocab_size, "BERTScore" in dir(torchmetrics.text))
    """
    assert python(LIGHT + dedent(lines)) == ["33", "True"]


def test_importing_the_package_leaves_torchmetrics_alone(python):
    lines = """
        import sys, types, virnucpro_pl
        from virnucpro_pl import SequenceDataModule
        print(type(sys.modules["torchmetrics"]) is types.ModuleType)
        print("torchmetrics.functional" in sys.modules)
    """
    assert python(lines) == ["True", "True"]


def test_torchmetrics_of_another_shape_is_imported_whole(python, stand_in):
    stand_in({"__init__.py": "class Metric: pass\nvalue = 1", "metric.py": ""})
    lines = """
        import sys
        lighten()
        assert "torchmetrics" not in sys.modules
        from torchmetrics import Metric, value
        print(Metric.__module__, value)
    """
    assert python(LIGHT + dedent(lines)) == ["torchmetrics", "1"]


def test_torchmetrics_that_is_there_already_is_not_touched(python, stand_in):
    stand_in({"__init__.py": "value = []", **SHAPE})
    lines = "import torchmetrics\nfound = torchmetrics.value\nlighten()\nimport torchmetrics\n"
    assert python(f"{LIGHT}{lines}print(torchmetrics.value is found)") == ["True"]


def test_threads_that_ask_at_once_all_wait_for_it(python, stand_in):
    stand_in({"__init__.py": "import time\ntime.sleep(0.5)\nvalue = object()", **SHAPE})
    lines = """
        lighten()
        import torchmetrics
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as threads:
            values = set(threads.map(lambda _: torchmetrics.value, range(8)))
        print(len(values), hasattr(torchmetrics, "nothing"))
    """
    assert python(LIGHT + dedent(lines)) == ["1", "False"]


def test_fault_of_the_rest_is_told_to_all_who_ask(python, stand_in):
    stand_in({"__init__.py": "import no_such_package", **SHAPE})
    lines = """
        lighten()
        from torchmetrics import Metric
        import torchmetrics
        for _ in range(2):
            try:
                torchmetrics.Accuracy
            except ModuleNotFoundError as error:
                print(error.name)
    """
    assert python(LIGHT + dedent(lines)) == ["no_such_package"] * 2
