"""Which language a text is in, by its letters and its most frequent words.

Captions are long, and models that slip take one of few languages, mostly that of their own training: scripts and
function words tell those apart without a model, without chance, in 0.1 ms for a hundred words. Packages for a hundred
languages (langid, fastText's) err more on a caption with many names than this one does, and bring weights along.
"""

from __future__ import annotations

import re
from collections import Counter

SCRIPTS = {
    "zh": (r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff", 3),
    "ja": (r"\u3040-\u30ff\u31f0-\u31ff", 3),
    "ko": (r"\uac00-\ud7af\u1100-\u11ff", 3),
    "ru": (r"\u0400-\u052f", 1),
    "el": (r"\u0370-\u03ff\u1f00-\u1fff", 1),
    "ar": (r"\u0600-\u06ff\u0750-\u077f", 1),
    "he": (r"\u0590-\u05ff", 1),
    "th": (r"\u0e00-\u0e7f", 1),
    "hi": (r"\u0900-\u097f", 1),
}
"""Language -> (its letters, how many Latin letters one is worth): those whose script says which language it is."""
LETTERS = {language: re.compile(f"[{letters}]") for language, (letters, _) in SCRIPTS.items()}
WORDS = {
    "en": "the a an of and is are in on with to at by from as that this it its there their his her they while which "
          "through into over has have be for or not no who was were behind",
    "de": "der die das und ist sind ein eine einer einem einen in im mit auf zu den dem des von vor nicht sich es er "
          "sie wird werden durch an am aus bei während nach hinter über als auch ihre seine zwei",
    "fr": "le la les un une des du de et est sont dans sur avec au aux à en par pour qui que il elle se son sa ses "
          "leur plus ne pas ce cette comme devant derrière deux d l",
    "es": "el la los las un una unos de del y es son en con por para que se su sus al lo como más no hay este esta "
          "está están hacia desde mientras sobre dos",
    "it": "il lo la i gli le un una uno di del della dei delle e è sono in nel nella con su sul sulla per che si da "
          "dal al alla come più non mentre questo questa due",
    "pt": "o a os as um uma de do da dos das e é são em no na nos nas com por para que se seu sua ao à como mais não "
          "este esta está estão enquanto sobre dois",
    "nl": "de het een en is zijn in op met van te voor aan door naar uit bij die dat er niet ook als wordt worden "
          "terwijl over zich hij ze zijn haar twee achter langs",
    "sv": "en ett och är i på med av till från för som den det de att sig han hon inte vid över under bakom genom "
          "medan har framför två mot",
    "pl": "w i na z do się jest są nie o przez po za od dla jak który która które ten ta to przed ich jego jej oraz "
          "podczas gdy pod dwa nad obok",
    "tr": "bir ve bu ile için de da olan olarak çok gibi daha en iki üzerinde içinde arasında doğru var ise sonra "
          "arka ön kadar her",
    "vi": "và của là có trong một các được với cho trên đang người này những từ đến khi không ở qua hai bên phía",
    "id": "yang dan di dengan ini itu dari untuk pada sebuah seorang ada adalah ke dalam oleh tidak sedang juga atas "
          "akan telah dua sambil menuju",
}  # fmt: skip
STOP: dict[str, list[str]] = {}
"""Word -> the languages that it is frequent in."""
for _language, _words in WORDS.items():
    for _word in set(_words.split()):
        STOP.setdefault(_word, []).append(_language)
LEAST_WORDS = 6
LEAST_SHARE = 0.15
"""Of the words: fewer frequent ones are no text of that language, or a list of names."""
FOREIGN = 0.2
"""Share of the letters, from which on a part in another script counts."""


def language(text: str) -> tuple[str, str]:
    """(the language, one whose script takes a good part of the text besides), "" for what cannot be told."""
    found: Counter[str] = Counter()
    if not text.isascii():
        for name, (_, worth) in SCRIPTS.items():
            if letters := LETTERS[name].findall(text):
                found[name] = worth * len(letters)
        if found["ja"] and found["zh"] < 20 * found["ja"]:  # with kana, the Han letters are Japanese ones
            found["ja"] += found.pop("zh", 0)
    latin = sum(map(str.isalpha, text)) - sum(found[name] // SCRIPTS[name][1] for name in found)
    total = latin + sum(found.values())
    if not total:
        return "", ""
    script, most = max(found.items(), key=lambda pair: pair[1], default=("", 0))
    if most > latin:
        return ("uk" if script == "ru" and re.search("[іїєґ]", text.lower()) else script), ""
    return by_words(text), script if most / total >= FOREIGN else ""


def by_words(text: str) -> str:
    """Of a text in Latin letters."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < LEAST_WORDS:
        return ""
    hits = Counter(language for word in words for language in STOP.get(word, ()))
    ranked = hits.most_common(2)
    if not ranked or ranked[0][1] < LEAST_SHARE * len(words):
        return ""
    return "" if len(ranked) > 1 and ranked[0][1] < 1.2 * ranked[1][1] else ranked[0][0]
