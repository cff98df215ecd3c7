"""Write the reader's test: ``python docs/measure_reading.py REPORT``, for a report of ``curvature compare``.

Headless Chromium measures where the answers to ten questions are; the table goes into ``docs/reading_a_report.md``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

import browser  # noqa: E402 - lies with the tests

WIDTH, HEIGHT = 1000, 800
WORDS_PER_MINUTE = 238  # silent reading of English non-fiction: Brysbaert 2019, doi 10.1016/j.jml.2019.104047
HEAD = "| question | answer of that run | place | screen | words | click | seconds |\n|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Question:
    """A question, and the sentence that answers it: a pattern of the page, or the link to a term of its glossary."""

    text: str
    answer: str  # with the groups of the pattern
    pattern: str = ""
    term: str = ""
    place: str = ""  # on the first screen; elsewhere the heading says it


QUESTIONS = (
    Question(
        "What was compared?",
        "weight norm with the standard parameterization of a network with {1} weights, on {0} examples",
        r"N = (\d+) examples · P = (\d+) weights",
        place="title, and the line below figure 1",
    ),
    Question(
        "Is κ₈₀ better?",
        "{0}",
        r"(Undecided|Supported|Too small|Opposite|Not tested)\.",
        place="first word of the answer",
    ),
    Question("By how much?", "a factor of {0}", r"by ([\d.]+) \[[\d., ]+\]", place="answer"),
    Question(
        "How sure?",
        "the 95 % interval is {0} to {1}, over {2} paired seeds",
        r"by [\d.]+ \[([\d.]+), ([\d.]+)\][^]*? (\d+) paired seeds",
        place="answer, and caption of figure 1",
    ),
    Question(
        "At the same weights, or after training?",
        "both: {0} after its own training, {1} at the same weights",
        r"by ([\d.]+) \[[^]*?at the same weights[^]*?\(([\d.]+) \[[\d., ]+\]\)",
        place="answer",
    ),
    Question(
        "What is κ₈₀?", "the largest eigenvalue over the one at 80 % of the rank", term="kappa-80", place="answer"
    ),
    Question("What is a gauge?", "the choice of the lengths ‖v‖, which the outputs do not fix", term="gauge"),
    Question(
        "Where does the difference come from?",
        "{0} from the weights that training reached, {1} from the length of v",
        r"is ([\d.]+) from the weights that training reached[^]*?times ([\d.]+) from the length of v",
    ),
    Question(
        "Can I trust the numbers?",
        "{0} of {1} self-checks passed, and {2} of {3} controls came out as they must",
        r"(\d+) of (\d+) self-checks passed[^]*?(\d+) of (\d+) controls of the claims came out as they must",
    ),
    Question(
        "What was not tested?",
        "{0}, {1}",
        r"What was not tested\s+([^:]+):[^]*?\.\s+([^:.]+):",
    ),
)

# Visible words up to the end of an answer, from the top of the page and from the heading above it.
_MEASURE = r"""
((pattern, term) => {
  const blocks = 'p, li, h1, h2, h3, figcaption, summary, td, th, dt, dd, div';
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), pieces = [];
  let text = '', block = null;
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!parent.checkVisibility() || parent.closest('style, script, svg')) continue;
    if (parent.closest(blocks) !== block) { text += '\n'; block = parent.closest(blocks); }
    pieces.push({node, start: text.length});
    text += node.data.replace(/\s/g, ' ');
  }
  const link = term && [...document.querySelectorAll(`a[href="#term-${term}"]`)].find(e => e.checkVisibility());
  const found = term ? null : RegExp(pattern, 'u').exec(text);
  if (!link && !found) return null;
  const end = found ? found.index + found[0].length
    : pieces.find(p => link.contains(p.node)).start + link.innerText.length;
  const last = pieces.findLast(p => p.start < end), range = document.createRange();
  range.setStart(last.node, Math.max(0, end - last.start - 1));
  range.setEnd(last.node, Math.min(last.node.data.length, end - last.start));
  const heading = [...document.querySelectorAll('h1, h2, h3')].findLast(
    e => e.checkVisibility() && (e.compareDocumentPosition(last.node) & 4 || e.contains(last.node)));
  const from = pieces.find(p => heading.contains(p.node)).start;
  const words = part => part.split(/\s+/).filter(w => w).length;
  const entry = term ? words(document.getElementById(`term-${term}`).nextElementSibling.textContent) : 0;
  return {groups: found ? found.slice(1) : [], bottom: range.getBoundingClientRect().bottom + scrollY,
          heading: heading.innerText, fromTop: words(text.slice(0, end)) + entry,
          fromHeading: words(text.slice(from, end)) + entry};
})(%s, %s)
"""


@dataclass(frozen=True)
class Answer:
    """Where an answer is: its screen from the top, and the words that are read up to its end."""

    question: Question
    answer: str
    place: str
    screen: int
    words: int
    click: str

    def row(self) -> str:
        """Of the table, in Markdown."""
        seconds = f"{self.words * 60 / WORDS_PER_MINUTE:.0f}"
        cells = [self.question.text, self.answer, self.place, self.screen, self.words, self.click, seconds]
        return f"| {' | '.join(map(str, cells))} |\n"


def measure(window: browser.Browser, question: Question) -> Answer:
    """Find the answer to a question on the page that is open, in a fold if nowhere else."""
    script = _MEASURE % (json.dumps(question.pattern), json.dumps(question.term))
    click = "link" if question.term else "none"
    if (seen := window.run(script)) is None:
        window.run("document.querySelectorAll('details').forEach(e => e.open = true)")
        seen, click = window.run(script), "fold"
        window.run("document.querySelectorAll('details').forEach(e => e.open = false)")
    if seen is None:
        raise LookupError(f"The page has no answer to: {question.text}")
    return _answer(question, click, seen)


def _answer(question: Question, click: str, seen: dict[str, Any]) -> Answer:
    screen = int((seen["bottom"] - 1) // HEIGHT) + 1
    answer = question.answer.format(*(group.strip() for group in seen["groups"]))
    place = question.place if screen == 1 else f"*{seen['heading'].strip()}*"
    return Answer(question, answer, place, screen, seen["fromTop" if screen == 1 else "fromHeading"], click)


def main(path: str) -> None:
    """Measure a report, and put the table into the page."""
    page = DOCS / "reading_a_report.md"
    with tempfile.TemporaryDirectory() as profile:
        window = browser.Browser(Path(profile))
        window.open(Path(path), WIDTH, HEIGHT)
        rows = [measure(window, question).row() for question in QUESTIONS]
        window.close()
    before = page.read_text(encoding="utf-8").partition(HEAD.partition("\n")[0])[0]
    page.write_text(f"{before}{HEAD}{''.join(rows)}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
