"""Quads, legends, tracks, truth against answer, SVG: drawn where they should be, safely."""

import itertools
import re
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

import vlkit
from vlkit import Box, Point, Quad, draw_boxes, draw_comparison, save_boxes
from vlkit.errors import VlkitError
from vlkit.plotting.comparing import ANSWER, TRUTH
from vlkit.plotting.labels import PALETTE, font_for, label_colors, place_labels

GRAY = (128, 128, 128)
QUAD = Quad("sign", 60, 40, 160, 60, 150, 130, 50, 110)
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"


def blank(width=240, height=180):
    return PIL.Image.new("RGB", (width, height), GRAY)


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def share(picture, color, path):
    """How much of a straight path has the colour."""
    (x1, y1), (x2, y2) = path
    steps = np.linspace(0, 1, 200)
    pixels = [picture.getpixel((x1 + (x2 - x1) * t, y1 + (y2 - y1) * t)) for t in steps]
    return sum(pixel == rgb(color) for pixel in pixels) / len(pixels)


def test_a_quad_is_drawn_along_its_corners():
    drawn = draw_boxes(blank(), QUAD, labels=False, line_width=3)
    color = label_colors(["sign"])["sign"]
    for path in itertools.pairwise([*QUAD.corners, QUAD.corners[0]]):
        assert share(drawn, color, path) > 0.9
    assert drawn.getpixel((105, 85)) == GRAY and drawn.getpixel((55, 125)) == GRAY


def test_a_quad_on_axes():
    axes = Figure().add_subplot()
    vlkit.plot_boxes(axes, blank(), [QUAD, Box("$a$", 1, 2, 30, 40)], legend=True)
    polygon = next(patch for patch in axes.patches if isinstance(patch, Polygon))
    assert polygon.get_xy()[:4].tolist() == [list(corner) for corner in QUAD.corners]
    assert len(axes.get_legend().get_texts()) == 2
    axes.figure.canvas.draw()


def test_the_legend_stands_under_the_picture():
    boxes = [Box("cat", 10, 10, 60, 60), Box("cat", 80, 10, 120, 60), Box("狗", 10, 90, 60, 150)]
    plain, drawn = draw_boxes(blank(), boxes), draw_boxes(blank(), boxes, legend=True)
    assert drawn.width == 240 and drawn.height > 200
    assert drawn.crop((0, 0, 240, 180)).tobytes() == plain.tobytes()
    strip = {tuple(pixel) for pixel in np.asarray(drawn)[180:].reshape(-1, 3).tolist()}
    assert {rgb(color) for color in label_colors(["cat", "狗"]).values()} <= strip
    assert draw_boxes(blank(), [], legend=True).size == (240, 180)
    many = [Box(f"a rather long label {i}", 0, 0, 9, 9) for i in range(20)]
    assert 300 < draw_boxes(blank(), many, legend=True).height <= 360  # no more than the picture


def test_truth_is_dashed_and_the_answer_solid():
    truth, answer = Box("cat", 20, 20, 120, 120), Box("cat", 60, 60, 200, 160)
    drawn = draw_comparison(blank(), answer, truth, labels=False, legend=False)
    assert 0.3 < share(drawn, TRUTH, ((20, 20), (20, 119))) < 0.8
    assert share(drawn, ANSWER, ((199, 60), (199, 159))) > 0.95
    assert draw_comparison(blank(), [], []).size[0] == 240


def test_many_labels_in_a_small_space_cover_little_of_each_other():
    size = (640, 480)
    corners = [(10 + 25 * (i % 20), 60 + 90 * (i // 20)) for i in range(80)]
    boxes = [Box(f"thing {i}", x, y, x + 50, y + 70) for i, (x, y) in enumerate(corners)]
    placed = place_labels([(box, "#000000", False) for box in boxes], size, font_for(size), 3)
    areas = [area for _, _, area in placed]
    total = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in areas)
    common = sum(
        max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        for a, b in itertools.combinations(areas, 2)
    )
    above = [(b.x1, b.y1 - (areas[0][3] - areas[0][1])) for b in boxes]
    w, h = areas[0][2] - areas[0][0], areas[0][3] - areas[0][1]
    naive = sum(
        max(0, w - abs(a[0] - b[0])) * max(0, h - abs(a[1] - b[1]))
        for a, b in itertools.combinations(above, 2)
    )
    assert len(placed) == 80 and naive > 0.5 * total and common < 0.25 * total
    assert all(x1 >= 0 and y1 >= 0 and x2 <= 640 and y2 <= 480 for x1, y1, x2, y2 in areas)


def test_five_hundred_boxes_are_drawn_in_seconds():
    boxes = [Box(f"{i}", i * 2, i * 1.5, i * 2 + 80, i * 1.5 + 60) for i in range(500)]
    start = time.process_time()
    draw_boxes(blank(1200, 900), boxes)
    assert time.process_time() - start < 5  # measured: 0.8


def test_a_label_does_not_hide_a_point():
    items = [Point("eye", 120, 52), Box("face", 90, 60, 180, 150)]
    drawn = draw_boxes(blank(), items)
    assert drawn.getpixel((120, 52)) == rgb(label_colors(["eye", "face"])["eye"])


# https://jfly.uni-koeln.de/color/ says that these stay apart; measured with the usual simulation
# of Viénot, Brettel and Mollon (1999), https://doi.org/10.1002/(SICI)1520-6378(199908)24:4<243
LMS = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
BLIND = {
    "protan": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deutan": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_colours_stay_apart_for_colour_blind_eyes(kind):
    seen = np.linalg.inv(LMS) @ BLIND[kind] @ LMS
    colors = {c: seen @ ((np.array(rgb(c)) / 255) ** 2.2) for c in PALETTE}
    shown = {c: np.clip(v, 0, 1) ** (1 / 2.2) * 255 for c, v in colors.items()}
    for a, b in itertools.combinations(PALETTE, 2):
        assert np.abs(shown[a] - shown[b]).max() > 20, (a, b)
    assert np.abs(shown[TRUTH] - shown[ANSWER]).max() > 60


# --- tracks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    return vlkit.Video(vlkit.sample("two_ways"), frames=4).load()


def test_tracks_leave_a_trail(clip):
    truth = vlkit.clips()["two_ways"].movers
    count = len(clip.frames)
    ways = [[np.linspace(a, b, count) for a, b in zip(m.first.xyxy, m.last.xyxy, strict=True)]
            for m in truth]  # fmt: skip
    tracks = [
        [Box(m.label, *(float(v[i]) for v in way)) for m, way in zip(truth, ways, strict=True)]
        for i in range(count)
    ]
    sheet = vlkit.draw_frames(clip, tracks)
    apart = vlkit.draw_frames(clip, [tracks[0], [], [], tracks[-1]])
    still = vlkit.draw_frames(clip, tracks[0])
    assert sheet.size == apart.size == still.size
    width = 800 // 4
    top = sheet.height - 150 - 8  # below the caption
    first = [np.asarray(s.crop((0, top, width, top + 150))) for s in (sheet, still)]
    assert (first[0] != first[1]).any(axis=2).mean() < 0.005  # the first frame: only its dots
    scale = width / clip.info.size[0]
    color = label_colors(m.label for m in truth)[truth[0].label]
    ends = tracks[0][0], tracks[-1][0]
    path = [((b.x1 + b.x2) / 2 * scale, (b.y1 + b.y2) / 2 * scale) for b in ends]
    last = sheet.crop((3 * (width + 8), top, 3 * (width + 8) + width, top + 150))
    assert share(last, color, path) > 0.9
    with pytest.raises(VlkitError, match="2 lists of boxes for 4 frames"):
        vlkit.draw_frames(clip, tracks[:2])


# --- files ---------------------------------------------------------------------------------------


def svg(folder, boxes, **options):
    path = save_boxes(folder / "boxes.svg", blank(), boxes, **options)
    return ElementTree.parse(path).getroot()


def lines(root):
    """(corners, style) of each outline."""
    for path in root.iter(f"{SVG}path"):
        style = dict(part.split(": ") for part in path.get("style", "").split("; ") if part)
        if style.get("fill") == "none" and "stroke" in style:
            numbers = [float(number) for number in re.findall(r"[-\d.]+", path.get("d"))]
            yield list(zip(numbers[::2], numbers[1::2], strict=True))[:4], style


def test_svg_holds_the_boxes_as_they_are(tmp_path):
    items = [Box('<cat> & "co"', 50.25, 40, 150, 120), QUAD, Point("eye", 10, 20)]
    root = svg(tmp_path, items)
    assert root.get("viewBox") == "0 0 240 180"
    (image,) = root.iter(f"{SVG}image")
    assert (image.get("width"), image.get("height")) == ("240", "180")
    assert image.get(f"{XLINK}href").startswith("data:image/png;base64,")
    outlines = {tuple(corners) for corners, _ in lines(root)}
    box = ((50.25, 40), (150, 40), (150, 120), (50.25, 120))
    assert {frozenset(corners) for corners in outlines} == {
        frozenset(box),
        frozenset(QUAD.corners),
    }
    (mark,) = [use for use in root.iter(f"{SVG}use") if use.get("x")]
    assert (float(mark.get("x")), float(mark.get("y"))) == (10, 20)
    assert {text.text for text in root.iter(f"{SVG}text")} == {'<cat> & "co"', "sign", "eye"}
    assert not list(svg(tmp_path, items, labels=False).iter(f"{SVG}text"))


def test_svg_of_truth_and_answer(tmp_path):
    root = svg(tmp_path, Box("a", 1, 2, 30, 40), truth=[Box("a", 0, 0, 9, 9)])
    styles = {(style["stroke"].upper(), "stroke-dasharray" in style) for _, style in lines(root)}
    assert styles == {(TRUTH, True), (ANSWER, False)}


def test_an_svg_is_the_same_every_time(tmp_path):
    a, b = (save_boxes(tmp_path / name, blank(), QUAD).read_bytes() for name in ("a.svg", "b.svg"))
    assert a == b


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.svg", "a.SVG", "a.webp"])
@pytest.mark.parametrize("truth", [None, [Box("cat", 1, 2, 50, 60)]])
def test_files(tmp_path, name, truth):
    path = save_boxes(tmp_path / name, blank(), Box("cat", 50, 40, 150, 120), truth=truth)
    if path.suffix.lower() == ".svg":
        assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"
    else:
        assert PIL.Image.open(path).width == 240


@pytest.mark.parametrize("name", ["a.pdf2", "a"])
def test_a_wrong_ending_is_one_line(tmp_path, name):
    with pytest.raises(VlkitError, match="cannot be written"):
        save_boxes(tmp_path / name, blank(), [])


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_missing_folder_is_named(tmp_path, ending):
    with pytest.raises(VlkitError, match=r"the folder .*nowhere does not exist; create it"):
        save_boxes(tmp_path / "nowhere" / f"a.{ending}", blank(), [])
