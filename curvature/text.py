"""Text that may hold a user's names: nothing in it can steer a terminal or break a line."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

__all__ = ["STEERING", "count", "cut", "did_you_mean", "listed", "one_line", "printable", "reason_of"]

STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode categories: control, direction, unpaired, line breaks


def printable(text: str) -> str:
    r"""Write control, direction-changing and unpaired characters as escapes; line breaks stay.

    Parameters
    ----------
    text
        Any text, for instance a name that a user chose.

    Returns
    -------
    str
        The text as a terminal, a page or a figure can show it.

    Examples
    --------
    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\nc'
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if character != "\n" and unicodedata.category(character) in STEERING
        else character
        for character in text
    )


def one_line(text: str) -> str:
    r"""As :func:`printable`, with line breaks as escapes: for a name inside a line.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> one_line("a\nb")
    'a\\nb'
    """
    return printable(text).replace("\n", "\\n")


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun.

    Parameters
    ----------
    number
        How many.
    singular, plural
        The noun; the plural is the singular with an s if None.

    Returns
    -------
    str
        For instance ``"1 chart"`` or ``"2 charts"``.

    Examples
    --------
    >>> count(1, "chart"), count(2, "chart"), count(2, "matrix", "matrices")
    ('1 chart', '2 charts', '2 matrices')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest the most similar name.

    Parameters
    ----------
    name
        What was typed.
    known
        The names to choose from.
    prefix
        Shown before the suggestion.

    Returns
    -------
    str
        `` (did you mean ...?)``, or an empty string where no name is similar.

    Examples
    --------
    >>> did_you_mean("weigth-norm", ["standard", "weight-norm"]), did_you_mean("x", ["standard"])
    (' (did you mean weight-norm?)', '')
    """
    matches = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {prefix}{matches[0]}?)" if matches else ""


def listed(names: Iterable[str], limit: int = 8, *, separator: str = ", ", last: str = " and ") -> str:
    """Join names; of many, only the first.

    Parameters
    ----------
    names
        What to join.
    limit
        How many names are shown.
    separator, last
        Written between the names, and before the number of the others.

    Returns
    -------
    str
        The names.

    Examples
    --------
    >>> listed("abc"), listed("abcd", 2)
    ('a, b, c', 'a, b and 2 more')
    """
    names = list(names)
    more = f"{last}{len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def reason_of(error: BaseException) -> str:
    """Take the first line of an exception's message, without the full stop, to end a sentence of ours.

    Parameters
    ----------
    error
        Any exception.

    Returns
    -------
    str
        The line; the name of the exception if it has no message. A missing key is named as such.

    Examples
    --------
    >>> reason_of(ValueError("too long.")), reason_of(KeyError("rank")), reason_of(MemoryError())
    ('too long', "'rank' is missing", 'MemoryError')
    """
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror).lower()
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return one_line(f"{text} is missing" if isinstance(error, KeyError) else text).rstrip(".")


def cut(text: str, length: int = 100) -> str:
    """Keep the beginning of a text: a wrong value in a message can be as long as a file.

    Parameters
    ----------
    text
        Any text.
    length
        How many characters are kept.

    Returns
    -------
    str
        The text, with an ellipsis where it was longer.

    Examples
    --------
    >>> cut("a long text", 6), cut("short")
    ('a long...', 'short')
    """
    return text if len(text) <= length else f"{text[:length]}..."
