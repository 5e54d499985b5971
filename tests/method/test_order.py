"""The position matrix in words, against plain counting and all permutations."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from anchoropt_plugin import AnchorPositionModule
from anchoropt_plugin.method.order import UNCHANGED, in_words
from anchoropt_plugin.method.relaxations import RELAXATIONS

NAMES = ["v1", "v2", "v3", "A1", "A2"]


def rows(*tokens):
    return torch.eye(5)[list(tokens)]


def test_every_permutation_is_listed_slot_by_slot():
    for tokens in itertools.permutations(range(5)):
        said = in_words(rows(*tokens), 3)
        if tokens == (0, 1, 2, 3, 4):
            assert said == UNCHANGED == "unchanged: context, then anchors"
        else:
            assert said == "order: " + " ".join(NAMES[token] for token in tokens)


def test_every_row_wise_choice_names_repeated_and_lost_tokens():
    for tokens in itertools.product(range(3), repeat=3):
        said = in_words(torch.eye(3)[list(tokens)], 2)
        names = ["v1", "v2", "A1"]
        for token, name in enumerate(names):
            count = tokens.count(token)
            assert (f"{name} lost" in said) == (count == 0)
            assert (f"{name} {count} times" in said) == (count > 1)
        assert ("no permutation" in said) == (len(set(tokens)) < 3)


def test_a_mixture_tells_how_far_from_the_nearest_permutation_it_is():
    torch.manual_seed(0)
    matrix = torch.randn(5, 5).mul(2).softmax(-1)
    shares = {
        tokens: sum(float(matrix[slot, token]) for slot, token in enumerate(tokens)) / 5
        for tokens in itertools.permutations(range(5))
    }
    nearest = max(shares, key=shares.get)
    said = in_words(matrix, 3)
    assert f"the nearest order, {' '.join(NAMES[token] for token in nearest)}, has" in said
    assert f"has {round(100 * shares[nearest])}% of the weight" in said
    assert "an even mixture: 20%" in said


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_the_most_likely_matrix_is_that_of_the_evaluation(relaxation):
    torch.manual_seed(0)
    position = AnchorPositionModule(3, torch.ones(2, 4), relaxation=relaxation, init_std=2.0)
    found = position.train().most_likely()
    assert not found.requires_grad
    assert torch.equal(found, position.eval().draw())
    if relaxation == "soft":
        assert re.match("a mixture of tokens", in_words(found, 3))
