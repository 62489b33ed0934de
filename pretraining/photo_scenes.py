"""Scenes, albums and clips of photographed things, on photographs and on drawn grounds.

Shadows, photographs that have no name and the grounds themselves are clutter: layers below the
things, never named. `Scene.unknown` then holds the boxes of what has no name.
"""

import math

from hard import add_hard_word, sample_hard_album
from scenes import (
    CELL_TO_INK,
    SMALLEST_EM,
    Scene,
    Thing,
    add_things,
    add_word,
    layer_row,
    overlap,
    plan_kinds,
    reading_order,
    sample_album,
    sample_background,
    sample_clip,
)

MOST_PHOTOS = 6
# Their colour is not what they are known by.
ANY_COLOR = set(
    "car bus truck cup toolbox guitar tricycle fish parrot flower fire-engine trash-can kettle "
    "hot-air-balloon race-car garbage-truck scissors clothespin marker highlighter petunia".replace(
        "-", " "
    ).split()
)
PLAIN_LOOK = (1, 0, 0, 0, 1, 0, 0, 0, 1, 0.0)


def photo_look(rng, kind=None):
    """A photograph relit: brighter or darker, paler or stronger, with a cast and a gradient."""
    if rng.random() < 0.15:
        return PLAIN_LOOK
    strength, gain = rng.uniform(0.55, 1.35), math.exp(rng.uniform(-0.5, 0.28))
    turn = rng.uniform(-0.5, 0.5) if kind in ANY_COLOR and rng.random() < 0.5 else 0.0
    if kind in ANY_COLOR and rng.random() < 0.25:
        turn = rng.uniform(-math.pi, math.pi)
    matrix = hue_matrix(turn)
    rows = []
    for channel in range(3):
        cast = gain * rng.uniform(0.88, 1.12)
        gray = [(1 - strength) * weight for weight in (0.3, 0.59, 0.11)]
        rows += [cast * (g + strength * m) for g, m in zip(gray, matrix[channel], strict=True)]
    shade = rng.uniform(-0.35, 0.35) if rng.random() < 0.5 else 0.0
    return (*rows, shade)


def hue_matrix(angle):
    """Rotation of colours around the gray axis."""
    c, s = math.cos(angle), math.sin(angle)
    a, b = (1 - c) / 3, s / math.sqrt(3)
    return [[c + a, a - b, a + b], [a + b, c + a, a - b], [a - b, a + b, c + a]]


# ---------------------------------------------------------------- what is never named


def add_ground(rng, art, scene):
    """A photograph behind everything; the corner colours become some of its own."""
    index = rng.randrange(len(art.grounds))
    entry = art.count + art.photo_count + index
    larger = math.exp(rng.uniform(0.02, 0.6))
    half_x, half_y = scene.width / 2 * larger, scene.height / 2 * larger
    if rng.random() < 0.7:  # keep its proportions
        half_x = half_y = max(half_x, half_y)
    slack_x, slack_y = half_x - scene.width / 2, half_y - scene.height / 2
    cx = scene.width / 2 + rng.uniform(-slack_x, slack_x) * 0.98
    cy = scene.height / 2 + rng.uniform(-slack_y, slack_y) * 0.98
    gain, pale = math.exp(rng.uniform(-0.5, 0.2)), rng.uniform(0.5, 1.1)
    rows = []
    for channel in range(3):
        gray = [gain * (1 - pale) * weight for weight in (0.3, 0.59, 0.11)]
        gray[channel] += gain * pale
        rows += gray
    scene.clutter.insert(0, layer_row(art, entry, cx, cy, half_x, half_y, 0.0, 1.0, (*rows, 0.0)))
    seen = art.grounds[index] * gain
    x1, x2 = (ground_cell(x, cx, half_x) for x in (0, scene.width))
    y1, y2 = (ground_cell(y, cy, half_y) for y in (0, scene.height))
    colors = seen[y1 : y2 + 1, x1 : x2 + 1].reshape(-1, 3)
    order = colors.sum(-1).argsort()
    chosen = colors[[order[0], order[-1], order[len(order) // 3], order[2 * len(order) // 3]]]
    scene.background[:] = 0
    scene.background[:12] = chosen.clip(0, 1).ravel()
    scene.unknown = scene.unknown or []


def ground_cell(position, middle, half):
    """Which of a ground's eight coarse rows or columns is at a position."""
    return min(7, max(0, int(((position - middle) / half + 1) * 4)))


def add_unnamed(rng, art, scene, taken):
    """A photograph of something that has no name here."""
    short = min(scene.width, scene.height)
    thing = Thing("", None, 0, 0, rng.uniform(0.08, 0.25) * short, rng.choice(art.unnamed))
    thing.look, thing.angle = photo_look(rng), rng.uniform(-0.4, 0.4)
    if place_photo(rng, art, scene, thing, taken, 0.0, 0.2):
        half = thing.half * CELL_TO_INK
        where = (thing.cx, thing.cy, half, half, thing.angle)
        scene.clutter.append(layer_row(art, thing.entry, *where, 1.0, thing.look))
        scene.unknown = [*(scene.unknown or []), thing.box]
        taken.append(thing.box)


def add_patch(rng, art, scene):
    """A small photograph of no known thing, as a poster or a screen shows one."""
    short = min(scene.width, scene.height)
    half_x, half_y = (rng.uniform(0.06, 0.22) * short for _ in range(2))
    cx = rng.uniform(half_x, scene.width - half_x)
    cy = rng.uniform(half_y, scene.height - half_y)
    entry = art.count + art.photo_count + rng.randrange(len(art.grounds))
    angle = rng.uniform(-0.3, 0.3) if rng.random() < 0.4 else 0.0
    look = photo_look(rng)
    scene.clutter.append(layer_row(art, entry, cx, cy, half_x, half_y, angle, 1.0, look))
    box = (cx - half_x, cy - half_y, cx + half_x, cy + half_y)
    scene.unknown = [*(scene.unknown or []), box]


def add_shadow(rng, art, scene, thing):
    """A dark flat disc below a thing."""
    x1, _, x2, y2 = thing.box
    half_x = (x2 - x1) / 2 * rng.uniform(0.8, 1.1)
    look = (0.0,) * 10
    where = ((x1 + x2) / 2 + rng.uniform(-0.1, 0.1) * half_x, y2 - 0.02 * half_x)
    flat = half_x * rng.uniform(0.08, 0.22)
    entry, strength = art.shapes["circle"]["plain"][0], rng.uniform(0.12, 0.4)
    scene.clutter.append(layer_row(art, entry, *where, half_x, flat, 0.0, strength, look))


# ---------------------------------------------------------------- things


def place_photo(rng, art, scene, thing, taken, allowed, cut):
    """Give a thing a place where it covers little of the others; True if there is one.

    A share of up to `cut` of its width and height may be outside the picture; its box ends there.
    """
    x1, y1, x2, y2 = art.box_of(thing)
    width, height = x2 - x1, y2 - y1
    if width > scene.width * 0.98 or height > scene.height * 0.98:
        return False
    for _ in range(10):
        dx, dy = rng.uniform(0, cut) * width, rng.uniform(0, cut) * height
        left = rng.uniform(-dx, scene.width - width + dx)
        top = rng.uniform(-dy, scene.height - height + dy)
        box = (
            max(0.0, left),
            max(0.0, top),
            min(scene.width, left + width),
            min(scene.height, top + height),
        )
        if all(overlap(box, other) <= allowed for other in taken):
            thing.cx, thing.cy, thing.box = left - x1, top - y1, box
            return True
    return False


def sample_photo_half(rng, count, short):
    top = 0.46 if count == 1 else 0.34 if count == 2 else 0.26 if count <= 4 else 0.19
    smallest = max(0.055, 9.0 / short)
    return (
        math.exp(rng.uniform(math.log(smallest), math.log(top)) * 0.75 + 0.25 * math.log(top))
        * short
    )


def plan_photos(rng, art, count):
    """Kinds of `count` photographs: now and then several of a kind."""
    kinds = list(art.photos)
    if rng.random() < 0.3:
        kinds = rng.sample(kinds, rng.choice([1, 2, 3]))
    return [rng.choice(kinds) for _ in range(count)]


def add_photos(rng, art, scene, plan, taken, allowed):
    short = min(scene.width, scene.height)
    shadows, cut = rng.random() < 0.4, rng.choice([0.0, 0.0, 0.0, 0.2])
    for kind in plan:
        for _ in range(6):
            half = sample_photo_half(rng, len(plan), short)
            thing = Thing(kind, None, 0.0, 0.0, half, rng.choice(art.photos[kind]))
            thing.look = photo_look(rng, kind)
            if rng.random() < 0.5:
                thing.angle = rng.uniform(-0.3, 0.3)
            if rng.random() < 0.5:
                thing.stretch = rng.uniform(0.7, 1.35)
            if place_photo(rng, art, scene, thing, taken, allowed, cut):
                if shadows:
                    add_shadow(rng, art, scene, thing)
                scene.things.append(thing)
                taken.append(thing.box)
                break


def sample_photo_scene(rng, art, width, height, *, max_things, word_share, smallest_em=SMALLEST_EM):
    scene, taken = Scene(width, height, [], [], sample_background(rng)), []
    if rng.random() < 0.75:
        add_ground(rng, art, scene)
    if rng.random() < word_share * 0.6:
        for _ in range(rng.choice([1, 1, 2])):
            if rng.random() < 0.5:
                add_hard_word(rng, art, scene, taken, smallest_em)
            else:
                add_word(rng, art, scene, taken, ems=(smallest_em, 56))
    if rng.random() < 0.25:
        for _ in range(rng.choice([1, 1, 2])):
            add_patch(rng, art, scene)
    if rng.random() < 0.4:
        for _ in range(rng.choice([1, 1, 2, 3])):
            add_unnamed(rng, art, scene, taken)
    nothing = scene.unknown is not None and rng.random() < 0.2
    count = 0 if nothing else rng.choice([1, 1, 2, 2, 3, 3, 4, 5, MOST_PHOTOS])
    allowed = rng.choice([0.0, 0.0, 0.0, 0.15, 0.3])
    add_photos(rng, art, scene, plan_photos(rng, art, count), taken, allowed)
    if not nothing and rng.random() < 0.3:
        more = rng.randint(1, max(1, min(4, max_things - len(scene.things))))
        add_things(rng, art, scene, plan_kinds(rng, art, more), 0.0, taken)
    reading_order(scene)
    return scene


def sample_photo_album(rng, art, sizes, *, most):
    sample = sample_hard_album if rng.random() < 0.5 else sample_album
    view = art.photographed()
    if sample is sample_album:
        scenes = sample_album(rng, view, sizes, max_things=most)
    else:
        scenes = sample_hard_album(rng, view, sizes, most=most)
    for scene in scenes:
        relight(rng, art, [thing for thing in scene.things])
        if rng.random() < 0.5 and all(thing.color is None for thing in scene.things):
            add_ground(rng, art, scene)
    return scenes


def sample_photo_clip(rng, art, width, height, frames, turning):
    clip = sample_clip(rng, art.photographed(), width, height, frames, turning, nouns=0.75)
    relight(rng, art, [actor.thing for actor in clip.actors])
    if rng.random() < 0.5 and all(actor.thing.color is None for actor in clip.actors):
        add_ground(rng, art, clip)
    return clip


def relight(rng, art, things):
    for thing in things:
        if art.is_photo(thing.entry):
            thing.look = photo_look(rng, thing.kind)
