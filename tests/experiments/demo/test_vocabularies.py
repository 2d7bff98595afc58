"""The table of the rebuilt and the extended vocabulary, of figures made up here."""

from vikhr_fast.experiments.demo.vocabularies import Vocabularies
from vikhr_fast.experiments.results import Arm, Figure

LANGUAGES = ("russian", "english")


def arm(cyrillic: int, before: tuple[float, ...], after: tuple[float, ...], per_word: float) -> Arm:
    """Both languages have the same scores."""
    scores = {
        f"{one}.{when}": Figure(values) for one in LANGUAGES for when, values in (("before", before), ("after", after))
    }
    words = {f"{one}.tokens_per_word": Figure((per_word,)) for one in LANGUAGES}
    return Arm(label=str(cyrillic), figures={"cyrillic": Figure((cyrillic,)), **scores, **words})


def test_differences_are_paired_by_seed_and_what_has_no_seed_has_no_error() -> None:
    arms = {"rebuilt": arm(875, (4.0, 5.0), (2.0, 3.0), 2.98), "extended": arm(1015, (4.5, 5.5), (1.9, 2.7), 2.91)}
    table = Vocabularies(Figure((300_000.0, 310_000.0)), arms).table()
    assert "305 KB of Russian" in table.caption
    assert "paired by seed" in table.caption
    rebuilt, _, change = table.rows
    assert rebuilt == ("875", *("4.500 ± 0.500", "2.500 ± 0.500") * 2, "2.98", "2.98")
    expected = (*("+0.500 ± 0.000", "-0.200 ± 0.100") * 2, "-0.07", "-0.07")
    assert change == ("change", *expected)


def test_one_seed_has_no_error() -> None:
    arms = {name: arm(900, (4.0,), (2.0,), 3.0) for name in ("rebuilt", "extended")}
    table = Vocabularies(Figure((300_000.0,)), arms).table()
    assert "±" not in f"{table}"
