"""Each mistake on a command line is one sentence, without the parser's words, and exit code 2."""

import re

import pytest

from virnucpro_pl.cli.main import main

ESM2 = ("predict", "--config=esm2.yaml", "--data.path=a.faa", "--writer.path=o.h5")
DEMO = ("predict", "--config=demo.yaml")
FIT = ("fit", *(f"--data.{label}.{name}=x.h5" for label in ("viral", "other")
                for name in ("dnabert_s", "esm2")))  # fmt: skip
SHIPPED = "classify.yaml, demo.yaml, dnabert_s.yaml, esm2.yaml, virnucpro.yaml, virnucpro_650m.yaml"
PARSER_TALK = re.compile(
    r"Union|ubtype|Parser key|class_path|init_args|<class|typing|Namespace|NoneType|Traceback"
    r"|KeyError|argument|usage:"
)


@pytest.fixture
def mistake(tmp_path, monkeypatch, capsys):
    """Run a command that must be refused and must write nothing; the line that it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.faa").write_text(">a\nMK\n")
    (tmp_path / "broken.yaml").write_text("model: {\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "part.yaml").write_text("trainer: {devcies: 2}\n")
    (tmp_path / "value.yaml").write_text("data: {init_args: {tokens_per_batch: many}}\n")
    (tmp_path / "class.yaml").write_text("model: {class_path: no.Such}\n")
    (tmp_path / "data.yaml").write_text("data: {class_path: no.faa}\n")
    (tmp_path / "kind.yaml").write_text("data: {class_path: virnucpro_pl.ESM2Embedder}\n")
    (tmp_path / "in.fa.gz").write_bytes(bytes(range(256)))
    before = sorted(path.name for path in tmp_path.iterdir())

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        said = capsys.readouterr()
        [line] = [li for li in said.err.splitlines() if " WARNING " not in li]
        assert ended.value.code == 2, line
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert not said.out
        assert not PARSER_TALK.search(line), line
        return line.partition(" ERROR ")[2]

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Numbers out of range.
        ((*DEMO, "--writer.threshold", "1.5"), "--writer.threshold is a probability, a number "
                                               "from 0 to 1, not 1.5"),
        ((*DEMO, "--data.length", "0"), "--data.length must be at least 3, a codon, not 0"),
        ((*DEMO, "--data.tokens_per_batch", "0"), "--data.tokens_per_batch must be at least 1, "
                                                  "not 0"),
        ((*DEMO, "--data.num_workers", "-1"), "--data.num_workers must be at least 0, not -1"),
        ((*DEMO, "--data.max_length=0"), "--data.max_length must be at least 1, not 0"),
        ((*DEMO, "--writer.stall_seconds", "0"), "--writer.stall_seconds must be above 0, not 0"),
        ((*DEMO, "--writer.commit_seconds", "-1"), "--writer.commit_seconds must be at least 0"),
        ((*DEMO, "--writer.commit_seconds", ".nan"), "--writer.commit_seconds must be at least 0"),
        ((*FIT, "--data.batch_size", "1"), "--data.batch_size must be at least 2, not 1"),
        ((*FIT, "--model.dropout", "1"), "--model.dropout must be from 0 to below 1, not 1"),
        (("plot", "a.faa", "--longest", "-1"), "--longest must be at least 0, not -1"),
        (("plot", "a.faa", "--records", "x", "--top", "few"), "--top must be a whole number, not "
                                                              "few"),
        (("plot", "--records", "x"), "PATH is missing"),
        # Wrong kinds.
        ((*DEMO, "--data.length", "five"), "--data.length must be a whole number, not five"),
        ((*DEMO, "--data.length", "500.5"), "--data.length must be a whole number, not 500.5"),
        ((*DEMO, "--writer.threshold=high"), "--writer.threshold must be a number, not high"),
        ((*DEMO, "--writer.overwrite", "maybe"), "--writer.overwrite must be true or false, not "
                                                 "maybe"),
        ((*DEMO, "--trainer.devices", "two"), "--trainer.devices must be a number of devices"),
        ((*DEMO, "--trainer.devices", "0"), "--trainer.devices must be a number of devices"),
        ((*DEMO, "--trainer.precision", "17"), "--trainer.precision must be 64, 32, 16, "),
        ((*ESM2, "--model.attention", "fast"), "--model.attention must be auto, triton, varlen or "
                                               "sdpa, not fast"),
        ((*DEMO, "--model.esm2.layer", "last"), "--model.esm2.layer must be a whole number, not "
                                                "last"),
        (("compare", "a.h5", "b.h5", "--config", "esm2.yaml"), "compare takes no config"),
        (("predict", "--config"), "--config has no value: write one behind it, such as esm2.yaml"),
        ((*DEMO, "--config", "value.yaml"), "--data.tokens_per_batch must be a whole number, not "
                                            "many"),
        ((*FIT, "--model.class_weights", "[1]"), "--model.class_weights must be none, balanced or "
                                                 "a list of 2, not [1]"),
        ((*FIT, "--writer.mode=up"), "--writer.mode must be min or max, not up"),
        (("export", "a.h5", "--to", "csv"),
         "--to must be per-id, biotrainer, anndata, npy or viral-pipelines, not csv"),
        (("compare", "a", "b", "--min-cosine", "two"), "--min-cosine must be a number, not two"),
        (("bench", "--peers", "maybe"), "--peers must be true or false, not maybe"),
        (("bench", "--model", "esm3"), "--model must be one of virnucpro, dnabert_s, esm2_t6_8M"),
        (("bench", "--model", "virnucpro", "--esm2", "3B"), "--esm2 must be one of esm2_t6_8M"),
        # Missing.
        ((*DEMO, "--writer.overwrite"), "--writer.overwrite has no value"),
        ((*DEMO, "--writer.path", "--writer.overwrite=true"), "--writer.path has no value"),
        (("export", "a.h5", "--to=npy", "--overwrite"), "--overwrite has no value"),
        (("predict", "--config"), "--config has no value"),
        (("predict", "--config=esm2.yaml"), "--data.path is missing: give the FASTA or FASTQ"),
        ((*ESM2[:-1],), "--writer.path is missing"),
        (("predict", "--config=virnucpro.yaml", "--data.path=x", "--writer.path=o"),
         "--model.classifier is missing: give 500_model.pth, which VirNucPro's own repository "
         "holds (git clone https://github.com/Li-Jing-1997/VirNucPro)"),
        (("predict", "--config=classify.yaml", "--data.esm2=x", "--data.dnabert_s=y",
          "--writer.path=o"), "--model.classifier is missing: give 500_model.pth"),
        (FIT[:-2], "--data.other.dnabert_s and --data.other.esm2 are missing"),
        (("export",), "FILE and --to are missing"),
        (("compare", "a.h5"), "B is missing"),
        (("plot",), "PATH is missing"),
        # Unknown options.
        ((*DEMO, "--trainer.devcies", "2"), "There is no option --trainer.devcies with demo.yaml: "
                                            "did you mean --trainer.devices?"),
        ((*ESM2, "--model.nme=x"), "There is no option --model.nme with esm2.yaml: did you mean "
                                   "--model.name?"),
        ((*ESM2, "--modl.name=x"), "There is no option --modl.name with esm2.yaml: did you mean "
                                   "--model.name?"),
        ((*DEMO, "--model.esm2.weigths", "random"), "did you mean --model.esm2.weights?"),
        ((*ESM2, "--data.length", "300"), "There is no option --data.length with esm2.yaml; "
                                          "demo.yaml, virnucpro.yaml and virnucpro_650m."),
        ((*ESM2, "--writer.threshold=0.3"), "classify.yaml, demo.yaml, virnucpro.yaml and "
                                            "virnucpro_650m.yaml have it"),
        ((*DEMO, "--config", "part.yaml"), "There is no option --trainer.devcies"),
        ((*FIT, "--model.nme=x"), "There is no option --model.nme"),
        (("export", "a.h5", "--to=npy", "--overwrit", "true"), "did you mean --overwrite?"),
        (("plot", "a.faa", "--colour", "length"), "There is no option --colour: did you mean "
                                                  "--color?"),
        ((*FIT, "a.h5"), "a.h5 is one word too many ("),
        (("bench", "a.fna"), "a.fna is one word too many ("),
        (("fit", "--data.viral", "a.h5"), "--data.viral is given by its parts, --data.viral.dna"),
        # Configs.
        (("predict",), f"predict needs a config, such as --config virnucpro.yaml: the shipped "
                       f"ones of predict are {SHIPPED}"),
        (("predict", "--data.path=x", "--writer.path=o"), "--model.classifier"),
        (("predict", "a.fa", "b.fa", "--data.path=c.fa", "-o=o"),
         "Inputs are given in two ways: as a.fa, b.fa, and by --data.path. Write all of them"),
        (("predict", "--data.path=a.fa", "-o=o", "b.fa"), "Inputs are given in two ways: as b.fa"),
        (("predict", "a.fa", "-o", "--config=esm2.yaml"), "--writer.path has no value"),
        (("predict", "--config", "esm2"), "There is no config esm2: did you mean esm2.yaml?"),
        (("predict", "--config=ems2.yaml"), "There is no config ems2.yaml: did you mean esm2.yaml"),
        (("predict", "--config=mine.yml"), "There is no config mine.yml: the shipped ones are"),
        (("predict", "--help", "--config=esm2"), "There is no config esm2: did you mean esm2.yaml"),
        (("predict", "--config", "train_classifier.yaml"),
         "train_classifier.yaml is no config of predict, since it names no model: the shipped ones "
         f"of predict are {SHIPPED}"),
        (("fit", "--config", "virnucpro.yaml"), "virnucpro.yaml is a config of predict, not of "
                                                "fit: the shipped ones of fit are train_classif"),
        (("predict", "--config=esm2.yaml", "--config=demo.yaml"),
         "--config takes one shipped config, not esm2.yaml and demo.yaml"),
        (("predict", "--config", "."), "--config . is a folder"),
        (("predict", "--config", "broken.yaml"), "--config broken.yaml, line 2, column 1: this is "
                                                 "no YAML"),
        (("predict", "--config", "list.yaml"), "--config list.yaml is no config"),
        (("predict", "--config", "class.yaml"), "--model names a class that does not exist: "
                                                "no.Such"),
        ((*DEMO, "--model", "ESM2"), "--model names a class that does not exist: ESM2"),
        *(
            ((*DEMO, option, word), f"{option} names a class that does not exist: {word}; a file "
                                    f"is {option}.path (")
            for option, word in (("--data", "in"), ("--data", "no.fa"), ("--data", "a.faa"),
                                 ("--data", "in.fa.gz"), ("--data", "./no"), ("--writer", "out.h5"))
        ),
        ((*DEMO, "--writer=/x/out.h5"), "exist: /x/out.h5; a file is --writer.path ("),
        ((*DEMO, "--model", "w.pt"), "--model names a class that does not exist: w.pt ("),
        (("predict", "--config", "data.yaml"), "names a class that does not exist: no.faa ("),
        (("predict", "--config", "kind.yaml"), "--data must be a LightningDataModule, which "
                                               "virnucpro_pl.ESM2Embedder is not ("),
        ((*ESM2, "--data", "virnucpro_pl.ESM2Embedder"), "--data must be a LightningDataModule, "
                                                         "which virnucpro_pl.ESM2Embedder is no"),
        ((*ESM2, "--model", "virnucpro_pl.HDF5Writer"), "--model must be a LightningModule, which "
                                                        "virnucpro_pl.HDF5Writer is not ("),
        ((*ESM2, "--writer=os.path"), "--writer must be a BasePredictionWriter, which os.path is "),
        ((*ESM2, "--trainer.logger=virnucpro_pl.HDF5Writer"), "--trainer.logger must be a Logger"),
        # Outputs.
        ((*DEMO, "--writer.path", "."), "--writer.path . is the working folder itself"),
        ((*DEMO, "--writer.path", ""), "--writer.path '' is the working folder itself"),
        ((*DEMO, "--writer.path", ".."), "--writer.path .. is the working folder itself or one "
                                         "above it"),
        ((*ESM2, "--writer.path", "/"), "--writer.path / is the working folder itself or one"),
        (("bench", "--output", "."), "--output . is a folder"),
    ],
)  # fmt: skip
def test_mistake_is_one_plain_sentence(mistake, words, message):
    assert message in mistake(*words)


def test_output_that_is_the_working_folder_by_another_name_is_refused(mistake, tmp_path):
    assert "is the working folder itself" in mistake(*DEMO, "--writer.path", str(tmp_path))


def test_values_of_options_may_begin_with_a_hyphen(mistake):
    line = mistake(*ESM2, "--data.num_workers", "-3")
    assert line == "--data.num_workers must be at least 0, not -3"


@pytest.mark.parametrize("command", ["compare", "bench", "export", "plot"])
def test_help_of_a_command_without_a_config_offers_none(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--config" not in capsys.readouterr().out
