"""Drawn boxes lie where they should, their labels can be read, and the input stays as it was."""

import io

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import vlkit
from vlkit import Box, Point, draw_boxes, plot_boxes
from vlkit.errors import MediaError, VlkitError
from vlkit.plotting.curves import COLORS, draw_curves
from vlkit.plotting.fonts import load_font
from vlkit.plotting.labels import PALETTE, label_colors

GRAY = (128, 128, 128)


def blank(width=200, height=160, color=GRAY):
    return PIL.Image.new("RGB", (width, height), color)


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def color_of(label, *others):
    return rgb(label_colors([label, *others])[label])


def changed(drawn, before):
    """The tight box (x1, y1, x2, y2) around what was drawn."""
    mask = (np.asarray(drawn) != np.asarray(before)).any(axis=2)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def covered(drawn, color):
    """The tight box around the pixels of one colour."""
    mask = (np.asarray(drawn) == color).all(axis=2)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


# --- lines ---------------------------------------------------------------------------------------


def test_box_lies_on_its_coordinates():
    drawn = draw_boxes(blank(), Box("cat", 50, 40, 150, 120), labels=False, line_width=1)
    assert covered(drawn, color_of("cat")) == (50, 40, 150, 120)
    for on in ((50, 80), (149, 80), (100, 40), (100, 119)):
        assert drawn.getpixel(on) == color_of("cat")
    for off in ((100, 80), (47, 80), (152, 80), (100, 37), (100, 122)):
        assert drawn.getpixel(off) == GRAY


@pytest.mark.parametrize("width", [1, 2, 5])
def test_line_width_goes_inwards(width):
    drawn = draw_boxes(blank(), Box("", 50, 40, 150, 120), line_width=width)
    assert covered(drawn, color_of("")) == (50, 40, 150, 120)
    assert drawn.getpixel((50 + width - 1, 80)) == color_of("")
    assert drawn.getpixel((50 + width, 80)) != color_of("")


def test_line_width_follows_the_size():
    def width(side):
        drawn = draw_boxes(blank(side, side), Box("", side / 4, side / 4, side / 2, side / 2))
        row = np.asarray(drawn)[3 * side // 8, : 3 * side // 8]
        return int((row == color_of("")).all(axis=1).sum())

    widths = [width(side) for side in (28, 300, 1200, 3000)]
    assert widths[0] == 1 and widths == sorted(widths) and widths[-1] > 10


def test_box_of_the_whole_picture_is_visible_on_all_sides():
    drawn = np.asarray(draw_boxes(blank(), Box("", 0, 0, 200, 160), line_width=1))
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (edge == color_of("")).all()


def test_corners_are_rounded():
    drawn = draw_boxes(blank(), Box("", 49.6, 40.4, 150.4, 119.6), line_width=1)
    assert covered(drawn, color_of("")) == (50, 40, 150, 120)


def test_point_lies_on_its_coordinates():
    drawn = draw_boxes(blank(), [Point("", 60, 50)])
    x1, y1, x2, y2 = changed(drawn, blank())
    assert drawn.getpixel((60, 50)) == color_of("")
    assert abs((x1 + x2) / 2 - 60) <= 1 and abs((y1 + y2) / 2 - 50) <= 1 and 4 <= x2 - x1 <= 20


@pytest.mark.parametrize(
    "item",
    [
        Box("cat", 300, 20, 400, 90),
        Box("cat", -200, -90, -100, -20),
        Box("cat", 20, 500, 90, 600),
        Point("cat", 1000, 1000),
        Point("cat", -1e9, 50),
    ],
)
def test_what_lies_outside_leaves_no_trace(item):
    assert list(draw_boxes(blank(), item).tobytes()) == list(blank().tobytes())


def test_box_that_reaches_outside_is_cut():
    drawn = draw_boxes(blank(), Box("", -1e6, 40, 100, 1e6), line_width=1)
    assert covered(drawn, color_of("")) == (0, 40, 100, 160)


def test_box_without_area_is_still_seen():
    assert draw_boxes(blank(), Box("", 50, 40, 50, 40)).getpixel((50, 40)) == color_of("")


def test_small_boxes_lie_on_top():
    large, small = Box("a", 10, 10, 150, 120), Box("b", 10, 10, 30, 30)
    for order in ([large, small], [small, large]):
        drawn = draw_boxes(blank(), order, labels=False, line_width=2)
        assert drawn.getpixel((20, 10)) == color_of("b", "a")


# --- input and output ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (28, 200), (640, 480), (4000, 3000)])
@pytest.mark.parametrize("label", ["", "red circle", "红色圆形" * 20])
def test_size_stays_and_input_too(size, label):
    picture = blank(*size)
    before = picture.tobytes()
    boxes = [Box(label, 0, 0, size[0] / 2, size[1] / 2), Point(label, size[0] / 3, size[1] / 3)]
    drawn = draw_boxes(picture, boxes)
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert picture.tobytes() == before and drawn.tobytes() != before


def test_picture_with_orientation_is_drawn_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    blank(160, 200).save(buffer, "PNG", exif=exif)
    drawn = draw_boxes(buffer.getvalue(), Box("", 50, 40, 150, 120), line_width=1)
    assert drawn.size == (200, 160)
    assert covered(drawn, color_of("")) == (50, 40, 150, 120)


def test_no_boxes_is_a_copy():
    picture = blank()
    drawn = draw_boxes(picture, [])
    assert drawn is not picture and drawn.tobytes() == picture.tobytes()


@pytest.mark.parametrize("boxes", [None, [(0, 0, 1, 1)], "box"])
@pytest.mark.parametrize("call", [draw_boxes, lambda *given: plot_boxes(axes(), *given)])
def test_wrong_boxes(call, boxes):
    with pytest.raises(VlkitError, match=r"expected vlkit\.Box"):
        call(blank(), boxes)


def test_wrong_picture():
    with pytest.raises(MediaError, match=r"missing\.png does not exist"):
        draw_boxes("missing.png", [])


# --- labels --------------------------------------------------------------------------------------


def luminance(color):
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def label_of_color(color):
    names = (f"thing {i}" for i in range(1000))
    return next(name for name in names if label_colors([name])[name] == color)


@pytest.mark.parametrize("color", PALETTE)
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), GRAY, (250, 20, 20)])
def test_label_contrasts_with_its_ground(color, ground):
    drawn = draw_boxes(blank(400, 300, ground), Box(label_of_color(color), 50, 80, 350, 280))
    x1, y1, x2, y2 = covered(drawn.crop((0, 0, 400, 79)), rgb(color))
    assert y2 - y1 >= 11 and x2 - x1 > 30
    pixels = [tuple(p) for p in np.asarray(drawn.crop((x1, y1, x2, y2))).reshape(-1, 3).tolist()]
    assert max(set(pixels), key=pixels.count) == rgb(color)  # behind the letters is one colour
    assert sum(contrast(pixel, rgb(color)) >= 4.5 for pixel in pixels) > 30


@pytest.mark.parametrize("text", ["红色圆形公交车", "ひらがなカタカナ", "Ünïcödé", "紅綠燈"])
def test_glyphs_are_real(text):
    font = load_font(24)
    missing = bytes(font.getmask("\U0010ffff"))
    glyphs = {bytes(font.getmask(character)) for character in text}
    assert missing not in glyphs and len(glyphs) == len(set(text))


def test_chinese_label_is_drawn():
    def ink(label):
        return draw_boxes(blank(), Box(label, 20, 60, 180, 150)).crop((0, 0, 200, 58)).tobytes()

    assert ink("红") != ink("绿") != ink("\ue000")


@pytest.mark.parametrize(
    "box",
    [
        Box("at the top", 60, 0, 140, 100),
        Box("at the left", 0, 50, 100, 100),
        Box("at the right", 190, 50, 200, 100),
        Box("at the bottom", 60, 155, 140, 160),
        Box("all of it", 0, 0, 200, 160),
        Box("half outside", -100, -100, 60, 60),
        Point("in a corner", 199, 159),
    ],
    ids=lambda box: box.label,
)
def test_label_stays_whole_inside_the_picture(box):
    plain, drawn = (draw_boxes(blank(), box, labels=labels) for labels in (False, True))
    x1, y1, x2, y2 = changed(drawn, plain)
    roomy = Box(box.label, 30, 60, 170, 130)
    free = changed(draw_boxes(blank(), roomy), draw_boxes(blank(), roomy, labels=False))
    # one or two rows may coincide with the box's own line
    np.testing.assert_allclose((x2 - x1, y2 - y1), (free[2] - free[0], free[3] - free[1]), atol=2)


def test_labels_do_not_cover_each_other():
    boxes = [Box("black ring", 80, 60, 110, 90), Box("white ring", 112, 60, 142, 90)]
    drawn = np.asarray(draw_boxes(blank(), boxes))
    plain = np.asarray(draw_boxes(blank(), boxes, labels=False))
    colors = [color_of(box.label, *(other.label for other in boxes)) for box in boxes]
    alone = [np.asarray(draw_boxes(blank(), box)) for box in boxes]
    bare = [np.asarray(draw_boxes(blank(), box, labels=False)) for box in boxes]
    expected = sum((a != b).any(axis=2).sum() for a, b in zip(alone, bare, strict=True))
    assert (drawn != plain).any(axis=2).sum() > 0.9 * expected
    assert colors[0] != colors[1]


@pytest.mark.parametrize(
    "label", ["a\nb", "a\x1b[31mb", "a\tb\r", "\0", "x" * 10_000, "\ud800", "🚌"]
)
@pytest.mark.filterwarnings("ignore:no font on this machine has symbols")
def test_odd_labels_are_drawn_on_one_line(label):
    drawn = draw_boxes(blank(), Box(label, 20, 60, 180, 150))
    _, y1, x2, y2 = changed(drawn, draw_boxes(blank(), Box(label, 20, 60, 180, 150), labels=False))
    assert 10 <= y2 - y1 <= 24 and x2 <= 200


def test_labels_can_be_left_out():
    boxes = [Box("cat", 50, 40, 150, 120)]
    plain = draw_boxes(blank(), boxes, labels=False)
    assert draw_boxes(blank(), boxes).tobytes() != plain.tobytes()
    assert draw_boxes(blank(28, 28), Box("cat", 4, 4, 20, 20)).tobytes() == (
        draw_boxes(blank(28, 28), Box("cat", 4, 4, 20, 20), labels=False).tobytes()
    )


# --- colours -------------------------------------------------------------------------------------


def test_labels_of_a_picture_differ_in_colour_as_far_as_the_palette_goes():
    names = [f"thing {i}" for i in range(20)]
    for n in range(1, len(PALETTE) + 1):
        assert len(set(label_colors(names[:n]).values())) == n
    used = list(label_colors(names[: 2 * len(PALETTE)]).values())
    assert all(used.count(color) == 2 for color in PALETTE)


def test_colours_do_not_depend_on_order():
    names = ["cat", "dog", "红色圆形", "car", ""]
    assert label_colors(names) == label_colors(names[::-1] * 2)
    assert label_colors([]) == {}


# --- matplotlib ----------------------------------------------------------------------------------


def axes():
    figure = Figure(figsize=(4, 3), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def test_plot_has_pixels_as_data_coordinates():
    where = plot_boxes(axes(), blank(), [Box("cat", 50, 40, 150, 120), Point("eye", 60, 70)])
    (patch,) = (p for p in where.patches if isinstance(p, Rectangle))
    assert patch.get_bbox().extents.tolist() == [50, 40, 150, 120]
    assert (where.get_xlim(), where.get_ylim()) == ((0, 200), (160, 0))
    (line,) = where.lines
    assert line.get_xydata().tolist() == [[60, 70]]
    assert [text.get_text() for text in where.texts] == ["cat", "eye"]


def test_plot_limits_stay_with_boxes_outside():
    where = plot_boxes(axes(), blank(), [Box("a", -500, 0, 900, 900), Point("b", 2000, 3000)])
    where.figure.canvas.draw()
    assert (where.get_xlim(), where.get_ylim()) == ((0, 200), (160, 0))


def test_plotted_pixels_agree_with_drawn_ones():
    figure = Figure(figsize=(2, 1.6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    where = figure.add_axes((0, 0, 1, 1))
    plot_boxes(where, blank(), Box("", 50, 40, 150, 120))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    rows, columns = np.nonzero((pixels != GRAY).any(axis=2))
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], [50, 40, 150, 120], atol=2.5
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", ["$\\frac{$", "5 $ or 6 $", "红色圆形", "a\nb", "_^{}"])
def test_plot_takes_any_label_as_it_is(label):
    where = plot_boxes(axes(), blank(), Box(label, 50, 40, 150, 120))
    where.figure.canvas.draw()
    assert where.texts[0].get_text() == label.replace("\n", " ")
    assert contrast(rgb_float(where.texts[0].get_color()), color_of(label)) >= 4.5


def rgb_float(name):
    return {"black": (0, 0, 0), "white": (255, 255, 255)}[name]


def test_plot_without_labels():
    where = plot_boxes(axes(), blank(), [Box("cat", 1, 2, 3, 4)], labels=False)
    assert not where.texts and len(where.patches) == 1


def test_public_names_are_these():
    assert vlkit.draw_boxes is draw_boxes and vlkit.plot_boxes is plot_boxes


def test_a_legend_is_no_higher_than_its_picture():
    boxes = [Box(f"thing number {n}", 0, 0, 50, 50) for n in range(60)]
    few, many = (draw_boxes(blank(), boxes[:count], legend=True) for count in (3, 60))
    assert few.height < many.height <= 2 * blank().height


@pytest.mark.parametrize("width", [0, -3, 1.5, "2"])
def test_a_line_width_that_is_none(width):
    with pytest.raises(VlkitError, match=r"line_width=.* 1 or more"):
        draw_boxes(blank(), Box("a", 0, 0, 50, 50), line_width=width)


# --- curves of trainings --------------------------------------------------------------------------

LOSSES = [(step, 2 - step / 50) for step in range(1, 101)]


def curves(*series, **options):
    """(height, width, 4) values of the picture."""
    png = draw_curves(*series, **options)
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def pixels_of(picture, color):
    """(rows, columns) where a line of this colour runs."""
    near = np.abs(picture[..., :3] - rgb(color)).max(axis=2) < 12
    return np.nonzero(near & (picture[..., 3] > 200))


def test_a_falling_loss_falls_to_the_right():
    rows, columns = pixels_of(curves({"run": LOSSES}, {}, {}), COLORS[0])
    assert rows[columns.argmin()] < 100 and rows[columns.argmax()] > 300
    assert columns.max() > 850  # up to the last step


def test_the_axis_keeps_the_length_of_the_whole_run():
    _, columns = pixels_of(curves({"run": LOSSES}, {}, {}, steps=200), COLORS[0])
    assert 450 < columns.max() < 520


def test_curves_leave_the_page_visible_but_not_those_of_a_report():
    assert curves({"run": LOSSES}, {}, {})[0, 0].tolist()[3] == 0
    white = curves({"run": LOSSES}, {}, {}, background="white")
    assert white[0, 0].tolist() == [255] * 4


def test_each_run_has_one_colour_and_the_better_one_ends_lower():
    bad = [(step, 1 + value) for step, value in LOSSES]
    losses, shares = {"good": LOSSES, "_bad $1$": bad}, {"good": [(100, 0.9)], "_bad $1$": []}
    picture = curves(losses, {}, shares)
    assert picture.shape[:2] == (460, 1600)
    ends = []
    for color in COLORS[:2]:
        rows, columns = pixels_of(picture[:, :780], color)
        ends.append(rows[columns > columns.max() - 10].mean())
    assert ends[0] > ends[1] + 50  # pixels count down
    assert len(pixels_of(picture[:, 800:], COLORS[0])[0]) and not len(
        pixels_of(picture[:, 800:], COLORS[1])[0]
    )


def test_curves_of_nothing_yet_and_of_values_that_are_not_numbers():
    nothing = curves({}, {}, {})
    assert nothing.shape[:2] == (460, 900) and not len(pixels_of(nothing, COLORS[0])[0])
    gap = curves({"run": [(1, float("nan")), (2, 1.0), (3, float("inf"))]}, {}, {})
    assert len(pixels_of(gap, COLORS[0])[0])  # one dot
