"""Scenes to conversations: tasks, questions in English and Chinese, and their true answers.

Every task is a function `(rng, scene, zh) -> (question, answer)` or None where the scene does not
allow the question. Boxes are Qwen2-VL's: thousandths of the picture's width and height.
"""

from scenes import DIRECTIONS, overlap
from wordings import COMPOSED, MORE, retype
from words import (
    COLOR_NAMES,
    COLORS,
    KINDS,
    NUMBERS,
    NUMBERS_ZH,
    ORDINALS,
    ORDINALS_ZH,
    SHAPES,
    SYNONYMS,
    SYNONYMS_ZH,
    ZH,
    alike,
    plural,
    with_article,
)

BOX_START, BOX_END = "<|box_start|>", "<|box_end|>"
REF_START, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
SPELL = "\x01"  # in answers: a border between tokens, not part of the text


# ---------------------------------------------------------------- wording


def box_text(box):
    x1, y1, x2, y2 = (min(999, max(0, int(v * 1000))) for v in box)
    return f"{BOX_START}({x1},{y1}),({x2},{y2}){BOX_END}"


def grounded(label, boxes):
    return REF_START + label + REF_END + "".join(box_text(box) for box in boxes)


def full_name(kind, color, zh):
    if zh:
        return (ZH[color] if color else "") + ZH[kind]
    return f"{color} {kind}" if color else kind


def name(thing, zh):
    return full_name(thing.kind, thing.color, zh)


def noun_phrase(thing, zh):
    return name(thing, True) if zh else with_article(name(thing, False))


def spelled(word):
    """A drawn word in an answer: its letters are separate tokens, as the eye meets them."""
    return SPELL + SPELL.join(word.text) + SPELL


def plain(text):
    return text.replace(SPELL, "")


def text_phrase(word, zh):
    return f"文字“{spelled(word)}”" if zh else f'the text "{spelled(word)}"'


def asked(rng, text, zh):
    """What the learner may call it."""
    if rng.random() < 0.85:
        return text
    for canonical, others in (SYNONYMS_ZH if zh else SYNONYMS).items():
        if text.endswith(canonical) or text.startswith(canonical + " "):
            return text.replace(canonical, rng.choice(others), 1)
    return text


def sentence(text):
    return text[:1].upper() + text[1:] + "."


def join_and(parts):
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def place(thing, scene, zh):
    x, y = center(thing)
    return place_name(x / scene.width, y / scene.height, zh)


def near_places(thing, scene, zh, slack=0.02):
    """Names of the place that nobody could call wrong: the border may be a little elsewhere."""
    x, y = center(thing)
    shifts = (0.0, -slack, slack)
    return {
        place_name(x / scene.width + dx, y / scene.height + dy, zh)
        for dx in shifts
        for dy in shifts
    }


def place_name(x, y, zh):
    column = 0 if x < 1 / 3 else 2 if x > 2 / 3 else 1
    row = 0 if y < 1 / 3 else 2 if y > 2 / 3 else 1
    if zh:
        return (
            ("左上角", "上方", "右上角"),
            ("左侧", "中央", "右侧"),
            ("左下角", "下方", "右下角"),
        )[row][column]
    return (
        ("top left", "top", "top right"),
        ("left", "center", "right"),
        ("bottom left", "bottom", "bottom right"),
    )[row][column]


def pick(rng, english, chinese, zh):
    """A template; the first ones are the plainest and come more often."""
    choices, u = chinese if zh else english, rng.random()
    composed = COMPOSED.get(choices[0])
    if u < 0.3:
        return choices[0]
    if composed and u < 0.65:
        return rng.choice(composed)
    return rng.choice(choices + MORE.get(choices[0], []))


def lower_first(text):
    return text if text.startswith(("I ", "<|")) else text[:1].lower() + text[1:]


def vary(rng, question, zh):
    """Polite forms, missing punctuation, missing articles: what people type."""
    u = rng.random()
    is_question = question.endswith(("?", "？", "吗", "呢"))
    if u < 0.12:
        question = _polite(rng, question, is_question, zh)
    elif u < 0.18 and not zh:
        question = lower_first(question)
    elif u < 0.24 and not zh and '"' not in question:
        question = question.replace(" the ", " ", 1)
    if rng.random() < 0.12 and question[-1] in ".?。？":
        question = question[:-1]
    return question


def _polite(rng, question, is_question, zh):
    if zh:
        return (
            rng.choice(
                ["请问", "请告诉我，", "请回答："] if is_question else ["请", "请帮我", "麻烦你"]
            )
            + question
        )
    if is_question:
        return rng.choice(["Please tell me: ", "Can you tell me: ", "Tell me, "]) + lower_first(
            question
        )
    start = rng.choice(["Please ", "Can you ", "Could you please ", "I want you to "])
    end = "?" if start[0] == "C" else "."
    return start + lower_first(question).rstrip(".:") + end


def yes_no(value, zh, kind="have"):
    if not zh:
        return "Yes." if value else "No."
    return ("有。" if value else "没有。") if kind == "have" else ("是的。" if value else "不是。")


# ---------------------------------------------------------------- choosing


def key(thing):
    return (thing.kind, thing.color)


def unique_things(scene):
    """Things whose full name occurs once."""
    keys = [key(thing) for thing in scene.things]
    return [thing for thing in scene.things if keys.count(key(thing)) == 1]


def boxes_of(scene, things):
    return [scene.normalised(thing.box) for thing in things]


def choose_query(rng, scene):
    """(kind, color or None, matches): present more often than not; absences are near misses."""
    u = rng.random()
    if scene.things and u < 0.75:
        thing = rng.choice(scene.things)
        kind, color = thing.kind, thing.color
        if color and rng.random() < 0.35:
            color = None
    else:
        kind, color = near_miss(rng, scene)
    return kind, color, matching(scene, kind, color)


# What a photographed ground may well show without anybody having said so.
ON_GROUNDS = set(
    "tree palm-tree flower leaf cloud sun moon fire house building castle man woman baby bird fish "
    "mushroom ship boat sailboat cup box door bed book candle rainbow door chair spoon".replace(
        "-", " "
    ).split()
)


def doubtful(scene, kind):
    """Whether asking for an absent kind could be answered with yes by somebody who looks well."""
    if scene.unknown is not None and kind in ON_GROUNDS:
        return True
    return any(alike(kind, thing.kind) for thing in scene.things)


CAREFUL = True  # evaluate.py keeps old questions as they were


def near_miss(rng, scene):
    kind, color = draw_near_miss(rng, scene)
    while CAREFUL and doubtful(scene, kind):
        kind, color = draw_near_miss(rng, scene)
    return kind, color


def draw_near_miss(rng, scene):
    kind, color = rng.choice(KINDS), None
    if CAREFUL and rng.random() < 0.35:  # of the sort that is there
        photographed = [t.kind for t in scene.things if t.color is None]
        if photographed:
            at = KINDS.index(rng.choice(photographed)) + rng.randint(-6, 6)
            kind = KINDS[max(0, min(len(KINDS) - 1, at))]
    shapes_share = 0.5 if not CAREFUL or any(t.color for t in scene.things) else 0.15
    if rng.random() < shapes_share:
        kind = rng.choice(SHAPES)
    shapes = [thing for thing in scene.things if thing.color]
    if kind in SHAPES and rng.random() < 0.75:
        color = rng.choice(COLOR_NAMES)
        if shapes and rng.random() < 0.7:
            thing = rng.choice(shapes)
            kind, color = (thing.kind, color) if rng.random() < 0.5 else (kind, thing.color)
    return kind, color


def matching(scene, kind, color=None):
    return [t for t in scene.things if t.kind == kind and (color is None or t.color == color)]


def center(thing):
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def stands(a, b, relation, scene, margin=0.03):
    """Whether a is left of, right of, above or below b; None if it is too close to call."""
    (ax, ay), (bx, by) = center(a), center(b)
    dx, dy = (ax - bx) / scene.width, (ay - by) / scene.height
    value = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
    return None if abs(value) < margin else value > 0


RELATIONS = ["left", "right", "above", "below"]
RELATION_EN = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
RELATION_EN_SHORT = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
RELATION_ZH = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}
ONE_WORD = [" Answer with one word.", " Answer in one word.", " One word only.", " Short answer."]
ONE_WORD_ZH = ["用一个词回答。", "请用一个词回答。", "简短回答。"]


def maybe_short(rng, question, long_answer, short_answer, zh, share=0.2):
    if rng.random() < share:
        return question + rng.choice(ONE_WORD_ZH if zh else ONE_WORD), short_answer
    return question, long_answer


# ---------------------------------------------------------------- tasks on one picture

DESCRIBE = [
    "Describe this image.",
    "What is in the image?",
    "Generate a caption.",
    "What do you see?",
    "Describe the picture.",
    "What does the image show?",
    "What can you see in this picture?",
    "Caption this image.",
    "Tell me what is in the picture.",
    "What is this?",
    "Give a description of the image.",
    "Describe the scene in detail.",
]
DESCRIBE_ZH = [
    "描述这张图片。",
    "这是什么？",
    "图里有什么？",
    "描述一下这张图。",
    "你看到了什么？",
    "图片中有什么？",
    "说说这张图片的内容。",
    "这张图里有什么？",
    "用中文描述这张图片。",
    "详细描述这张图片。",
    "介绍一下这张图片。",
]


def nothing_known(zh):
    return "图中没有我认识的东西。" if zh else "I see nothing that I know in the image."


def caption(rng, scene, zh):
    if scene.unknown is not None and not scene.things and not scene.words:
        return pick(rng, DESCRIBE, DESCRIBE_ZH, zh), nothing_known(zh)
    places = [place(thing, scene, zh) for thing in scene.things]
    return pick(rng, DESCRIBE, DESCRIBE_ZH, zh), caption_text(scene, places, zh)


def caption_text(scene, places, zh):
    parts = [
        f"{where}有一个{name(t, zh)}" if zh else f"{noun_phrase(t, zh)} at the {where}"
        for t, where in zip(scene.things, places, strict=True)
    ]
    parts += [text_phrase(word, zh) for word in scene.words]
    if zh:
        return "图中" + "，".join(parts) + "。" if parts else "图中什么也没有。"
    return "The image shows " + (join_and(parts) if parts else "nothing") + "."


def brief(rng, scene, zh):
    parts = [noun_phrase(t, zh) for t in scene.things] + [text_phrase(w, zh) for w in scene.words]
    if not parts and scene.unknown is None:
        return None
    english = [
        "Describe the image briefly.",
        "List the objects in the image.",
        "Name everything in the picture.",
        "What objects are in the image?",
        "Which things are in the picture?",
        "Give a short caption.",
    ]
    chinese = [
        "简单描述这张图片。",
        "列出图中的物体。",
        "图中有哪些东西？",
        "图里有哪些物体？",
        "用一句话描述图片。",
    ]
    question = pick(rng, english, chinese, zh)
    if not parts:
        return question, nothing_known(zh)
    return question, ("、".join(parts) + "。") if zh else sentence(join_and(parts))


def grounded_caption(rng, scene, zh):
    parts = [grounded(noun_phrase(t, zh), boxes_of(scene, [t])) for t in scene.things]
    parts += [grounded(text_phrase(w, zh), boxes_of(scene, [w])) for w in scene.words]
    if not parts and scene.unknown is None:
        return None
    english = [
        "Generate the caption in English with grounding:",
        "Describe the image with boxes.",
        "Detect all objects.",
        "Describe this image with grounding.",
        "Find all objects and output their boxes.",
        "Locate everything in the image.",
        "Detect every object in the picture with its bounding box.",
        "Draw a box around each object.",
        "Locate all objects.",
    ]
    chinese = [
        "描述这张图片并框出物体：",
        "框出图中所有物体。",
        "检测图中所有物体",
        "找出所有物体并给出坐标。",
        "用方框标出图中的物体。",
        "检测所有目标并输出边界框。",
        "框出图中的所有东西",
    ]
    question = pick(rng, english, chinese, zh)
    return question, ("，" if zh else ", ").join(parts) or nothing_known(zh)


LOCATE = [
    "Locate the {}.",
    "Where is the {}?",
    "Find the {} and output its box.",
    "Find the {}.",
    "Point out the {}.",
    "Give the bounding box of the {}.",
    "Draw a box around the {}.",
    "Detect the {}.",
    "Show me where the {} is.",
    "What are the coordinates of the {}?",
    "Mark the {}.",
]
LOCATE_ZH = [
    "框出图中{}的位置",
    "{}在哪里？",
    "找出{}。",
    "框出{}。",
    "{}在哪儿？",
    "给出{}的坐标。",
    "标出图中的{}。",
    "检测图中的{}。",
    "定位{}。",
    "用方框标出{}",
    "找到图中的{}并框出来。",
]


def locate(rng, scene, zh):
    kind, color, found = choose_query(rng, scene)
    label = full_name(kind, color, zh)
    question = pick(rng, LOCATE, LOCATE_ZH, zh).format(asked(rng, label, zh))
    if not found:
        return question, f"图中没有{label}。" if zh else f"There is no {label} in the image."
    return question, grounded(label if zh else "the " + label, boxes_of(scene, found))


def absent(rng, scene, zh):
    """Locate something that is not there: say so instead of inventing a box."""
    for _ in range(8):
        kind, color = near_miss(rng, scene)
        if not matching(scene, kind, color):
            label = full_name(kind, color, zh)
            question = pick(rng, LOCATE, LOCATE_ZH, zh).format(asked(rng, label, zh))
            return question, f"图中没有{label}。" if zh else f"There is no {label} in the image."
    return None


def locate_relation(rng, scene, zh):
    """The star left of the dog: the only one of its kind on that side of something unique."""
    anchors = unique_things(scene)
    for _ in range(6):
        if not anchors or len(scene.things) < 2:
            return None
        anchor, relation = rng.choice(anchors), rng.choice(RELATIONS)
        target = rng.choice(scene.things)
        if target is anchor:
            continue
        same = [t for t in scene.things if t.kind == target.kind and t is not anchor]
        sides = [stands(t, anchor, relation, scene) for t in same]
        if None in sides or sides.count(True) != 1:
            continue
        target = same[sides.index(True)]
        if zh:
            phrase = f"{name(anchor, zh)}{RELATION_ZH[relation]}的{ZH[target.kind]}"
        else:
            words = rng.choice([RELATION_EN, RELATION_EN_SHORT])[relation]
            phrase = f"{target.kind} {words} the {name(anchor, zh)}"
        question = pick(rng, LOCATE, LOCATE_ZH, zh).format(phrase)
        label = name(target, zh) if zh else "the " + name(target, zh)
        return question, grounded(label, boxes_of(scene, [target]))
    return None


def locate_all(rng, scene, zh):
    if rng.random() < 0.3:
        return locate_color(rng, scene, zh)
    kind = (
        rng.choice(scene.things).kind if scene.things and rng.random() < 0.75 else rng.choice(KINDS)
    )
    found = matching(scene, kind)
    english = [
        "Locate all {}.",
        "Detect every {1}.",
        "Find all {}.",
        "Where are the {}?",
        "Find all the {} in the image.",
        "Give the boxes of all {}.",
        "Mark every {1}.",
        "Locate every {1} in the picture.",
    ]
    chinese = [
        "框出所有的{}",
        "找出所有{}。",
        "框出图中所有的{}。",
        "标出每一个{}。",
        "图中的{}都在哪里？",
        "检测所有{}。",
    ]
    if zh:
        question = pick(rng, english, chinese, zh).format(asked(rng, ZH[kind], zh))
    else:
        template = pick(rng, english, chinese, zh)
        question = template.replace("{1}", kind).format(plural(kind))
    if not found:
        return (
            question,
            f"图中没有{ZH[kind]}。" if zh else f"There are no {plural(kind)} in the image.",
        )
    parts = [grounded(noun_phrase(t, zh), boxes_of(scene, [t])) for t in found]
    return question, ("，" if zh else ", ").join(parts)


def locate_color(rng, scene, zh):
    shapes = [t for t in scene.things if t.color]
    color = rng.choice(shapes).color if shapes and rng.random() < 0.8 else rng.choice(COLOR_NAMES)
    found = [t for t in shapes if t.color == color]
    english = [
        "Locate all {} shapes.",
        "Find every {} shape.",
        "Where are the {} shapes?",
        "Find the {} shapes.",
        "Locate everything {}.",
    ]
    chinese = ["框出所有{}的图形", "找出所有{}图形。", "{}的图形在哪里？", "框出图中{}的图形。"]
    question = pick(rng, english, chinese, zh).format(ZH[color] if zh else color)
    if not found:
        return (
            question,
            f"图中没有{ZH[color]}的图形。" if zh else f"There are no {color} shapes in the image.",
        )
    parts = [grounded(noun_phrase(t, zh), boxes_of(scene, [t])) for t in found]
    return question, ("，" if zh else ", ").join(parts)


def region(rng, scene, zh):
    items = scene.things + scene.words
    if not items:
        return None
    item = rng.choice(items)
    if scene.unknown and any(overlap(item.box, box) > 0.3 for box in scene.unknown):
        return None
    if any(overlap(item.box, other.box) > 0.5 for other in items if other is not item):
        return None
    return ask_region(rng, scene, item, zh)


def region_unknown(rng, scene, zh):
    """A photograph that has no name, or a piece of the ground: say so."""
    if scene.unknown is None:
        return None
    if scene.unknown and rng.random() < 0.7:
        box = rng.choice(scene.unknown)
    else:
        width, height = (rng.uniform(0.15, 0.5) * v for v in (scene.width, scene.height))
        x, y = rng.uniform(0, scene.width - width), rng.uniform(0, scene.height - height)
        box = (x, y, x + width, y + height)
    if any(overlap(box, item.box) > 0 for item in scene.things + scene.words):
        return None
    question, _ = ask_region(rng, scene, Nameless(box), zh)
    return question, "我不知道。" if zh else "I do not know."


class Nameless:
    kind, color = "circle", None

    def __init__(self, box):
        self.box = box


def ask_region(rng, scene, item, zh):
    x1, y1, x2, y2 = scene.normalised(item.box)
    slack = 0.04 if rng.random() < 0.4 else 0.0
    dx, dy = (x2 - x1) * slack, (y2 - y1) * slack
    around = [
        v + rng.uniform(-d, d) for v, d in zip((x1, y1, x2, y2), (dx, dy, dx, dy), strict=True)
    ]
    english = [
        "What is inside {}?",
        "What is in {}?",
        "What do you see in {}?",
        "Describe the region {}.",
        "Which object is at {}?",
        "Name the object in {}.",
        "What is in the box {}?",
    ]
    chinese = [
        "{}里面是什么？",
        "{}里有什么？",
        "{}中是什么？",
        "描述{}里的内容。",
        "方框{}里是什么？",
        "说出{}中的物体。",
    ]
    question = pick(rng, english, chinese, zh).format(box_text(around))
    if item in scene.words:
        return question, text_phrase(item, zh) + "。" if zh else sentence(text_phrase(item, zh))
    long_answer = noun_phrase(item, zh) + "。" if zh else sentence(noun_phrase(item, zh))
    short_answer = ZH[item.kind] + "。" if zh else sentence(item.kind)
    return maybe_short(rng, question, long_answer, short_answer, zh, 0.12)


def count(rng, scene, zh):
    u = rng.random()
    shapes = [t for t in scene.things if t.color]
    if u < 0.2:
        total, english, chinese = len(shapes), "shape", "图形"
    elif u < 0.38:
        if scene.unknown is not None:
            return None
        total, english, chinese = len(scene.things), rng.choice(["object", "thing"]), "物体"
    elif u < 0.65:
        kind = (
            rng.choice(scene.things).kind
            if scene.things and rng.random() < 0.75
            else rng.choice(KINDS)
        )
        total, english, chinese = len(matching(scene, kind)), kind, ZH[kind]
    elif u < 0.8 and shapes:
        kind, shade = rng.choice(shapes).kind, rng.choice(shapes).color
        total = len(matching(scene, kind, shade))
        english, chinese = full_name(kind, shade, False), full_name(kind, shade, True)
    else:
        color = (
            rng.choice(shapes).color if shapes and rng.random() < 0.75 else rng.choice(COLOR_NAMES)
        )
        total = sum(t.color == color for t in shapes)
        english, chinese = (
            f"{color} shape",
            ZH[color] + ("的图形" if rng.random() < 0.5 else "图形"),
        )
    many = plural(english)
    if zh:
        questions = [
            "图中有几个{}？",
            "图中有多少个{}？",
            "有几个{}？",
            "数一数图中的{}。",
            "这张图里有多少个{}？",
            "{}有几个？",
        ]
        question = pick(rng, questions, questions, True).format(chinese)
        unit = chinese.replace("的图形", "图形")
        return maybe_short(
            rng,
            question,
            f"图中有{NUMBERS_ZH[total]}个{unit}。",
            f"{NUMBERS_ZH[total]}个。",
            zh,
            0.15,
        )
    questions = [
        "How many {} are there?",
        "How many {} are in the image?",
        "Count the {}.",
        "How many {} do you see?",
        "How many {} can you see in the picture?",
        "What is the number of {}?",
    ]
    question = pick(rng, questions, questions, False).format(many)
    verb, noun = ("is", english) if total == 1 else ("are", many)
    short = "Zero." if total == 0 else sentence(NUMBERS[total])
    return maybe_short(rng, question, f"There {verb} {NUMBERS[total]} {noun}.", short, zh, 0.15)


def exist(rng, scene, zh):
    if scene.things and rng.random() < 0.5:
        thing = rng.choice(scene.things)
        kind, color = thing.kind, thing.color if rng.random() < 0.7 else None
    else:
        kind, color = near_miss(rng, scene)
    answer = yes_no(bool(matching(scene, kind, color)), zh)
    label = asked(rng, full_name(kind, color, zh), zh)
    english = [
        "Is there {} in the image?",
        "Is there {}?",
        "Can you see {}?",
        "Do you see {} in the picture?",
        "Is {} visible?",
        "Does the picture show {}?",
        "Is there {} anywhere?",
    ]
    chinese = [
        "图中有{}吗？",
        "有{}吗？",
        "图里有没有{}？",
        "你能看到{}吗？",
        "这张图里有{}吗？",
        "图片中是否有{}？",
    ]
    question = pick(rng, english, chinese, zh).format(label if zh else with_article(label))
    return maybe_short(rng, question, answer, answer, zh, 0.08)


def negated(rng, scene, zh):
    """Negative questions. Whichever way "yes" is meant, the answer says what is there.

    "Is there no dog?", "There is no dog, right?" ask whether it is absent: "Yes, there is no dog."
    "Isn't there a dog?", "Is there not a dog?" expect one and are answered as "Is there a dog?" is:
    "Yes, there is a dog." Chinese 是的 and 不 agree or disagree with what the question states:
    图中没有狗吗？ 是的，没有狗。
    """
    kind, shade = choose_subject(rng, scene)
    there = bool(matching(scene, kind, shade))
    label = full_name(kind, shade, zh)
    if zh:
        if rng.random() < 0.75:
            questions = [
                "图中没有{}吗？",
                "没有{}吗？",
                "图里没有{}，对吗？",
                "图中没有{}，是吗？",
                "这张图里没有{}吧？",
                "是不是没有{}？",
                "难道没有{}吗？",
            ]
            answer = f"不，有{label}。" if there else f"是的，没有{label}。"
        else:
            questions = ["图中不是有{}吗？", "不是有{}吗？", "图里有{}，对吗？", "有{}，是吧？"]
            answer = f"是的，有{label}。" if there else f"不，没有{label}。"
        return rng.choice(questions).format(label), answer
    article = with_article(label)
    if rng.random() < 0.5:
        questions = [
            "Is there no {0} in the image?",
            "Is there no {0}?",
            "Is there no {0} in this picture?",
            "There is no {0} in the picture, right?",
            "There is no {0}, is there?",
            "Does the image contain no {0}?",
            "Are you sure there is no {0}?",
            "Is it true that there is no {0}?",
            "Does the picture show no {0}?",
            "So there is no {0} here?",
        ]
        answer = f"No, there is {article}." if there else f"Yes, there is no {label}."
    else:
        questions = [
            "Isn't there {1} in the image?",
            "Is there not {1} in the image?",
            "Is there not {1}?",
            "Isn't there {1}?",
            "Is there not {1} in the picture?",
            "Don't you see {1}?",
            "Do you not see {1}?",
            "Doesn't the image contain {1}?",
            "Does the picture not show {1}?",
            "There is {1}, isn't there?",
            "Can't you see {1}?",
        ]
        answer = f"Yes, there is {article}." if there else f"No, there is no {label}."
    return rng.choice(questions).format(label, article), answer


def choose_subject(rng, scene):
    """A kind, with its colour at times, that is there half of the time."""
    if scene.things and rng.random() < 0.5:
        thing = rng.choice(scene.things)
        return thing.kind, thing.color if rng.random() < 0.7 else None
    return near_miss(rng, scene)


def exist_many(rng, scene, zh):
    """Yes or no, asked in the plural or about an exact number."""
    kind, shade = choose_subject(rng, scene)
    total, many = len(matching(scene, kind, shade)), plural(full_name(kind, shade, False))
    label = full_name(kind, shade, zh)
    if rng.random() < 0.5:
        if zh:
            return rng.choice(["图中有任何{}吗？", "有没有{}呢？"]).format(label), yes_no(
                total > 0, zh
            )
        questions = [
            "Are there any {} in the image?",
            "Are there {} in the picture?",
            "Any {} here?",
            "Do you see any {}?",
            "Does the image contain any {}?",
        ]
        return rng.choice(questions).format(many), yes_no(total > 0, zh)
    guess = total if rng.random() < 0.5 else max(0, total + rng.choice([-2, -1, 1, 2]))
    if guess == 0 or guess >= len(NUMBERS):
        return None
    if zh:
        question = rng.choice(["图中有{n}个{k}吗？", "是不是有{n}个{k}？", "正好有{n}个{k}吗？"])
        return question.format(n=NUMBERS_ZH[guess], k=label), yes_no(guess == total, zh, "be")
    if guess == 1:
        article = full_name(kind, shade, False)
        question = rng.choice(["Is there exactly one {}?", "Is there only one {} in the image?"])
        return question.format(article), yes_no(total == 1, zh)
    questions = [
        "Are there {n} {k} in the image?",
        "Are there exactly {n} {k}?",
        "Do you see {n} {k}?",
    ]
    return rng.choice(questions).format(n=NUMBERS[guess], k=many), yes_no(guess == total, zh)


def exist_color(rng, scene, zh):
    shapes = [t for t in scene.things if t.color]
    shade = rng.choice(shapes).color if shapes and rng.random() < 0.5 else rng.choice(COLOR_NAMES)
    value = any(t.color == shade for t in shapes)
    if zh:
        questions = ["图中有{}的图形吗？", "有{}图形吗？", "有没有{}的图形？"]
        return rng.choice(questions).format(ZH[shade]), yes_no(value, zh)
    questions = [
        "Is there a {} shape in the image?",
        "Does the image contain a {} shape?",
        "Is there a {} shape?",
        "Do you see a {} shape?",
        "Are there any {} shapes?",
        "Is one of the shapes {}?",
    ]
    question = rng.choice(questions).format(shade)
    return question.replace("a orange", "an orange"), yes_no(value, zh)


def locate_several(rng, scene, zh):
    """Two or three things in one question: a line for each, in the order of the question."""
    subjects = {}
    for _ in range(rng.choice([2, 2, 3])):
        kind, shade, found = choose_query(rng, scene)
        subjects.setdefault(full_name(kind, shade, zh), found)
    if len(subjects) < 2:
        return None
    lines = []
    for label, found in subjects.items():
        if found:
            lines.append(grounded(label if zh else "the " + label, boxes_of(scene, found)))
        else:
            lines.append(f"图中没有{label}。" if zh else f"There is no {label} in the image.")
    names = list(subjects)
    if zh:
        listed = "、".join(names[:-1]) + "和" + names[-1]
        questions = [
            "框出{}。",
            "{}在哪里？",
            "找出{}。",
            "检测{}，以JSON格式输出坐标。",
            "定位{}。",
        ]
        return rng.choice(questions).format(listed), "\n".join(lines)
    listed = join_and(["the " + label for label in names])
    questions = [
        "Locate {}.",
        "Where are {}?",
        "Find {}.",
        "Give the boxes of {}.",
        "Locate {}, output the bbox coordinates in JSON.",
        "Detect {}.",
        "Draw boxes around {}.",
    ]
    return rng.choice(questions).format(listed), "\n".join(lines)


def color(rng, scene, zh):
    """The colour of the X, asked by shape alone."""
    shapes = [
        t for t in scene.things if t.color and len({s.color for s in matching(scene, t.kind)}) == 1
    ]
    if not shapes:
        return None
    thing = rng.choice(shapes)
    english = [
        "What color is the {}?",
        "What colour is the {}?",
        "Which color does the {} have?",
        "Tell me the color of the {}.",
        "The {} is what color?",
        "What is the {}'s color?",
    ]
    chinese = [
        "{}是什么颜色的？",
        "{}是什么颜色？",
        "{}的颜色是什么？",
        "说出{}的颜色。",
        "图中的{}是什么颜色的？",
    ]
    question = pick(rng, english, chinese, zh).format(ZH[thing.kind] if zh else thing.kind)
    answer = ZH[thing.color] + "。" if zh else sentence(thing.color)
    return maybe_short(rng, question, answer, answer, zh, 0.08)


def shape_of_color(rng, scene, zh):
    """What the red thing is."""
    shapes = [t for t in scene.things if t.color]
    colors = [t.color for t in shapes]
    shapes = [t for t in shapes if colors.count(t.color) == 1]
    if not shapes:
        return None
    thing = rng.choice(shapes)
    english = [
        "What shape is the {} thing?",
        "Which shape is {}?",
        "What is the {} thing?",
        "Name the {} shape.",
    ]
    chinese = ["{}的是什么图形？", "哪个图形是{}的？", "{}的东西是什么？", "{}图形是什么形状？"]
    question = pick(rng, english, chinese, zh).format(ZH[thing.color] if zh else thing.color)
    return question, name(thing, zh) + "。" if zh else sentence("the " + name(thing, zh))


def relation(rng, scene, zh):
    things = unique_things(scene)
    if len(things) < 2:
        return None
    a, b = rng.sample(things, 2)
    side = rng.choice(RELATIONS)
    value = stands(a, b, side, scene)
    if value is None:
        return None
    if zh:
        questions = [
            "{a}在{b}的{r}吗？",
            "{a}是不是在{b}的{r}？",
            "{a}在{b}{r}吗？",
            "{a}位于{b}的{r}吗？",
        ]
        question = pick(rng, questions, questions, zh).format(
            a=name(a, zh), b=name(b, zh), r=RELATION_ZH[side]
        )
    else:
        questions = [
            "Is the {a} {r} the {b}?",
            "Is the {a} located {r} the {b}?",
            "Does the {a} appear {r} the {b}?",
        ]
        words = RELATION_EN_SHORT if rng.random() < 0.3 else RELATION_EN
        question = pick(rng, questions, questions, zh).format(
            a=name(a, zh), b=name(b, zh), r=words[side]
        )
    answer = yes_no(value, zh, "be")
    return maybe_short(rng, question, answer, answer, zh, 0.05)


def relation_open(rng, scene, zh):
    """On which side of b is a? Asked only where one axis clearly wins."""
    things = unique_things(scene)
    if len(things) < 2:
        return None
    a, b = rng.sample(things, 2)
    (ax, ay), (bx, by) = center(a), center(b)
    dx, dy = (ax - bx) / scene.width, (ay - by) / scene.height
    if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)) or max(abs(dx), abs(dy)) < 0.06:
        return None
    side = (
        ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
    )
    if zh:
        questions = ["{a}在{b}的什么位置？", "{a}在{b}的哪一边？", "{a}在{b}的哪个方向？"]
        question = rng.choice(questions).format(a=name(a, zh), b=name(b, zh))
        return question, f"在{name(b, zh)}的{RELATION_ZH[side]}。"
    questions = [
        "On which side of the {b} is the {a}?",
        "Where is the {a} relative to the {b}?",
        "Where is the {a} compared to the {b}?",
    ]
    return rng.choice(questions).format(
        a=name(a, zh), b=name(b, zh)
    ), f"It is {RELATION_EN[side]} the {name(b, zh)}."


def neighbour(rng, scene, zh):
    """What is left of X? Asked where at most one thing is."""
    things = unique_things(scene)
    if not things:
        return None
    anchor, side = rng.choice(things), rng.choice(RELATIONS)
    others = [t for t in scene.things if t is not anchor]
    sides = [stands(t, anchor, side, scene) for t in others]
    if None in sides or sides.count(True) > 1:
        return None
    found = others[sides.index(True)] if True in sides else None
    if zh:
        question = rng.choice(["{b}的{r}是什么？", "{b}的{r}有什么？"]).format(
            b=name(anchor, zh), r=RELATION_ZH[side]
        )
        return question, (name(found, zh) if found else "什么也没有") + "。"
    question = rng.choice(["What is {r} the {b}?", "What do you see {r} the {b}?"]).format(
        b=name(anchor, zh), r=RELATION_EN[side]
    )
    return question, sentence(noun_phrase(found, zh)) if found else "Nothing."


def size(rng, scene, zh):
    things = unique_things(scene)
    if len(things) < 2:
        return None
    a, b = rng.sample(things, 2)
    if max(a.size, b.size) < 1.4 * min(a.size, b.size):
        return None
    bigger = rng.random() < 0.6
    word, word_zh = ("larger", "大") if bigger else ("smaller", "小")
    winner = a if (a.size > b.size) == bigger else b
    if rng.random() < 0.5:
        if zh:
            question = f"{name(a, zh)}比{name(b, zh)}{word_zh}吗？"
        else:
            word = rng.choice([word, "bigger"]) if bigger else word
            question = f"Is the {name(a, zh)} {word} than the {name(b, zh)}?"
        return question, yes_no(winner is a, zh, "be")
    if zh:
        questions = ["{a}和{b}哪个更{w}？", "{a}和{b}，哪个{w}？", "哪个更{w}，{a}还是{b}？"]
        return rng.choice(questions).format(a=name(a, zh), b=name(b, zh), w=word_zh), name(
            winner, zh
        ) + "。"
    question = f"Which is {word}, the {name(a, zh)} or the {name(b, zh)}?"
    return question, sentence("the " + name(winner, zh))


def extreme_size(rng, scene, zh):
    if len(scene.things) < 2:
        return None
    ordered = sorted(scene.things, key=lambda t: t.size)
    largest = rng.random() < 0.6
    best, second = (ordered[-1], ordered[-2]) if largest else (ordered[0], ordered[1])
    if max(best.size, second.size) < 1.3 * min(best.size, second.size):
        return None
    if zh:
        word = "大" if largest else "小"
        if rng.random() < 0.3:
            question = rng.choice(["框出最{}的物体", "最{}的物体在哪里？"]).format(word)
            return question, grounded(name(best, zh), boxes_of(scene, [best]))
        return rng.choice(["最{}的物体是什么？", "图中哪个物体最{}？"]).format(word), name(
            best, zh
        ) + "。"
    word = "largest" if largest else "smallest"
    if rng.random() < 0.3:
        question = rng.choice(["Locate the {} object.", "Where is the {} thing?"]).format(word)
        return question, grounded("the " + name(best, zh), boxes_of(scene, [best]))
    question = rng.choice(
        ["What is the {} object?", "Which object is the {}?", "Which thing is the {}?"]
    ).format(word)
    return question, sentence("the " + name(best, zh))


def position(rng, scene, zh):
    things = unique_things(scene)
    if not things:
        return None
    thing = rng.choice(things)
    if zh:
        question = rng.choice(
            ["{}在图的哪个部分？", "{}在图片的什么位置？", "{}在画面的哪里？"]
        ).format(name(thing, zh))
        return question, f"在{place(thing, scene, zh)}。"
    questions = [
        "In which part of the image is the {}?",
        "Which part of the picture shows the {}?",
        "In what area is the {}?",
    ]
    return rng.choice(questions).format(name(thing, zh)), f"At the {place(thing, scene, zh)}."


def read(rng, scene, zh):
    if not scene.words:
        question = pick(rng, READ, READ_ZH, zh)
        return question, "图中没有文字。" if zh else "There is no text in the image."
    if len(scene.words) > 1 and rng.random() < 0.5:
        colors = [word.color for word in scene.words]
        word = rng.choice(scene.words)
        if colors.count(word.color) == 1:
            if zh:
                return rng.choice(["{}的文字是什么？", "读出{}的文字。"]).format(
                    ZH[word.color]
                ), spelled(word)
            questions = [
                "What does the {} text say?",
                "Read the {} text.",
                "What is written in {}?",
            ]
            return rng.choice(questions).format(word.color), spelled(word)
    return pick(rng, READ, READ_ZH, zh), ", ".join(spelled(word) for word in scene.words)


READ = [
    "What does the text say?",
    "Read the text in the image.",
    "Read the text.",
    "What is written in the image?",
    "What text do you see?",
    "Which words are in the picture?",
    "Transcribe the text.",
    "OCR this image.",
    "What does it say?",
]
READ_ZH = [
    "图中的文字是什么？",
    "读出文字。",
    "图中写了什么？",
    "识别图中的文字。",
    "读出图中的文字。",
    "上面写着什么？",
    "图里的字是什么？",
]


def locate_text(rng, scene, zh):
    if not scene.words:
        question = "框出图中的文字" if zh else "Locate the text."
        return question, "图中没有文字。" if zh else "There is no text in the image."
    if rng.random() < 0.35:
        word = rng.choice(scene.words)
        questions = ['Locate the word "{}".', 'Where is the text "{}"?', 'Find "{}" in the image.']
        chinese = ["框出文字“{}”", "“{}”在哪里？", "找出文字“{}”的位置。"]
        same = [w for w in scene.words if w.text == word.text]
        return pick(rng, questions, chinese, zh).format(word.text), grounded(
            spelled(word), boxes_of(scene, same)
        )
    english = [
        "Locate the text.",
        "Where is the text?",
        "Find all text in the image.",
        "Read the text with boxes.",
        "Detect the text.",
        "Find the text and output its box.",
    ]
    chinese = [
        "框出图中的文字",
        "文字在哪里？",
        "找出图中所有文字并框出来。",
        "检测图中的文字。",
        "标出文字的位置。",
    ]
    parts = [grounded(spelled(word), boxes_of(scene, [word])) for word in scene.words]
    return pick(rng, english, chinese, zh), ", ".join(parts)


def read_region(rng, scene, zh):
    if not scene.words:
        return None
    word = rng.choice(scene.words)
    box = box_text(scene.normalised(word.box))
    if zh:
        return rng.choice(["{}里写了什么？", "读出{}中的文字。"]).format(box), spelled(word)
    return rng.choice(
        ["What text is in {}?", "Read the text in {}.", "What is written in {}?"]
    ).format(box), spelled(word)


def text_facts(rng, scene, zh):
    if rng.random() < 0.5:
        return (
            ("图中有文字吗？", yes_no(bool(scene.words), zh))
            if zh
            else ("Is there any text in the image?", yes_no(bool(scene.words), zh))
        )
    if len(scene.words) != 1:
        return None
    if zh:
        return "文字是什么颜色的？", ZH[scene.words[0].color] + "。"
    return "What color is the text?", sentence(scene.words[0].color)


IMAGE_TASKS = {
    "caption": (caption, 3),
    "brief": (brief, 1.5),
    "grounded_caption": (grounded_caption, 4),
    "locate": (locate, 6),
    "absent": (absent, 1.5),
    "locate_relation": (locate_relation, 2.5),
    "locate_all": (locate_all, 5),
    "region": (region, 3),
    "count": (count, 5),
    "exist": (exist, 4),
    "color": (color, 4),
    "shape_of_color": (shape_of_color, 1.5),
    "relation": (relation, 4.5),
    "relation_open": (relation_open, 1.5),
    "neighbour": (neighbour, 1.5),
    "size": (size, 2.5),
    "extreme_size": (extreme_size, 1),
    "position": (position, 1.5),
    "negated": (negated, 2),
    "exist_many": (exist_many, 2),
    "exist_color": (exist_color, 1),
    "locate_several": (locate_several, 2),
    "region_unknown": (region_unknown, 2),
}
TEXT_TASKS = {
    "read": (read, 6),
    "locate_text": (locate_text, 4),
    "read_region": (read_region, 2),
    "text_facts": (text_facts, 1),
}


def follow_up(rng, scene, zh):
    """Two or three turns in which the later questions say "it"."""
    things = unique_things(scene)
    if not things:
        return None
    thing = rng.choice(things)
    label = name(thing, zh)
    box = grounded(label if zh else "the " + label, boxes_of(scene, [thing]))
    if zh:
        turns = [
            ("exist", f"图中有{label}吗？", "有。"),
            ("locate", rng.choice(["它在哪里？", "框出它的位置。"]), box),
        ]
        turns.append(("position", "它在图的哪个部分？", f"在{place(thing, scene, zh)}。"))
    else:
        turns = [("exist", f"Is there {with_article(label)} in the image?", "Yes.")]
        turns.append(
            ("locate", rng.choice(["Where is it?", "Locate it.", "Draw a box around it."]), box)
        )
        turns.append(
            ("position", "In which part of the image is it?", f"At the {place(thing, scene, zh)}.")
        )
    if rng.random() < 0.5:
        asked_box = box_text(scene.normalised(thing.box))
        first = f"{asked_box}里面是什么？" if zh else f"What is inside {asked_box}?"
        turns[0] = (
            "region",
            first,
            noun_phrase(thing, zh) + "。" if zh else sentence(noun_phrase(thing, zh)),
        )
    return turns[: rng.choice([2, 3])]


# ---------------------------------------------------------------- several pictures


def album_names(scene):
    return {key(thing) for thing in scene.things}


def in_order(keys):
    return sorted(keys, key=lambda k: (KINDS.index(k[0]), COLOR_NAMES.index(k[1]) if k[1] else 0))


def phrases(keys, zh):
    return [
        full_name(k, c, True) if zh else with_article(full_name(k, c, False))
        for k, c in in_order(keys)
    ]


def common(rng, scenes, zh):
    shared = set.intersection(*map(album_names, scenes))
    english = [
        "What are the common elements in these pictures?",
        "What do these pictures have in common?",
        "Which things are in all pictures?",
        "What appears in every picture?",
    ]
    chinese = [
        "这两张图片有什么共同点？",
        "这些图片有什么共同点？",
        "哪些东西在每张图中都有？",
        "图片中有什么相同的东西？",
    ]
    question = pick(rng, english, chinese if len(scenes) == 2 else chinese[1:], zh)
    both = len(scenes) == 2
    if not shared:
        return question, "没有共同的图形。" if zh else "They have no shape in common."
    if zh:
        return question, ("两张图中都有" if both else "所有图中都有") + "、".join(
            phrases(shared, zh)
        ) + "。"
    return question, ("Both" if both else "All") + " pictures contain " + " and ".join(
        phrases(shared, zh)
    ) + "."


def only_in(rng, scenes, zh):
    chosen = 0 if rng.random() < 0.5 else rng.randrange(len(scenes))
    others = set().union(*(album_names(s) for i, s in enumerate(scenes) if i != chosen))
    mine = album_names(scenes[chosen]) - others
    if zh:
        questions = ["哪些图形只出现在{}张图中？", "哪些东西只在{}张图里？", "只有{}张图中有什么？"]
        return rng.choice(questions).format(ORDINALS_ZH[chosen]), (
            "、".join(phrases(mine, zh)) if mine else "没有"
        ) + "。"
    questions = [
        "Which shapes appear only in the {} picture?",
        "What is only in the {} picture?",
        "Which things are only in the {} picture?",
    ]
    answer = sentence(" and ".join(phrases(mine, zh))) if mine else "None."
    return rng.choice(questions).format(ORDINALS[chosen]), answer


def more(rng, scenes, zh):
    counts = [len(scene.things) for scene in scenes]
    word, word_zh = (
        ("shapes", "图形")
        if all(t.color for s in scenes for t in s.things) and rng.random() < 0.7
        else ("objects", "物体")
    )
    best = counts.index(max(counts))
    tied = counts.count(max(counts)) > 1
    if len(scenes) > 2 and tied:
        return None
    if zh:
        question = (
            f"哪张图片中的{word_zh}更多？" if len(scenes) == 2 else f"哪张图片中的{word_zh}最多？"
        )
        return question, "一样多。" if tied else f"{ORDINALS_ZH[best]}张。"
    question = (
        f"Which picture has more {word}?"
        if len(scenes) == 2
        else f"Which picture has the most {word}?"
    )
    return question, "They have the same number." if tied else f"The {ORDINALS[best]} picture."


def nth(rng, scenes, zh):
    i = rng.randrange(len(scenes))
    things = scenes[i].things
    if not things:
        return None
    if zh:
        questions = ["{}张图里有什么？", "{}张图片中有什么？", "描述{}张图。", "{}张图是什么？"]
        return rng.choice(questions).format(ORDINALS_ZH[i]), "、".join(
            name(t, zh) for t in things
        ) + "。"
    questions = [
        "What is in the {} picture?",
        "What does the {} picture show?",
        "Describe the {} picture.",
        "What is in the {} image?",
    ]
    return rng.choice(questions).format(ORDINALS[i]), sentence(
        ", ".join(noun_phrase(t, zh) for t in things)
    )


def exist_nth(rng, scenes, zh):
    i = rng.randrange(len(scenes))
    pool = scenes[rng.randrange(len(scenes))]
    kind, color_ = (
        key(rng.choice(pool.things)) if pool.things and rng.random() < 0.8 else near_miss(rng, pool)
    )
    label, answer = full_name(kind, color_, zh), bool(matching(scenes[i], kind, color_))
    if zh:
        return f"{ORDINALS_ZH[i]}张图中有{label}吗？", yes_no(answer, zh)
    return f"Is there {with_article(label)} in the {ORDINALS[i]} picture?", yes_no(answer, zh)


def which_picture(rng, scenes, zh):
    pool = rng.choice(scenes)
    kind, color_ = (
        key(rng.choice(pool.things)) if pool.things and rng.random() < 0.9 else near_miss(rng, pool)
    )
    label = full_name(kind, color_, zh)
    found = [i for i, scene in enumerate(scenes) if matching(scene, kind, color_)]
    if zh:
        question = rng.choice(["哪张图中有{}？", "{}在哪张图里？"]).format(label)
        return question, (
            "、".join(f"{ORDINALS_ZH[i]}张" for i in found) if found else "都没有"
        ) + "。"
    question = rng.choice(["Which picture contains {}?", "Which picture shows {}?"]).format(
        with_article(label)
    )
    if not found:
        return question, "None of them."
    numbers = " and the ".join(ORDINALS[i] for i in found)
    return question, f"The {numbers} picture{'s' if len(found) > 1 else ''}."


def count_nth(rng, scenes, zh):
    i = rng.randrange(len(scenes))
    total = len(scenes[i].things)
    if zh:
        return (
            f"{ORDINALS_ZH[i]}张图中有几个物体？",
            f"{ORDINALS_ZH[i]}张图中有{NUMBERS_ZH[total]}个物体。",
        )
    verb = "is" if total == 1 else "are"
    return (
        f"How many objects are in the {ORDINALS[i]} picture?",
        f"There {verb} {NUMBERS[total]} object{'' if total == 1 else 's'}.",
    )


def locate_nth(rng, scenes, zh):
    i = rng.randrange(len(scenes))
    if not scenes[i].things:
        return None
    thing = rng.choice(scenes[i].things)
    found, label = matching(scenes[i], *key(thing)), name(thing, zh)
    boxes = boxes_of(scenes[i], found)
    if zh:
        return f"框出{ORDINALS_ZH[i]}张图中{label}的位置", grounded(label, boxes)
    return f"Locate the {label} in the {ORDINALS[i]} picture.", grounded("the " + label, boxes)


ALBUM_TASKS = {
    "common": (common, 3),
    "only_in": (only_in, 3),
    "more": (more, 2),
    "nth": (nth, 3),
    "exist_nth": (exist_nth, 1.5),
    "which_picture": (which_picture, 2),
    "count_nth": (count_nth, 1),
    "locate_nth": (locate_nth, 1),
}


# ---------------------------------------------------------------- video

MOVES = {
    "right": "moves to the right",
    "left": "moves to the left",
    "down": "moves down",
    "up": "moves up",
    "still": "stays still",
    "turn": "turns round",
}
MOVES_ZH = {
    "right": "向右移动",
    "left": "向左移动",
    "down": "向下移动",
    "up": "向上移动",
    "still": "静止不动",
    "turn": "原地转动",
}


def deed(actor, zh):
    """What an actor does, as a verb phrase."""
    move = (MOVES_ZH if zh else MOVES)[actor.direction]
    event = event_phrase(actor.event, zh)
    if event is None:
        return move
    if actor.direction == "still":
        return event
    first, second = (event, move) if actor.event == "appear" else (move, event)
    return f"{first}并{second}" if zh else f"{first} and {second}"


def event_phrase(event, zh):
    if event in COLORS:
        return f"变成{ZH[event]}" if zh else f"turns {event}"
    return {
        None: None,
        "appear": "出现" if zh else "appears",
        "disappear": "消失" if zh else "disappears",
    }[event]


def clip_caption(rng, clip, zh):
    english = [
        "Describe this video.",
        "What happens in the video?",
        "What is going on in this clip?",
        "Caption the video.",
        "Tell me what happens.",
    ]
    chinese = [
        "描述这段视频。",
        "视频里发生了什么？",
        "视频中有什么？",
        "说说视频的内容。",
        "这段视频讲了什么？",
    ]
    question = pick(rng, english, chinese, zh)
    if zh:
        return question, "，".join(name(a.thing, zh) + deed(a, zh) for a in clip.actors) + "。"
    return question, sentence(
        "; ".join(f"the {name(a.thing, zh)} {deed(a, zh)}" for a in clip.actors)
    )


def clip_direction(rng, clip, zh):
    actor = rng.choice(clip.actors)
    english = [
        "How does the {} move?",
        "In which direction does the {} move?",
        "Where does the {} go?",
        "Which way does the {} move?",
    ]
    chinese = ["{}往哪个方向移动？", "{}怎么移动？", "{}向哪边移动？", "{}朝哪个方向运动？"]
    question = pick(rng, english, chinese, zh).format(name(actor.thing, zh))
    if zh:
        return question, MOVES_ZH[actor.direction] + "。"
    return question, f"It {MOVES[actor.direction]}."


def clip_which(rng, clip, zh):
    direction = (
        rng.choice(clip.actors).direction if rng.random() < 0.8 else rng.choice(list(DIRECTIONS))
    )
    found = [a for a in clip.actors if a.direction == direction]
    if zh:
        question = rng.choice(["哪个图形{}？", "什么东西{}？"]).format(MOVES_ZH[direction])
        return question, ("，".join(name(a.thing, zh) for a in found) if found else "没有") + "。"
    question = rng.choice(["Which shape {}?", "What {}?", "Which thing {}?"]).format(
        MOVES[direction]
    )
    return question, sentence(
        " and ".join("the " + name(a.thing, zh) for a in found) if found else "none"
    )


def clip_count(rng, clip, zh):
    total = len(clip.actors)
    shapes = all(a.thing.color for a in clip.actors)
    if zh:
        unit = "图形" if shapes else "物体"
        return f"视频里有几个{unit}？", f"视频里有{NUMBERS_ZH[total]}个{unit}。"
    unit = ("shape" if shapes else "object") + ("" if total == 1 else "s")
    return (
        f"How many {plural('shape' if shapes else 'object')} are in the video?",
        f"There {'is' if total == 1 else 'are'} {NUMBERS[total]} {unit}.",
    )


def clip_moves(rng, clip, zh):
    actor = rng.choice(clip.actors)
    direction = actor.direction if rng.random() < 0.5 else rng.choice(list(DIRECTIONS))
    value = direction == actor.direction
    if direction == "still":
        question = (
            f"{name(actor.thing, zh)}静止不动吗？"
            if zh
            else f"Does the {name(actor.thing, zh)} stay still?"
        )
    elif zh:
        question = f"{name(actor.thing, zh)}{MOVES_ZH[direction]}吗？"
    else:
        verb, _, rest = MOVES[direction].partition(" ")
        question = f"Does the {name(actor.thing, zh)} {verb.removesuffix('s')} {rest}?"
    return question, yes_no(value, zh, "be")


def clip_speed(rng, clip, zh):
    if len(clip.actors) < 2:
        return None
    a, b = rng.sample(clip.actors, 2)
    if (
        max(a.speed, b.speed) < 1.4 * min(a.speed, b.speed) + 1
        or a.event in ("appear", "disappear")
        or b.event in ("appear", "disappear")
    ):
        return None
    fast = rng.random() < 0.65
    winner = a if (a.speed > b.speed) == fast else b
    if zh:
        word = "快" if fast else "慢"
        return f"{name(a.thing, zh)}和{name(b.thing, zh)}哪个移动得更{word}？", name(
            winner.thing, zh
        ) + "。"
    word = "faster" if fast else "slower"
    return f"Which moves {word}, the {name(a.thing, zh)} or the {name(b.thing, zh)}?", sentence(
        "the " + name(winner.thing, zh)
    )


def clip_event(rng, clip, zh):
    actor = rng.choice(clip.actors)
    if zh:
        question = rng.choice(["{}发生了什么？", "{}怎么了？", "{}有什么变化？"]).format(
            name(actor.thing, zh)
        )
        return question, deed(actor, zh) + "。"
    question = rng.choice(["What happens to the {}?", "What does the {} do?"]).format(
        name(actor.thing, zh)
    )
    return question, f"It {deed(actor, zh)}."


def clip_event_which(rng, clip, zh):
    event = rng.choice(["appear", "disappear"])
    found = [a for a in clip.actors if a.event == event]
    if not found and rng.random() < 0.6:
        return None
    if zh:
        question = f"什么东西{event_phrase(event, zh)}了？"
        return question, ("，".join(name(a.thing, zh) for a in found) if found else "没有") + "。"
    question = rng.choice(["What {}?", "Which thing {}?"]).format(event_phrase(event, zh))
    return question, sentence(
        " and ".join("the " + name(a.thing, zh) for a in found) if found else "none"
    )


def clip_event_check(rng, clip, zh):
    actor = rng.choice(clip.actors)
    event = (
        rng.choice(["appear", "disappear", "color"])
        if actor.event is None or rng.random() < 0.4
        else actor.event
    )
    value = actor.event == event if event != "color" else actor.event in COLORS
    if event == "color" or event in COLORS:
        value = actor.event in COLORS
        question = (
            f"{name(actor.thing, zh)}变色了吗？"
            if zh
            else f"Does the {name(actor.thing, zh)} change color?"
        )
    else:
        question = (
            f"{name(actor.thing, zh)}{event_phrase(event, zh)}了吗？"
            if zh
            else f"Does the {name(actor.thing, zh)} {event}?"
        )
    return question, yes_no(value, zh, "be")


def clip_order(rng, clip, zh):
    changing = [a for a in clip.actors if a.event]
    if len(changing) < 2:
        return None
    changing.sort(key=lambda a: a.when)
    if changing[0].when == changing[1].when:
        return None
    actor = changing[0]
    if zh:
        return rng.choice(
            ["最先发生了什么？", "首先发生了什么变化？"]
        ), f"{name(actor.thing, zh)}{event_phrase(actor.event, zh)}。"
    question = rng.choice(["What happens first?", "Which change comes first?"])
    return question, f"The {name(actor.thing, zh)} {event_phrase(actor.event, zh)}."


CLIP_TASKS = {
    "clip_caption": (clip_caption, 3),
    "clip_direction": (clip_direction, 4),
    "clip_which": (clip_which, 2),
    "clip_count": (clip_count, 1),
    "clip_moves": (clip_moves, 1.5),
    "clip_speed": (clip_speed, 2),
    "clip_event": (clip_event, 3),
    "clip_event_which": (clip_event_which, 1.5),
    "clip_event_check": (clip_event_check, 2),
    "clip_order": (clip_order, 2),
}

CHAT = [
    ("Who are you?", "I am a tiny vision-language model trained on synthetic scenes."),
    ("What are you?", "I am a tiny vision-language model trained on synthetic scenes."),
    (
        "What can you do?",
        "I can describe simple pictures, find things in them, count, read words "
        "and follow short videos.",
    ),
    ("Hello!", "Hello! Show me a picture of shapes."),
    ("Hi", "Hello! Show me a picture of shapes."),
    ("Thank you!", "You are welcome!"),
    ("Goodbye!", "Goodbye!"),
    ("你是谁？", "我是一个在合成场景上训练的小型视觉语言模型。"),
    ("你是什么模型？", "我是一个在合成场景上训练的小型视觉语言模型。"),
    ("你能做什么？", "我可以描述简单的图片、找出物体、计数、读文字和看短视频。"),
    ("你好！", "你好！请给我看一张图形图片。"),
    ("你好", "你好！请给我看一张图形图片。"),
    ("谢谢！", "不客气！"),
    ("再见！", "再见！"),
]


# ---------------------------------------------------------------- conversations

TASK_NAMES = [*IMAGE_TASKS, *TEXT_TASKS, *ALBUM_TASKS, *CLIP_TASKS, "chat", "several"]


def reweighted(tasks, weights):
    """(names, functions, weights) with a run's own weights in place of the defaults."""
    names = list(tasks)
    return names, [tasks[n][0] for n in names], [weights.get(n, tasks[n][1]) for n in names]


class Examiner:
    """Draws conversations about a scene from weighted tasks."""

    def __init__(self, weights=None, chinese_share=0.45):
        weights = weights or {}
        self.image = reweighted(IMAGE_TASKS, weights)
        self.image_and_text = reweighted(IMAGE_TASKS | TEXT_TASKS, weights)
        self.album = reweighted(ALBUM_TASKS, weights)
        self.clip = reweighted(CLIP_TASKS, weights)
        self.chinese_share = chinese_share

    def tasks_for(self, scene):
        if isinstance(scene, list):
            return self.album
        if hasattr(scene, "actors"):
            return self.clip
        return self.image_and_text if scene.words else self.image

    def dialogues(self, rng, scene, count):
        """`count` conversations, some of several turns: lists of (task, question, answer)."""
        names, functions, weights = self.tasks_for(scene)
        zh = rng.random() < self.chinese_share
        found, languages = [], []
        for index in rng.choices(range(len(names)), weights, k=count * 2):
            language = zh if rng.random() < 0.75 else not zh
            pair = functions[index](rng, scene, language)
            if pair:
                question = retype(rng, vary(rng, pair[0], language), language)
                found.append([(names[index], question, pair[1])])
                languages.append(language)
            if len(found) == count:
                break
        for language in (False, True):
            alike = [i for i, own in enumerate(languages) if own == language]
            if len(alike) > 2 and rng.random() < 0.3:
                first, *others = alike[: rng.choice([2, 2, 3])]
                merged = merge(rng, [found[i][0] for i in (first, *others)], language)
                if merged:
                    found[first] = [merged]
        if rng.random() < 0.06:
            found.insert(0, [("chat", *rng.choice(CHAT))])
        elif names is self.image[0] or names is self.image_and_text[0]:
            turns = follow_up(rng, scene, zh) if rng.random() < 0.12 else None
            if turns:
                found.insert(0, turns)
        if rng.random() < 0.12 and len(found) > 3:  # several questions in a row, as people ask them
            found[:3] = [found[0] + found[1] + found[2]]
        return found


def merge(rng, turns, zh):
    """Several questions in one message, and their answers in as many lines."""
    questions, answers = [turn[1] for turn in turns], [turn[2] for turn in turns]
    if any("\n" in answer for answer in answers) or sum(map(len, answers)) > 400:
        return None
    style = rng.random()
    if style < 0.3:
        text = "\n".join(questions)
    elif style < 0.5:
        text = "\n".join(f"{i}. {question}" for i, question in enumerate(questions, 1))
    else:
        stop, space = ("。", "") if zh else (".", " ")
        text = space.join(q if q[-1] in ".?!:。？！：" else q + stop for q in questions)
    return "several", text, "\n".join(answers)
