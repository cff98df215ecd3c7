"""The glossary: alphabetical, without repetition, each term with a page of the documentation that exists."""

from pathlib import Path

from curvature.report.glossary import glossary

DOCS = Path(__file__).parents[2] / "docs"


def test_terms_are_in_alphabetical_order_and_none_has_two_entries():
    names = [term.name.lower() for term in glossary().values()]
    assert names == sorted(names)
    assert len({term.anchor for term in glossary().values()}) == len(names)
    others = [word for term in glossary().values() for word in term.also]
    assert not set(others) & set(glossary())


def test_every_term_is_defined_in_one_or_two_short_sentences():
    assert all(term.text.endswith(".") and len(term.text) < 200 for term in glossary().values())


def test_every_term_leads_to_a_page_of_the_documentation():
    assert not [term.name for term in glossary().values() if not (DOCS / f"{term.page}.md").exists()]
