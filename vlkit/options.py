"""The options of an answer, checked, as transformers' generate takes them."""

from __future__ import annotations

from typing import Any

from vlkit.errors import VlkitError


def generation_options(max_new_tokens: int, temperature: float, top_p: float, seed: Any) -> dict:
    """Options for ``model.generate``; see :func:`vlkit.generate` for what they mean.

    Raises:
        VlkitError: one is out of its range.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise VlkitError(f"max_new_tokens={max_new_tokens!r} must be a whole number, 1 or more")
    if not _is_number(temperature) or not 0 <= temperature <= 10:
        raise VlkitError(f"temperature={temperature!r} must lie between 0 (greedy) and 10")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise VlkitError(f"top_p={top_p!r} must lie above 0 and be at most 1")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise VlkitError(f"seed={seed!r} must be a whole number from 0 up, or None")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature == 0:  # None: the model's own sampling defaults do not apply, and do not warn
        return options | {"temperature": None, "top_p": None, "top_k": None}
    return options | {"temperature": temperature, "top_p": top_p, "top_k": 0}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
