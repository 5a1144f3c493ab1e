"""What holds for all of the code, read as text."""

import ast
import re
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


def test_tests_named_in_the_documentation_exist():
    tests = Path(__file__).parent
    text = (tests / "README.md").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        text += (tests.parent / page).read_text().replace("tests/", "")
    names = set(re.findall(r"[\w/]*test_\w+\.py", text))
    assert len(names) > 20
    assert not [name for name in names if not (tests / name).is_file()]


def names_defined():
    """`module.Class.method` and every shorter end of it, for all that the package defines."""
    top = Path(virnucpro_pl.__file__).parent
    for path in MODULES:
        module = ".".join(path.relative_to(top).with_suffix("").parts)
        yield module
        for node in ast.parse(path.read_text()).body:
            name = getattr(node, "name", None)
            if name:
                yield from (f"{module}.{name}", name)
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef):
                        yield from (f"{module}.{name}.{inner.name}", f"{name}.{inner.name}")


def test_names_in_contributing_exist():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    dotted = re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)`", text)
    named = {name for name in dotted if not re.search(r"\.(py|md|h5|tsv|yaml)$", name)}
    assert len(named) > 25
    assert not named - set(names_defined())
