"""The small world that the built-in tasks speak about: names, places, things, and their words in French and German."""

import dataclasses
import enum


def split(words: str) -> tuple[str, ...]:
    """The words of a string, in order."""
    return tuple(words.split())


NAMES = split(
    "Mira Tom Anna Ben Clara David Ella Felix Grace Hugo Iris Jonas Kate Leo Maria Noah Olga Paul Rosa Sam Tara Victor "
    "Wendy Yusuf Zoe Adam Bella Carlos Dina Emil Fatima George Hana Ivan Julia Karl Lena Marco Nina Oscar"
)
CITIES = split(
    "Oslo Rome Paris Berlin Madrid Lisbon Vienna Prague Dublin Athens Cairo Tokyo Delhi Lima Boston Chicago Denver "
    "Toronto Sydney Geneva Milan Munich Lyon Porto"
)
JOBS = split(
    "baker teacher nurse pilot farmer doctor driver painter singer lawyer cook writer dentist gardener plumber waiter "
    "judge tailor sailor barber"
)
PETS = split("cat dog horse rabbit parrot goat duck hamster pony turtle")
FOODS = split("rice soup bread cheese pasta salad fish cake pizza honey")
DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split("January February March April May June July August September October November December")
FRUIT = split("apple banana cherry date elder fig grape kiwi lemon mango nut olive peach plum quince raisin")


class Gender(enum.Enum):
    """Grammatical gender; French has only the first two."""

    MASCULINE = "m"
    FEMININE = "f"
    NEUTER = "n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noun:
    """A thing and its name in three languages."""

    english: str
    french: str
    french_gender: Gender
    german: str
    german_gender: Gender


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colour:
    """A colour; French agrees with the gender and follows the noun, German (weak declension) goes before it."""

    english: str
    french_masculine: str
    french_feminine: str
    german: str


def _noun(line: str) -> Noun:
    english, french, french_gender, german, german_gender = line.split()
    return Noun(
        english=english,
        french=french,
        french_gender=Gender(french_gender),
        german=german,
        german_gender=Gender(german_gender),
    )


NOUNS = tuple(
    _noun(line)
    for line in (
        "house maison f Haus n",
        "dog chien m Hund m",
        "cat chat m Katze f",
        "table table f Tisch m",
        "chair chaise f Stuhl m",
        "book livre m Buch n",
        "car voiture f Auto n",
        "tree arbre m Baum m",
        "flower fleur f Blume f",
        "door porte f Tür f",
        "hat chapeau m Hut m",
        "bird oiseau m Vogel m",
        "horse cheval m Pferd n",
        "boat bateau m Boot n",
        "lamp lampe f Lampe f",
        "bag sac m Tasche f",
        "bottle bouteille f Flasche f",
        "shirt chemise f Hemd n",
        "key clé f Schlüssel m",
        "clock horloge f Uhr f",
        "bed lit m Bett n",
        "garden jardin m Garten m",
        "bridge pont m Brücke f",
        "train train m Zug m",
    )
)
COLOURS = tuple(
    Colour(english=e, french_masculine=m, french_feminine=f, german=g)
    for e, m, f, g in (
        ("red", "rouge", "rouge", "rot"),
        ("green", "vert", "verte", "grün"),
        ("blue", "bleu", "bleue", "blau"),
        ("black", "noir", "noire", "schwarz"),
        ("white", "blanc", "blanche", "weiß"),
        ("yellow", "jaune", "jaune", "gelb"),
        ("grey", "gris", "grise", "grau"),
        ("brown", "brun", "brune", "braun"),
    )
)
THINGS = tuple(noun.english for noun in NOUNS)
COLOUR_NAMES = tuple(colour.english for colour in COLOURS)

_FRENCH_UNITS = split("zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize")
_FRENCH_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante"}
_GERMAN_UNITS = split("null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf")
_GERMAN_TENS = {
    2: "zwanzig",
    3: "dreißig",
    4: "vierzig",
    5: "fünfzig",
    6: "sechzig",
    7: "siebzig",
    8: "achtzig",
    9: "neunzig",
}


def _french_below_100(n: int) -> str:
    if n <= 16:
        return _FRENCH_UNITS[n]
    if n < 20:
        return f"dix-{_FRENCH_UNITS[n - 10]}"
    if n < 70:
        tens, unit = divmod(n, 10)
        join = {0: "", 1: " et un"}.get(unit, f"-{_FRENCH_UNITS[unit]}")
        return _FRENCH_TENS[tens] + join
    if n < 80:
        return "soixante et onze" if n == 71 else f"soixante-{_french_below_100(n - 60)}"
    return "quatre-vingts" if n == 80 else f"quatre-vingt-{_french_below_100(n - 80)}"


def french_number(n: int) -> str:
    """The French words of an integer of [0, 999]: 71 is "soixante et onze", 80 "quatre-vingts"."""
    if not 0 <= n <= 999:
        raise ValueError(f"french_number knows 0 to 999, got {n}")
    hundreds, rest = divmod(n, 100)
    if hundreds == 0:
        return _french_below_100(rest)
    head = "cent" if hundreds == 1 else f"{_FRENCH_UNITS[hundreds]} cent"
    if rest == 0:
        return head if hundreds == 1 else f"{head}s"
    return f"{head} {_french_below_100(rest)}"


def _german_below_100(n: int) -> str:
    if n <= 12:
        return _GERMAN_UNITS[n]
    if n < 20:
        return {16: "sechzehn", 17: "siebzehn"}.get(n, f"{_GERMAN_UNITS[n - 10]}zehn")
    tens, unit = divmod(n, 10)
    if unit == 0:
        return _GERMAN_TENS[tens]
    return f"{'ein' if unit == 1 else _GERMAN_UNITS[unit]}und{_GERMAN_TENS[tens]}"


def german_number(n: int) -> str:
    """The German words of an integer of [0, 999]: 47 is "siebenundvierzig", 101 "einhunderteins"."""
    if not 0 <= n <= 999:
        raise ValueError(f"german_number knows 0 to 999, got {n}")
    hundreds, rest = divmod(n, 100)
    if hundreds == 0:
        return _german_below_100(rest)
    head = f"{'ein' if hundreds == 1 else _GERMAN_UNITS[hundreds]}hundert"
    return head if rest == 0 else head + _german_below_100(rest)


def french_phrase(noun: Noun, colour: Colour) -> str:
    """ "the red house" in French: article (elided before a vowel or mute h), noun, colour in agreement."""
    feminine = noun.french_gender is Gender.FEMININE
    article = "l'" if noun.french[0] in "aeiouh" else ("la " if feminine else "le ")
    return f"{article}{noun.french} {colour.french_feminine if feminine else colour.french_masculine}"


_GERMAN_NOMINATIVE = {Gender.MASCULINE: "der", Gender.FEMININE: "die", Gender.NEUTER: "das"}


def german_phrase(noun: Noun, colour: Colour, *, accusative: bool = False) -> str:
    """ "the red house" in German: nominative as after "Hier ist", or accusative as after "Ich sehe"."""
    if accusative and noun.german_gender is Gender.MASCULINE:
        return f"den {colour.german}en {noun.german}"
    return f"{_GERMAN_NOMINATIVE[noun.german_gender]} {colour.german}e {noun.german}"
