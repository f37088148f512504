"""Captions of scenes as a web crawl would have them: true captions, and the defects planted in the seed
set."""

import numpy as np

from toolkit.world.scene import Scene
from toolkit.world.words import BETWEEN, BOILERPLATE, GENERIC, NUMBERS, OPPOSITE, PLURALS

# Defects of the seed set and their shares: the severe mix. A clean share of 70 % would hide what filtering
# gains.
DEFECTS = {
    "clean": 0.21,
    "swapped": 0.47,  # the caption of another image
    # an earlier row again: half byte for byte, half redrawn noise and another JPEG quality
    "duplicate": 0.08,
    "generic": 0.07,
    "truncated": 0.05,
    "garbled": 0.04,
    "boilerplate": 0.04,
    "blurred": 0.02,  # true caption, but the image shows nothing
    "tiny": 0.02,  # likewise: 20 to 30 pixels a side
}
NAMES_SIGN = 0.6  # share of true captions that name the sign's word


def noun(colour: str, kind: str) -> str:
    """`a red mug`, `an orange ball`."""
    return f"{'an' if colour == 'orange' else 'a'} {colour} {kind}"


def describe(scene: Scene) -> str:
    """The objects alone: `a red mug left of a blue box`, `three green fish`."""
    colour, kind = scene.objects[0]
    if scene.relation:
        return f"{noun(colour, kind)} {BETWEEN[scene.relation]} {noun(*scene.objects[1])}"
    return noun(colour, kind) if scene.count == 1 else f"{NUMBERS[scene.count - 1]} {colour} {PLURALS[kind]}"


def full_caption(scene: Scene) -> str:
    """Everything in the one form that the captioner learns to say: of a pair, the alphabet says which object
    comes first."""
    objects, relation = scene.objects, scene.relation
    if relation and objects[0][1] > objects[1][1]:
        scene = Scene(objects[::-1], OPPOSITE[relation], scene.count, scene.sign)
    return f"{describe(scene)}, sign reads {scene.sign}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption in one of several forms; it names the sign's word with probability NAMES_SIGN."""
    description, sign = describe(scene), scene.sign
    if rng.random() < NAMES_SIGN:
        forms: tuple[str, ...] = (
            f"{description}, sign reads {sign}",
            f"{sign} sign and {description}",
            f"{description} with a sign that says {sign}",
            f"the word {sign} near {description}",
        )
    else:
        forms = (description, f"a picture of {description}", f"{description} and a sign")
    return str(rng.choice(forms))


def truncate(text: str, rng: np.random.Generator) -> str:
    """The first one to three words."""
    return " ".join(text.split()[: rng.integers(1, 4)])


def garble(text: str, rng: np.random.Generator) -> str:
    """Swap letters for symbols and repeat characters, as a broken encoding does."""
    letters = []
    for letter in text:
        draw = rng.random()
        if draw < 0.25:
            letters.append(str(rng.choice(list("#@%&*~^$"))))
        elif draw < 0.4:
            letters.append(letter * int(rng.integers(2, 6)))
        else:
            letters.append(letter)
    return "".join(letters)


def generic(rng: np.random.Generator) -> str:
    """Words that fit any image."""
    return str(rng.choice(GENERIC))


def boilerplate(rng: np.random.Generator) -> str:
    """Text of a web page that has nothing to do with the image."""
    return str(rng.choice(BOILERPLATE))
