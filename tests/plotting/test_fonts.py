"""Many labels can be told apart, and every script is drawn that some font has."""

import re
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import ImageDraw, ImageFont

from vlkit import Box, Point, draw_boxes, plot_boxes, save_boxes
from vlkit.plotting import fonts
from vlkit.plotting.fonts import draw_text, load_font, text_width
from vlkit.plotting.labels import PALETTE, PATTERNS, label_styles

DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
NAMES = [f"thing {i}" for i in range(60)]


@pytest.fixture
def only_dejavu(monkeypatch):
    """A machine with no other font than matplotlib's: Arabic and Hebrew, no Korean, no Thai."""
    monkeypatch.setattr(fonts, "_system_fonts", lambda: [DEJAVU])
    monkeypatch.setattr(fonts, "_warned_scripts", set())
    fonts._font_path.cache_clear()
    yield
    fonts._font_path.cache_clear()


def blank(width=300, height=200, color="white"):
    return PIL.Image.new("RGB", (width, height), color)


def written(text, size=24):
    picture = blank()
    draw_text(ImageDraw.Draw(picture), (20, 30), text, "black", load_font(size))
    return picture.tobytes()


def as_pillow_writes(text, font, **options):
    picture = blank()
    ImageDraw.Draw(picture).text(text=text, fill="black", font=font, **options)
    return picture.tobytes()


# --- scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["红色圆形 bus", "ひらがな", "Ünïcödé", "plain", "", "a b  "])
def test_what_vlkits_font_has_is_written_as_ever(text, only_dejavu):
    font = load_font(24)
    assert written(text) == as_pillow_writes(text, font, xy=(20, 30))
    assert text_width(text, font) == font.getlength(text)


@pytest.mark.parametrize("text", ["باص أحمر", "שלום", "😀", "q\u0302"])
def test_what_it_lacks_comes_from_a_font_that_has_it(text, only_dejavu):
    other, baseline = ImageFont.truetype(DEJAVU, 24), 30 + load_font(24).getmetrics()[0]
    assert written(text) == as_pillow_writes(text, other, xy=(20, baseline), anchor="ls")
    assert text_width(text, load_font(24)) == other.getlength(text)


def test_scripts_mix_on_one_line(only_dejavu):
    own, other = load_font(24), ImageFont.truetype(DEJAVU, 24)
    pieces = own.getlength("红 "), other.getlength("שלום"), own.getlength(" ×3")
    assert text_width("红 שלום ×3", own) == sum(pieces)


def test_what_no_font_has_is_told_once(only_dejavu):
    boxes = [Box(label, 20, 60, 180, 150) for label in ("안녕", "하세요", "สวัสดี", "안")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            draw_boxes(blank(), boxes, legend=True)
            plot_boxes(axes(), blank(), boxes, legend=True).figure.canvas.draw()
    caught = [each for each in caught if each.category is UserWarning]  # not other tests' files
    said = [str(each.message) for each in caught]
    assert len(said) == 2 and {each.filename for each in caught} == {__file__}
    assert "no font on this machine has Hangul letters such as 안: pictures show empty" in said[0]
    assert "Thai letters such as ส" in said[1] and "\n" not in said[0] + said[1]


@pytest.mark.filterwarnings("error")
def test_a_plot_has_letters_of_every_font(only_dejavu):
    def ink(label):
        where = plot_boxes(axes(), blank(), Box(label, 50, 60, 250, 190), legend=True)
        where.figure.canvas.draw()
        return bytes(where.figure.canvas.buffer_rgba())

    assert len({ink(label) for label in ("שלום", "باص", "红", "\U0001f600")}) == 4


# --- many labels ---------------------------------------------------------------------------------


def test_labels_beyond_the_palette_differ_in_pattern():
    styles = label_styles(NAMES[: len(PALETTE) * len(PATTERNS)])
    assert len(set(styles.values())) == 28
    assert {pattern for _, pattern in label_styles(NAMES[: len(PALETTE)]).values()} == {0}
    assert label_styles(NAMES) == label_styles(NAMES[::-1])


def alike(count=2):
    """Labels that share a colour, the one with a plain line first."""
    styles = label_styles(NAMES[:28])
    color = styles[NAMES[0]][0]
    same = [name for name in styles if styles[name][0] == color]
    return sorted(same, key=lambda name: styles[name][1])[:count], color


def test_boxes_of_one_colour_differ_in_their_lines():
    names, color = alike(4)
    boxes = {name: Box(name, 20, 40, 280, 180) for name in NAMES[:28]}
    shares = []
    for name in names:  # the others lie under it
        order = [Box(n, 0, 0, 300, 200) for n in NAMES[:28] if n != name]
        drawn = np.asarray(draw_boxes(blank(), [*order, boxes[name]], labels=False, line_width=4))
        edge = drawn[42, 20:280]
        shares.append((edge == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=1).mean())
    assert shares[0] == 1 and len({round(share, 2) for share in shares}) == 4
    assert all(0.3 < share < 0.95 for share in shares[1:])


def test_points_of_one_colour_differ_in_shape():
    (plain, other), color = alike()
    rest = [Box(name, 0, 0, 1, 1) for name in NAMES[:28]]

    def ink(name):
        drawn = np.asarray(draw_boxes(blank(), [*rest, Point(name, 150, 100)], labels=False))
        return (drawn[60:140, 110:190] == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(2)

    assert ink(plain).sum() > 20 and ink(other).sum() > 20 and (ink(plain) != ink(other)).any()


def test_an_svg_has_the_same_patterns(tmp_path):
    items = [Box(name, 0, 0, 50, 50) for name in NAMES[:28]]
    svg = save_boxes(tmp_path / "boxes.svg", blank(), items).read_text()
    dashes = re.findall(r"stroke-dasharray: ([^;]+)", svg)
    assert len(dashes) == 21 and len(set(dashes)) == 3
    points = [Point(name, 10, 10) for name in NAMES[:28]]
    svg = save_boxes(tmp_path / "points.svg", blank(), points).read_text()
    shapes = re.findall(r'<path id="(\w+)" d="([^"]+)"', svg)
    assert len(shapes) == len({d for _, d in shapes}) * 7 == 28


# --- legends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 160), (640, 480), (1000, 60), (90, 400), (64, 64)])
@pytest.mark.parametrize("count", [1, 9, 60])
def test_a_legend_is_no_higher_than_its_picture(size, count):
    labels = [f"{name} of a kind with a long name" for name in NAMES[:count]]
    drawn = draw_boxes(blank(*size), [Box(name, 0, 0, 9, 9) for name in labels], legend=True)
    assert drawn.width == size[0] and size[1] < drawn.height <= 2 * size[1]
    strip = np.asarray(drawn)[size[1] :]
    assert (strip[:, -3:] == 255).all(), "a text is cut off at the edge"
    assert len(np.unique(strip.reshape(-1, 3), axis=0)) > 2


def axes():
    figure = Figure(figsize=(8, 4), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_axes((0.02, 0.02, 0.45, 0.96))


@pytest.mark.parametrize(("count", "columns"), [(3, 1), (14, 2), (60, 3)])
def test_a_plots_legend_is_no_higher_than_its_axes(count, columns):
    boxes = [Box(name, 0, 0, 50, 50) for name in NAMES[:count]]
    where = plot_boxes(axes(), blank(), boxes, labels=False, legend=True)
    where.figure.canvas.draw()
    legend = where.get_legend()
    assert legend.get_window_extent().height <= where.get_window_extent().height
    texts = [text.get_text() for text in legend.get_texts()]
    left = [text for text in texts if text.startswith("and ")]
    told = sum(int(text.split()[1]) for text in left)
    assert legend._ncols == columns and len(texts) - len(left) + told == count
