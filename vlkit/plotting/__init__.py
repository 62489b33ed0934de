"""Boxes, points and labels drawn on pictures."""

from vlkit.lazy import lazy_names

_HOMES = {
    "draw": ["draw_boxes", "draw_frames", "draw_patch_grid", "plot_boxes", "stack_captioned"],
    "comparing": ["draw_comparison", "save_boxes"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
