"""Which names are never taken, and what the globs of the config say."""

import pytest

from attachd.intake.names import Ignored, NameRules, never_taken


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.part", Ignored.TEMPORARY_NAME),
        ("A.PART", Ignored.TEMPORARY_NAME),
        ("a.pdf.partial", Ignored.TEMPORARY_NAME),
        ("a.tmp", Ignored.TEMPORARY_NAME),
        ("a.pdf.crdownload", Ignored.TEMPORARY_NAME),
        ("a.download", Ignored.TEMPORARY_NAME),
        ("a.filepart", Ignored.TEMPORARY_NAME),
        (".a.swp", Ignored.TEMPORARY_NAME),
        ("a.txt~", Ignored.TEMPORARY_NAME),
        ("~$letter.docx", Ignored.TEMPORARY_NAME),
        (".~lock.a.ods#", Ignored.TEMPORARY_NAME),
        (".syncthing.a.pdf.tmp", Ignored.TEMPORARY_NAME),
        ("~syncthing~a.pdf", Ignored.TEMPORARY_NAME),
        ("thumbs.DB", Ignored.SYSTEM_JUNK),
        ("desktop.ini", Ignored.SYSTEM_JUNK),
        (".DS_Store", Ignored.SYSTEM_JUNK),
        ("._a.pdf", Ignored.SYSTEM_JUNK),
        (".nfs000000001", Ignored.SYSTEM_JUNK),
        ("@eaDir", Ignored.SYSTEM_JUNK),
        ("#recycle", Ignored.SYSTEM_JUNK),
        (".stfolder", Ignored.SYSTEM_JUNK),
        (".a.pdf", Ignored.HIDDEN),
        ("a.pdf", None),
        ("part", None),
        ("a\nb.pdf", None),
        ("\udcff.pdf", None),
    ],
)
def test_some_names_are_never_taken(name: str, reason: Ignored | None) -> None:
    """Names that mean "not finished" or "not for you" are left alone, whatever the case the producer writes them in."""
    assert never_taken(name) is reason


def test_globs_match_the_whole_name_and_case_counts() -> None:
    """`include` and `exclude` are shell globs on the base name."""
    rules = NameRules(include=("*.pdf", "scan-[0-9]*"), exclude=("*draft*",))
    assert rules.judge("a.pdf") is None
    assert rules.judge("a\nb\udcff.pdf") is None
    assert rules.judge("scan-7.tif") is None
    assert rules.judge("a.PDF") is Ignored.NOT_INCLUDED
    assert rules.judge("a.pdf.txt") is Ignored.NOT_INCLUDED
    assert rules.judge("draft.pdf") is Ignored.EXCLUDED
    assert rules.judge("a.pdf.part") is Ignored.TEMPORARY_NAME


def test_no_glob_includes_nothing() -> None:
    """An empty `include` is taken at its word."""
    assert NameRules(include=()).judge("a.pdf") is Ignored.NOT_INCLUDED
