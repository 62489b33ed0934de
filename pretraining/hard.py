"""Scenes and albums that are harder on purpose: of the kinds at which the second model failed.

Words that resemble one another, several words on a line, plots, lines and frames that are never
named, crowds that touch, and albums whose pictures nearly hold the same things. `evaluate.py`
never draws from here.
"""

import functools

from scenes import (
    CELL_TO_INK,
    COMMON_WORDS,
    SMALLEST_EM,
    Scene,
    Word,
    add_things,
    add_word,
    contrast,
    corners_of,
    lay_out,
    layer_row,
    plan_kinds,
    reading_order,
    sample_background,
    sample_rgb,
)
from words import CHARACTERS, COLOR_NAMES, SHAPES

# Characters that are taken for one another, always of one case, so that each can be told.
ALIKE = {
    "upper": ["OQCDG", "HNMKXW", "FPERB", "VYUWT", "ILTJ", "AHRK"],
    "lower": ["vyuw", "nhmr", "ceoas", "itlfj", "gqpbd", "kxzw", "rnmi"],
    "digits": ["0689", "3589", "1247", "56", "039"],
    "both": ["5S", "8B3", "2Z", "6G", "4A", "7T", "DQ"],
}
TICK_NUMBERS = ["0.2", "0.5", "1", "2", "5", "10", "20", "25", "100"]


def sample_alike(rng):
    """A few groups of characters that resemble one another, so that many are doubled too."""
    groups = rng.choice(list(ALIKE.values()))
    characters = "".join(rng.sample(groups, min(len(groups), rng.randint(1, 3))))
    return "".join(rng.choice(characters) for _ in range(rng.randint(2, 8)))


def sample_part(rng, longest):
    """One of a line's words: a common word, a number or letters."""
    style = rng.random()
    if style < 0.5:
        word = rng.choice([word for word in COMMON_WORDS if len(word) <= longest])
        return rng.choice([word.upper(), word, word.capitalize()])
    length = rng.randint(1, min(longest, 5))
    if style < 0.85:
        return "".join(rng.choice("0123456789") for _ in range(length))
    first = rng.choice([0, 26])
    return "".join(rng.choice(CHARACTERS[first : first + 26]) for _ in range(length))


def sample_line(rng):
    """Two or three words or numbers, one space apart: at most 12 characters."""
    count = rng.choice([2, 2, 2, 3])
    return " ".join(sample_part(rng, 12 // count) for _ in range(count))


@functools.cache
def wide_fonts(art):
    """Fonts with letters of one width, and those with the widest capitals."""

    def widths(font):
        return [font["glyphs"][character][1] for character in CHARACTERS]

    even = [i for i, font in enumerate(art.fonts) if max(widths(font)) - min(widths(font)) < 0.01]
    wide = sorted(range(len(art.fonts)), key=lambda i: -sum(widths(art.fonts[i])[:26]))
    return even + wide[: len(art.fonts) // 5 + 1]


def add_hard_word(rng, art, scene, taken, smallest_em):
    style, font = rng.random(), None
    text = sample_alike(rng) if style < 0.4 else sample_line(rng) if style < 0.7 else None
    if 0.7 <= style < 0.85:
        text = "".join(rng.choice(CHARACTERS[:26]) for _ in range(rng.randint(2, 8)))
        font = rng.choice(wide_fonts(art))
    elif rng.random() < 0.25:
        font = rng.choice(wide_fonts(art))
    largest = smallest_em * 2.2 if rng.random() < 0.6 else 56
    space = rng.uniform(0.27, 0.6)
    add_word(rng, art, scene, taken, text=text, font=font, ems=(smallest_em, largest), space=space)


# ---------------------------------------------------------------- what is never named


def line(art, rgb, x1, y1, x2, y2):
    """A layer that fills a box with one colour."""
    look = [v for c in rgb for v in (c, 0.0, 0.0)] + [0.0]
    half_x, half_y = max(x2 - x1, 1.2) / 2 * CELL_TO_INK, max(y2 - y1, 1.2) / 2 * CELL_TO_INK
    entry = art.shapes["square"]["plain"][0]
    return layer_row(art, entry, (x1 + x2) / 2, (y1 + y2) / 2, half_x, half_y, 0.0, 1.0, look)


def sample_line_color(rng, background):
    """Mostly black or gray; any colour that shows at times."""
    if rng.random() < 0.6:
        value = rng.choice([0.0, 0.0, 0.15, 0.5, 0.8])
        return (value, value, value)
    rgb = sample_rgb(rng, rng.choice(COLOR_NAMES))
    return rgb if contrast(rgb, corners_of(background)) > 0.2 else (0.3, 0.3, 0.3)


def add_lines(rng, art, scene):
    """Long thin lines across the picture, or a frame around it."""
    width, height = scene.width, scene.height
    rgb = sample_line_color(rng, scene.background)
    thick = rng.choice([1.2, 1.5, 2.0, 3.0, 5.0])
    style = rng.random()
    if style < 0.35:
        inset = rng.choice([0.0, rng.uniform(1, 0.04 * min(width, height) + 1)])
        add_frame(art, scene, rgb, (inset, inset, width - inset, height - inset), thick)
    elif style < 0.6:
        add_grid(rng, art, scene, rgb, (0, 0, width, height))
    else:
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.5:
                y = rng.uniform(0, height - thick)
                scene.clutter.append(line(art, rgb, 0, y, width, y + thick))
            else:
                x = rng.uniform(0, width - thick)
                scene.clutter.append(line(art, rgb, x, 0, x + thick, height))


def add_frame(art, scene, rgb, box, thick, sides=4):
    """Left, bottom, and where `sides` is 4 also right and top edge of a box."""
    x1, y1, x2, y2 = box
    edges = [
        (x1, y1, x1 + thick, y2),
        (x1, y2 - thick, x2, y2),
        (x2 - thick, y1, x2, y2),
        (x1, y1, x2, y1 + thick),
    ]
    scene.clutter += [line(art, rgb, *edge) for edge in edges[:sides]]


def add_grid(rng, art, scene, rgb, box):
    x1, y1, x2, y2 = box
    across, down = rng.randint(2, 8), rng.randint(2, 8)
    for i in range(1, across):
        x = x1 + (x2 - x1) * i / across
        scene.clutter.append(line(art, rgb, x, y1, x + 1, y2))
    for i in range(1, down):
        y = y1 + (y2 - y1) * i / down
        scene.clutter.append(line(art, rgb, x1, y, x2, y + 1))


def add_axes(rng, art, scene, taken):
    """A plot: axes with ticks and small numbers; everything that is named stands inside them."""
    width, height = scene.width, scene.height
    if rng.random() < 0.8:
        scene.background[:] = 0
        scene.background[:12] = 1.0
    rgb = (0.0, 0.0, 0.0) if rng.random() < 0.7 else sample_line_color(rng, scene.background)
    box = (
        width * rng.uniform(0.08, 0.16),
        height * rng.uniform(0.05, 0.15),
        width * rng.uniform(0.9, 0.98),
        height * rng.uniform(0.82, 0.92),
    )
    if rng.random() < 0.3:
        add_grid(rng, art, scene, (0.8, 0.8, 0.8), box)
    add_frame(art, scene, rgb, box, rng.choice([1.2, 1.2, 2.0]), rng.choice([2, 4, 4]))
    add_ticks(rng, art, scene, rgb, box)
    left, top, right, bottom = box
    taken += [
        (0, 0, left, height),
        (right, 0, width, height),
        (0, 0, width, top),
        (0, bottom, width, height),
    ]
    if rng.random() < 0.25:
        add_title(rng, art, scene, box)


def add_ticks(rng, art, scene, rgb, box):
    left, top, right, bottom = box
    font = rng.randrange(len(art.fonts))
    em, length = rng.uniform(7.5, 12), rng.uniform(2, 5)
    across, down = rng.randint(3, 6), rng.randint(3, 6)
    for i, text in enumerate(tick_numbers(rng, across)):
        x = left + (right - left) * (i + 0.3) / across
        scene.clutter.append(line(art, rgb, x, bottom, x + 1, bottom + length))
        half = label_width(art, font, text, em) / 2
        label(art, scene, rgb, font, text, em, x - half, bottom + length + 1.1 * em)
    for i, text in enumerate(tick_numbers(rng, down)):
        y = bottom - (bottom - top) * (i + 0.3) / down
        scene.clutter.append(line(art, rgb, left - length, y, left, y + 1))
        start = left - length - 2 - label_width(art, font, text, em)
        label(art, scene, rgb, font, text, em, start, y + 0.36 * em)


def tick_numbers(rng, count):
    step = rng.choice(TICK_NUMBERS)
    digits = len(step.partition(".")[2])
    first = rng.choice([0, 0, 1])
    return [f"{float(step) * (first + i):.{digits}f}" for i in range(count)]


def label_width(art, font, text, em):
    glyphs = art.fonts[font]["glyphs"]
    return em * sum(glyphs[c][1] if c in glyphs else 0.3 for c in text)


def label(art, scene, rgb, font, text, em, x, baseline):
    """A number as clutter; its point is a small square."""
    look = [v for c in rgb for v in (c, 0.0, 0.0)] + [0.0]
    for piece in text.partition("."):
        if piece == ".":
            scene.clutter.append(
                line(art, rgb, x + 0.08 * em, baseline - 1.2, x + 0.2 * em, baseline)
            )
        elif piece:
            for entry, cx, cy, half_x, half_y, *_ in lay_out(art, font, piece, x, baseline, em)[0]:
                scene.clutter.append(layer_row(art, entry, cx, cy, half_x, half_y, 0.0, 1.0, look))
        x += label_width(art, font, piece, em)


def add_title(rng, art, scene, box):
    """A title above the axes, which is named as any other word."""
    text = sample_line(rng) if rng.random() < 0.4 else sample_part(rng, 8)
    font, color = rng.randrange(len(art.fonts)), "black"
    if contrast((0, 0, 0), corners_of(scene.background)) < 0.8 or box[1] < 1.5 * SMALLEST_EM:
        return
    em = rng.uniform(SMALLEST_EM, min(24, box[1] / 1.2))
    _, ink = lay_out(art, font, text, 0, 0, em)
    x = (box[0] + box[2] - ink[0] - ink[2]) / 2
    if x + ink[0] > 1 and x + ink[2] < scene.width - 1:
        glyphs, found = lay_out(art, font, text, x, box[1] - 0.35 * em, em)
        scene.words.append(Word(text, color, found, glyphs, (0.0, 0.0, 0.0)))


# ---------------------------------------------------------------- whole scenes


def odd_look(rng):
    """A pictogram's colours paler or stronger, brighter or darker, with a cast."""
    strength, gain = rng.uniform(0.4, 1.5), rng.uniform(0.75, 1.15)
    rows = []
    for channel in range(3):
        cast = gain * rng.uniform(0.85, 1.1)
        gray = [(1 - strength) * weight for weight in (0.3, 0.59, 0.11)]
        gray[channel] += strength
        rows += [cast * value for value in gray]
    return (*rows, 0.0)


def sample_hard_scene(rng, art, width, height, *, max_things, word_share, smallest_em=SMALLEST_EM):
    scene, taken = Scene(width, height, [], [], sample_background(rng)), []
    style = rng.random()
    if style < 0.15:
        add_axes(rng, art, scene, taken)
    elif style < 0.4:
        add_lines(rng, art, scene)
    if rng.random() < word_share:
        for _ in range(rng.choice([1, 1, 2, 3]) - len(scene.words)):
            add_hard_word(rng, art, scene, taken, smallest_em)
    fewest = 5 if rng.random() < 0.5 else 0 if scene.words and rng.random() < 0.2 else 1
    count = rng.randint(min(fewest, max_things), max_things)
    allowed = rng.choice([0.0, 0.0, 0.0, 0.12, 0.25])
    plan = plan_kinds(rng, art, count)
    add_things(rng, art, scene, plan, allowed, taken, leaning=rng.choice([0.1, 0.4]))
    for thing in scene.things:
        if thing.color is None and rng.random() < 0.25:
            thing.look = odd_look(rng)
    reading_order(scene)
    return scene


def near_misses(rng, things):
    """Another shape of the same colour, or the same shape in another colour."""
    shapes = [thing for thing in things if thing.color]
    for thing in rng.sample(shapes, min(len(shapes), rng.choice([0, 1, 1, 2]))):
        if rng.random() < 0.5:
            yield rng.choice(SHAPES), thing.color
        else:
            yield thing.kind, rng.choice(COLOR_NAMES)


def sample_hard_album(rng, art, sizes, *, most=5):
    """Pictures of three to `most` things, many of which are also in another or nearly so."""
    scenes = [Scene(width, height, [], [], sample_background(rng)) for width, height in sizes]
    before = []
    for scene in rng.sample(scenes, len(scenes)):
        plan = []
        if before and rng.random() < 0.85:
            donor = rng.choice(before)
            shared = rng.sample(donor.things, min(len(donor.things), rng.randint(1, 3)))
            plan = [(thing.kind, thing.color) for thing in shared]
            plan += near_misses(rng, donor.things)
        count = rng.randint(2, most)
        plan = (plan + plan_kinds(rng, art, max(0, count - len(plan))))[:most]
        add_things(rng, art, scene, plan, 0.0, [])
        reading_order(scene)
        before.append(scene)
    return scenes
