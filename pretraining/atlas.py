"""Build time: draw every shape, glyph and pictogram once into an atlas of square RGBA cells.

    python atlas.py --icons NODE_MODULES --fonts NODE_MODULES --out build

Shapes and glyphs hold coverages, not colours: red is the fill's coverage, green the border's.
Pictograms hold premultiplied colour. `atlas.npz` holds the cells (uint8) and `atlas.json` says
which cell shows what, with convex hulls (for boxes of rotated things) and the fonts' true advances.
"""

import argparse
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from words import CHARACTERS, PICTOGRAMS

CELL = 96
SCALE = 4  # supersampling while drawing
MARGIN = 2  # empty pixels around every drawing, so that sampling fades out at its edge
EM = 60  # font size in cell pixels; the cell's centre is the baseline raised by 0.35 em
TRAINING_STYLES = ["noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "openmoji", "fxemoji"]
UNSEEN_STYLES = ["twemoji"]
FONTS = [
    ("roboto", "400Regular"),
    ("roboto", "700Bold"),
    ("open-sans", "400Regular"),
    ("open-sans", "600SemiBold"),
    ("lato", "400Regular"),
    ("lato", "700Bold"),
    ("merriweather", "400Regular"),
    ("inconsolata", "500Medium"),
    ("montserrat", "500Medium"),
    ("arimo", "400Regular"),
    ("arimo", "700Bold"),
    ("tinos", "400Regular"),
    ("fira-sans", "400Regular"),
    ("source-code-pro", "500Medium"),
    ("poppins", "500Medium"),
    ("lora", "500Medium"),
    ("oswald", "500Medium"),
    ("comic-neue", "700Bold"),
    ("raleway", "500Medium"),
    ("playfair-display", "400Regular"),
    ("work-sans", "600SemiBold"),
    ("inter", "400Regular"),
    ("ibm-plex-sans", "500Medium"),
    ("ibm-plex-serif", "400Regular"),
    ("rubik", "500Medium"),
    ("dm-sans", "400Regular"),
    ("karla", "500Medium"),
    ("bitter", "500Medium"),
    ("barlow", "500Medium"),
    ("josefin-sans", "600SemiBold"),
    ("quicksand", "600SemiBold"),
    ("libre-baskerville", "400Regular"),
    ("cabin", "500Medium"),
    ("titillium-web", "400Regular"),
    ("roboto-mono", "500Medium"),
    ("crimson-text", "600SemiBold"),
    ("space-mono", "400Regular"),
]
# Of the third series of runs; they come after the bundled ones, so that those keep their numbers.
MORE_FONTS = [
    ("arimo", "400Regular_Italic"),
    ("tinos", "700Bold"),
    ("tinos", "400Regular_Italic"),
    ("montserrat", "400Regular"),
    ("montserrat", "700Bold"),
    ("inconsolata", "700Bold"),
    ("source-code-pro", "700Bold"),
    ("roboto-mono", "400Regular"),
    ("roboto-mono", "700Bold"),
    ("space-mono", "700Bold"),
    ("roboto", "300Light"),
    ("roboto", "900Black"),
    ("roboto-condensed", "500Medium"),
    ("roboto-condensed", "700Bold"),
    ("open-sans", "400Regular_Italic"),
    ("open-sans", "700Bold"),
    ("lato", "900Black"),
    ("merriweather", "700Bold"),
    ("poppins", "400Regular"),
    ("poppins", "700Bold"),
    ("oswald", "400Regular"),
    ("raleway", "700Bold"),
    ("playfair-display", "700Bold"),
    ("inter", "600SemiBold"),
    ("inter", "800ExtraBold"),
    ("ibm-plex-serif", "600SemiBold"),
    ("fira-sans", "600SemiBold"),
    ("rubik", "400Regular"),
    ("barlow", "700Bold"),
    ("lora", "400Regular_Italic"),
    ("comic-neue", "400Regular"),
    ("titillium-web", "600SemiBold"),
    ("bitter", "700Bold"),
    ("work-sans", "400Regular"),
]


def polygon(points):
    """A mask from points in [-1, 1] x [-1, 1], fitted to the cell with its aspect ratio kept."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    cx, cy = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    inner = (CELL - 2 * MARGIN) * SCALE / 2
    middle = CELL * SCALE / 2
    image = Image.new("L", (CELL * SCALE, CELL * SCALE))
    scaled = [
        (middle + (x - cx) / half * inner, middle + (y - cy) / half * inner) for x, y in points
    ]
    ImageDraw.Draw(image).polygon(scaled, fill=255)
    return image


def ellipse(hole=0.0):
    angles = np.linspace(0, 2 * math.pi, 200)
    image = polygon([(math.cos(a), math.sin(a)) for a in angles])
    if hole:
        middle, inner = CELL * SCALE / 2, hole * (CELL - 2 * MARGIN) * SCALE / 2
        box = [middle - inner, middle - inner, middle + inner, middle + inner]
        ImageDraw.Draw(image).ellipse(box, fill=0)
    return image


def regular(corners, turn=0.0, inner=None):
    count = corners * (2 if inner else 1)
    radii = [1 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [turn + 2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return polygon([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])


def heart_curve(depth=1.0):
    angles = np.linspace(0, 2 * math.pi, 120)
    return polygon(
        [
            (
                16 * math.sin(t) ** 3,
                -13 * math.cos(t)
                + depth * (5 * math.cos(2 * t) + 2 * math.cos(3 * t))
                + math.cos(4 * t),
            )
            for t in angles
        ]
    )


def heart_of_circles():
    arc = np.linspace(math.pi * 0.80, math.pi * 2.0, 40)
    left = [(-0.5 + 0.5 * math.cos(a), -0.4 + 0.5 * math.sin(a)) for a in arc]
    right = [(-x, y) for x, y in reversed(left)]
    return polygon([*left, *right, (0, 0.95)])


def cross(arm):
    a = arm
    half = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
    return polygon([*half, *[(-x, -y) for x, y in half]])


def arrow(shaft, head, wing=1.0):
    tip = 1 - head
    return polygon(
        [(-1, -shaft), (tip, -shaft), (tip, -wing), (1, 0), (tip, wing), (tip, shaft), (-1, shaft)]
    )


def rounded(mask, radius=5):
    """The same shape with its corners rounded."""
    soft = mask.filter(ImageFilter.GaussianBlur(radius * SCALE / 2))
    return soft.point(lambda v: 255 if v > 127 else 0)


def shape_masks():
    square = polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    diamond = regular(4)
    tall = polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    equilateral = regular(3)
    wide = polygon([(0, -0.9), (1, 0.9), (-1, 0.9)])
    star = regular(5, inner=0.382)
    return {
        "circle": [ellipse()],
        "square": [square, rounded(square)],
        "triangle": [equilateral, wide, polygon([(-1, -1), (1, 1), (-1, 1)]), rounded(equilateral)],
        "star": [star, regular(5, inner=0.45), regular(5, inner=0.52), rounded(star, 3)],
        "diamond": [
            diamond,
            tall,
            rounded(diamond),
            polygon([(0, -1), (0.85, 0), (0, 1), (-0.85, 0)]),
        ],
        "hexagon": [regular(6), regular(6, turn=math.pi / 6), rounded(regular(6))],
        "heart": [heart_curve(), heart_curve(0.8), heart_of_circles()],
        "cross": [cross(0.22), cross(0.3), cross(0.38), rounded(cross(0.3), 4)],
        "ring": [ellipse(0.5), ellipse(0.6), ellipse(0.72)],
        "arrow": [arrow(0.22, 0.8), arrow(0.4, 0.9), arrow(0.16, 0.6, 0.55), arrow(0.3, 1.0, 0.8)],
    }


def with_border(mask, width):
    """Cells of coverage: red for the fill, green for the border inside the outline."""
    if width:
        eroded = mask.filter(ImageFilter.GaussianBlur(1))
        for _ in range(width):
            eroded = eroded.filter(ImageFilter.MinFilter(2 * SCALE + 1))
        fill, border = ImageChops.darker(eroded, mask), ImageChops.subtract(mask, eroded)
    else:
        fill, border = mask, Image.new("L", mask.size)
    return stack_coverage(fill, border)


def stack_coverage(fill, border):
    channels = [np.asarray(m.resize((CELL, CELL), Image.BOX)) for m in (fill, border)]
    total = np.minimum(channels[0].astype(int) + channels[1], 255).astype(np.uint8)
    return np.stack([*channels, np.zeros_like(total), total], -1)


def hull(alpha, limit=24):
    """Convex hull of the covered pixels in cell units (-1 to 1), at most `limit` points."""
    ys, xs = np.nonzero(alpha > 100)
    points = set()
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        points.update(zip((xs + dx).tolist(), (ys + dy).tolist(), strict=True))
    ordered = sorted(points)
    chain = _half_hull(ordered) + _half_hull(ordered[::-1])
    step = max(1, math.ceil(len(chain) / limit))
    keep = chain[::step]
    for axis in (0, 1):  # the extreme points always stay
        keep += [min(chain, key=lambda p, a=axis: p[a]), max(chain, key=lambda p, a=axis: p[a])]
    side = len(alpha)
    return [[round(x / side * 2 - 1, 4), round(y / side * 2 - 1, 4)] for x, y in keep]


def _half_hull(points):
    chain = []
    for p in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
            chain.pop()
        chain.append(p)
    return chain[:-1]


def _turn(o, a, b):
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


class Builder:
    """Collects cells and what they show."""

    def __init__(self):
        self.cells, self.hulls = [], []
        self.shapes, self.nouns, self.fonts = {}, {}, []

    def add(self, cell):
        self.cells.append(cell)
        self.hulls.append(hull(cell[..., 3]))
        return len(self.cells) - 1

    def add_shapes(self):
        for name, masks in shape_masks().items():
            entries = [self.add(with_border(mask, 0)) for mask in masks]
            bordered = [self.add(with_border(mask, width)) for mask in masks for width in (2, 4)]
            self.shapes[name] = {"plain": entries, "bordered": bordered}

    def add_pictograms(self, folder, style, nouns):
        for noun, cells in rasterise(folder, style).items():
            nouns.setdefault(noun, {})[style] = [self.add(cell) for cell in cells]

    def add_font(self, name, path):
        font = ImageFont.truetype(path, EM * SCALE)
        glyphs = {}
        for character in CHARACTERS:
            cell, bounds = draw_glyph(font, character)
            entry = self.add(cell)
            glyphs[character] = [entry, font.getlength(character) / (EM * SCALE), *bounds]
        self.fonts.append({"name": name, "glyphs": glyphs})

    def save(self, folder, stem):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"{stem}.npz", cells=np.stack(self.cells))
        meta = {
            "cell": CELL,
            "em": EM,
            "hulls": self.hulls,
            "shapes": self.shapes,
            "nouns": self.nouns,
            "fonts": self.fonts,
        }
        (folder / f"{stem}.json").write_text(json.dumps(meta))
        print(stem, len(self.cells), "cells,", (folder / f"{stem}.npz").stat().st_size >> 10, "KiB")


def draw_glyph(font, character):
    """One glyph, horizontally centred by its advance, its baseline 0.35 em below the cell's centre.

    Returns the cell and the ink's left, top, right, bottom in em from the pen on the baseline.
    """
    size, middle = EM * SCALE, CELL * SCALE / 2
    pen = (middle - font.getlength(character) / 2, middle + 0.35 * size)
    mask = Image.new("L", (CELL * SCALE, CELL * SCALE))
    ImageDraw.Draw(mask).text(pen, character, font=font, fill=255, anchor="ls")
    left, top, right, bottom = mask.getbbox()
    bounds = [
        (left - pen[0]) / size,
        (top - pen[1]) / size,
        (right - pen[0]) / size,
        (bottom - pen[1]) / size,
    ]
    return stack_coverage(mask, Image.new("L", mask.size)), [round(v, 4) for v in bounds]


def rasterise(folder, style):
    """noun -> cells of premultiplied RGBA, one per pictogram that the style has."""
    import resvg_py

    icons = json.loads((folder / style / "icons.json").read_text())
    slugs = json.loads((folder / "noto" / "chars.json").read_text())
    cells = {}
    for noun, pictograms in PICTOGRAMS.items():
        for pictogram in pictograms:
            body = find_icon(icons, slugs.get(f"{ord(pictogram):x}"))
            if body:
                png = bytes(resvg_py.svg_to_bytes(svg_string=body, width=4 * CELL, height=4 * CELL))
                cells.setdefault(noun, []).append(fit_pictogram(Image.open(io.BytesIO(png))))
    return cells


def find_icon(icons, slug):
    for name in (slug, slug and slug.replace("-", "")):
        seen = 0
        while name in icons.get("aliases", {}) and seen < 4:
            name, seen = icons["aliases"][name]["parent"], seen + 1
        if name in icons["icons"]:
            icon = icons["icons"][name]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            return (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink" {size}>{icon["body"]}</svg>'
            )
    return None


def fit_pictogram(image):
    image = image.convert("RGBA")
    alpha = image.getchannel("A").point(lambda v: 255 if v > 40 else 0)
    image = image.crop(alpha.getbbox())
    inner = CELL - 2 * MARGIN
    ratio = inner / max(image.size)
    size = tuple(max(1, round(side * ratio)) for side in image.size)
    array = np.asarray(image, np.float32)
    array[..., :3] *= array[..., 3:] / 255
    pieces = [Image.fromarray(array[..., c]).resize(size, Image.BOX) for c in range(4)]
    small = np.stack([np.asarray(p) for p in pieces], -1)
    cell = np.zeros((CELL, CELL, 4), np.uint8)
    y, x = (CELL - size[1]) // 2, (CELL - size[0]) // 2
    cell[y : y + size[1], x : x + size[0]] = small.round()
    return cell


def default_font_file():
    return io.BytesIO(ImageFont.load_default(20).font_bytes)


def build(icons, fonts, out):
    training = Builder()
    training.add_shapes()
    for style in TRAINING_STYLES:
        training.add_pictograms(icons, style, training.nouns)
    for name, path in [
        *package_fonts(fonts, FONTS),
        *bundled_fonts(),
        *package_fonts(fonts, MORE_FONTS),
    ]:
        training.add_font(name, path)
    training.save(out, "atlas")
    unseen = Builder()
    for style in UNSEEN_STYLES:
        unseen.add_pictograms(icons, style, unseen.nouns)
    unseen.save(out, "unseen")


def package_fonts(folder, fonts):
    for family, weight in fonts:
        yield f"{family} {weight}", str(next((folder / family / weight).glob("*.ttf")))


def bundled_fonts():
    """The fonts that come with matplotlib and Pillow: what most pictures drawn in Python use."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif"):
        yield name, str(folder / f"{name}.ttf")
    yield "Pillow default", default_font_file()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder of the @iconify-json packages"
    )
    parser.add_argument(
        "--fonts", type=Path, required=True, help="folder of the @expo-google-fonts packages"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build")
    arguments = parser.parse_args()
    build(arguments.icons, arguments.fonts, arguments.out)


if __name__ == "__main__":
    main()
