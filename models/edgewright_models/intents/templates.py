"""Sentence templates as Home Assistant writes them (the hassil grammar), expanded by chance.

    a b      both               [a]          with or without
    (a|b)    one of them        (a;b)        all of them, in any order
    <rule>   a named rule       {list:slot}  a value of a named list (the slot's name plays no part here)

Guarantee: equal templates and equal generators give equal sentences. Cost: one parse a template, then some 20 µs a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from edgewright_contracts.errors import RequestError

Fill = Callable[[np.random.Generator, str], str]  # a generator and the name of a list → one of its values

_TOKEN: Final = re.compile(r"[()\[\]|;]|<[^>]+>|\{[^}]+\}|[^()\[\]|;<{]+")
_CLOSING: Final = {"(": ")", "[": "]"}


@dataclass(frozen=True, slots=True)
class Text:
    words: str


@dataclass(frozen=True, slots=True)
class Rule:
    name: str


@dataclass(frozen=True, slots=True)
class Slot:
    name: str


@dataclass(frozen=True, slots=True)
class Run:
    """Parts one behind the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Shuffled:
    """All branches, in any order."""

    branches: tuple[Node, ...]


Node = Text | Rule | Slot | Run | Choice | Shuffled


def expand(template: str, rules: Mapping[str, str], fill: Fill, rng: np.random.Generator) -> str:
    """One sentence, lower case, single spaces. Raises RequestError for one that does not parse."""

    def say(node: Node) -> str:
        match node:
            case Text(words):
                return words
            case Slot(name):
                return fill(rng, name)
            case Rule(name):
                if name not in rules:
                    raise RequestError(f"template {template!r}: expected a known rule, got <{name}>")
                return say(parse(rules[name]))
            case Run(parts):
                return "".join(say(part) for part in parts)
            case Choice(branches):
                return say(branches[rng.integers(len(branches))])
            case Shuffled(branches):
                return " ".join(say(branches[i]) for i in rng.permutation(len(branches)))

    return " ".join(say(parse(template)).lower().split())


@cache
def parse(template: str) -> Node:
    """Raises RequestError when brackets do not match."""
    tokens = _TOKEN.findall(template)
    node, rest = _branches(tokens, 0, "")
    if rest != len(tokens):
        raise RequestError(f"template {template!r}: expected no {tokens[rest]!r} there")
    return node


def _branches(tokens: list[str], at: int, closing: str) -> tuple[Node, int]:
    """What stands up to `closing`, and the index behind it."""
    branches: list[list[Node]] = [[]]
    separators = set()
    while at < len(tokens) and tokens[at] not in (")", "]"):
        token = tokens[at]
        at += 1
        if token in ("|", ";"):
            separators.add(token)
            branches.append([])
        elif token in _CLOSING:
            node, at = _branches(tokens, at, _CLOSING[token])
            branches[-1].append(node)
        elif token[0] == "<":
            branches[-1].append(Rule(token[1:-1]))
        elif token[0] == "{":
            branches[-1].append(Slot(token[1:-1].split(":")[0]))
        else:
            branches[-1].append(Text(token))
    if closing:
        if at == len(tokens) or tokens[at] != closing:
            raise RequestError(f"template {''.join(tokens)!r}: expected a {closing!r}")
        at += 1
    runs: list[Node] = [Run(tuple(parts)) for parts in branches]
    if closing == "]":
        runs.append(Text(""))
    if len(runs) == 1:
        return runs[0], at
    return (Shuffled(tuple(runs)) if ";" in separators else Choice(tuple(runs))), at
