"""A heat map lies where its cells are, and nowhere else."""

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit.errors import VlkitError
from vlkit.plotting.heatmap import draw_heat


def is_coloured(pixel):
    return max(pixel) - min(pixel) > 30


@pytest.mark.parametrize("size", [(60, 40), (600, 400), (3000, 2000)])
def test_the_cell_that_is_hot_is_coloured_and_the_others_grey(size):
    values = np.zeros((4, 6))
    values[1, 4] = 0.25
    drawn = draw_heat(PIL.Image.new("RGB", size, (90, 140, 200)), values)
    width = min(max(size[0], 480), 960)
    assert drawn.width == width and drawn.height > width * 2 / 3  # and the bar
    cell = width / 6
    for row in range(4):
        for column in range(6):
            for at in (0.1, 0.5, 0.9):  # right up to the cell's edges
                pixel = drawn.getpixel((int((column + at) * cell), int((row + at) * cell)))
                assert is_coloured(pixel) == ((row, column) == (1, 4))


def test_no_attention_is_a_grey_picture_and_boxes_are_white():
    picture = PIL.Image.new("RGB", (480, 480), (200, 30, 30))
    drawn = draw_heat(picture, np.zeros((3, 3)), vlkit.Box("", 100, 100, 300, 300))
    assert drawn.getpixel((200, 100)) == (255, 255, 255)
    grey = drawn.getpixel((50, 50))
    assert len(set(grey)) == 1 and grey[0] < 150


def test_the_picture_itself_is_not_changed():
    picture = PIL.Image.new("RGB", (480, 480), (200, 30, 30))
    draw_heat(picture, np.ones((3, 3)))
    assert picture.getpixel((50, 50)) == (200, 30, 30)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[-1.0]], [[float("nan")]]])
def test_values_that_are_no_map_are_one_line(values):
    with pytest.raises(VlkitError, match=r"must be \(rows, columns\), 0 or more"):
        draw_heat(PIL.Image.new("RGB", (50, 50)), np.array(values))
