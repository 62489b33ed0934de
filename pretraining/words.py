"""What the little world holds: colours, shapes and nouns with their English and Chinese names."""

import csv
from pathlib import Path

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 40),
    "orange": (245, 140, 30),
    "purple": (140, 60, 190),
    "pink": (245, 130, 180),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
    "cyan": (50, 200, 215),
    "white": (250, 250, 250),
}
# Other values that people and plotting libraries call by the same name.
COLOR_VARIANTS = {
    "red": [(255, 0, 0), (214, 39, 40), (200, 20, 30), (231, 76, 60)],
    "green": [(0, 128, 0), (0, 255, 0), (44, 160, 44), (50, 205, 50), (46, 204, 113)],
    "blue": [(0, 0, 255), (31, 119, 180), (30, 60, 170), (65, 105, 225)],
    "yellow": [(255, 255, 0), (255, 215, 0), (241, 196, 15)],
    "orange": [(255, 165, 0), (255, 127, 14), (230, 126, 34), (255, 140, 0)],
    "purple": [(128, 0, 128), (148, 103, 189), (160, 32, 240), (155, 89, 182)],
    "pink": [(255, 192, 203), (255, 105, 180), (227, 119, 194), (255, 160, 190)],
    "brown": [(165, 42, 42), (139, 69, 19), (140, 86, 75), (120, 72, 30)],
    "black": [(0, 0, 0), (35, 35, 40)],
    "gray": [(128, 128, 128), (169, 169, 169), (127, 127, 127), (110, 115, 120)],
    "cyan": [(0, 255, 255), (23, 190, 207), (64, 224, 208), (0, 200, 220)],
    "white": [(255, 255, 255), (245, 245, 245)],
}
COLORS_ZH = dict(
    zip(
        COLORS,
        "红色 绿色 蓝色 黄色 橙色 紫色 粉色 棕色 黑色 灰色 青色 白色".split(),
        strict=True,
    )
)
SHAPES_ZH = {
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

# English name, Chinese name, pictograms. Names follow CLDR's annotations (short name or keyword),
# with its qualifiers ("red apple", "dog face") left out.
NOUNS_TABLE = """
bus 公交车 🚌 🚍
car 汽车 🚗 🚙 🚘
taxi 出租车 🚕 🚖
truck 卡车 🚚 🚛
police car 警车 🚓 🚔
ambulance 救护车 🚑
fire engine 消防车 🚒
bicycle 自行车 🚲
motorcycle 摩托车 🏍
scooter 滑板车 🛴
train 火车 🚂 🚆
airplane 飞机 ✈ 🛩
helicopter 直升机 🚁
rocket 火箭 🚀
ship 轮船 🚢
sailboat 帆船 ⛵
tractor 拖拉机 🚜
traffic light 红绿灯 🚦 🚥
dog 狗 🐶 🐕
cat 猫 🐱 🐈
mouse 老鼠 🐭 🐁
rabbit 兔子 🐰 🐇
fox 狐狸 🦊
bear 熊 🐻
panda 熊猫 🐼
tiger 老虎 🐯 🐅
lion 狮子 🦁
cow 奶牛 🐮 🐄
pig 猪 🐷 🐖
monkey 猴子 🐵 🐒
rooster 公鸡 🐓
penguin 企鹅 🐧
bird 鸟 🐦
duck 鸭子 🦆
owl 猫头鹰 🦉
frog 青蛙 🐸
elephant 大象 🐘
horse 马 🐴 🐎
sheep 绵羊 🐑
snake 蛇 🐍
turtle 乌龟 🐢
fish 鱼 🐟 🐠
whale 鲸鱼 🐳 🐋
dolphin 海豚 🐬
octopus 章鱼 🐙
crab 螃蟹 🦀
butterfly 蝴蝶 🦋
bee 蜜蜂 🐝
snail 蜗牛 🐌
spider 蜘蛛 🕷
giraffe 长颈鹿 🦒
zebra 斑马 🦓
tree 树 🌳 🌲
palm tree 棕榈树 🌴
flower 花 🌸 🌼 🌺
tulip 郁金香 🌷
rose 玫瑰 🌹
sunflower 向日葵 🌻
cactus 仙人掌 🌵
mushroom 蘑菇 🍄
leaf 叶子 🍁 🍃
sun 太阳 ☀ 🌞
moon 月亮 🌙 🌛
cloud 云 ☁
rainbow 彩虹 🌈
umbrella 雨伞 ☂ ☔
snowman 雪人 ⛄
fire 火 🔥
apple 苹果 🍎 🍏
banana 香蕉 🍌
tangerine 橘子 🍊
grapes 葡萄 🍇
watermelon 西瓜 🍉
strawberry 草莓 🍓
peach 桃子 🍑
pear 梨 🍐
pineapple 菠萝 🍍
cherries 樱桃 🍒
lemon 柠檬 🍋
tomato 西红柿 🍅
carrot 胡萝卜 🥕
corn 玉米 🌽
broccoli 西兰花 🥦
eggplant 茄子 🍆
potato 土豆 🥔
bread 面包 🍞
egg 鸡蛋 🥚
cheese 奶酪 🧀
pizza 披萨 🍕
hamburger 汉堡 🍔
french fries 薯条 🍟
cake 蛋糕 🍰 🎂
ice cream 冰淇淋 🍦 🍨
doughnut 甜甜圈 🍩
cookie 饼干 🍪
candy 糖果 🍬
cup 杯子 ☕ 🍵
milk 牛奶 🥛
spoon 勺子 🥄
knife 刀 🔪
house 房子 🏠 🏡
building 大楼 🏢
hospital 医院 🏥
school 学校 🏫
castle 城堡 🏰
tent 帐篷 ⛺
phone 手机 📱
laptop 电脑 💻
keyboard 键盘 ⌨
television 电视 📺
camera 相机 📷 📸
clock 时钟 🕐 ⏰ 🕒
watch 手表 ⌚
light bulb 灯泡 💡
book 书 📕 📗 📘 📖
pencil 铅笔 ✏
scissors 剪刀 ✂
key 钥匙 🔑
lock 锁 🔒
door 门 🚪
bed 床 🛏
chair 椅子 🪑
hammer 锤子 🔨
soccer ball 足球 ⚽
basketball 篮球 🏀
guitar 吉他 🎸
piano 钢琴 🎹
drum 鼓 🥁
balloon 气球 🎈
gift 礼物 🎁
teddy bear 泰迪熊 🧸
kite 风筝 🪁
robot 机器人 🤖
hat 帽子 🎩 👒
shirt 衬衫 👕
dress 连衣裙 👗
shoe 鞋子 👟 👞
glasses 眼镜 👓
backpack 背包 🎒
handbag 手提包 👜
crown 皇冠 👑
man 男人 👨
woman 女人 👩
baby 婴儿 👶
smiley face 笑脸 😀 😃
envelope 信封 ✉
trophy 奖杯 🏆
microphone 麦克风 🎤
bell 铃铛 🔔
globe 地球 🌍 🌎
box 箱子 📦
"""


def _parse_nouns(table):
    nouns, pictograms = {}, {}
    for line in table.strip().splitlines():
        fields = line.split()
        first = next(i for i, field in enumerate(fields) if not field.isascii())
        english = " ".join(fields[:first])
        nouns[english], pictograms[english] = fields[first], fields[first + 1 :]
    return nouns, pictograms


NOUNS_ZH, PICTOGRAMS = _parse_nouns(NOUNS_TABLE)

# Photographs (photos.py): rows of use ("train", "test" or "unknown"), file, English, Chinese name.
with open(Path(__file__).parent / "photos.tsv", encoding="utf-8") as file:
    PHOTOGRAPHS = list(csv.DictReader(file, delimiter="\t"))
PHOTO_KINDS = sorted({row["english"] for row in PHOTOGRAPHS} - {""})
PHOTO_NOUNS_ZH = {  # known from photographs alone
    row["english"]: row["chinese"]
    for row in PHOTOGRAPHS
    if row["english"] and row["english"] not in NOUNS_ZH
}
COLOR_NAMES, SHAPES, NOUNS = list(COLORS), list(SHAPES_ZH), list(NOUNS_ZH)
DRAWN_KINDS = SHAPES + NOUNS
KINDS = DRAWN_KINDS + list(PHOTO_NOUNS_ZH)
KIND_INDEX = {kind: i for i, kind in enumerate(KINDS)}
ZH = {**COLORS_ZH, **SHAPES_ZH, **NOUNS_ZH, **PHOTO_NOUNS_ZH}
# Whether a pigeon is "a bird" is never asked: of these, only the narrower names are known.
NARROWER = {
    "bird": "parrot blackbird hen crow crane cuckoo goose heron lark magpie rhea ostrich peacock "
    "pelican pigeon flamingo quetzal seagull toucan turkey vulture rooster penguin duck owl",
    "fish": "lionfish seahorse shrimp",
    "flower": "anemone anthurium hibiscus daffodil iris marigold petunia rose tulip sunflower",
    "dog": "dingo",
    "cow": "bull zebu yak bison",
    "sheep": "ram lamb",
    "rooster": "hen",
    "car": "taxi truck ambulance",
    "drum": "drum-kit",
    "duck": "rubber-duck goose",
    "tree": "palm-tree Christmas-tree",
    "mouse": "rat",
    "bee": "hornet hoverfly",
    "deer": "reindeer antelope",
    "monkey": "chimpanzee gorilla",
    "truck": "dumper garbage-truck fire-engine",
    "man": "firefighter astronaut",
    "hammer": "mallet",
    "tangerine": "orange",
    "squash": "pumpkin",
    "turkey": "roast-turkey",
    "cross": "stone-cross",
    "mailbox": "post-box",
    "sailboat": "ship",
    "candy": "candy-cane",
    "cake": "pudding pie",
    "cup": "jug",
    "kettle": "teapot jug",
}
_ALIKE_NAMES = {
    frozenset((wide, narrow.replace("-", " ")))
    for wide, row in NARROWER.items()
    for narrow in row.split()
}


def alike(a, b):
    """Whether one of two kinds may be called by the other's name."""
    return frozenset((a, b)) in _ALIKE_NAMES


# What the learner may call the same thing in a question; answers use the first name.
SYNONYMS = {
    "airplane": ["plane"],
    "bicycle": ["bike"],
    "phone": ["mobile phone"],
    "laptop": ["computer"],
    "television": ["TV"],
    "doughnut": ["donut"],
    "ship": ["boat"],
    "gray": ["grey"],
}
SYNONYMS_ZH = {
    "公交车": ["巴士", "公共汽车"],
    "狗": ["小狗"],
    "猫": ["小猫"],
    "圆形": ["圆"],
    "五角星": ["星星"],
    "手机": ["电话"],
    "红色": ["红"],
    "汽车": ["小汽车"],
}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS_ZH = ["零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十"]
ORDINALS = ["first", "second", "third", "fourth"]
ORDINALS_ZH = ["第一", "第二", "第三", "第四"]
_PLURALS = {
    "cross": "crosses",
    "mouse": "mice",
    "sheep": "sheep",
    "fish": "fish",
    "octopus": "octopuses",
    "leaf": "leaves",
    "cherries": "cherries",
    "grapes": "grapes",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "strawberry": "strawberries",
    "butterfly": "butterflies",
    "knife": "knives",
    "scissors": "scissors",
    "glasses": "glasses",
    "french fries": "french fries",
    "bus": "buses",
    "fox": "foxes",
    "peach": "peaches",
    "watch": "watches",
    "dress": "dresses",
    "man": "men",
    "woman": "women",
    "baby": "babies",
    "candy": "candies",
    "box": "boxes",
    "trophy": "trophies",
    "corn": "corn",
    "milk": "milk",
    "bread": "bread",
    "broccoli": "broccoli",
    "television": "televisions",
    "goose": "geese",
    "guinea fowl": "guinea fowl",
    "ostrich": "ostriches",
    "lionfish": "lionfish",
    "shrimp": "shrimp",
    "fly": "flies",
    "hoverfly": "hoverflies",
    "mantis": "mantises",
    "bison": "bison",
    "wildebeest": "wildebeest",
    "chamois": "chamois",
    "reindeer": "reindeer",
    "deer": "deer",
    "hippopotamus": "hippopotamuses",
    "rhinoceros": "rhinoceroses",
    "mango": "mangoes",
    "raspberry": "raspberries",
    "ginger": "ginger",
    "garlic": "garlic",
    "squash": "squashes",
    "binoculars": "binoculars",
    "pliers": "pliers",
    "paintbrush": "paintbrushes",
    "wrench": "wrenches",
    "hibiscus": "hibiscuses",
    "iris": "irises",
    "stone cross": "stone crosses",
    "post box": "post boxes",
    "mailbox": "mailboxes",
    "toolbox": "toolboxes",
    "snowman": "snowmen",
    "wreath": "wreaths",
}


def plural(name):
    return _PLURALS.get(name, name + "s")


_NO_ARTICLE = {
    "corn",
    "milk",
    "bread",
    "broccoli",
    "scissors",
    "glasses",
    "grapes",
    "cherries",
    "french fries",
    "ginger",
    "garlic",
    "binoculars",
    "pliers",
}


def with_article(name):
    if name in _NO_ARTICLE:
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name
