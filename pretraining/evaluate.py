"""Ask the finished folder questions about a second renderer's pictures, through transformers.

    python evaluate.py --fonts NODE_MODULES --count 100 --processes 2 --out evaluation.json
    python evaluate.py --out evaluation.json --card ../data/tiny-qwen2-vl/README.md

What is where comes from scenes.py with seeds that training never used, in pictures of any height
and width from 112 to 560 pixels and from 1:2 to 2:1; the drawing here is Pillow's, four times too
large and scaled down, with its own outlines of the shapes, fonts that training never saw, real JPEG
files, and true boxes measured on what was drawn.

Then the same with the text first, in words that training never used, with typing errors, under
another system prompt; and photographs: new compositions of known ones on grounds never seen, other
photographs of the same things, whole photographs, and photographs of things without a name here.
"""

import argparse
import io
import itertools
import json
import math
import multiprocessing
import random
import re
import time
from pathlib import Path

import numpy as np
import questions as q
from photos import load_pictures
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from scenes import (
    Art,
    Scene,
    Thing,
    overlap,
    reading_order,
    sample_album,
    sample_clip,
    sample_scene,
)
from wordings import COMPOSED, MORE, mistype
from words import COLOR_VARIANTS, COLORS, DRAWN_KINDS, KINDS, NOUNS, PHOTO_KINDS, SHAPES, ZH, plural

HERE = Path(__file__).parent
SCALE = 4
SHORTEST, LONGEST = 112, 560  # sides of a picture
LEGIBLE = 10  # pixels of a word's height that the reading goals ask for
BORDER = 0.02  # of the picture: so near a border between thirds both names of a place may be right
CAPTION, EITHER_PLACE = "caption wholly right", "caption, either place at a border"
FIRST_FONTS = 42  # lay words out, so that the questions stay the same whatever the atlas gains
RATIOS = {  # width over height, up to
    "1:2 to 2:3": 2 / 3,
    "2:3 to 4:5": 4 / 5,
    "4:5 to 5:4": 5 / 4,
    "5:4 to 3:2": 3 / 2,
    "3:2 to 2:1": math.inf,
}
UNSEEN_FONTS = [
    "noto-sans/500Medium",
    "pt-sans/400Regular",
    "ubuntu/500Medium",
    "nunito/600SemiBold",
    "roboto-slab/400Regular",
]


# ---------------------------------------------------------------- the second renderer


def outline(kind):
    """A shape's outline within the unit square, drawn afresh rather than taken from the atlas."""
    turn = math.pi * 2

    def spokes(count, start=-0.25, radius=lambda i: 0.5):
        return [
            (
                0.5 + radius(i) * math.cos(turn * (i / count + start)),
                0.5 + radius(i) * math.sin(turn * (i / count + start)),
            )
            for i in range(count)
        ]

    third = 1 / 3
    return {
        "square": [(0.03, 0.03), (0.97, 0.03), (0.97, 0.97), (0.03, 0.97)],
        "triangle": [(0.5, 0.05), (0.98, 0.92), (0.02, 0.92)],
        "star": spokes(10, radius=lambda i: 0.5 if i % 2 == 0 else 0.2),
        "diamond": [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)],
        "hexagon": spokes(6, 0.0),
        "heart": [
            (
                0.5 + 0.03 * 16 * math.sin(t) ** 3,
                0.45
                - 0.03
                * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in np.linspace(0, turn, 60)
        ],
        "cross": [
            (third, 0),
            (2 * third, 0),
            (2 * third, third),
            (1, third),
            (1, 2 * third),
            (2 * third, 2 * third),
            (2 * third, 1),
            (third, 1),
            (third, 2 * third),
            (0, 2 * third),
            (0, third),
            (third, third),
        ],
        "arrow": [
            (0.0, 0.35),
            (0.55, 0.35),
            (0.55, 0.1),
            (1.0, 0.5),
            (0.55, 0.9),
            (0.55, 0.65),
            (0.0, 0.65),
        ],
    }[kind]


def draw_shape(kind, pixels, rgb, rng):
    side = max(8, round(pixels * SCALE))
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    edge = (
        rng.random() < 0.25 and {"outline": (20, 20, 20, 255), "width": max(1, round(side * 0.03))}
    ) or {}
    fill = (*rgb, 255)
    if kind == "circle":
        draw.ellipse([1, 1, side - 2, side - 2], fill=fill, **edge)
    elif kind == "ring":
        draw.ellipse([1, 1, side - 2, side - 2], outline=fill, width=max(2, round(side * 0.16)))
    else:
        draw.polygon(
            [(x * (side - 1), y * (side - 1)) for x, y in outline(kind)], fill=fill, **edge
        )
    return image


class Painter:
    """Draws scenes in Pillow, and corrects every box to what was drawn."""

    def __init__(self, art_folder, fonts, unseen):
        stem = "unseen" if unseen else "atlas"
        self.nouns = json.loads((art_folder / f"{stem}.json").read_text())["nouns"]
        self.cells = np.load(art_folder / f"{stem}.npz")["cells"]
        self.fonts = fonts

    def pictogram(self, kind, pixels, rng):
        entry = rng.choice(rng.choice(list(self.nouns[kind].values())))
        cell = self.cells[entry].astype(np.float32)
        cell[..., :3] = np.minimum(255, cell[..., :3] * 255 / np.maximum(cell[..., 3:], 1))
        image = Image.fromarray(cell.astype(np.uint8), "RGBA")
        image = image.crop(image.getchannel("A").getbbox())
        ratio = pixels * SCALE / max(image.size)
        return image.resize([max(1, round(v * ratio)) for v in image.size], Image.BICUBIC)

    def stamp(self, thing, rng):
        if thing.color is None:
            image = self.pictogram(thing.kind, 2 * thing.half, rng)
        else:
            rgb = rng.choice([COLORS[thing.color], *COLOR_VARIANTS[thing.color]])
            image = draw_shape(thing.kind, 2 * thing.half, rgb, rng)
        degrees = -math.degrees(thing.angle)
        return image.rotate(degrees, Image.BICUBIC, expand=True) if thing.angle else image

    def paste(self, canvas, stamp, cx, cy):
        x, y = round(cx * SCALE - stamp.width / 2), round(cy * SCALE - stamp.height / 2)
        canvas.alpha_composite(stamp, (max(0, x), max(0, y)), (max(0, -x), max(0, -y)))
        left, top, right, bottom = (
            stamp.getchannel("A").point(lambda v: 255 if v > 100 else 0).getbbox()
        )
        edges = (x + left, y + top, x + right, y + bottom)
        return tuple(
            min(limit, max(0, v / SCALE))
            for v, limit in zip(
                edges, [canvas.width / SCALE, canvas.height / SCALE] * 2, strict=True
            )
        )

    def background(self, width, height, row):
        """The scene's corner colours as a smooth gradient, or its mean as a plain colour."""
        corners = row[:12].reshape(2, 2, 3)
        if row[12] == 0:
            corners = np.broadcast_to(corners.mean((0, 1)), (2, 2, 3))
        small = Image.fromarray((corners * 255).round().astype(np.uint8))
        return small.resize((width * SCALE, height * SCALE), Image.BILINEAR).convert("RGBA")

    def draw(self, scene, rng):
        canvas = self.background(scene.width, scene.height, scene.background)
        for thing in scene.things:
            thing.box = self.paste(canvas, self.stamp(thing, rng), thing.cx, thing.cy)
        for word in scene.words:
            self.draw_word(canvas, word, rng)
        return spoil(canvas.convert("RGB").resize((scene.width, scene.height), Image.BOX), rng)

    def draw_word(self, canvas, word, rng):
        """The word in another font, as large as fits where the scene has it."""
        if word.plate:
            edges, rgb = word.plate
            ImageDraw.Draw(canvas).rectangle(
                [v * SCALE for v in edges], fill=tuple(round(v * 255) for v in rgb)
            )
        width, height = word.box[2] - word.box[0], word.box[3] - word.box[1]
        path, size = rng.choice(self.fonts), 100
        left, top, right, bottom = load_font(path, size).getbbox(word.text)
        size = max(
            4, int(size * SCALE * min(width / (right - left), max(height, 9) / (bottom - top)))
        )
        font = load_font(path, size)
        left, top, right, bottom = font.getbbox(word.text)
        stamp = Image.new("RGBA", (right - left + 4, bottom - top + 4))
        rgb = tuple(round(v * 255) for v in word.rgb)
        ImageDraw.Draw(stamp).text((2 - left, 2 - top), word.text, font=font, fill=(*rgb, 255))
        word.box = self.paste(
            canvas, stamp, (word.box[0] + word.box[2]) / 2, (word.box[1] + word.box[3]) / 2
        )

    def draw_clip(self, clip, rng):
        stamps = []
        for actor in clip.actors:
            looks = [actor.thing.color, actor.event if actor.event in COLORS else actor.thing.color]
            state = rng.getstate()
            pair = []
            for color in looks:
                rng.setstate(state)
                actor.thing.color, kept = color, actor.thing.color
                pair.append(self.stamp(actor.thing, rng))
                actor.thing.color = kept
            stamps.append(pair)
        frames = []
        base = self.background(clip.width, clip.height, clip.background)
        for number in range(clip.frames):
            canvas = base.copy()
            for actor, pair in zip(clip.actors, stamps, strict=True):
                before = number < actor.when
                if (actor.event == "appear" and before) or (
                    actor.event == "disappear" and not before
                ):
                    continue
                self.paste(canvas, pair[0 if before else 1], *actor.track[number])
            frames.append(canvas.convert("RGB").resize((clip.width, clip.height), Image.BOX))
        return frames


def load_font(path, size):
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


def spoil(image, rng):
    u = rng.random()
    if u < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(45, 95))
        return Image.open(file).convert("RGB")
    if u < 0.5:
        noise = np.random.default_rng(rng.randrange(2**32)).normal(
            0, rng.uniform(1, 6), (*image.size[::-1], 3)
        )
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image


# ---------------------------------------------------------------- questions


def picture_size(rng, longest=LONGEST):
    """(width, height): any from 1:2 to 2:1."""
    while True:
        ratio = 2 ** rng.uniform(-1, 1)
        width = rng.randint(SHORTEST, longest)
        height = round(width / ratio)
        if SHORTEST <= height <= longest:
            return width, height


def album_sizes(rng):
    """Of two or three pictures: half the time they share one size."""
    count, first = rng.choice([2, 2, 3]), picture_size(rng)
    alike = rng.random() < 0.5
    return [first if alike else picture_size(rng) for _ in range(count)]


def scene_of(rng, art, painter, *, words=0.0, things=None):
    """A scene, its picture, drawn until it has what the task needs."""
    width, height = picture_size(rng)
    scene = sample_scene(
        rng, art, width, height, word_share=words, max_things=things or rng.choice([4, 6, 8])
    )
    return scene, [painter.draw(scene, rng)]


def name_pictogram(rng, scene, zh):
    """Region to name, for pictograms only."""
    nouns = [t for t in scene.things if t.color is None]
    if not nouns:
        return None
    scene = Scene(scene.width, scene.height, nouns[:1], [], scene.background)
    return q.region(rng, scene, zh)


def clip_events(rng, clip, zh):
    actors = [actor for actor in clip.actors if actor.event]
    if not actors:
        return None
    actor = rng.choice(actors)
    name = q.name(actor.thing, zh)
    if zh:
        return f"{name}发生了什么？", q.deed(actor, zh) + "。"
    return f"What happens to the {name}?", f"It {q.deed(actor, zh)}."


# Wordings that training never used, by the first template of the list that they stand in for.
OTHER_WORDS = {
    "Locate the {}.": [
        "Could you tell me where the {} might be?",
        "Indicate the place of the {} with a rectangle.",
        "I can't find the {}. Help me.",
        "Surround the {} with a box.",
        "Provide a detection box for the {}.",
        "whereabouts of the {}?",
    ],
    "框出图中{}的位置": [
        "帮我看看{}在哪。",
        "用矩形标记{}。",
        "请找一下{}在图里的哪里。",
        "圈一下{}的位置。",
    ],
    "Describe this image.": [
        "What would you say is going on in the picture?",
        "Provide a caption of the image, please.",
        "Put this picture into words.",
        "What do we see in the photograph?",
    ],
    "描述这张图片。": ["请用文字说明这幅图。", "这幅图画的是什么？", "看图说话。"],
    "How many {} are there?": [
        "What number of {} do you find in the image?",
        "Please count how many {} the photo has.",
        "I need the count of {}.",
    ],
    "图中有几个{}？": ["这里总共有几个{}？", "请告诉我{}的个数。", "数数看有几个{}。"],
    "Is there {} in the image?": [
        "Would you say there is {} in the photo?",
        "Is {} part of the picture?",
        "Does one see {} here?",
    ],
    "图中有{}吗？": ["画面上有没有{}呢？", "图里找得到{}吗？", "请问这里面有{}吗？"],
    "What color is the {}?": ["In which color is the {} painted?", "Say what color the {} is."],
    "{}是什么颜色的？": ["请说一下{}的颜色。", "{}涂的是什么颜色？"],
    "What does the text say?": [
        "Which text is shown in the image?",
        "Tell me what is written there.",
    ],
    "图中的文字是什么？": ["请念出图中的文字。", "图中显示了什么文字？"],
    "Generate the caption in English with grounding:": [
        "Mark all the things you can see with bounding boxes.",
        "For every object give its name and box.",
    ],
    "描述这张图片并框出物体：": ["请标注图中的全部物体。", "给出所有物体的名称和坐标。"],
}
PLAIN_PICK = q.pick
OTHER_SYSTEM = "We are in a museum with a school class. Speak to the children about the pictures."


def other_words(rng, english, chinese, zh):
    return rng.choice(OTHER_WORDS[(chinese if zh else english)[0]])


def negated(rng, scene, zh):
    """Negative questions in words that training never used; polarity as in questions.negated."""
    kind, shade = q.choose_subject(rng, scene)
    there, label = bool(q.matching(scene, kind, shade)), q.full_name(kind, shade, zh)
    article = q.with_article(label)
    yes = f"是的，没有{label}。" if zh else f"Yes, there is no {label}."
    no = f"不，有{label}。" if zh else f"No, there is {article}."
    if zh:
        question = rng.choice(["这里没有{}吗？", "图片里没有{}，是不是？", "画面中没有{}吧？"])
        return question.format(label), no if there else yes
    if rng.random() < 0.5:
        question = rng.choice(["Is no {} visible?", "Is there really no {} in the image?"])
        return question.format(label), no if there else yes
    question = rng.choice(["Isn't there {} somewhere?", "Is there not {} in this image?"])
    return question.format(
        article
    ), f"Yes, there is {article}." if there else f"No, there is no {label}."


def with_errors(rng, scene, zh):
    function = rng.choice([q.locate, q.count, q.exist, q.color, q.caption])
    pair = function(rng, scene, zh)
    if not pair:
        return None
    question = pair[0] if zh else mistype(rng, pair[0].lower())
    return (question.rstrip("。？") if zh else question), pair[1]


def two_questions(rng, scene, zh):
    pairs = [
        function(rng, scene, zh)
        for function in rng.sample([q.locate, q.count, q.exist, q.color], 2)
    ]
    if None in pairs:
        return None
    space = "" if zh else " "
    return space.join(pair[0] for pair in pairs), "\n".join(pair[1] for pair in pairs)


# ---------------------------------------------------------------- photographs


def sample_composition(rng, photos, kinds, grounds):
    """A scene of one to six photographs pasted on a ground, its picture and what is where."""
    width, height = picture_size(rng)
    if rng.random() < 0.7:
        ground = rng.choice(grounds).convert("RGB")
        ratio = max(width / ground.width, height / ground.height)
        ground = ground.resize([math.ceil(side * ratio) for side in ground.size], Image.LANCZOS)
        canvas = ground.crop((0, 0, width, height)).convert("RGBA")
    else:
        canvas = Image.new("RGBA", (width, height), tuple(rng.randint(90, 255) for _ in range(3)))
    scene = Scene(width, height, [], [], np.zeros(20, np.float32), unknown=[])
    count = rng.choice([1, 1, 2, 3, 4, 6])
    chosen = rng.sample(range(len(photos)), min(len(photos), count))
    if count > 1 and rng.random() < 0.3:
        chosen = [rng.choice(chosen[:2]) for _ in range(count)]
    for index in chosen:
        paste_photo(rng, scene, canvas, photos[index], kinds[index], count)
    reading_order(scene)
    return (scene, [spoil(canvas.convert("RGB"), rng)]) if scene.things else None


def paste_photo(rng, scene, canvas, photo, kind, count):
    """One photograph, scaled, turned, mirrored and relit, where it covers nothing."""
    short = min(scene.width, scene.height)
    top = 0.8 if count == 1 else 0.55 if count <= 3 else 0.38
    side = math.exp(rng.uniform(math.log(0.16), math.log(top))) * short
    stamp = photo.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    stamp = stamp.resize(
        [max(2, round(v * side / max(stamp.size))) for v in stamp.size], Image.LANCZOS
    )
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        stamp = stamp.rotate(rng.uniform(-15, 15), Image.BICUBIC, expand=True)
    alpha = stamp.getchannel("A")
    stamp = ImageEnhance.Brightness(stamp.convert("RGB")).enhance(rng.uniform(0.75, 1.15))
    stamp.putalpha(alpha)
    left, top, right, bottom = alpha.point(lambda v: 255 if v > 100 else 0).getbbox()
    for _ in range(20):
        if stamp.width > scene.width or stamp.height > scene.height:
            return
        x, y = (
            rng.randint(0, scene.width - stamp.width),
            rng.randint(0, scene.height - stamp.height),
        )
        box = (x + left, y + top, x + right, y + bottom)
        if all(overlap(box, thing.box) <= 0.05 for thing in scene.things):
            canvas.alpha_composite(stamp, (x, y))
            scene.things.append(Thing(kind, None, 0, 0, 0, 0, box=box))
            return


def photo_count(rng, scene, zh):
    kind = rng.choice(scene.things).kind if rng.random() < 0.75 else q.near_miss(rng, scene)[0]
    if kind in SHAPES:
        return None
    total = len(q.matching(scene, kind))
    if zh:
        return f"图中有几个{ZH[kind]}？", f"图中有{q.NUMBERS_ZH[total]}个{ZH[kind]}。"
    verb, noun = ("is", kind) if total == 1 else ("are", plural(kind))
    return f"How many {plural(kind)} are there?", f"There {verb} {q.NUMBERS[total]} {noun}."


def photo_locate(rng, scene, zh):
    kind = rng.choice(scene.things).kind
    label = q.full_name(kind, None, zh)
    question = q.pick(rng, q.LOCATE, q.LOCATE_ZH, zh).format(label)
    found = q.boxes_of(scene, q.matching(scene, kind))
    return question, q.grounded(label if zh else "the " + label, found)


def photo_name(rng, scene, zh):
    thing = rng.choice(scene.things)
    box = q.box_text(scene.normalised(thing.box))
    question = f"{box}里面是什么？" if zh else f"What is inside {box}?"
    return question, q.noun_phrase(thing, zh) + "。" if zh else q.sentence(q.noun_phrase(thing, zh))


def unknown_locate(rng, scene, zh):
    kind = rng.choice([kind for kind in PHOTO_KINDS if not q.doubtful(scene, kind)])
    label = q.full_name(kind, None, zh)
    question = q.pick(rng, q.LOCATE, q.LOCATE_ZH, zh).format(label)
    return question, f"图中没有{label}。" if zh else f"There is no {label} in the image."


def make_photo_question(rng, row, zh, library):
    function, source = PHOTO_ROWS[row]
    while True:
        also = {}
        if source in ("unknown", "whole"):
            index = rng.randrange(len(library[source]))
            picture = library[source][index].convert("RGB")
            picture.thumbnail((LONGEST, LONGEST))
            scene = Scene(*picture.size, [], [], np.zeros(20, np.float32), unknown=[])
            images, pair = [picture], None
            if source == "whole":
                kind = library["kinds"][index]
                pair = (
                    ("图中是什么？" if zh else "What is in the picture?"),
                    ZH[kind] if zh else kind,
                )
                also = {"contains": pair[1]}
        else:
            made = sample_composition(rng, *library[source], library["grounds"])
            if made is None:
                continue
            scene, images = made
            pair = None
        pair = pair or function(rng, scene, zh)
        if pair:
            return also | {
                "row": row,
                "zh": zh,
                "sizes": [image.size for image in images],
                "images": images,
                "video": None,
                "question": pair[0],
                "truth": q.plain(pair[1]),
            }


PHOTO_ROWS = {
    "photographs: located": (photo_locate, "known"),
    "photographs: named": (photo_name, "known"),
    "photographs: counted": (photo_count, "known"),
    "photographs: existence": (q.exist, "known"),
    "photographs: caption": (q.caption, "known"),
    "photographs: caption with boxes": (q.grounded_caption, "known"),
    "other photographs: named": (photo_name, "other"),
    "other photographs: located": (photo_locate, "other"),
    "whole photographs: kind is in the caption": (None, "whole"),
    "unknown photographs: absence said": (unknown_locate, "unknown"),
    "unknown photographs: nothing told": (q.caption, "unknown"),
}
# Asked again about the same pictures, with the text first.
TEXT_FIRST = ("text first, one picture", "text first, several pictures", "text first, video")
# table row: (function, what the scene must offer)
ROWS = {
    "locate one": (q.locate, "things"),
    "locate by relation": (q.locate_relation, "things"),
    "locate all of a kind": (q.locate_all, "things"),
    "absent: says so": (q.absent, "things"),
    "region to name": (q.region, "things"),
    "pictogram named, trained styles": (name_pictogram, "things"),
    "pictogram named, unseen style": (name_pictogram, "unseen"),
    "pictogram located, unseen style": (q.locate, "unseen"),
    "grounded caption": (q.grounded_caption, "things"),
    CAPTION: (q.caption, "things"),
    "count": (q.count, "things"),
    "existence": (q.exist, "things"),
    "color": (q.color, "things"),
    "relation": (q.relation, "things"),
    "size": (q.size, "things"),
    "read text": (q.read, "words"),
    "locate text": (q.locate_text, "words"),
    "read smaller text": (q.read, "small words"),
    "several pictures: in common": (q.common, "album"),
    "several pictures: only in one": (q.only_in, "album"),
    "several pictures: which has more": (q.more, "album"),
    "several pictures: what is in the Nth": (q.nth, "album"),
    "video: direction": (q.clip_direction, "clip"),
    "video: events": (clip_events, "clip"),
    "video: speed": (q.clip_speed, "clip"),
    "video: caption": (q.clip_caption, "clip"),
}
WORD_ROWS = {
    "in other words: locate": (q.locate, "things"),
    "in other words: count": (q.count, "things"),
    "in other words: existence": (q.exist, "things"),
    "in other words: caption": (q.caption, "things"),
    "in other words: grounded caption": (q.grounded_caption, "things"),
    "in other words: color": (q.color, "things"),
    "in other words: read text": (q.read, "words"),
    "negations": (negated, "things"),
    "typing errors, no capitals": (with_errors, "things"),
    "two questions in one message": (two_questions, "things"),
    "another system prompt": (q.locate, "things"),
}
EVERY_ROW = [*ROWS, *TEXT_FIRST, *WORD_ROWS, *PHOTO_ROWS]


def make_question(rng, row, zh, art, painters):
    """A dict with pictures or frames, the question and its truth."""
    function, needs = (ROWS | WORD_ROWS)[row]
    painter = painters[needs == "unseen"]
    while True:
        video = None
        if needs == "album":
            scene = sample_album(rng, art, album_sizes(rng))
            images = [painter.draw(one, rng) for one in scene]
        elif needs == "clip":
            width, height = picture_size(rng, longest=320)
            scene = sample_clip(rng, art, width, height, rng.choice([6, 8, 12]))
            images, video = [], painter.draw_clip(scene, rng)
        else:
            words = "words" in needs
            scene, images = scene_of(rng, art, painter, words=1.0 if words else 0.2)
            heights = [word.box[3] - word.box[1] for word in scene.words]
            if words and (not heights or (min(heights) < LEGIBLE) != (needs == "small words")):
                continue
        pair = function(rng, scene, zh)
        if pair:
            question = q.vary(rng, pair[0], zh) if row in ROWS else pair[0]
            also = {"also": other_captions(scene, zh)} if row == CAPTION else {}
            if row == "another system prompt":
                also["system"] = OTHER_SYSTEM
            return also | {
                "row": row,
                "zh": zh,
                "sizes": [image.size for image in images or video[:1]],
                "images": images,
                "video": video,
                "question": question,
                "truth": q.plain(pair[1]),
            }


def other_captions(scene, zh):
    """The caption with every choice of names for things whose centre is near a border."""
    names = [sorted(q.near_places(thing, scene, zh, BORDER)) for thing in scene.things]
    return [q.plain(q.caption_text(scene, places, zh)) for places in itertools.product(*names)]


# ---------------------------------------------------------------- scoring

BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")
SEPARATORS = re.compile(r", | and |; |，|、|。$|\.$")


def parse(text):
    """[(label, box)] of a grounded answer."""
    found = []
    for part in text.split(q.REF_START)[1:]:
        label = part.split(q.REF_END)[0]
        found += [(label, tuple(map(int, box))) for box in BOX.findall(part)]
    return found


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def pair(truth, answer):
    """Every true box with the answer's best unused box of the same label; the number left over."""
    unused, pairs = list(answer), []
    for label, box in truth:
        overlap, index = max(
            ((iou(box, b), i) for i, (name, b) in enumerate(unused) if name == label),
            default=(0.0, None),
        )
        pairs.append((box, None if index is None else unused.pop(index)[1], overlap))
    return pairs, len(unused)


def match(truth, answer):
    """For every true box its overlap with the answer's; how many of the answer's are left over."""
    pairs, extra = pair(truth, answer)
    return [overlap for _, _, overlap in pairs], extra


OPENINGS = re.compile(
    "^(the image shows |(both|all) pictures contain |图中|两张图中都有|所有图中都有)"
)


def phrases(text):
    """What an answer lists, whatever the order: captions are right if they say the right things."""
    text = OPENINGS.sub("", text.strip().lower())
    return sorted(part.strip() for part in SEPARATORS.split(text) if part.strip())


def tells(answer, kind, zh):
    """Whether a caption names a kind."""
    if zh:
        return kind in re.split("图中|有一个|，|、|。", answer)
    return re.search(rf"\b(an?|the|shows) {kind}\b", answer) is not None


def score(item):
    """(right, overlaps, false boxes): boxes must all be found at IoU > 0.5."""
    truth, answer = parse(item["truth"]), parse(item["answer"])
    if "contains" in item:
        return tells(item["answer"], item["contains"], item["zh"]), [], 0
    if not truth:
        same = item["truth"].strip() == item["answer"].strip() or phrases(item["truth"]) == phrases(
            item["answer"]
        )
        return same and not answer, [], len(answer)
    overlaps, extra = match(truth, answer)
    return min(overlaps) > 0.5 and not extra, overlaps, extra


def near_enough(item):
    """Right, or right with another name for a place near a border."""
    answer = phrases(item["answer"])
    return score(item)[0] or any(phrases(text) == answer for text in item["also"])


def wilson(right, total, z=1.96):
    share, spread = right / total, z * z / total
    center, half = (
        share + spread / 2,
        z * math.sqrt(share * (1 - share) / total + spread / (4 * total)),
    )
    return (center - half) / (1 + spread), (center + half) / (1 + spread)


def summarise(items):
    rows = {}
    for item in items:
        right, overlaps, extra = score(item)
        row = rows.setdefault(
            item["row"], {"n": 0, "right": 0, "boxes": 0, "iou50": 0, "iou75": 0, "false_boxes": 0}
        )
        row["n"] += 1
        row["right"] += right
        row["boxes"] += len(overlaps)
        row["iou50"] += sum(v > 0.5 for v in overlaps)
        row["iou75"] += sum(v > 0.75 for v in overlaps)
        row["false_boxes"] += extra > 0
        if "also" in item:
            row = rows.setdefault(EITHER_PLACE, {"n": 0, "right": 0, "boxes": 0})
            row["n"] += 1
            row["right"] += near_enough(item)
    for zh in (False, True):
        chosen = [item for item in items if item["zh"] == zh]
        if not chosen:
            continue
        rows["all, Chinese" if zh else "all, English"] = {
            "n": len(chosen),
            "right": sum(score(i)[0] for i in chosen),
            "boxes": 0,
        }
    return rows


def box_errors(items):
    """Aspect ratio -> mean error of edges in x and y (thousandths), mean IoU, number of boxes."""
    found = {name: [] for name in RATIOS}
    for item in items:
        if len(item["sizes"]) > 1 or "text" in item["row"]:
            continue
        width, height = item["sizes"][0]
        ratio = next(name for name, limit in RATIOS.items() if width / height <= limit)
        for true, box, share in pair(parse(item["truth"]), parse(item["answer"]))[0]:
            if box is not None:
                edges = [abs(a - b) for a, b in zip(true, box, strict=True)]
                found[ratio].append(((edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2, share))
    return {
        name: {"mean": [float(v) for v in np.mean(rows, 0)], "boxes": len(rows)}
        for name, rows in found.items()
        if rows
    }


def cell(right, total):
    low, high = wilson(right, total)
    return f"{right / total:.2f} ({low:.2f}–{high:.2f})"


def table(rows):
    """The measured skills as a Markdown table with 95% Wilson intervals."""
    lines = [
        "| task | questions | right | boxes, IoU > 0.5 | boxes, IoU > 0.75 |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        boxes = (
            [cell(row[k], row["boxes"]) for k in ("iou50", "iou75")] if row["boxes"] else ["", ""]
        )
        lines.append(
            f"| {name} | {row['n']} | {cell(row['right'], row['n'])} | {boxes[0]} | {boxes[1]} |"
        )
    return "\n".join(lines)


def box_table(errors):
    """How exact the found boxes are, by the picture's shape."""
    lines = [
        "| width : height | boxes | error of an edge in x, y (thousandths) | mean IoU |",
        "|---|---|---|---|",
    ]
    for name, row in errors.items():
        x, y, overlap = row["mean"]
        lines.append(f"| {name} | {row['boxes']} | {x:.1f}, {y:.1f} | {overlap:.2f} |")
    return "\n".join(lines)


def order_table(items):
    """The questions that were asked in both orders: right with pictures first, with text first."""

    def key(item):
        row = item.get("base", item["row"])
        return row, item["question"], item["truth"], str(item["sizes"])

    usual = {key(item): item["right"] for item in items if "base" not in item}
    lines = [
        "| asked in both orders | questions | right, pictures first | right, text first |",
        "|---|---|---|---|",
    ]
    for name in TEXT_FIRST:
        asked = [item for item in items if item["row"] == name]
        rights = [sum(usual[key(item)] for item in asked), sum(item["right"] for item in asked)]
        name = name.removeprefix("text first, ")
        lines.append(f"| {name} | {len(asked)} | {rights[0]} | {rights[1]} |")
    return "\n".join(lines)


def update_card(card, done):
    """Put the tables of an evaluation between the model card's two marks."""
    before, rest = card.read_text().split("<!-- skills -->\n")
    after = rest.split("<!-- end of skills -->\n")[1]
    seeds = " and ".join(map(str, done["seeds"]))
    note = f"{len(done['items'])} questions, seed {seeds}; 95% Wilson intervals in brackets."
    tables = [table(done["rows"]), note, order_table(done["items"]), box_table(done["boxes"])]
    skills = "\n\n".join(tables)
    card.write_text(f"{before}<!-- skills -->\n{skills}\n<!-- end of skills -->\n{after}")


# ---------------------------------------------------------------- running


class Answerer:
    """The folder under test, loaded as any user would."""

    def __init__(self, folder, device, batch_size):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device, self.batch_size = device, batch_size
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = (
            AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
            .to(device)
            .eval()
        )

    def __call__(self, items):
        for start in range(0, len(items), self.batch_size):
            chunk = items[start : start + self.batch_size]
            inputs = prepare(self.processor, chunk).to(self.device)
            longest = max(len(self.processor.tokenizer(item["truth"]).input_ids) for item in chunk)
            output = self.model.generate(**inputs, max_new_tokens=longest + 40, do_sample=False)
            texts = self.processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
            for item, text in zip(chunk, texts, strict=True):
                item["answer"] = text.split("<|im_end|>")[0].split("<|endoftext|>")[0]


def prepare(processor, chunk):
    prompts, images, videos = [], [], []
    for item in chunk:
        content = [{"type": "image"} for _ in item["images"]] + [{"type": "video"}] * (
            item["video"] is not None
        )
        text = {"type": "text", "text": item["question"]}
        content = [text, *content] if item["row"] in TEXT_FIRST else [*content, text]
        messages = [{"role": "user", "content": content}]
        if "system" in item:
            messages.insert(0, {"role": "system", "content": item["system"]})
        prompts.append(processor.apply_chat_template(messages, add_generation_prompt=True))
        images += item["images"]
        if item["video"] is not None:
            videos.append(np.stack([np.asarray(frame) for frame in item["video"]]))
    media = {"images": images} if images else {}
    if videos:
        media["videos"] = videos
    return processor(text=prompts, padding=True, return_tensors="pt", **media)


def load_library(folder):
    """Photographs for evaluation: cut-outs with their kinds, grounds, whole ones."""
    meta = json.loads((folder / "photos.json").read_text())
    whole = json.loads((folder / "whole.json").read_text())
    cuts = folder / "photos.npz"
    return {
        "known": (load_pictures(cuts, "train"), meta["train"]["kinds"]),
        "other": (load_pictures(cuts, "test"), meta["test"]["kinds"]),
        "grounds": load_pictures(folder / "whole.npz", "test"),
        "unknown": load_pictures(folder / "whole.npz", "unknown"),
        "whole": load_pictures(folder / "whole.npz", "whole"),
        "kinds": whole["kinds"],
    }


def make_row(arguments):
    row, count, seed, art_folder, font_folder = arguments
    rng = random.Random(f"{seed} {row}")
    photographed = row in PHOTO_ROWS
    for lists in (MORE, COMPOSED):  # questions.py drew these questions when it had only its own
        lists.clear()
    q.KINDS, q.CAREFUL = (KINDS if photographed else DRAWN_KINDS), photographed
    q.pick = other_words if row.startswith("in other words") else PLAIN_PICK
    if photographed:
        library = load_library(art_folder)
        return [make_photo_question(rng, row, number % 2 == 1, library) for number in range(count)]
    fonts = [next((font_folder / name).glob("*.ttf")) for name in UNSEEN_FONTS] + [None]
    painters = [Painter(art_folder, fonts, unseen=False), Painter(art_folder, fonts, unseen=True)]
    art = Art.load(art_folder / "atlas.json")
    art.fonts = art.fonts[:FIRST_FONTS]
    art.noun_names = [noun for noun in NOUNS if noun in painters[1].nouns and noun in art.nouns]
    return [make_question(rng, row, number % 2 == 1, art, painters) for number in range(count)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE.parent / "data/tiny-qwen2-vl")
    parser.add_argument("--art", type=Path, default=HERE / "build")
    parser.add_argument("--fonts", type=Path, help="folder of the @expo-google-fonts packages")
    parser.add_argument("--count", type=int, default=100, help="questions a row")
    parser.add_argument("--rows", nargs="*", default=[*ROWS, *WORD_ROWS, *PHOTO_ROWS])
    parser.add_argument("--text-first", type=int, default=26, help="of every row, asked again")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pixels", type=int, nargs=2, help="fewest and most")
    parser.add_argument("--processes", type=int, default=1, help="that draw")
    parser.add_argument("--out", type=Path, default=HERE / "checkpoints/evaluation.json")
    parser.add_argument("--more", action="store_true", help="add to the questions in --out")
    parser.add_argument("--part", type=int, nargs=2, help="only every Nth row, from the Ith on")
    parser.add_argument("--join", type=Path, nargs="+", help="only join these files into --out")
    parser.add_argument(
        "--card", type=Path, help="only put the table of --out into this model card"
    )
    arguments = parser.parse_args()
    if arguments.card:
        update_card(arguments.card, json.loads(arguments.out.read_text()))
        return
    if arguments.join:
        parts = [json.loads(path.read_text()) for path in arguments.join]
        items = sorted(
            (item for part in parts for item in part["items"]),
            key=lambda item: EVERY_ROW.index(item["row"]),
        )
        save(arguments.out, parts[0]["seeds"], items)
        print(table(summarise(items)), box_table(box_errors(items)), sep="\n\n")
        return
    if arguments.part:
        first, step = arguments.part
        arguments.rows = arguments.rows[first::step]
    answer = Answerer(arguments.model, arguments.device, arguments.batch_size)
    if arguments.pixels:
        smallest, largest = arguments.pixels
        answer.processor.image_processor.size = {
            "shortest_edge": smallest,
            "longest_edge": largest,
        }
    items, seeds, start = [], [arguments.seed], time.time()
    if arguments.more:
        done = json.loads(arguments.out.read_text())
        items, seeds = done["items"], sorted({*done["seeds"], arguments.seed})
    what = (arguments.count, arguments.seed, arguments.art, arguments.fonts)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for made in pool.imap(make_row, [(row, *what) for row in arguments.rows]):
            if made[0]["row"] in ROWS:
                made += [text_first(item) for item in made[: arguments.text_first]]
            made.sort(key=lambda item: (item["row"] in TEXT_FIRST, len(item["truth"])))
            answer(made)
            items = sorted(items + made, key=lambda item: EVERY_ROW.index(item["row"]))
            save(arguments.out, seeds, items)
            print(
                f"{time.time() - start:.0f}s",
                *table(summarise(made)).splitlines()[2:-2],
                flush=True,
            )
    print(table(summarise(items)), box_table(box_errors(items)), sep="\n\n")


def text_first(item):
    """The same question before its pictures; `base` is the row that it comes from."""
    row = TEXT_FIRST[2 if item["video"] else 1 if len(item["images"]) > 1 else 0]
    return {k: v for k, v in item.items() if k != "also"} | {"row": row, "base": item["row"]}


def save(path, seeds, items):
    """Written after every row, so that a stopped evaluation keeps what it has."""
    kept = [
        {k: item[k] for k in ("row", "zh", "sizes", "question", "truth", "answer")}
        | {"right": bool(score(item)[0])}
        | {k: item[k] for k in ("also", "contains", "system", "base") if k in item}
        for item in items
    ]
    head = {"seeds": seeds, "rows": summarise(items), "boxes": box_errors(items)}
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in kept)
    start = json.dumps(head, ensure_ascii=False).removesuffix("}")
    path.write_text(f'{start}, "items": [\n{lines}\n]}}\n', encoding="utf-8")  # one a line


if __name__ == "__main__":
    main()
