"""Phrases that error messages share: which values are at fault, and which were meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def listing(names: Iterable[object], limit: int = 6) -> str:
    """Quote the first names and count the rest: ``'A', 'B' and 3 more``."""
    quoted = [repr(str(name)) for name in names]
    shown = ", ".join(quoted[:limit])
    return shown if len(quoted) <= limit else f"{shown} and {len(quoted) - limit} more"


def folded(name: str) -> str:
    """Spell a name without case and blanks: names that agree in it are taken for one."""
    return "".join(name.split()).casefold()


def nearest(wanted: object, known: Collection[str], n: int = 3) -> list[str]:
    """Known names that resemble the wanted one, whatever their case, best first."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(str(wanted).casefold(), by_folded, n=n, cutoff=0.6)
    return [by_folded[name] for name in close]


def question(names: Iterable[str]) -> str:
    """Ask whether one of the names was meant; nothing where there is none."""
    distinct = dict.fromkeys(names)
    return f"Did you mean {' or '.join(map(repr, distinct))}? " if distinct else ""


def suggestion(wanted: object, known: Iterable[object], what: str) -> str:
    """Say which name may have been meant and which there are."""
    names = [str(name) for name in known]
    if not names:
        return f"There are no {what}."
    return f"{question(nearest(wanted, names))}The {what} are {listing(names, limit=12)}."
