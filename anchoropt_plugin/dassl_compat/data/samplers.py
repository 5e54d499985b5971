"""Samplers by name: the order of a data set's images in a loader."""

from __future__ import annotations

from collections.abc import Sized

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from ..utils.registry import check_availability

_SAMPLERS = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}


def build_sampler(sampler_type: str, data_source: Sized) -> Sampler[int]:
    """Return the sampler named ``sampler_type`` over ``data_source``.

    Raises:
        UserError: an unknown name.
    """
    check_availability(sampler_type, _SAMPLERS, "the sampler")
    return _SAMPLERS[sampler_type](data_source)
