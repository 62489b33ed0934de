"""Boxes, points, labels and heat maps drawn on pictures."""

from vlkit.plotting.comparing import draw_comparison, save_boxes, stack_captioned
from vlkit.plotting.draw import draw_boxes, draw_frames, draw_patch_grid, plot_boxes

__all__ = [
    "draw_boxes",
    "draw_comparison",
    "draw_frames",
    "draw_patch_grid",
    "plot_boxes",
    "save_boxes",
    "stack_captioned",
]
