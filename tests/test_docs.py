"""README and the pages of docs: every command runs or is at least one that there is."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import virnucpro_pl
from virnucpro_pl.cli.help import COMMANDS
from virnucpro_pl.cli.main import main

CHECKOUT = Path(__file__).parent.parent
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, *kinds):
    """Code blocks of some kinds, in order: (kind, text)."""
    found = BLOCK.findall(page.read_text())
    return [(kind, text) for kind, text in found if not kinds or kind in kinds]


def commands(text):
    """Commands of this package in a text of shell, each on a line of its own."""
    lines = re.split(r"&&|\||\n", text.replace("\\\n", " "))
    return [found[0] for line in lines if (found := re.search(r"virnucpro-pl [a-z-].*", line))]


def shown_only():
    """Commands that need weights or files of the user's own: (page, command)."""
    for page in PAGES:
        texts = [text for kind, text in blocks(page, "text", "snakemake", "wdl")]
        texts += re.findall(r"`(virnucpro-pl [a-z-][^`]+)`", BLOCK.sub("", page.read_text()))
        for text in texts:
            for command in commands(text):
                yield pytest.param(command, id=f"{page.stem}-{command}"[:80])


def runnable(page):
    """The words of each command that a page has a reader run, in order."""
    for kind, text in blocks(page, "bash", "python"):
        if kind == "python":
            yield sys.executable, "-c", text
        else:
            yield from (("bash", "-c", line) for line in _lines_of(text))


@pytest.fixture
def run(tmp_path):
    """Runs words in one folder; gives what they wrote."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def call(*words):
        ended = subprocess.run(
            words,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "PATH": path},
        )
        assert ended.returncode == 0, f"{' '.join(words)}:\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr

    return call


def _lines_of(text):
    """Commands of a block but for the installation, which has been done."""
    for line in text.replace("\\\n", " ").splitlines():
        parts = [p.strip() for p in line.split("&&")]
        kept = [p for p in parts if not re.match(r"pip install|pytest", p)]
        if kept:
            yield " && ".join(kept)


def test_readme_is_short():
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_its_commands_run_in_order(page, run):
    for words in runnable(page):
        run(*words)


@pytest.mark.slow
def test_demo_runs_twice_in_a_row_and_leaves_no_file_empty(tmp_path, run):
    for _ in range(2):
        run("virnucpro-pl", "predict", "--config", "demo.yaml")
    assert not [file.name for file in (tmp_path / "demo").iterdir() if not file.stat().st_size]


@pytest.mark.parametrize("command", list(shown_only()))
def test_command_that_is_only_shown_has_options_that_there_are(command, capsys):
    filled = re.sub(r"[~$]?\{[\w.]+\}", "1", command)  # what a workflow engine puts in
    words = shlex.split(filled + '"' * (filled.count('"') % 2), comments=True)[1:]
    words = [word for word in words if word != "..."]
    assert words[0] in COMMANDS or words[0].startswith("-")
    if words[0] in ("predict", "fit") and words[1:]:
        with pytest.raises(SystemExit) as ended:
            main([*words, *([] if "--help" in words else ["--print_config"])])
        assert ended.value.code in (0, None), capsys.readouterr().err
    elif len(words) > 1:
        with pytest.raises(SystemExit):
            main([words[0], "--help"])
        text = capsys.readouterr().out
        options = [w.partition("=")[0].replace("-", "_") for w in words if w.startswith("--")]
        assert not [option for option in options if option not in text.replace("-", "_")]


def test_links_lead_to_headings():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name) if name else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor in slugs, f"{page.name}: {target}"


def test_messages_explained_are_those_of_the_program():
    source = []
    for path in Path(virnucpro_pl.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        source += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    text = "\n".join(re.sub(r"%[-+,.\w]", "...", s) for s in source if isinstance(s, str))
    page = (CHECKOUT / "docs" / "troubleshooting.md").read_text()
    section = page.partition("## By message")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ,:") in text, message


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="Snakemake is not installed")
def test_snakemake_rule_runs_and_a_retry_finds_the_parts(tmp_path, run):
    [(_, rule)] = blocks(CHECKOUT / "docs" / "clusters.md", "snakemake")
    shown = "virnucpro-pl predict {input.contigs} -o {output} --classifier {input.classifier}"
    assert shown in rule
    first_attempt_fails = "[ -e results.parts ] || {{ mkdir results.parts; exit 1; }}; "
    small = "virnucpro-pl predict --config demo.yaml {input.contigs} -o {output}"
    (tmp_path / "Snakefile").write_text(rule.replace(shown, first_attempt_fails + small))
    shutil.copy(CHECKOUT / "configs" / "sample.fna", tmp_path / "contigs.fasta")
    (tmp_path / "500_model.pth").touch()
    run("snakemake", "--cores", "1", "--retries", "1", "virnucpro")
    assert (tmp_path / "results" / "contigs.tsv").stat().st_size
    assert not (tmp_path / "results.parts").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("miniwdl") is None, reason="miniwdl is not installed")
def test_wdl_task_is_valid(tmp_path, run):
    [(_, task)] = blocks(CHECKOUT / "docs" / "clusters.md", "wdl")
    (tmp_path / "task.wdl").write_text(task)
    run("miniwdl", "check", "--strict", "task.wdl")
