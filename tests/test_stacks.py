"""Random stacks of indexes under random changes hold what a model made of numpy arrays holds: bench/stacks.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

sys.path.append(str(Path(__file__).parents[1]))

from bench import stacks

SEEDS = st.integers(0, 1 << 30)


class Machine(RuleBasedStateMachine):
    @initialize(name=st.sampled_from(sorted(stacks.STACKS)))
    def begin(self, name):
        self.stack = stacks.Stack(name)

    @rule(step=st.sampled_from(stacks.Stack.STEPS), seed=SEEDS)
    def step(self, step, seed):
        self.stack.step(step, seed)

    def teardown(self):
        if hasattr(self, "stack"):
            self.stack.search(np.random.default_rng(0))


TestStacks = Machine.TestCase
TestStacks.settings = settings(max_examples=60, stateful_step_count=34, derandomize=True, deadline=None)


KINDS = ["add", "remove", "update", "merge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(stacks.STACKS))
def test_an_interruption_at_any_line_leaves_all_or_nothing(name, kind):
    # Every third of these lines, for each stack others: a line is run by many stacks.
    first = (sorted(stacks.STACKS).index(name) + KINDS.index(kind)) % 3
    for line in [*range(1, 300), *range(300, 2000, 7)][first::3]:
        stack = stacks.Stack(name)
        stack.add(np.random.default_rng(3))
        assert len(stack.entries.ids) > 2
        change, after = stack._change(stacks._Chosen(np.random.default_rng(4), kind))
        try:
            stacks.interrupted_at(line, change)
        except RuntimeError:  # a method that FAISS's wrapper does not have
            stack.search(np.random.default_rng(line))
            return
        except stacks.Interruption:
            stack.settle(after)
            stack.search(np.random.default_rng(line))
            stack.add(np.random.default_rng(5))  # which an interruption before must not tear, either
            stack.search(np.random.default_rng(line))
        else:
            stack.entries = after
            stack.search(np.random.default_rng(line))
            return
    raise AssertionError("the change runs more lines than this test interrupts")
