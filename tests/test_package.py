"""What holds for all of the code, read as text."""

import ast
from pathlib import Path

import pytest

import virnucpro_pl

MODULES = sorted(Path(virnucpro_pl.__file__).parent.rglob("*.py"))
RUNS_CODE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "eval", "exec",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "os.system",
    "runpy.run_path",
}  # fmt: skip
"""Calls that run what a file from a stranger says."""


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_is_unpickled_or_run_from_a_file(path):
    for name, options in calls(path):
        assert name not in RUNS_CODE
        assert options.get("allow_pickle", "False") == "False"
        assert "trust_remote_code" not in options
        if name == "torch.load":
            assert options["weights_only"] == "True"
            assert options["map_location"] == "'cpu'"


def test_the_reading_of_weights_is_among_what_is_looked_at():
    found = [name for path in MODULES for name, _ in calls(path)]
    assert "torch.load" in found
    assert len(MODULES) > 30
