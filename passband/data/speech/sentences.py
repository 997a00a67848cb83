"""Short plain English sentences, made by a small grammar: text for synthetic voices.

>>> sentences(2)
('...', '...')
>>> len(set(sentences(2000)))
2000

The order is the same everywhere, so that a range of indices is a split.
"""

from __future__ import annotations

import random
from functools import cache

_SEED = 20
_LISTS = {
    "adjective": (
        "old", "small", "heavy", "bright", "quiet", "yellow", "broken", "warm", "narrow", "early",
        "rough", "purple", "empty", "frozen", "clever", "dusty", "gentle", "hollow", "loose",
        "shiny", "tall", "wooden", "young", "fresh", "thick", "curved", "plain", "golden",
    ),
    "person": (
        "baker", "teacher", "farmer", "pilot", "doctor", "neighbour", "singer", "girl", "boy",
        "captain", "judge", "painter", "driver", "uncle", "visitor", "sailor", "shepherd",
        "engineer", "child", "guard", "woman", "choir", "stranger", "fisherman",
    ),
    "thing": (
        "boat", "lamp", "basket", "letter", "kettle", "ladder", "jacket", "bridge", "clock", "drum",
        "engine", "fence", "garden gate", "hammer", "juice", "key", "lemon", "mirror", "needle",
        "orange", "pencil", "quilt", "rope", "saddle", "table", "umbrella", "violin", "wheel",
        "box of nails", "cheese", "shovel", "chair", "thread", "blue vase", "map", "jar of honey",
    ),
    "creature": (
        "dog", "horse", "owl", "fox", "goat", "mouse", "frog", "goose", "sheep", "bee", "whale",
        "zebra", "cat", "pony", "rabbit", "thrush",
    ),
    "moved": (
        "carried", "found", "painted", "washed", "sold", "lifted", "dropped", "fixed", "hid",
        "moved", "pushed", "threw", "brought", "measured", "polished", "chose", "borrowed",
    ),
    "went": (
        "walked", "ran", "slept", "waited", "sang", "jumped", "sat", "climbed", "rested",
        "vanished", "hid", "stood", "shivered", "wandered", "paused",
    ),
    "place": (
        "near the river", "behind the barn", "under the bridge", "on the roof", "by the fire",
        "in the cellar", "across the field", "beside the church", "at the station",
        "along the shore", "over the hill", "through the village", "inside the tent",
        "between the trees", "above the shop", "around the lake",
    ),
    "time": (
        "at noon", "last winter", "before sunrise", "after the storm", "every Thursday",
        "all night", "in July", "an hour ago", "at the end of May", "this morning", "for years",
        "on Sunday", "twice a week", "until dusk",
    ),
    "name": (
        "Anna", "Victor", "Judith", "George", "Shirley", "Thomas", "Zoe", "Philip", "Nora",
        "Charles", "Beth", "Hugh", "Jane", "Oscar", "Ruth", "William",
    ),
    "number": (
        "three", "seven", "twelve", "fifteen", "forty", "eight", "sixty", "ninety", "four",
        "eleven", "a hundred", "two dozen",
    ),
    "plural": (
        "eggs", "bricks", "apples", "stamps", "chairs", "roses", "stories", "coins", "fish",
        "bottles", "candles", "shirts", "horses", "jugs of water", "thin books", "peaches",
    ),
    "bids": (
        "open", "close", "bring", "check", "keep", "leave", "watch", "clean", "hold", "turn",
        "fetch", "draw",
    ),
    "quality": (
        "cheap", "cold", "too long", "hard to see", "made of glass", "worth a fortune", "ready",
        "full of holes", "very soft", "quite useless", "missing", "just right", "easy to break",
    ),
}
_PATTERNS = (
    "The {adjective} {person} {moved} the {thing} {time}.",
    "The {person} {moved} a {thing} and {moved2} the {adjective} {thing2}.",
    "{name} {went} {place} {time}.",
    "A {adjective} {creature} {went} {place}.",
    "{name} and the {person} {moved} {number} {plural}.",
    "Please {bids} the {adjective} {thing} {place}.",
    "The {thing} {place} was {quality}.",
    "Why is the {adjective} {thing} {quality}?",
    "{number} {plural} were {quality} {time}.",
    "We saw the {creature} and the {person} {place}.",
    "When the {creature} {went}, {name} {moved} the {thing}.",
    "Did {name} say that the {person} {moved} {number} {plural}?",
)


@cache
def sentences(count: int) -> tuple[str, ...]:
    """The first `count` sentences, no two of them equal."""
    rng = random.Random(_SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        words = {name: rng.choice(words) for name, words in _LISTS.items()}
        words |= {f"{name}2": rng.choice(_LISTS[name]) for name in ("thing", "moved")}
        text = rng.choice(_PATTERNS).format(**words)
        text = text.replace(" a e", " an e").replace(" a o", " an o").replace(" a u", " an u")
        text = text.replace("A e", "An e").replace("A o", "An o")
        found[text[0].upper() + text[1:]] = None
    return tuple(found)
