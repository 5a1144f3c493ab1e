import pytest

from virnucpro_pl.input.fastx import FormatError, parse


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("", []),
        (" \n\n", []),
        (">a b\nMK\n\nL\n >c\n", [("a b", "MKL"), ("c", "")]),
        ("\n@a b\nM K\n+\nI I\n\n@c\nV\n+c\n@", [("a b", "M K"), ("c", "V")]),
        ("@a\n\n+\n\n", [("a", "")]),
        ("\xef\xbb\xbf>a\nMK", [("a", "MK")]),
    ],
)
def test_parse_gives_headers_and_letters(text, records):
    assert list(parse(text.splitlines(keepends=True))) == records


def test_parse_gives_what_comes_before_a_fault():
    records = parse([">a\n", "MK\n", ">b\n", "#V\n"])
    assert next(records) == ("a", "MK")
    with pytest.raises(FormatError, match="line 4 begins with '#'"):
        next(records)
