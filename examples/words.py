"""Texts, and vectors of them that need no network: a word is a random direction, and a text the mean of its words."""

import hashlib

import numpy as np

D = 64
SUBJECTS = ["the cat", "a dog", "our train", "the judge", "one sailor", "a red kite", "the old ship", "my sister"]
VERBS = ["chases", "forgets", "paints", "sells", "waits for", "sings about", "looks at", "repairs"]
OBJECTS = [
    "the moon",
    "seven apples",
    "a green harbour",
    "the library",
    "two clocks",
    "his brother",
    "a letter",
    "rain",
]
TEXTS = [f"{subject} {verb} {thing}" for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]


def direction(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal(D)


def encode(texts: list[str]) -> np.ndarray:
    """Vectors of unit length, (len(texts), D) float32."""
    x = np.array([sum(direction(word) for word in text.split()) for text in texts], np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
