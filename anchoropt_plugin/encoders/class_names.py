"""How a class name, or any words of a configuration, read in a prompt."""

from __future__ import annotations


def as_words(name: str) -> str:
    """Return ``name`` with a blank for every underscore, as public code puts names in prompts.

    >>> as_words("annual_crop_land")
    'annual crop land'
    """
    return name.replace("_", " ")
