"""Random scenes as plain data: what is where, in which colour, drawing style and font.

Positions and sizes are in pixels of the picture. A scene becomes a table of layers for the renderer
(`layer_rows`) and the ground truth for the questions. The art (see atlas.py) only tells how large
things come out; its pixels are not needed here.
"""

import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from words import (
    CHARACTERS,
    COLOR_NAMES,
    COLOR_VARIANTS,
    COLORS,
    KIND_INDEX,
    NOUNS,
    SHAPES,
)

LAYER_FIELDS = (
    18  # entry, cx, cy, half width, half height, cos, sin, opacity, 3x3 colour matrix, shade
)
BACKGROUND_FIELDS = (
    20  # 4 corner colours, noise strength and scale, stripes: strength, fx, fy, phase, ...
)
MIP_LEVELS = 4
MAX_THINGS, MAX_WORDS, MAX_CHARACTERS = 10, 3, 8
MAX_GLYPHS = MAX_WORDS * MAX_CHARACTERS
MAX_CLUTTER = 80  # lines, ticks and their numbers, which are never named
MAX_LAYERS = MAX_CLUTTER + MAX_THINGS + MAX_WORDS + MAX_GLYPHS  # a word may stand on a plate
SMALLEST_EM = 11.0  # of a drawn word, in pixels: capitals are about 8 high
CELL_TO_INK = 96 / 92  # a drawing fills its cell up to the margin
COMMON_WORDS = (
    "stop go open exit hello cat dog bus taxi park sale cafe shop hotel bank zoo food menu left "
    "right up down north south east west yes no start end home work play time day night sun moon "
    "red blue green one two three love music book game team city road street school test data "
    "model apple water fire"
).split()


@dataclass(slots=True)
class Thing:
    """A shape or a pictogram. `color` is None for pictograms; `half` is half its longer side."""

    kind: str
    color: str | None
    cx: float
    cy: float
    half: float
    entry: int
    angle: float = 0.0
    stretch: float = 1.0
    box: tuple = ()
    look: tuple = ()

    @property
    def size(self):
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(slots=True)
class Word:
    text: str
    color: str
    box: tuple
    glyphs: list = field(default_factory=list)  # (entry, cx, cy, half_x, half_y, character, ink)
    rgb: tuple = ()
    plate: tuple = ()  # box and colour of the sign that the word stands on


@dataclass(slots=True)
class Scene:
    width: int
    height: int
    things: list
    words: list
    background: np.ndarray
    clutter: list = field(default_factory=list)  # layers below the things
    # Boxes of what is never named; None where there is nothing but drawn things on a drawn ground.
    unknown: list | None = None

    def normalised(self, box):
        return (
            box[0] / self.width,
            box[1] / self.height,
            box[2] / self.width,
            box[3] / self.height,
        )


@dataclass(slots=True)
class Actor:
    """A thing in a video: where it is in each frame, and what happens to it.

    `event` is None, "appear", "disappear" or a colour name that it turns into, at frame `when`.
    """

    thing: Thing
    track: list
    direction: str
    speed: float
    event: str | None
    when: int
    spin: float = 0.0  # radians that it turns in all


@dataclass(slots=True)
class Clip:
    width: int
    height: int
    frames: int
    actors: list
    background: np.ndarray
    clutter: list = field(default_factory=list)  # layers below the actors
    unknown: list | None = None


class Art:
    """What the atlas holds: entries by kind and style, hulls and glyph metrics.

    Entries from `count` on are photographs, each followed by its mirror image, then grounds.
    """

    def __init__(self, meta, photos=None):
        self.count = len(meta["hulls"])
        self.hulls = [np.array(h, np.float32) for h in meta["hulls"]]
        self.shapes, self.nouns, self.fonts = meta["shapes"], meta["nouns"], meta["fonts"]
        self.em_half = meta["cell"] / 2 / meta["em"]
        self.noun_names = [noun for noun in NOUNS if noun in self.nouns]
        self.photos, self.unnamed, self.grounds = {}, [], []
        self.photo_count = self.photo_cell = self.ground_cell = 0
        if photos:
            self.add_photos(photos)

    def add_photos(self, meta):
        self.photo_cell, self.ground_cell = meta["photo"], meta["ground"]
        for use in ("train", "unknown"):
            for kind, hull in zip(meta[use]["kinds"], meta[use]["hulls"], strict=True):
                entry = len(self.hulls)
                points = np.array(hull, np.float32)
                self.hulls += [points, points * np.float32([-1, 1])]
                entries = self.photos.setdefault(kind, []) if kind else self.unnamed
                entries += [entry, entry + 1]
        self.photo_count = len(self.hulls) - self.count
        self.grounds = [np.array(g, np.float32) / 255 for g in meta["grounds"]]  # (8, 8, 3) each

    @classmethod
    def load(cls, path):
        """With the photographs of the same build, if there are any."""
        with open(path) as file:
            meta = json.load(file)
        photos = Path(path).with_name("photos.json")
        return cls(meta, json.loads(photos.read_text()) if photos.exists() else None)

    def photographed(self):
        """The same art with photographs in place of pictograms."""
        view = copy.copy(self)
        view.nouns = {kind: {"photo": entries} for kind, entries in self.photos.items()}
        view.noun_names = list(view.nouns)
        return view

    def is_photo(self, entry):
        return entry >= self.count

    def texture_row(self, entry, half):
        """Where the renderer finds an entry at the level of smoothness for its size in pixels."""
        for first, count, cell in (
            (0, self.count, 96),
            (self.count, self.photo_count, self.photo_cell),
            (self.count + self.photo_count, len(self.grounds), self.ground_cell),
        ):
            if entry < first + count:
                level = min(MIP_LEVELS - 1, max(0, round(math.log2(cell / 2 / max(half, 1.0)))))
                return MIP_LEVELS * first + entry - first + level * count
        raise IndexError(entry)

    def entry_of(self, rng, kind):
        if kind in self.shapes:
            styles = self.shapes[kind]
            return rng.choice(styles["bordered" if rng.random() < 0.3 else "plain"])
        return rng.choice(rng.choice(list(self.nouns[kind].values())))

    def box_of(self, thing):
        """The tight box of a drawn thing, in pixels."""
        points = self.hulls[thing.entry] * (thing.half * CELL_TO_INK)
        x, y = points[:, 0] * thing.stretch, points[:, 1]
        if thing.angle:
            c, s = math.cos(thing.angle), math.sin(thing.angle)
            x, y = x * c - y * s, x * s + y * c
        return (
            thing.cx + float(x.min()),
            thing.cy + float(y.min()),
            thing.cx + float(x.max()),
            thing.cy + float(y.max()),
        )


def sample_rgb(rng, color):
    """A value that people would call by this name: between two anchors, and a little beside."""
    anchors = [COLORS[color], *COLOR_VARIANTS[color]]
    a, b, t = rng.choice(anchors), rng.choice(anchors), rng.random() * 0.6
    jitter = 14 if color not in ("black", "white", "gray") else 5
    shift = rng.uniform(-jitter, jitter) / 2
    return tuple(
        min(255, max(0, p + (q - p) * t + shift + rng.uniform(-jitter, jitter) / 2)) / 255
        for p, q in zip(a, b, strict=True)
    )


def contrast(rgb, corners):
    """The smallest city-block distance to a background's corner colours, 0 to 3."""
    return min(sum(abs(a - b) for a, b in zip(rgb, corner, strict=True)) for corner in corners)


def sample_background(rng):
    base = _base_color(rng)
    spread = 0.03 if rng.random() < 0.5 else rng.uniform(0.05, 0.25)
    corners = [[min(1, max(0, c + rng.uniform(-spread, spread))) for c in base] for _ in range(4)]
    style = rng.random()
    if style < 0.12:  # a horizon: one colour above, another below
        other = _base_color(rng)
        corners = [corners[0], corners[0], other, other]
    row = np.zeros(BACKGROUND_FIELDS, np.float32)
    row[:12] = np.array(corners).ravel()
    if rng.random() < 0.42:
        row[12], row[13] = rng.uniform(0.02, 0.16), rng.choice([4, 8, 16, 32])
    if rng.random() < 0.22:
        angle, period = rng.uniform(0, math.pi), rng.uniform(8, 60)
        row[14] = rng.uniform(0.02, 0.10)
        row[15], row[16] = math.cos(angle) / period, math.sin(angle) / period
        row[17] = rng.random()
        row[18] = rng.random() < 0.5  # checks rather than stripes
    row[19] = style < 0.12
    return row


def _base_color(rng):
    style = rng.random()
    if style < 0.5:
        value = rng.uniform(0.86, 1.0)
        return [min(1, value + rng.uniform(-0.05, 0.05)) for _ in range(3)]
    if style < 0.6:
        return [1.0, 1.0, 1.0]
    if style < 0.9:
        return [rng.uniform(0.5, 1) for _ in range(3)]
    return [rng.uniform(0.02, 0.5) for _ in range(3)]


def corners_of(background):
    return background[:12].reshape(4, 3).tolist()


def overlap(a, b):
    """Shared area over the smaller box's area."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


TURNS = {"square": 0.2, "circle": 0.0, "diamond": 0.15, "hexagon": 0.5, "ring": 0.0}


def sample_angle(rng, kind):
    """Most things stand upright; a square is never turned so far that it looks like a diamond."""
    if kind == "arrow":
        return rng.randrange(4) * math.pi / 2 + rng.gauss(0, 0.08)
    if kind == "triangle" and rng.random() < 0.15:
        return math.pi
    if rng.random() < 0.6:
        return 0.0
    limit = TURNS.get(kind, 0.3 if kind in SHAPES else 0.2)
    return rng.uniform(-limit, limit)


def sample_look(rng, color, corners):
    """Colour matrix (fill and border colours, or a pictogram's brightness) and shade, or None."""
    if color is None:
        gain = rng.uniform(0.85, 1.1)
        tint = [gain * rng.uniform(0.94, 1.06) for _ in range(3)]
        return (tint[0], 0, 0, 0, tint[1], 0, 0, 0, tint[2], 0.0)
    rgb = sample_rgb(rng, color)
    if contrast(rgb, corners) < 0.38:
        return None
    style = rng.random()
    if style < 0.4:
        border = (0.05, 0.05, 0.05)
    elif style < 0.8:
        border = tuple(c * 0.6 for c in rgb)
    else:
        border = (1.0, 1.0, 1.0) if color != "white" else (0.2, 0.2, 0.2)
    shade = rng.uniform(-0.2, 0.2) if rng.random() < 0.2 else 0.0
    rows = [v for f, b in zip(rgb, border, strict=True) for v in (f, b, 0.0)]
    return (*rows, shade)


def sample_thing(rng, art, scene, kind, color, half):
    """A thing somewhere inside the picture, or None if its colour would not show."""
    look = sample_look(rng, color, corners_of(scene.background))
    if look is None:
        return None
    thing = Thing(kind, color, 0.0, 0.0, half, art.entry_of(rng, kind), look=look)
    thing.angle = sample_angle(rng, kind)
    if kind not in ("circle", "square", "ring", "diamond") and rng.random() < 0.3:
        thing.stretch = rng.uniform(0.82, 1.18)
    box = art.box_of(thing)
    if box[2] - box[0] > scene.width * 0.98 or box[3] - box[1] > scene.height * 0.98:
        return None
    thing.cx = rng.uniform(-box[0], scene.width - box[2])
    thing.cy = rng.uniform(-box[1], scene.height - box[3])
    dx, dy = thing.cx, thing.cy
    thing.box = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
    return thing


def plan_kinds(rng, art, count):
    """Kinds and colours of `count` things. Themes make some queries hard on purpose."""
    theme = rng.random()
    nouns = art.noun_names
    if theme < 0.12:  # many kinds in one colour: only the shape tells them apart
        color = rng.choice(COLOR_NAMES)
        return [(rng.choice(SHAPES), color) for _ in range(count)]
    if theme < 0.22:  # few kinds in many colours: counting and finding all of a kind
        kinds = rng.sample(SHAPES, 2)
        return [(rng.choice(kinds), rng.choice(COLOR_NAMES)) for _ in range(count)]
    if theme < 0.42 or not nouns:
        return [(rng.choice(SHAPES), rng.choice(COLOR_NAMES)) for _ in range(count)]
    if theme < 0.58:
        return [(rng.choice(nouns), None) for _ in range(count)]
    if theme < 0.66:  # few nouns, several of each
        kinds = rng.sample(nouns, min(3, len(nouns)))
        return [(rng.choice(kinds), None) for _ in range(count)]
    share = rng.uniform(0.2, 0.8)
    return [
        (rng.choice(nouns), None)
        if rng.random() < share
        else (rng.choice(SHAPES), rng.choice(COLOR_NAMES))
        for _ in range(count)
    ]


def sample_half(rng, count, short):
    """Half of 6 to 40% of the short side; crowded pictures hold smaller things."""
    top = 0.20 if count <= 3 else 0.17 if count <= 5 else 0.14
    smallest = max(0.03, 6.0 / short)
    return (
        math.exp(rng.uniform(math.log(smallest), math.log(top)) * 0.7 + 0.3 * math.log(top)) * short
    )


def add_things(rng, art, scene, plan, allowed_overlap, taken, leaning=0.12):
    short = min(scene.width, scene.height)
    for kind, color in plan:
        for _ in range(16):
            thing = sample_thing(rng, art, scene, kind, color, sample_half(rng, len(plan), short))
            if thing is None:
                if color is not None and rng.random() < 0.5:
                    color = rng.choice(COLOR_NAMES)
                continue
            if scene.things and rng.random() < leaning:
                lean(rng, thing, rng.choice(scene.things), scene)
            if all(overlap(thing.box, other) <= allowed_overlap for other in taken):
                scene.things.append(thing)
                taken.append(thing.box)
                break


def lean(rng, thing, other, scene):
    """Move a thing right against another, as a roof on a wall, if it fits in there."""
    (x1, y1, x2, y2), (left, top, right, bottom) = thing.box, other.box
    gap, slide = rng.uniform(0.2, 2.5), rng.uniform(-0.3, 0.3)
    along_x = (left + right - x1 - x2) / 2 + slide * (right - left)
    along_y = (top + bottom - y1 - y2) / 2 + slide * (bottom - top)
    dx, dy = rng.choice(
        [
            (along_x, top - gap - y2),
            (along_x, bottom + gap - y1),
            (left - gap - x2, along_y),
            (right + gap - x1, along_y),
        ]
    )
    if 0 <= x1 + dx and x2 + dx <= scene.width and 0 <= y1 + dy and y2 + dy <= scene.height:
        thing.cx, thing.cy = thing.cx + dx, thing.cy + dy
        thing.box = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)


def sample_text(rng):
    style = rng.random()
    if style < 0.25:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 8)))
    if style < 0.50:
        word = rng.choice(COMMON_WORDS)
        return rng.choice([word.upper(), word, word.capitalize()])[:MAX_CHARACTERS]
    length = rng.randint(1, 8) if rng.random() < 0.5 else rng.randint(2, 5)
    if style < 0.68:
        return "".join(rng.choice(CHARACTERS[:26]) for _ in range(length))
    if style < 0.82:
        return "".join(rng.choice(CHARACTERS[26:52]) for _ in range(max(2, length)))
    if style < 0.88:
        return "".join(rng.choice(CHARACTERS[26:52]) for _ in range(max(2, length))).capitalize()
    return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(length))


def lay_out(art, font, text, x, baseline, em, stretch=1.0, spacing=0.0, space=0.3):
    """Glyphs of a text with its pen starting at x; also the ink's box. Spaces are in em."""
    glyphs, boxes = [], []
    wide = em * stretch
    for character in text:
        if character == " ":
            x += (space + spacing) * wide
            continue
        entry, advance, left, top, right, bottom = art.fonts[font]["glyphs"][character]
        ink = (x + left * wide, baseline + top * em, x + right * wide, baseline + bottom * em)
        center = (x + advance * wide / 2, baseline - 0.35 * em)
        glyphs.append((entry, *center, wide * art.em_half, em * art.em_half, character, ink))
        boxes.append(ink)
        x += (advance + spacing) * wide
    left, top, right, bottom = zip(*boxes, strict=True)
    return glyphs, (min(left), min(top), max(right), max(bottom))


def add_word(rng, art, scene, taken, *, text=None, font=None, ems=(SMALLEST_EM, 56), space=0.3):
    text = sample_text(rng) if text is None else text
    font = rng.randrange(len(art.fonts)) if font is None else font
    if sum(len(word.glyphs) for word in scene.words) + len(text) > MAX_GLYPHS:
        return
    corners = corners_of(scene.background)
    stretch = rng.uniform(0.82, 1.2) if rng.random() < 0.3 else 1.0
    spacing = rng.uniform(-0.04, 0.1) if rng.random() < 0.4 else 0.0
    sign = sample_rgb(rng, rng.choice(COLOR_NAMES)) if rng.random() < 0.15 else None
    for _ in range(12):
        color = rng.choice(COLOR_NAMES)
        rgb = sample_rgb(rng, color)
        if contrast(rgb, [sign] if sign else corners) < 0.8:
            continue
        em = math.exp(rng.uniform(math.log(ems[0]), math.log(min(ems[1], 0.4 * scene.height))))
        _, ink = lay_out(art, font, text, 0, 0, em, stretch, spacing, space)
        if ink[2] - ink[0] > 0.94 * scene.width:
            continue
        x = rng.uniform(1 - ink[0], scene.width - 1 - ink[2])
        y = rng.uniform(1 - ink[1], scene.height - 1 - ink[3])
        glyphs, box = lay_out(art, font, text, x, y, em, stretch, spacing, space)
        gap = (box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3)
        plate = ()
        if sign:
            gap = around(rng, box)
            plate = (gap, sign)
            if gap[2] - gap[0] < 1.7 * (gap[3] - gap[1]):  # it would look like a square
                continue
        if all(overlap(gap, other) == 0 for other in taken):
            scene.words.append(Word(text, color, box, glyphs, rgb, plate))
            taken.append(gap)
            return


def around(rng, box):
    """A sign's box around a word's."""
    height = box[3] - box[1]
    x, y = rng.uniform(0.2, 1.2) * height, rng.uniform(0.2, 0.6) * height
    return (box[0] - x, box[1] - y, box[2] + x, box[3] + y)


def reading_order(scene, rng=None, jitter=0.0):
    """Rows of a quarter picture, then left to right.

    With `jitter`, things that are nearly level change places at times: whoever begins with the
    wrong one of two then learns to go on with the other.
    """

    def row_then_column(item):
        x = (item.box[0] + item.box[2]) / 2 / scene.width
        y = (item.box[1] + item.box[3]) / 2 / scene.height
        if jitter:
            x, y = rng.gauss(x, jitter), rng.gauss(y, jitter)
        return (round(y * 4), x)

    scene.things.sort(key=row_then_column)
    scene.words.sort(key=row_then_column)


def sample_scene(
    rng, art, width, height, *, max_things=MAX_THINGS, word_share=0.4, smallest_em=SMALLEST_EM
):
    scene = Scene(width, height, [], [], sample_background(rng))
    taken = []
    if rng.random() < word_share:
        for _ in range(rng.choice([1, 1, 2, 3])):
            add_word(rng, art, scene, taken, ems=(smallest_em, 56))
    fewest = 0 if scene.words and rng.random() < 0.15 else 1
    count = rng.randint(fewest, max_things)
    allowed = 0.12 if rng.random() < 0.25 else 0.0
    add_things(rng, art, scene, plan_kinds(rng, art, count), allowed, taken)
    reading_order(scene)
    return scene


def sample_album(rng, art, sizes, *, max_things=4):
    """Pictures of these (width, height) that share some of their things."""
    scenes = [
        sample_scene(rng, art, width, height, max_things=max_things, word_share=0.0)
        for width, height in sizes
    ]
    for scene in scenes[1:]:
        if rng.random() < 0.75 and scenes[0].things:
            donors = rng.sample(scenes[0].things, min(len(scenes[0].things), rng.randint(1, 2)))
            kept = scene.things[: max(0, max_things - len(donors))]
            scene.things = list(kept)
            plan = [(donor.kind, donor.color) for donor in donors]
            add_things(rng, art, scene, plan, 0.0, [thing.box for thing in kept])
            reading_order(scene)
    return scenes


DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "still": (0, 0)}


STILL_WHEN_TURNED = ("circle", "ring", "square", "diamond")  # or not known by name


def sample_clip(rng, art, width, height, frames, turning=0.0, nouns=0.35):
    """`turning`: share of the things that stay where they are and turn round there."""
    while True:
        scene = Scene(width, height, [], [], sample_background(rng))
        clip = Clip(width, height, frames, [], scene.background)
        names = set()
        for _ in range(rng.randint(1, 3)):
            actor = sample_actor(rng, art, scene, frames, nouns)
            if turning and actor and actor.direction == "still" and rng.random() < turning:
                turn_round(rng, actor)
            if actor and (actor.thing.kind, actor.thing.color) not in names:
                names.add((actor.thing.kind, actor.thing.color))
                clip.actors.append(actor)
        if (
            clip.actors
        ):  # named in reading order of where they start, so that an answer has one true order
            clip.actors.sort(key=lambda a: (round(a.track[0][1] / height * 4), a.track[0][0]))
            return clip


def sample_actor(rng, art, scene, frames, nouns):
    noun = art.noun_names and rng.random() < nouns
    kind = rng.choice(art.noun_names if noun else SHAPES)
    color = None if noun else rng.choice(COLOR_NAMES)
    thing = sample_thing(
        rng, art, scene, kind, color, rng.uniform(0.07, 0.16) * min(scene.width, scene.height)
    )
    if thing is None:
        return None
    direction = rng.choice(list(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    distance = rng.uniform(0.18, 0.65) * (scene.width if dx else scene.height)
    start = _start(rng, thing, scene, dx * distance, dy * distance)
    if start is None:
        return None
    steps = [i / (frames - 1) for i in range(frames)]
    track = [(start[0] + dx * distance * t, start[1] + dy * distance * t) for t in steps]
    actor = Actor(thing, track, direction, distance if dx or dy else 0.0, None, 0)
    if rng.random() < 0.4:
        add_event(rng, actor, scene, frames)
    return actor


def turn_round(rng, actor):
    if actor.thing.kind not in STILL_WHEN_TURNED:
        actor.direction = "turn"
        actor.spin = rng.choice([-1, 1]) * rng.uniform(0.3, 1.0) * 2 * math.pi


def _start(rng, thing, scene, dx, dy):
    left, right = thing.cx - thing.box[0], thing.box[2] - thing.cx
    top, bottom = thing.cy - thing.box[1], thing.box[3] - thing.cy
    xs = (left + max(0, -dx), scene.width - right - max(0, dx))
    ys = (top + max(0, -dy), scene.height - bottom - max(0, dy))
    return None if xs[0] > xs[1] or ys[0] > ys[1] else (rng.uniform(*xs), rng.uniform(*ys))


def add_event(rng, actor, scene, frames):
    """Events happen in the middle and on an even frame: the model sees frames in pairs."""
    if frames < 4:
        return
    actor.when = 2 * rng.randint(1, frames // 2 - 1)
    kinds = ["appear", "disappear"] + ["color"] * (actor.thing.color is not None)
    event = rng.choice(kinds)
    if event == "color":
        others = [c for c in COLOR_NAMES if c != actor.thing.color]
        event = rng.choice(others)
        look = sample_look(rng, event, corners_of(scene.background))
        if look is None or contrast(look[0:9:3], [actor.thing.look[0:9:3]]) < 0.35:
            return
        actor.thing.look = (actor.thing.look, look)
    actor.event = event


def layer_row(art, entry, cx, cy, half_x, half_y, angle, opacity, look):
    c, s = (math.cos(angle), math.sin(angle)) if angle else (1.0, 0.0)
    return (art.texture_row(entry, half_x), cx, cy, half_x, half_y, c, s, opacity, *look)


def thing_row(art, thing, opacity=1.0, at=None, look=None, turned=0.0):
    half = thing.half * CELL_TO_INK
    cx, cy = at or (thing.cx, thing.cy)
    look = look or thing.look
    angle = thing.angle + turned
    return layer_row(art, thing.entry, cx, cy, half * thing.stretch, half, angle, opacity, look)


def word_rows(art, word):
    if word.plate:
        (x1, y1, x2, y2), rgb = word.plate
        look = [v for c in rgb for v in (c, 0.0, 0.0)] + [0.0]
        half_x, half_y = (x2 - x1) / 2 * CELL_TO_INK, (y2 - y1) / 2 * CELL_TO_INK
        entry = art.shapes["square"]["plain"][0]
        yield layer_row(art, entry, (x1 + x2) / 2, (y1 + y2) / 2, half_x, half_y, 0.0, 1.0, look)
    look = [v for c in word.rgb for v in (c, 0.0, 0.0)] + [0.0]
    for entry, cx, cy, half_x, half_y, _, _ in word.glyphs:
        yield layer_row(art, entry, cx, cy, half_x, half_y, 0.0, 1.0, look)


def layer_rows(art, scene):
    """(MAX_LAYERS, LAYER_FIELDS): clutter, things, glyphs; unused rows have opacity 0."""
    rows = scene.clutter[:MAX_CLUTTER] + [thing_row(art, thing) for thing in scene.things]
    for word in scene.words:
        rows.extend(word_rows(art, word))
    table = np.zeros((MAX_LAYERS, LAYER_FIELDS), np.float32)
    if rows:
        table[: len(rows)] = rows
    return table


def clip_rows(art, clip, slots=4):
    """(frames, slots, LAYER_FIELDS): the ground, where it is a photograph, and the actors."""
    table = np.zeros((clip.frames, slots, LAYER_FIELDS), np.float32)
    for slot, row in enumerate(clip.clutter):
        table[:, slot] = row
    for slot, actor in enumerate(clip.actors, len(clip.clutter)):
        changes = actor.event in COLORS
        for frame in range(clip.frames):
            before = frame < actor.when
            shown = not (
                (actor.event == "appear" and before) or (actor.event == "disappear" and not before)
            )
            look = actor.thing.look[0 if before else 1] if changes else actor.thing.look
            turned = actor.spin * frame / max(1, clip.frames - 1)
            table[frame, slot] = thing_row(
                art, actor.thing, float(shown), actor.track[frame], look, turned
            )
    return table


def thing_targets(scene):
    """(MAX_THINGS + MAX_WORDS, 7): kind (words last), colour (one past the end: none), box, on."""
    table = np.zeros((MAX_THINGS + MAX_WORDS, 7), np.float32)
    items = [(KIND_INDEX[t.kind], t.color, t.box) for t in scene.things]
    items += [(len(KIND_INDEX), w.color, w.box) for w in scene.words]
    for row, (kind, color, box) in zip(table, items, strict=False):
        number = COLOR_NAMES.index(color) if color else len(COLOR_NAMES)
        row[:] = (kind, number, *box, 1)
    return table


def glyph_targets(scene):
    """(MAX_GLYPHS, 6): character, ink box, on."""
    table = np.zeros((MAX_GLYPHS, 6), np.float32)
    glyphs = [glyph for word in scene.words for glyph in word.glyphs]
    for row, glyph in zip(table, glyphs, strict=False):
        row[:] = (CHARACTERS.index(glyph[5]), *glyph[6], 1)
    return table
