"""The kinds of question that can be asked of a scene.

`compose` adapts random digits until the question has one answer, and makes the twin's digits: one
attribute of the evidence changed, so that the answer changes. `ask` reads question and reference
text off the digits, and sees nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from interp.data.digits.drawing import COLORS, Digit


@dataclass(frozen=True)
class Query:
    """A question about a scene, with its reference text."""

    question: str
    thinking: str
    answer: str
    evidence: tuple[int, ...]
    """Indices of the digits that decide the answer."""


def _swap(digits: tuple[Digit, ...], index: int, digit: Digit) -> tuple[Digit, ...]:
    return (*digits[:index], digit, *digits[index + 1 :])


def _unique_colors(hand, digits, chosen) -> tuple[Digit, ...]:
    """The chosen digits get colours that nothing else in the scene has."""
    taken = set()
    for i in chosen:
        digits = _swap(digits, i, hand.recolor(digits[i], taken))
        taken.add(digits[i].color)
    for i in set(range(len(digits))) - set(chosen):
        if digits[i].color in taken:
            digits = _swap(digits, i, hand.recolor(digits[i], taken))
    return digits


def _unique_label(hand, digits, chosen: int) -> tuple[Digit, ...]:
    label = digits[chosen].label
    for i, digit in enumerate(digits):
        if i != chosen and digit.label == label:
            digits = _swap(digits, i, hand.relabel(digit, {label}))
    return digits


def _compose_digit_by_color(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    digits = _unique_colors(hand, digits, [i])
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))
    return digits, digits[i].color, twin


def _ask_digit_by_color(digits, color) -> Query:
    (i,) = (i for i, d in enumerate(digits) if d.color == color)
    thinking = f"the {color} digit is at the {digits[i].where}."
    return Query(f"which digit is {color}?", thinking, str(digits[i].label), (i,))


def _glance_digit_by_color(digits, color):
    """The first one has the colour that is asked for."""
    (i,) = (i for i, d in enumerate(digits) if d.color == color)
    swapped = _swap(digits, i, replace(digits[i], color=digits[0].color))
    return _swap(swapped, 0, replace(digits[0], color=color))


def _compose_color_by_digit(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    digits = _unique_label(hand, digits, i)
    twin = _swap(digits, i, hand.recolor(digits[i], {digits[i].color}))
    return digits, digits[i].label, twin


def _ask_color_by_digit(digits, label) -> Query:
    (i,) = (i for i, d in enumerate(digits) if d.label == label)
    thinking = f"the {label} is at the {digits[i].where}."
    return Query(f"what color is the {label}?", thinking, digits[i].color, (i,))


def _glance_color_by_digit(digits, label):
    """The first one is the digit that is asked for."""
    return _relabelled(digits, label, 0)


def _relabelled(digits, label: int, index: int) -> tuple[Digit, ...]:
    """Another digit has the label, and its own goes where the label was."""
    (i,) = (i for i, d in enumerate(digits) if d.label == label)
    swapped = _swap(digits, i, replace(digits[i], label=digits[index].label))
    return _swap(swapped, index, replace(digits[index], label=label))


def _is_left(left: Digit, right: Digit) -> bool:
    return right.place == (left.place[0], left.place[1] + 1)


def _compose_left_of(hand, digits):
    pairs = [i for i in range(len(digits) - 1) if _is_left(digits[i], digits[i + 1])]
    i = hand.pick(pairs)
    digits = _unique_label(hand, digits, i + 1)
    label = digits[i + 1].label
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label, label}))
    return digits, label, twin


def _ask_left_of(digits, label) -> Query:
    (j,) = (j for j, d in enumerate(digits) if d.label == label)
    (i,) = (i for i, d in enumerate(digits) if _is_left(d, digits[j]))
    thinking = f"the {label} is at the {digits[j].where}. left of it is the {digits[i].where}."
    question = f"which digit is just left of the {label}?"
    return Query(question, thinking, str(digits[i].label), (i, j))


def _glance_left_of(digits, label):
    """It is the first pair."""
    first = next(i for i in range(len(digits) - 1) if _is_left(digits[i], digits[i + 1]))
    return _relabelled(digits, label, first + 1)


def _compose_count(hand, digits):
    color = hand.pick(list(COLORS))
    order = [int(i) for i in hand.rng.permutation(len(digits))]
    n_asked = int(hand.rng.integers(1, len(digits) + 1))
    for rank, i in enumerate(order):
        if rank < n_asked:
            digits = _swap(digits, i, replace(digits[i], color=color))
        elif digits[i].color == color:
            digits = _swap(digits, i, hand.recolor(digits[i], {color}))
    fewer = n_asked == len(digits) or (n_asked > 1 and hand.rng.random() < 0.5)
    i = order[0] if fewer else order[-1]
    changed = hand.recolor(digits[i], {color}) if fewer else replace(digits[i], color=color)
    return digits, color, _swap(digits, i, changed)


def _ask_count(digits, color) -> Query:
    indices = tuple(i for i, d in enumerate(digits) if d.color == color)
    thinking = f"{color} digits are at: {', '.join(digits[i].where for i in indices)}."
    return Query(f"how many digits are {color}?", thinking, str(len(indices)), indices)


def _glance_count(digits, color):
    """There is no second one."""
    first = next(i for i, d in enumerate(digits) if d.color == color)
    return tuple(d for i, d in enumerate(digits) if d.color != color or i == first)


def _compose_sum(hand, digits):
    i, j = (int(k) for k in hand.rng.permutation(len(digits))[:2])
    digits = _unique_colors(hand, digits, [i, j])
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))
    return digits, (digits[i].color, digits[j].color), twin


def _ask_sum(digits, colors) -> Query:
    i, j = (next(k for k, d in enumerate(digits) if d.color == color) for color in colors)
    first, second = digits[i].label, digits[j].label
    thinking = f"the {colors[0]} digit is {first}. the {colors[1]} digit is {second}."
    question = f"what is the {colors[0]} digit plus the {colors[1]} digit?"
    return Query(question, thinking, str(first + second), (i, j))


def _glance_sum(digits, colors):
    """The second is the same as the first."""
    i, j = (next(k for k, d in enumerate(digits) if d.color == color) for color in colors)
    return _swap(digits, j, replace(digits[j], label=digits[i].label))


def _compose_read(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    return digits, None, _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))


def _ask_read(digits, _) -> Query:
    labels = ", ".join(f"{d.color} {d.label}" for d in digits)
    thinking = f"there are {len(digits)} digits."
    return Query("which digits are there?", thinking, labels, tuple(range(len(digits))))


def _glance_read(digits, _):
    """There is no second one."""
    return digits[:1]


@dataclass(frozen=True)
class Family:
    """A kind of question."""

    name: str
    min_digits: int
    compose: Callable
    """(hand, digits) -> digits with one answer, the question's key, the twin's digits."""
    ask: Callable
    """(digits, key) -> Query."""
    glance: Callable
    """(digits, key) -> the digits as somebody remembers them who looked at the first one only, in
    reading order: what is said of them is of one piece, and often wrong."""


FAMILIES = {
    family.name: family
    for family in (
        Family("read", 1, _compose_read, _ask_read, _glance_read),
        Family(
            "digit_by_color",
            1,
            _compose_digit_by_color,
            _ask_digit_by_color,
            _glance_digit_by_color,
        ),
        Family(
            "color_by_digit",
            1,
            _compose_color_by_digit,
            _ask_color_by_digit,
            _glance_color_by_digit,
        ),
        Family("left_of", 2, _compose_left_of, _ask_left_of, _glance_left_of),
        Family("count", 2, _compose_count, _ask_count, _glance_count),
        Family("sum", 2, _compose_sum, _ask_sum, _glance_sum),
    )
}
QUESTIONS = tuple(name for name in FAMILIES if name != "read")
