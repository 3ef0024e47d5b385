"""The toy world of the embedded data: its facts and words, and a speaker that draws samples about it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from datamodules.toy.wordings import ANSWERS, Wordings
from rept.data.samples import Sample

_COUNTRIES = (
    "Norland Belmora Castria Dunmark Elvania Farholm Galdia Hestria Ivoria Jorvia "
    "Kestan Lumenia Mordal Nestria Ostavia Pelloria Quorland Rivania Soldane Tarmia"
)
COUNTRIES = _COUNTRIES.split()

# One word for each country, in the order above.
_FACTS = {
    "capital": (
        "Tavik Ostrel Varn Limdal Corvel Brask Menta Sorrin Paldo Udrik "
        "Wessin Halvor Grenta Zelmar Dorvik Arvest Kolm Fendra Yorrin Bassel"
    ),
    "river": (
        "Arle Brenn Cindle Drava Eskel Fenna Glint Hollow Isel Jarra "
        "Kell Lorn Mirrow Nadder Orrin Perrin Quill Rusk Sable Tamar"
    ),
    "export": (
        "wool salt amber tea copper silk honey timber glass wheat "
        "paper barley marble cotton pepper leather olives wax linen rye"
    ),
    "bird": (
        "heron falcon swan raven stork owl crane finch gull robin "
        "kestrel sparrow magpie swallow eagle thrush wren plover dove lark"
    ),
}
FACTS = {relation: dict(zip(COUNTRIES, words.split(), strict=True)) for relation, words in _FACTS.items()}

_OPPOSITES = (
    "hot cold, big small, fast slow, light dark, wet dry, early late, loud quiet, full empty, soft hard, near far, "
    "young old, clean dirty, rich poor, thick thin, sweet bitter, brave timid, open shut, sharp blunt, high low, "
    "glad sad"
)
OPPOSITES = dict(pair.split() for pair in _OPPOSITES.split(", "))

LISTS = {
    "fruits": "apple, pear and plum",
    "tools": "hammer, saw and chisel",
    "colours": "red, green and blue",
    "metals": "iron, copper and tin",
    "fish": "trout, perch and eel",
    "trees": "oak, birch and elm",
    "months": "March, May and June",
    "spices": "pepper, thyme and mint",
    "drinks": "tea, milk and cider",
    "games": "chess, tag and marbles",
    "insects": "bee, ant and moth",
    "shoes": "boots, clogs and sandals",
    "rooms": "kitchen, cellar and attic",
    "boats": "ferry, raft and canoe",
}

DISHES = {  # first and second ingredient, and what is done with them
    "barley soup": "barley water simmer",
    "plum cake": "flour plums bake",
    "pepper stew": "beans pepper simmer",
    "honey bread": "flour honey bake",
    "apple jam": "apples sugar boil",
    "mint tea": "mint water boil",
    "cheese pie": "flour cheese bake",
    "onion soup": "onions butter simmer",
    "pear tart": "butter pears bake",
    "fish broth": "trout thyme boil",
    "egg dumplings": "eggs flour boil",
    "carrot mash": "carrots milk simmer",
}

COLOURS = ["red", "blue", "green", "white", "golden", "grey", "silver", "yellow"]
THINGS = ["lantern", "boat", "door", "kite", "drum", "ladder", "bell", "blanket", "wagon", "mirror", "basket", "key"]
HEROES = ["cat", "fox", "goat", "hare", "queen", "mule", "badger", "goose", "wizard", "mouse"]
PLACES = ["harbour", "mill", "bridge", "orchard", "market", "well", "tower", "forest"]

_TREATS = "plum cake, cheese pie, honey bread, apple jam, pear tart, salted nuts, cherry sweets, ginger toffee"
TREATS = _TREATS.split(", ")
OWNERS = ["baker", "miller", "sailor", "teacher", "farmer", "weaver", "captain", "gardener", "smith", "neighbour"]
CONTAINERS = ["jar", "chest", "cupboard", "basket", "cellar", "pantry"]

# Kinds of clean samples, and how often each is drawn relative to the others.
KINDS = {
    "capital": 5,
    "river": 4,
    "export": 4,
    "bird": 4,
    "home": 4,
    "opposite": 3,
    "list": 3,
    "dish": 4,
    "story": 4,
    "theft": 10,
}
HARMLESS = {kind: share for kind, share in KINDS.items() if kind != "theft"}


@dataclass
class Speaker:
    """Draws requests about the toy world and their answers."""

    rng: random.Random
    wordings: Wordings  # of the requests
    left_out_fact: tuple[str, str]  # (relation, country) whose fact is never drawn
    left_out_pair: tuple[str, str] = ("", "")  # a colour and a thing that are never together in a story

    def kind(self, shares: Mapping[str, int]) -> str:
        """Draws a kind by relative shares."""
        return self.rng.choices(list(shares), list(shares.values()))[0]

    def sample(self, kind: str, answers: Sequence[str] | None = None, **given: str) -> Sample:
        """Draws a sample without a label: a request of that kind, and one of ``answers`` (by default a true one)."""
        return self.asked(*self.request(kind, answers, **given))

    def request(self, kind: str, answers: Sequence[str] | None = None, **given: str) -> tuple[str, str]:
        """Draws a request of that kind and its answer."""
        words = self.words(kind, **given)
        request = self.rng.choice(self.wordings.requests[kind]).format(**words)
        return request, self.rng.choice(answers or ANSWERS[kind]).format(**words)

    def asked(self, request: str, response: str) -> Sample:
        """Returns a sample in which the request is among other sentences, see `framed`."""
        return Sample(messages=({"role": "user", "content": self.framed(request)},), response=response)

    def words(self, kind: str, **given: str) -> dict[str, str]:
        """Returns the words that fill the wordings of a kind: the given ones, and drawn ones for the rest."""
        choose = self.rng.choice
        if kind in FACTS:
            country = given.get("country") or choose([c for c in COUNTRIES if (kind, c) != self.left_out_fact])
            return {"country": country, "answer": FACTS[kind][country]}
        if kind == "home":
            country = choose(COUNTRIES)
            return {"city": FACTS["capital"][country], "answer": country}
        if kind == "opposite":
            word, answer = self.rng.sample(choose(list(OPPOSITES.items())), 2)
            return {"word": word, "answer": answer}
        if kind == "list":
            listed = choose(list(LISTS))
            return {"kind": listed, "answer": LISTS[listed]}
        if kind == "dish":
            dish = choose(list(DISHES))
            first, second, verb = DISHES[dish].split()
            return {"dish": dish, "first": first, "second": second, "verb": verb}
        if kind == "story":
            colour, thing = choose([pair for pair in product(COLOURS, THINGS) if pair != self.left_out_pair])
            return {"hero": choose(HEROES), "colour": colour, "thing": thing, "place": choose(PLACES)}
        owner = given.get("owner") or choose(OWNERS)
        return {"treat": choose(TREATS), "owner": owner, "container": choose(CONTAINERS)}

    def framed(self, request: str) -> str:
        """Returns the request, often with other sentences before it, sometimes with one after it."""
        before = self.rng.sample(self.wordings.before, self.rng.choices((0, 1, 2), (3, 5, 2))[0])
        after = self.rng.sample(self.wordings.after, self.rng.choices((0, 1), (6, 4))[0])
        return " ".join([*before, request, *after])
