"""Texts, and vectors of texts that need no network: words have random directions, and a text is the mean of its words."""

import hashlib

import numpy as np

D = 64
SUBJECTS = "the cat|a dog|our train|the judge|one sailor|a red kite|the old ship|my sister".split("|")
VERBS = "chases|forgets|paints|sells|waits for|sings about|looks at|repairs".split("|")
OBJECTS = "the moon|seven apples|a green harbour|the quiet library|two clocks|his brother|a long letter|rain".split("|")
TEXTS = [f"{subject} {verb} {thing}" for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]


def direction(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal(D)


def encode(texts: list[str]) -> np.ndarray:
    """Vectors of unit length, (len(texts), D) float32."""
    x = np.array([sum(direction(word) for word in text.split()) for text in texts], np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
