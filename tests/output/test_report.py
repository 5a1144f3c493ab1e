from virnucpro_pl.output.report import RunReport


def test_report_counts_packs():
    counts = RunReport()
    counts.packed(3, 40)
    counts.packed(2, 30)
    assert counts.counts == {"records": 5, "tokens": 70, "packs": 2, "failures": 0}
