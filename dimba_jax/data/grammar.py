"""The grammar of the generated question paraphrases: topics, their entities and paired templates.

A template pair asks one thing in two ways. `{0}` and `{1}` stand for the two forms of an entity (a word and
its synonym, mostly the same), `{m}` for a modifier, which reads differently on either side. The two sides
share little more than the entity, so that a copied question scores badly as its own paraphrase.
"""

from __future__ import annotations

from dataclasses import dataclass

# Modifier: (on the source side, on the target side). The first of a group is "none".
HOW = (
    ("", ""),
    ("in a week", "within a week"),
    ("quickly", "in no time"),
    ("without spending money", "for free"),
    ("as a beginner", "with no experience"),
    ("alone", "on my own"),
    ("on a tight budget", "without much money"),
    ("before the summer", "by june"),
    ("after work", "in the evening"),
    ("with my family", "with my family"),
    ("while travelling", "on the road"),
)
WHEN = (
    ("", ""),
    ("in winter", "when it snows"),
    ("at night", "after dark"),
    ("these days", "right now"),
    ("on a rainy day", "when it rains"),
    ("at christmas", "over the holidays"),
    ("on mondays", "every monday"),
    ("in hot weather", "in the sun"),
    ("early in the morning", "in the morning"),
    ("during a full moon", "by moonlight"),
    ("on my birthday", "on my birthday"),
)


@dataclass(frozen=True)
class TemplatePair:
    intent: str
    source: str
    target: str
    modifiers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Topic:
    name: str
    entities: tuple[tuple[str, str], ...]  # (first form, second form)
    templates: tuple[TemplatePair, ...]


def _entities(words: str) -> tuple[tuple[str, str], ...]:
    """Reads "parrot, kitten = young cat": one form, or two."""
    forms = ([form.strip() for form in word.split("=")] for word in words.split(","))
    return tuple((form[0], form[-1]) for form in forms)


_PLACES = Topic(
    "places",
    _entities(
        "iceland, japan, peru, italy, kenya, norway, egypt, india, cuba, greece, mexico, scotland, hawaii, brazil,"
        "turkey, finland, nepal, portugal, transylvania, chile, the moon, holland = the netherlands,"
        "new york, spain"
    ),
    (
        TemplatePair("trip", "how can i travel to {0} {m}?", "what is the best way to reach {1} {m}?", HOW),
        TemplatePair("trip", "what should i pack for a trip to {0} {m}?", "what do i need for visiting {1} {m}?", WHEN),
        TemplatePair("worth", "is it a good idea to visit {0} {m}?", "should i take a trip to {1} {m}?", WHEN),
        TemplatePair("worth", "why do so many people love {0} {m}?", "what makes {1} such a popular place {m}?", WHEN),
        TemplatePair("money", "how do i find a cheap flight to {0} {m}?", "where can i get a ticket to {1} {m}?", HOW),
        TemplatePair("money", "how much money do i need for {0} {m}?", "what is the price of a trip to {1} {m}?", WHEN),
        TemplatePair("people", "are the people of {0} friendly {m}?", "do people from {1} like to help {m}?", WHEN),
        TemplatePair("dream", "do you think i could ever see {0} {m}?", "is there a chance to see {1} {m}?", HOW),
    ),
)

_FOODS = Topic(
    "foods",
    _entities(
        "pancakes, lentil soup, apple pie, sushi, tomato soup, banana bread, fried rice, dumplings, onion soup,"
        "garlic bread, noodles, lemonade, pizza, cookies = biscuits, fries = chips, ice cream = gelato,"
        "jam = marmalade, porridge = oatmeal, waffles, curry, popcorn, meatballs, cheese, apple cake"
    ),
    (
        TemplatePair("cook", "how do i make tasty {0} {m}?", "what is a good recipe for {1} {m}?", HOW),
        TemplatePair("cook", "can you explain how to cook {0} {m}?", "is there an easy way to make {1} {m}?", HOW),
        TemplatePair("taste", "why did my {0} taste so bad {m}?", "what did i do wrong with my {1} {m}?", WHEN),
        TemplatePair("taste", "what would go well with {0} {m}?", "what should i eat with {1} {m}?", WHEN),
        TemplatePair("where", "where can i eat great {0} {m}?", "which place has the best {1} {m}?", WHEN),
        TemplatePair("where", "who sells good {0} to people {m}?", "where can i buy tasty {1} {m}?", WHEN),
        TemplatePair("health", "is it okay if my dog eats {0} {m}?", "should i feed {1} to a dog {m}?", WHEN),
        TemplatePair("health", "is it healthy to live on {0} {m}?", "will i get ill if i only eat {1} {m}?", WHEN),
    ),
)

_GADGETS = Topic(
    "gadgets",
    _entities(
        "laptop, phone, camera, toaster, printer, vacuum cleaner, tv = television, fridge = refrigerator,"
        "washing machine, drone, bike = bicycle, keyboard, coffee machine, radio, robot, piano, hair dryer,"
        "car = vehicle, time machine, lamp, heater, microwave, guitar, telescope"
    ),
    (
        TemplatePair("repair", "how can i fix my broken {0} {m}?", "what should i do to repair a {1} {m}?", HOW),
        TemplatePair("repair", "what is the right way to clean a {0} {m}?", "how should i wash a dirty {1} {m}?", HOW),
        TemplatePair("noise", "why does my {0} make strange noises {m}?", "what makes a {1} sound so odd {m}?", WHEN),
        TemplatePair("noise", "is it normal that my {0} feels warm {m}?", "why does a {1} get so hot {m}?", WHEN),
        TemplatePair("buy", "is it worth buying a new {0} {m}?", "should people replace their old {1} {m}?", WHEN),
        TemplatePair("buy", "how do i choose the best {0} {m}?", "which {1} do you think i should buy {m}?", HOW),
        TemplatePair("own", "where can i sell my used {0} {m}?", "who would like to buy my old {1} {m}?", WHEN),
        TemplatePair("own", "how do i build my own {0} {m}?", "is there a way to make my own {1} {m}?", HOW),
    ),
)

_PETS = Topic(
    "pets",
    _entities(
        "parrot, goldfish, kitten = young cat, hedgehog, puppy = young dog, rabbit = bunny, hamster,"
        "turtle = tortoise, pony = small horse, snake, llama, goat, duck, chicken = hen, lizard, frog, donkey,"
        "dragon, penguin, pig, sheep, camel, tiger, monkey"
    ),
    (
        TemplatePair("food", "what should i feed my {0} {m}?", "which food should i give to my {1} {m}?", WHEN),
        TemplatePair("food", "how often does a {0} want to eat {m}?", "when do i have to feed a {1} {m}?", WHEN),
        TemplatePair("train", "how do i train my {0} to sit {m}?", "how can you teach tricks to a {1} {m}?", HOW),
        TemplatePair("train", "can i take a {0} for a walk {m}?", "should i go out with a {1} {m}?", HOW),
        TemplatePair("habits", "why does my {0} stare at me {m}?", "is it normal that a {1} watches me {m}?", WHEN),
        TemplatePair("habits", "where does a {0} like to sleep {m}?", "what is the best bed for a {1} {m}?", WHEN),
        TemplatePair("company", "will my cat accept a {0} {m}?", "can a cat live with a {1} {m}?", WHEN),
        TemplatePair("company", "is a {0} a good pet for kids {m}?", "should children have a {1} as a pet {m}?", WHEN),
    ),
)

_JOBS = Topic(
    "jobs",
    _entities(
        "pilot, nurse, beekeeper, lighthouse keeper, clown, wizard, detective, baker, teacher,"
        "fireman = firefighter, lawyer, plumber, chef = cook, ninja, dentist, pirate, gardener, farmer,"
        "spy = secret agent, barber = hairdresser, poet, judge, magician, sailor"
    ),
    (
        TemplatePair("become", "how do i become a {0} {m}?", "what does it take to be a {1} {m}?", HOW),
        TemplatePair("become", "do i need a degree to be a {0} {m}?", "should a {1} go to university {m}?", WHEN),
        TemplatePair("money", "how much money does a {0} earn {m}?", "what is the salary of a {1} {m}?", WHEN),
        TemplatePair("money", "could a {0} ever get rich {m}?", "can a {1} really make much money {m}?", WHEN),
        TemplatePair("day", "what does a {0} do all day {m}?", "what is the work of a {1} like {m}?", WHEN),
        TemplatePair("day", "is it fun to work as a {0} {m}?", "do people enjoy being a {1} {m}?", WHEN),
        TemplatePair("love", "should my sister marry a {0} {m}?", "would a {1} make my sister happy {m}?", WHEN),
        TemplatePair("hire", "how can i hire a good {0} {m}?", "where can i find the best {1} {m}?", HOW),
    ),
)

_PESTS = Topic(
    "pests",
    _entities(
        "ants, mice, spiders, rats = rodents, moths, wasps, cockroaches, raccoons, pigeons, bugs,"
        "flies, ghosts, slugs = snails, squirrels, mosquitoes = gnats, foxes, zombies, goblins,"
        "crows = ravens, bats, vampires, beetles, worms, aliens"
    ),
    (
        TemplatePair("remove", "how do i get rid of {0} {m}?", "what is a good way to remove {1} {m}?", HOW),
        TemplatePair("remove", "how can i catch {0} in my kitchen {m}?", "which trap is best for {1} {m}?", HOW),
        TemplatePair("many", "why are there so many {0} here {m}?", "what brings {1} to my house {m}?", WHEN),
        TemplatePair("many", "which smell do {0} hate most {m}?", "how can i scare {1} away {m}?", WHEN),
        TemplatePair("danger", "are {0} really dangerous to people {m}?", "should i be afraid of {1} {m}?", WHEN),
        TemplatePair("danger", "what happens if {0} bite me {m}?", "is it bad to be bitten by {1} {m}?", WHEN),
        TemplatePair("life", "where do {0} like to hide {m}?", "in which places can i find {1} {m}?", WHEN),
        TemplatePair("life", "what do {0} usually like to eat {m}?", "which kind of food is best for {1} {m}?", WHEN),
    ),
)

TOPICS = (_PLACES, _FOODS, _GADGETS, _PETS, _JOBS, _PESTS)
