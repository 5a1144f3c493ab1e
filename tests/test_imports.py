"""Imports between rooms point one way, and nowhere in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import virnucpro_pl

TOP = Path(virnucpro_pl.__file__).parent
FLOORS = (
    {"errors", "version", "embedding_format", "calibration", "cores"},
    {"switches", "stability", "git_lfs", "contracts", "logs", "measures"},
    {"devices"},
    {"precision"},
    {"input", "models", "output"},
    {"embeddings"},
    {"predict", "fit", "compare", "evaluate", "plot", "verify"},
    {"bench"},
    {"cli"},
    {"__init__", "__main__"},
)
"""A module may import what lies on lower floors, and its own room."""


def modules():
    """Name of each module without that of the package, and the modules that it imports."""
    files = {
        ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): path
        for path in TOP.rglob("*.py")
    }
    graph = {}
    for name, path in files.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("virnucpro_pl"):
                home = node.module.removeprefix("virnucpro_pl").removeprefix(".")
                inner = {f"{home}.{alias.name}".removeprefix(".") for alias in node.names}
                wanted |= inner & files.keys() or {home or "__init__"}
            elif isinstance(node, ast.Import):
                names = {alias.name.removeprefix("virnucpro_pl.") for alias in node.names}
                wanted |= names & files.keys()
        graph[name] = wanted
    return graph


def floor(module):
    room = module.partition(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_imports_go_down():
    up = [
        f"{name} imports {wanted}"
        for name, all_wanted in modules().items()
        for wanted in all_wanted
        if floor(wanted) >= floor(name) and name.partition(".")[0] != wanted.partition(".")[0]
    ]
    assert not up


def test_no_circle():
    graph = modules()
    graph.pop("__init__")  # it imports lazily, and nobody imports from it
    assert all("__init__" not in wanted for wanted in graph.values())
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_networks_are_imported_without_lightning():
    networks = "virnucpro_pl.models.esm2, virnucpro_pl.models.dnabert_s"
    code = f"import sys, {networks}; print('lightning' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
