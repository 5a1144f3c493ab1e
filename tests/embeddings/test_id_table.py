"""Which ids two files share, beside what dictionaries say."""

from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.embeddings.id_table import match_ids
from virnucpro_pl.errors import InputError


class Listed:
    """Ids from memory, three at a time."""

    def __init__(self, name, ids):
        self.path = Path(name)
        self.ids = ids

    def id_blocks(self):
        for start in range(0, len(self.ids), 3):
            yield [name.encode() for name in self.ids[start : start + 3]]


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (1, 1), (50, 20), (20, 50), (40, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_match_equals_dictionaries(tmp_path, sizes, seed):
    random = np.random.default_rng(seed)
    one, other = (
        [f"ü/{n}" for n in random.choice(60, size, replace=False).tolist()] for size in sizes
    )
    match, first, second = match_ids((Listed("a", one), Listed("b", other)), tmp_path)
    places = {name: row for row, name in enumerate(other)}
    shared = [row for row, name in enumerate(one) if name in places]
    assert match.first.tolist() == shared
    assert match.second.tolist() == [places[one[row]] for row in shared]
    assert match.only_first.tolist() == [row for row, n in enumerate(one) if n not in places]
    assert match.only_second.tolist() == [row for row, n in enumerate(other) if n not in one]
    assert first(np.arange(len(one))) == one
    assert second(np.arange(len(other))) == other


@pytest.mark.parametrize("turned", [False, True])
def test_match_id_twice_is_named_with_its_file(tmp_path, turned):
    files = Listed("good", ["a", "b"]), Listed("bad", ["x", "b", "y", "b"])
    with pytest.raises(InputError, match=r"bad has 1 id\(s\) more than once: b$"):
        match_ids(files[::-1] if turned else files, tmp_path)
