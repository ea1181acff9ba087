"""What people may say to a voice assistant and what they want by it: sentences **expanded from templates**.

Source: the English grammar of Home Assistant (home-assistant-intents), written by its community. The sentences are made
from its templates here, with names, rooms and free text from small lists of our own: nobody said or typed them. Held
out are whole templates, so a test sentence has a form that no training sentence had; no sentence occurs twice. A row is
the utterance in UTF-8, cut or zero-padded to LENGTH bytes. Order, expansion and split are fixed; numpy only.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Array, Data, Labelled, fingerprint
from edgewright_models.carriers import wheel_member

from .templates import expand

PIN: Final = (
    "home-assistant-intents==2026.10.27",
    "0b9d606a216b1712409a3d822a8edfb9ff4458e51e421792882ea24e0ce1d456",
    "home_assistant_intents/data/en.json",
)
LENGTH: Final = 64  # bytes
SEED: Final = 20260101
LEAST_TEMPLATES: Final = 4  # an intent with fewer cannot be held out by template in three parts
PER_INTENT: Final = 700  # sentences tried for, shared among its templates
PER_TEMPLATE: Final = 60
SHARES: Final = {"test": 0.3, "validation": 0.15}  # of the templates of an intent, at least one; the rest train

VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "area": (
        "kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway", "attic", "basement",
        "dining room", "guest room", "nursery", "laundry room", "porch", "study", "balcony",
    ),
    "floor": ("ground", "first", "second", "third", "upper", "lower", "top"),
    "name": (
        "desk lamp", "ceiling fan", "coffee maker", "front door", "heater", "tv", "bedside light", "back gate",
        "christmas tree", "aquarium", "oven", "thermostat", "party scene", "vacuum", "speaker", "dishwasher", "robot",
    ),
    "item": ("milk", "bread", "eggs", "apples", "soap", "coffee", "batteries", "call grandma", "rice", "paper towels"),
    "message": ("dinner is ready", "time for bed", "the bus is here", "we are leaving", "come downstairs"),
    "search_query": (
        "abbey road", "the beatles", "jazz classics", "morning news", "bohemian rhapsody", "miles davis", "star wars",
        "cooking show", "summer hits", "true crime",
    ),
    "timer_name": ("pizza", "laundry", "tea", "eggs", "homework", "workout", "pasta", "meeting"),
    "timer_command": ("turn off the lights", "open the garage door", "start the vacuum", "close the blinds"),
    "zone": ("home", "work", "school", "the gym"),
}  # fmt: skip
ALIASES: Final = {"shopping_list_item": "item", "todo_list_item": "item"}


def data() -> Data:
    """Raises Unavailable when the grammar cannot be had."""
    grammar = json.loads(wheel_member(*PIN))
    templates = {
        intent: found
        for intent, block in sorted(grammar["intents"].items())
        if len(found := sorted({text for part in block["data"] for text in part["sentences"]})) >= LEAST_TEMPLATES
    }
    labels = tuple(templates)
    said: dict[str, list[tuple[str, int, str]]] = {"train": [], "validation": [], "test": []}
    once: dict[str, int] = {}  # sentence → intent
    for label, intent in enumerate(labels):
        parts = held_out(templates[intent])
        for name in said:
            for template in parts[name]:
                for sentence in sentences(template, grammar, PER_INTENT // len(templates[intent])):
                    if sentence not in once:
                        once[sentence] = label
                        said[name].append((sentence, label, template))
    train, validation, test = (_labelled(name, found) for name, found in said.items())
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        labels,
        notes=(
            "Data: sentences expanded from templates (home-assistant-intents 2026.10.27, Apache-2.0), said by nobody.",
            f"Split by template: {', '.join(f'{_templates(part)} {part.name}' for part in (train, validation, test))}.",
            "No sentence occurs twice.",
            f"{len(labels)} of {len(grammar['intents'])} intents: those with at least {LEAST_TEMPLATES} templates.",
        ),
    )


def held_out(templates: list[str]) -> dict[str, list[str]]:
    """The templates of one intent by split, each whole; which goes where hangs on their text only."""
    order = sorted(templates, key=lambda text: zlib.crc32(f"{SEED} {text}".encode()))
    parts, taken = {}, 0
    for name, share in SHARES.items():
        size = max(1, round(share * len(order)))
        parts[name] = order[taken : taken + size]
        taken += size
    return parts | {"train": order[taken:]}


def sentences(template: str, grammar: Mapping[str, Any], wanted: int) -> Iterator[str]:
    """Distinct ones that fit into a row, at most PER_TEMPLATE."""
    rng = np.random.default_rng([SEED, zlib.crc32(template.encode())])
    lists = grammar["lists"]
    seen = set()
    wanted = min(max(wanted, 4), PER_TEMPLATE)
    for _ in range(4 * wanted):  # a template of few words has few expansions
        sentence = expand(template, grammar["expansion_rules"], lambda rng, name: _value(rng, name, lists), rng)
        if sentence not in seen and len(sentence.encode()) <= LENGTH:
            seen.add(sentence)
            yield sentence
        if len(seen) == wanted:
            return


def row(sentence: str) -> npt.NDArray[np.uint8]:
    """One utterance as the package takes it: [LENGTH]."""
    encoded = sentence.lower().encode()[:LENGTH]
    return np.frombuffer(encoded.ljust(LENGTH, b"\0"), np.uint8)


def _value(rng: np.random.Generator, name: str, lists: Mapping[str, Any]) -> str:
    own = VALUES.get(ALIASES.get(name, name))
    if own is not None:
        return own[rng.integers(len(own))]
    entry = lists[name]
    if "range" in entry:
        span = entry["range"]
        return str(rng.integers(span["from"], span["to"] + 1))
    value = entry["values"][rng.integers(len(entry["values"]))]
    return expand(value["in"] if isinstance(value, dict) else value, {}, lambda _rng, inner: inner, rng)


def _labelled(name: str, found: list[tuple[str, int, str]]) -> Labelled:
    rows: Array = np.stack([row(sentence) for sentence, _, _ in found])
    return Labelled(
        name,
        {"utterance": rows},
        np.array([label for _, label, _ in found], np.int64),
        groups=np.array([template for _, _, template in found]),
        origins=tuple(repr(sentence) for sentence, _, _ in found),
    )


def _templates(split: Labelled) -> int:
    return 0 if split.groups is None else len(np.unique(split.groups))
