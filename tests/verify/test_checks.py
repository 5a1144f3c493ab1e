"""The outputs of a run beside the reference: what is met, what is not, and what is said of it."""

import json

import numpy as np
import pytest

from virnucpro_pl.verify.checks import check_run, explain
from virnucpro_pl.verify.printing import print_checks
from virnucpro_pl.verify.reference import CONTIGS, load_reference

REFERENCE = load_reference()
ESM2 = "The vectors of ESM-2 differ, in FP32 too"
DNABERT_S = "The vectors of DNABERT-S differ, in FP32 too"
CLASSIFIER = "another classifier than 500_model.pth"
ORFS = "The ORFs or their ids differ"
REDUCED = "differ in 16-mixed, but not in FP32"
TURNED = np.roll(np.arange(4), 1)


def apart(array, distance):
    """Numbers at this distance from given ones, as a share of the norm of each row."""
    step = np.random.default_rng(0).normal(size=array.shape)
    step *= np.linalg.norm(array, axis=1, keepdims=True) / np.linalg.norm(
        step, axis=1, keepdims=True
    )
    return (array + distance * step).astype(np.float32)


def with_nan(array):
    changed = array.copy()
    changed[2, 1] = np.nan
    return changed


@pytest.fixture
def write_run(write_embeddings, tmp_path):
    """Write the outputs of a run that has given the reference's numbers but for some changes."""

    def write(name, changes=None, *, classifier="500_model.pth", model=REFERENCE.esm2_name,
              esm2_ids=None):  # fmt: skip
        given, folder = REFERENCE._replace(**(changes or {})), tmp_path / name
        folder.mkdir()
        sequences = {"nucleotide.fa": given.nucleotides, "protein.faa": given.proteins}
        for suffix, letters in sequences.items():
            pairs = zip(given.ids, letters, strict=True)
            text = "".join(f">{name}\n{sequence}\n" for name, sequence in pairs)
            (folder / f"{CONTIGS.stem}_identified_{suffix}").write_text(text)
        write_embeddings(folder / "dnabert_s.h5", given.ids, given.dnabert_s, model="DNABERT-S")
        write_embeddings(folder / "esm2.h5", esm2_ids or given.ids, given.esm2, model=model)
        rows = zip(given.ids, given.labels, given.scores, strict=True)
        lines = [f"{name}\t{label}\t{s[0]!s}\t{s[1]!s}\n" for name, label, s in rows]
        text = "Sequence_ID\tPrediction\tscore1\tscore2\n" + "".join(lines).replace("nan", "NA")
        (folder / "prediction_results.txt").write_text(text)
        (folder / "summary.json").write_text(json.dumps({"classifier": classifier}))
        return folder

    return write


@pytest.fixture
def checks(write_run):
    """Check a run in FP16 and one in FP32, each with its changes."""

    def check(fp32=None, reduced=None, **options):
        return [
            *check_run(write_run("reduced", reduced, **options), "16-mixed", REFERENCE),
            *check_run(write_run("fp32", fp32, **options), "32-true", REFERENCE),
        ]

    return check


def test_reference_is_of_two_contigs_and_four_orfs(read_fasta):
    names, sequences = read_fasta(CONTIGS)
    assert [len(sequence) for sequence in sequences] == [500, 500]
    assert [name.rpartition("_chunk_")[0] for name in REFERENCE.ids] == [
        names[0], names[0], names[1], names[1],
    ]  # fmt: skip
    assert REFERENCE.dnabert_s.shape == (4, 768)
    assert REFERENCE.esm2.shape == (4, 2560)
    assert REFERENCE.scores.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-6)


def test_reference_itself_is_met_in_every_quantity_and_precision(checks, capsys):
    found = checks()
    assert [check.met for check in found] == [True] * 14
    assert explain(found) is None
    print_checks(found)
    shown = capsys.readouterr().out
    for word in ("ids", "nucleotides", "proteins", "DNABERT-S vectors", "ESM-2 vectors",
                 "scores", "labels", "16-mixed", "32-true", "0.0001", "0.005"):  # fmt: skip
        assert word in shown
    assert "NOT MET" not in shown


@pytest.mark.parametrize(
    ("fp32", "unmet", "said"),
    [
        ({"esm2": apart(REFERENCE.esm2, 2e-4)}, "ESM-2 vectors", ESM2),
        ({"esm2": REFERENCE.esm2[TURNED]}, "ESM-2 vectors", ESM2),
        ({"esm2": with_nan(REFERENCE.esm2)}, "ESM-2 vectors", ESM2),
        ({"dnabert_s": apart(REFERENCE.dnabert_s, 2e-4)}, "DNABERT-S vectors", DNABERT_S),
        ({"dnabert_s": REFERENCE.dnabert_s[:, :192]}, "DNABERT-S vectors", DNABERT_S),
        ({"dnabert_s": with_nan(REFERENCE.dnabert_s)}, "DNABERT-S vectors", DNABERT_S),
        ({"scores": REFERENCE.scores + np.float32(2e-3)}, "scores", CLASSIFIER),
        ({"scores": with_nan(REFERENCE.scores)}, "scores", CLASSIFIER),
        ({"labels": ["others", *REFERENCE.labels[1:]]}, "labels", CLASSIFIER),
        ({"proteins": REFERENCE.proteins[::-1]}, "proteins", ORFS),
        ({"nucleotides": [*REFERENCE.nucleotides[:3], "ACG"]}, "nucleotides", ORFS),
    ],
)  # fmt: skip
def test_what_differs_in_fp32_is_told_apart(checks, fp32, unmet, said):
    found = checks(fp32)
    assert [(c.quantity, c.precision) for c in found if not c.met] == [(unmet, "32-true")]
    assert said in explain(found)


def test_another_encoder_changes_the_scores_but_is_what_is_said(checks):
    changed = {"esm2": apart(REFERENCE.esm2, 0.5), "scores": REFERENCE.scores[:, ::-1]}
    assert ESM2 in explain(checks(changed, changed))


@pytest.mark.parametrize(
    "reduced",
    [
        {"esm2": apart(REFERENCE.esm2, 6e-3)},
        {"dnabert_s": with_nan(REFERENCE.dnabert_s)},
        {"scores": REFERENCE.scores + np.float32(2e-2)},
    ],
)
def test_what_differs_in_fp16_alone_is_laid_to_the_card(checks, reduced):
    assert REDUCED in explain(checks(None, reduced))


@pytest.mark.parametrize(
    ("precision", "fits", "exceeds"),
    [("32-true", 5e-5, 2e-4), ("16-mixed", 4e-3, 6e-3), ("bf16-mixed", 4e-2, 6e-2)],
)
def test_each_precision_has_its_limit(write_run, precision, fits, exceeds):
    for name, distance, met in (("near", fits, True), ("far", exceeds, False)):
        folder = write_run(name, {"esm2": apart(REFERENCE.esm2, distance)})
        found = check_run(folder, precision, REFERENCE)
        assert [check.met for check in found if check.part == "ESM-2"] == [met]


def test_ids_of_an_embedding_file_in_another_order_are_no_fault_of_a_network(checks):
    assert ORFS in explain(checks(esm2_ids=[REFERENCE.ids[row] for row in TURNED]))


def test_other_ids_are_not_met(checks):
    names = [name.replace("seq1", "seq9") for name in REFERENCE.ids]
    found = checks({"ids": names}, {"ids": names})
    assert "ids" in [check.quantity for check in found if not check.met]
    assert ORFS in explain(found)


def test_another_esm2_is_left_out_with_the_scores(checks, capsys):
    changed = {"esm2": REFERENCE.esm2[:, :320], "scores": REFERENCE.scores[:, ::-1]}
    found = checks(changed, changed, model="esm2_t6_8M_UR50D")
    left_out = {check.quantity for check in found if check.met is None}
    assert left_out == {"ESM-2 vectors", "scores", "labels"}
    assert explain(found) is None
    print_checks(found)
    assert "esm2_t6_8M_UR50D, not esm2_t36_3B_UR50D" in capsys.readouterr().out


def test_without_a_classifier_scores_and_labels_are_left_out(checks):
    found = checks({"scores": REFERENCE.scores[:, ::-1]}, classifier="random")
    assert {c.quantity for c in found if c.met is None} == {"scores", "labels"}
    assert explain(found) is None
