"""What a model answered to several questions of yes or no: JSON, in fences or in the middle of prose, lists, lines.

    answers('Sure! ```json\n{"slideshow": "No", "fast zoom": "yes"}\n```', ["slideshow", "fast zoom"])
    -> {"slideshow": False, "fast zoom": True}

Models are asked for one JSON object, and answer with whatever they do. What is plain to a person is understood; what is
not is None, never a guess.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

YES = {"yes", "y", "true", "present", "是"}
NO = {"no", "n", "false", "absent", "none", "否"}
TRIES = 64
"""Brackets at which something may begin, and places where an answer that was cut off may be taken to end."""
DEEPEST = 6
INSIDE = ("answer", "value", "present", "result", "verdict")
"""Keys of an object in place of yes or no: {"slideshow": {"answer": "no", "reason": "..."}}."""
LONGEST = 20_000
"""Characters of an answer that are looked at, its last ones."""


def answers(text: str, names: Sequence[str]) -> dict[str, bool] | None:
    """name -> yes? of those that are answered; None if not one is. Words around the answer do not matter; of several
    JSON objects the last one that answers most counts."""
    text = re.split(r"</think(?:ing)?>", text[-LONGEST:])[-1]  # behind what a reasoning model thought
    keys = {plain(name): name for name in names}
    best: dict[str, bool] = {}
    for value in objects(text):
        found = _of_value(value, keys)
        if len(found) >= len(best):
            best = found
    return best or _of_lines(text, names, keys) or None


def plain(name: str) -> str:
    """A name without what models change about it: case, spaces, marks, a number in front.

    >>> plain("2. Post-Production Text"), plain("movie/film_scene")
    ('post production text', 'movie film scene')
    """
    return " ".join(re.findall(r"\w+", re.sub(r"^[\W_]{0,8}\d{1,2}[.):]\s*", "", name).replace("_", " ").lower()))


def said(value: Any) -> bool | None:
    """Yes or no, if a value says so in its first word: true, "Yes.", "no - a real street", {"answer": "no"}."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    if isinstance(value, dict):
        found = [said(value[key]) for key in value if plain(str(key)) in INSIDE]
        return found[0] if len(found) == 1 else None
    if isinstance(value, list) and len(value) == 1:
        return said(value[0])
    words = re.findall(r"\w+", value.lower()) if isinstance(value, str) else []
    if not words or ("or" in words[:3] and words[0] in YES | NO):  # "yes or no" repeats the question
        return None
    return True if words[0] in YES else False if words[0] in NO else None


def objects(text: str) -> Iterator[Any]:
    """Every JSON object or list in a text, outermost ones, in order; nearly JSON counts too."""
    at, opening = 0, re.compile(r"[{\[]")
    for _ in range(TRIES):
        if (match := opening.search(text, at)) is None:
            return
        end = _end(text, match.start())
        value = _loaded(text[match.start() : end])
        if value is None:
            at = match.start() + 1
        else:
            yield value
            at = end


def _end(text: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`, or the text's end: an answer may be cut short. `start` itself
    for what is nested too deeply to be an answer."""
    depth, quoted, skip = 0, "", False
    for at in range(start, len(text)):
        char = text[at]
        if skip:
            skip = False
        elif quoted:
            skip, quoted = char == "\\", "" if char in (quoted, "\n") else quoted
        elif char == '"':
            quoted = char
        elif char in "{[":
            depth += 1
            if depth > DEEPEST:
                return start
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return at + 1
    return len(text)


def _loaded(text: str) -> Any:
    """JSON, or what is nearly: single quotes, Python's words, no commas between lines, one comma too many, cut off."""
    straight = text.translate(str.maketrans("“”‘’", "\"\"''"))
    mended = re.sub(r'("|true|false|yes|no)[ \t]*\n(\s*")', r"\1,\n\2", straight)
    mended = re.sub(r"//[^\n\"]*\n", "\n", mended)
    mended = re.sub(r":\s*(yes|no)\b", r': "\1"', mended, flags=re.IGNORECASE)
    mended = re.sub(r",\s*([}\]])", r"\1", mended)
    cuts = [match.start() for match in re.finditer(",", mended)] if not mended.endswith(("}", "]")) else []
    for attempt in (text, straight, mended, *(mended[:at] + "}" for at in reversed(cuts[-TRIES:]))):
        try:
            value = json.loads(attempt)
        except ValueError:
            try:
                value = ast.literal_eval(attempt)
            except (ValueError, SyntaxError):
                continue
        return value if isinstance(value, dict | list) else None
    return None


def _of_value(value: Any, keys: dict[str, str]) -> dict[str, bool]:
    if isinstance(value, list):
        if value and all(isinstance(one, dict) for one in value):
            return {name: yes for one in value for name, yes in _of_value(one, keys).items()}
        # A list of the names that apply: all of them must be names, or it is a list of something else.
        named = [keys.get(plain(one)) for one in value if isinstance(one, str)]
        if None in named or len(named) != len(value) or (named and len(named) == len(keys) > 1):
            return {}
        return {name: name in named for name in keys.values()} if named or value == [] else {}
    if not isinstance(value, dict):
        return {}
    found = {
        keys[plain(str(key))]: yes
        for key, one in value.items()
        if plain(str(key)) in keys and (yes := said(one)) is not None
    }
    if found:
        return found
    inner = [one for one in value.values() if isinstance(one, dict | list)]
    if len(inner) == 1:  # {"answers": {...}}, {"labels": [...]}
        return _of_value(inner[0], keys)
    if len(value) == 2 and len(texts := [one for one in value.values() if isinstance(one, str | bool)]) == 2:
        name, yes = keys.get(plain(str(texts[0]))), said(texts[1])  # {"question": "slideshow", "answer": "no"}
        return {name: yes} if name is not None and yes is not None else {}
    return {}


def _of_lines(text: str, names: Sequence[str], keys: dict[str, str]) -> dict[str, bool]:
    """"slideshow: no", "1. No", "- **fast zoom**: Yes, at the end": a line each. One word alone answers one question,
    and a "no" to all of them."""
    bare = said(text) if len(re.findall(r"\w+", text)) <= (1 if len(names) > 1 else 60) else None
    if bare is not None and (len(names) == 1 or not bare):
        return {name: bare for name in names}
    named: dict[str, bool] = {}
    numbered: dict[int, bool] = {}
    for line in text.splitlines():
        if (word := re.search(r"\b(yes|no|true|false)\b(?!\W{1,3}or\b)", line[:500], re.IGNORECASE)) is None:
            continue
        before, yes = line[: word.start()], word[1].lower() in YES
        name = keys.get(plain(before))
        number = re.fullmatch(r"\W*(\d{1,2})\W*", before)
        if name is not None:
            named[name] = yes
        elif number:
            numbered[int(number[1])] = yes
    if named:
        return named
    if sorted(numbered) == list(range(1, len(names) + 1)):
        return {names[number - 1]: yes for number, yes in numbered.items()}
    return {}
