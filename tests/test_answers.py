"""What models answer to questions of yes or no, as they do answer: it is understood, or None; never a guess."""

from __future__ import annotations

import time

import pytest

from hpc.models.answers import answers

NAMES = ["slideshow", "synthetic video", "post-production text", "fast zoom"]
ALL_NO = dict.fromkeys(NAMES, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"slideshow": "no", "synthetic video": "yes", "post-production text": "no", "fast zoom": "no"}',
         ALL_NO | {"synthetic video": True}),
        ('Sure! Here it is:\n```json\n{\n "slideshow": "No",\n "fast_zoom": "Yes"\n}\n```\nTell me {more}.',
         {"slideshow": False, "fast zoom": True}),
        ('{\n "slideshow": "no"\n "Post-Production Text": true,\n}',
         {"slideshow": False, "post-production text": True}),
        ("{'slideshow': 'no', 'fast zoom': True}", {"slideshow": False, "fast zoom": True}),
        ('{"slideshow": yes, "fast zoom": No}', {"slideshow": True, "fast zoom": False}),
        ('{“slideshow”: “no”}', {"slideshow": False}),
        ('{"slideshow": "No, they say \\"stop\\" and walk {on}", "fast zoom": "no."}',
         {"slideshow": False, "fast zoom": False}),
        ('{"answers": {"slideshow": {"answer": "no", "reason": "it moves: yes"}}}', {"slideshow": False}),
        ('[{"question": "slideshow", "answer": "yes"}, {"question": "fast zoom", "answer": "no"}]',
         {"slideshow": True, "fast zoom": False}),
        ('["fast zoom"]', ALL_NO | {"fast zoom": True}),
        ('{"labels": ["Fast Zoom", "slideshow"]}', ALL_NO | {"fast zoom": True, "slideshow": True}),
        ("[]", ALL_NO),
        ('<think>Perhaps {"slideshow": "yes"}</think>{"slideshow": "no"}', {"slideshow": False}),
        ('{"slideshow": "no"} or rather {"slideshow": "yes", "fast zoom": "no"}',
         {"slideshow": True, "fast zoom": False}),
        ('{"slideshow": "no", "synthetic video": "yes", "post-prod', {"slideshow": False, "synthetic video": True}),
        ("1. slideshow - no\n2. Synthetic Video – Yes, a game", {"slideshow": False, "synthetic video": True}),
        ("- **Slideshow**: No\n- Fast zoom: yes, at the end\n", {"slideshow": False, "fast zoom": True}),
        ("1. No\n2) Yes\n3. no.\n4. NO", ALL_NO | {"synthetic video": True}),
        ("No.", ALL_NO),
        ("Yes", None),  # to which of them?
        ("1. Yes\n2. No", None),
        ('Use {"slideshow": "yes" or "no"}', None),
        ('{"slideshow": "yes or no"}', None),
        ('{"slideshow": "unclear"}', None),
        ('{"weather": "yes"}', None),
        ('["a street", "a car"]', None),
        (str(NAMES), None),  # the list of names, repeated
        ("A street with cars; no people can be seen.", None),
        ("", None),
    ],
)  # fmt: skip
def test_an_answer(text: str, said: dict[str, bool] | None) -> None:
    assert answers(text, NAMES) == said


def test_one_question_may_be_answered_in_prose() -> None:
    assert answers("Yes, there is a logo in the corner.", ["logo"]) == {"logo": True}
    assert answers("No", ["logo"]) == {"logo": False}
    assert answers("There is a logo.", ["logo"]) is None


def test_names_with_marks_of_their_own() -> None:
    names = ["movie/film_scene", "egocentric_video/walking_POV", "other"]
    text = '{"Movie/Film Scene": "no", "egocentric_video/walking_POV": "yes", "other": "no"}'
    assert answers(text, names) == {names[0]: False, names[1]: True, "other": False}


NONSENSE = ["{" * 30_000, "[" * 30_000, '{"a":' * 9000, '"' * 30_000, '{"a": "b",' * 5000, "- " * 20_000]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_costs_no_time(text: str) -> None:
    began = time.process_time()
    assert answers(text, NAMES) is None
    assert time.process_time() - began < 2
