"""Other words for the same questions: more templates, typing errors, fillers, system prompts.

`MORE` and `COMPOSED` add to the lists of questions.py, each named by its first template.
`evaluate.py` empties both for the questions that stay the same from one model to the next, and asks
in words of its own.
"""

import itertools
from pathlib import Path

# Frequent words of both languages (of wordfreq's lists, by hand): what system prompts may hold.
EVERYDAY = (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8").split()

MORE = {
    "Locate the {}.": [
        "Circle the {}.",
        "Frame the {}.",
        "Give me a rectangle around the {}.",
        "Help me find the {}.",
        "I would like the box of the {}.",
        "Tell me where the {} is.",
        "Which place does the {} have in the picture?",
        "Highlight the {}.",
        "Where did the {} go?",
        "location of the {}",
        "position of the {}?",
        "Locate the {}, output the bbox coordinates in JSON.",
        "Locate the {} and output its bbox coordinates using JSON format.",
        "Detect the {} in the image and return its location in the form of coordinates.",
        "Output the bounding box of the {} in the image.",
        "Please provide the bounding box coordinates of the {}.",
        "Point to the {}.",
        "Show me the {}.",
        "Get the position of the {}.",
        "I am looking for the {}. Where is it?",
        "Can you locate the {}?",
        "Put a box on the {}.",
        "Where can I find the {}?",
        "Where in the image is the {}?",
        "Box the {}.",
        "bounding box of the {}",
        "Locate {}.",
        "find {}",
        "Return bounding boxes for the {}.",
        "Ground the phrase: {}",
    ],
    "框出图中{}的位置": [
        "帮我找{}。",
        "把{}标记出来。",
        "用框标记{}。",
        "请指出{}的位置。",
        "{}的位置是哪里？",
        "给我{}的坐标框。",
        "画出{}的边框。",
        "看看{}在哪里。",
        "请提供{}的边界框坐标。",
        "定位图中的{}，以JSON格式输出bbox坐标。",
        "定位{}的位置，以JSON格式输出其bbox坐标。",
        "{}在图里的什么地方？",
        "图中的{}在哪里？",
        "圈出{}。",
        "指出{}在哪里。",
        "检测{}并输出边界框。",
        "把{}框出来。",
        "给{}画一个框。",
        "输出{}的检测框。",
        "我在找{}，它在哪里？",
    ],
    "Locate all {}.": [
        "Mark all the {}.",
        "Find each {1}.",
        "Give a box for every {1}.",
        "Point out all {}.",
        "Outline the position of each {1} and output all the coordinates in JSON format.",
        "Detect all {} in the image and output their bounding boxes.",
        "Locate every instance of {1}. Report bbox coordinates in JSON format.",
        "Put a box on each {1}.",
        "Show me all {}.",
        "Where is every {1}?",
    ],
    "框出所有的{}": [
        "检测图中所有的{}，以JSON格式输出坐标。",
        "圈出所有{}。",
        "把每个{}都框出来。",
        "输出所有{}的边界框。",
    ],
    "Describe this image.": [
        "What can be seen here?",
        "Say what you see in the picture.",
        "Write down what the picture shows.",
        "Please caption the image.",
        "Tell me what the photograph shows.",
        "Describe the scene.",
        "Give this image a caption.",
        "What does this photo show?",
        "What is shown here?",
        "What's in this image?",
        "What's in the picture?",
        "What is in this photo?",
        "Describe the photo.",
        "Write a caption for this picture.",
        "Explain what is in this image.",
        "Give me a detailed description.",
        "What's this?",
        "What are you looking at?",
        "Summarize this image.",
        "Please describe what you see.",
        "Tell me about this picture.",
        "What do we have here?",
        "describe",
        "caption",
    ],
    "描述这张图片。": [
        "请描述这幅图。",
        "这幅画里有什么？",
        "用文字描述图片。",
        "说一说图里的内容。",
        "照片上是什么？",
        "请看图说明。",
        "图上有什么？",
        "这张照片里有什么？",
        "描述一下照片的内容。",
        "给这张图片写一个标题。",
        "请说明图中的内容。",
        "你看见什么了？",
        "图中是什么？",
        "描述",
        "介绍图片内容。",
    ],
    "Describe the image briefly.": [
        "List what you see.",
        "What items are in the picture?",
        "Which objects do you see?",
        "List all things in the photo.",
        "Name the objects.",
    ],
    "简单描述这张图片。": ["列出你看到的东西。", "图中有什么物体？", "说出图里所有的东西。"],
    "Generate the caption in English with grounding:": [
        "Name every object and give its box.",
        "List all objects with their bounding boxes.",
        "Give a box for each thing in the image.",
        "Mark all objects.",
        "Show all things with boxes.",
        "Annotate every object in the image.",
        "Label everything with bounding boxes.",
        "Return all objects and their coordinates.",
        "Generate the caption in English with grounding.",
        "Detect all objects in the image and output their bounding boxes in JSON format.",
        "Find everything and give the coordinates.",
        "Locate all objects, output the bbox coordinates in JSON.",
        "Describe the picture and box what you mention.",
        "Outline the position of each object and output all the coordinates in JSON format.",
        "Box everything you see.",
        "Caption with boxes.",
        "Give me a grounded caption.",
    ],
    "描述这张图片并框出物体：": [
        "标注图中所有物体。",
        "标出图里的每个物体。",
        "列出所有物体和坐标。",
        "请框出全部物体。",
        "给出每个物体的名称和边界框。",
        "把全部东西标出来。",
        "检测图中所有物体，以JSON格式输出坐标。",
        "给图中每个物体画框。",
        "把图里的东西都框出来。",
        "输出所有物体的边界框。",
        "描述图片并给出坐标。",
    ],
    "How many {} are there?": [
        "Count how many {} you see.",
        "Give the count of {}.",
        "Please count the {}.",
        "I want to know how many {} there are.",
        "What is the count of {}?",
        "Can you count the {}?",
        "Tell me the number of {}.",
        "How many {} does the image contain?",
        "How many {} does the picture show?",
        "Number of {}?",
        "Tell me how many {} there are.",
        "How many {} can you count?",
        "How many {} are visible?",
        "how many {}",
        "What is the total number of {}?",
    ],
    "图中有几个{}？": [
        "请数{}的数量。",
        "告诉我有几个{}。",
        "总共有多少个{}？",
        "图里共有几个{}？",
        "这里有几个{}？",
        "计算{}的个数。",
        "{}一共有多少个？",
        "告诉我{}的数量。",
        "请数一下有几个{}。",
        "图片里有多少{}？",
        "你看到了几个{}？",
        "一共有几个{}？",
        "{}的数量是多少？",
    ],
    "Is there {} in the image?": [
        "Do you think there is {} in the image?",
        "Would you find {} in this picture?",
        "Is {} in the picture?",
        "Is {} among the things in the image?",
        "Did you notice {}?",
        "Could you check whether there is {}?",
        "Does the scene include {}?",
        "Is it possible to see {}?",
        "Is {} to be seen?",
        "Does the image contain {}?",
        "Is there {} in this picture?",
        "Does this photo have {}?",
        "Does the picture contain {}?",
        "Do you see {}?",
        "Can you find {} in the image?",
        "Does the image have {} in it?",
        "Is {} shown?",
        "Is {} present?",
        "Can {} be seen?",
        "Has the picture got {}?",
        "Does {} appear in the image?",
        "Tell me whether there is {} in the picture.",
        "Is there {} here?",
    ],
    "图中有{}吗？": [
        "画面里有{}吗？",
        "画面中有没有{}？",
        "图片上能找到{}吗？",
        "请问图里有{}吗？",
        "你看见{}了吗？",
        "这张照片里能看到{}吗？",
        "有没有看到{}？",
        "是否能找到{}？",
        "图片里存在{}吗？",
        "这里有没有{}？",
        "你看得到{}吗？",
        "图中是否存在{}？",
        "照片里有{}吗？",
        "图片包含{}吗？",
        "图上有{}吗？",
        "能看见{}吗？",
    ],
    "What color is the {}?": [
        "What's the color of the {}?",
        "Which colour is the {}?",
        "Name the {}'s color.",
        "What color does the {} have?",
        "color of the {}?",
    ],
    "{}是什么颜色的？": [
        "{}什么颜色？",
        "请问{}的颜色？",
        "{}是哪种颜色？",
        "图里{}的颜色是什么？",
    ],
    "Is the {a} {r} the {b}?": [
        "Is the {a} placed {r} the {b}?",
        "Can you see the {a} {r} the {b}?",
        "Does the {a} stand {r} the {b}?",
        "Is it true that the {a} is {r} the {b}?",
        "The {a} is {r} the {b}, right?",
    ],
    "{a}在{b}的{r}吗？": ["{a}是否在{b}的{r}？", "{a}在{b}的{r}，对吗？", "{a}在不在{b}的{r}？"],
    "What is inside {}?": [
        "What is the object in {}?",
        "Tell me what is in {}.",
        "Look at {}. What is it?",
        "What does {} show?",
        "What does the region {} show?",
        "What object is in {}?",
        "Identify the object in {}.",
        "What can be seen in {}?",
        "Caption the region {}.",
        "What is at {}?",
    ],
    "{}里面是什么？": [
        "请说出{}里的东西。",
        "{}里的物体是什么？",
        "看一下{}，是什么？",
        "{}区域里是什么？",
        "识别{}中的物体。",
        "{}框里有什么？",
        "这个区域{}是什么？",
    ],
    "What does the text say?": [
        "What text is in the picture?",
        "Tell me what the text says.",
        "Show me the text of the image.",
        "Which letters do you see?",
        "What do the words say?",
        "Read it out.",
        "Give me the text.",
        "What is the text?",
        "Extract the text.",
        "Read what is written.",
        "What words do you see?",
        "What is written here?",
        "Recognize the text in the image.",
        "Read all the text in the picture.",
        "What does the sign say?",
    ],
    "图中的文字是什么？": [
        "图里有什么文字？",
        "请读出图里的字。",
        "告诉我图中的文字。",
        "显示的文字是什么？",
        "文字内容是什么？",
        "把文字读出来。",
        "提取图中的文字。",
        "图上写的是什么？",
        "读一下文字。",
        "写的是什么字？",
    ],
    "Locate the text.": [
        "Where is the writing?",
        "Find the words and box them.",
        "Spotting all the text in the image with box.",
        "Locate all the text, output the bbox coordinates in JSON.",
    ],
    "框出图中的文字": ["把文字框出来。", "文字的位置在哪里？", "检测所有文字并输出坐标。"],
    "Describe this video.": [
        "What do you see in the video?",
        "What happens here?",
        "Describe what happens in the clip.",
        "Summarize the video.",
        "What is this video about?",
        "Explain what is going on in the video.",
    ],
    "描述这段视频。": ["视频里有什么？", "描述一下视频内容。", "这个视频里发生了什么事？"],
    "How does the {} move?": [
        "Which direction does the {} go?",
        "Where is the {} moving?",
        "Describe how the {} moves.",
        "What is the direction of the {}?",
    ],
    "{}往哪个方向移动？": ["{}去哪个方向？", "描述{}的运动。", "{}移动的方向是什么？"],
    "What are the common elements in these pictures?": [
        "What do the images share?",
        "Which objects are in all of the images?",
        "What is in both pictures?",
        "What is the same in these images?",
    ],
    "这些图片有什么共同点？": ["每张图里都有什么？", "这几张图有什么一样的东西？"],
    "这两张图片有什么共同点？": ["两张图里都有什么？", "这两张图有什么一样的东西？"],
}


def compose(*parts):
    """All sentences of one choice each; a part is a text or several."""
    parts = [[part] if isinstance(part, str) else part for part in parts]
    return ["".join(words) for words in itertools.product(*parts)]


IMAGE = ["the image", "this picture", "the photo", "the scene"]
HERE = ["", " in the image", " in this picture", " in the photo", " here"]
IMAGE_ZH = ["图中", "图片里", "这张图里", "画面中", "照片里"]
MEASURES = "只辆张条朵把本颗匹头架艘块座支棵件台位种"

# Built from parts: what one person says another way than the next.
COMPOSED = {
    "Locate the {}.": [
        *compose(
            [
                "Spot",
                "Pinpoint",
                "Identify",
                "Enclose",
                "Outline",
                "Tag",
                "Annotate",
                "Select",
                "Look for",
                "Search for",
                "Try to find",
                "Point at",
                "Find me",
                "Pick out",
                "Draw a rectangle around",
                "Make a box around",
                "Place a bounding box on",
                "Put a frame around",
                "Give the coordinates of",
                "Report the position of",
                "Tell me the location of",
                "Return the box of",
                "Let me know the position of",
            ],
            " the {}",
            [*HERE, " for me", " with a box", " and give its box", " and return its coordinates"],
            ".",
        ),
        *compose(
            [
                "Where do you see",
                "Where can we see",
                "Where would I find",
                "What is the location of",
                "What are the coordinates of",
                "What is the bounding box of",
                "Could you show me",
                "Can you spot",
                "Can you point out",
                "Could you point to",
                "Would you mark",
                "Do you know where is",
                "Where exactly is",
                "And where is",
                "Can you draw a box around",
                "Could you give me the position of",
                "Where should I look for",
            ],
            " the {}",
            HERE,
            "?",
        ),
        *compose(["The", "This"], " {}", [": where?", " is where?", ", please.", " - box it."]),
        *compose(
            ["I need", "I want", "I would like to have", "We need"],
            [" the position", " the coordinates", " the place", " a bounding box"],
            " of the {}.",
        ),
        "I lost the {}. Where is it?",
        "Do you see where the {} is?",
        "I wonder where the {} is.",
        "The {} must be here. Find it.",
        "Show where the {} is located.",
        "coordinates for the {}",
        "{} location",
        "{} bbox",
    ],
    "框出图中{}的位置": [
        *compose(
            ["请", "帮我", "麻烦", "请你", ""],
            ["找到", "找出", "标出", "框住", "圈出", "指一下", "标注", "定位", "寻找", "检测"],
            [*IMAGE_ZH, "图里", ""],
            ["的{}", "的{}在哪里", "的那个{}"],
            "。",
        ),
        *compose(
            [*IMAGE_ZH, ""],
            ["{}在哪", "{}在哪儿", "哪里有{}", "{}的坐标是什么", "{}在什么地方"],
            ["？", "呢？", ""],
        ),
        *compose(
            ["给出", "告诉我", "输出", "说出", "我想知道", "返回"],
            ["{}的位置", "{}的坐标", "{}的边界框", "{}所在的位置", "{}在哪里"],
            "。",
        ),
    ],
    "Describe this image.": [
        *compose(
            [
                "Describe",
                "Explain",
                "Caption",
                "Write about",
                "Tell me about",
                "Talk about",
                "Report on",
                "Comment on",
                "Give a description of",
                "Write a description of",
                "Give me a caption for",
                "Say something about",
                "Write down the contents of",
                "Make a caption for",
                "Characterize",
                "Present",
                "Create a caption of",
                "Can you describe",
                "Could you explain",
                "Would you caption",
            ],
            [" the image", " this picture", " the photo", " the scene", " what you see here"],
            [".", " for me.", " in words.", " to me."],
        ),
        *compose(
            [
                "What is shown",
                "What can you see",
                "What do you see",
                "What is visible",
                "What can one see",
                "What is depicted",
                "What appears",
                "What is happening",
                "What do you notice",
                "What is there",
                "What is displayed",
                "What have we got",
            ],
            [" in the image?", " in this picture?", " in the photo?", " in the scene?", " here?"],
        ),
        *compose(
            ["What does ", "Tell me what ", "Say what ", "Explain what ", "I wonder what "],
            IMAGE,
            [" show", " depict", " contain", " present", " look like"],
            ["?", "."],
        ),
    ],
    "描述这张图片。": [
        *compose(
            ["请", "帮我", "请你", "麻烦", ""],
            ["描述", "说明", "介绍", "解释", "讲讲", "描写", "叙述", "概括", "谈谈"],
            ["这张图", "这张照片", "图片", "画面", "图中的内容", "图片的内容", "你看到的内容"],
            ["", "。", "吧。"],
        ),
        *compose(
            IMAGE_ZH,
            [
                "有什么",
                "是什么",
                "显示了什么",
                "能看到什么",
                "你看到了什么",
                "都有什么",
                "画了什么",
            ],
            ["？", "呢？", ""],
        ),
    ],
    "Describe the image briefly.": compose(
        ["List", "Name", "Enumerate", "Mention", "Tell me", "Give me a list of", "Write down"],
        [" all objects", " the objects", " the things", " all the items", " the items"],
        [" in the image", " in this picture", " in the photo", " that you see", " here"],
        ".",
    ),
    "简单描述这张图片。": compose(
        ["列出", "说出", "写出", "列举", "请列出", "请说出"],
        IMAGE_ZH,
        ["的物体", "的东西", "所有的东西", "全部物体", "有哪些东西"],
        ["。", ""],
    ),
    "Generate the caption in English with grounding:": [
        *compose(
            ["Detect", "Find", "Mark", "Box", "Label", "Annotate", "Outline", "Locate", "Show"],
            [" all objects", " everything", " every object", " all things", " each thing"],
            HERE,
            [" with boxes.", " and give the boxes.", " with coordinates.", " and their boxes."],
        ),
        *compose(
            ["Draw boxes around", "Put a box around", "Give the coordinates of", "Return boxes of"],
            [" all objects", " everything you see", " every object", " all things", " each item"],
            HERE,
            ".",
        ),
        *compose(
            ["Describe", "Caption", "Explain"],
            " ",
            IMAGE,
            [" with boxes.", " and give boxes.", " with grounding.", " with bounding boxes."],
        ),
    ],
    "描述这张图片并框出物体：": [
        *compose(
            ["请", "", "帮我"],
            ["框出", "标出", "检测", "找出", "圈出", "定位"],
            IMAGE_ZH,
            ["所有的东西", "的全部物体", "每一个物体", "每个东西", "的各个物体"],
            ["", "。", "并给出坐标。", "和它们的位置。"],
        ),
        *compose(
            ["描述图片", "描述画面", "介绍图片"], ["，给出坐标。", "，并画框。", "并标出位置。"]
        ),
    ],
    "How many {} are there?": [
        *compose(
            "How many {} ",
            [
                "are",
                "are shown",
                "can be seen",
                "can you see",
                "do you see",
                "do you notice",
                "do you find",
                "appear",
                "are depicted",
                "are present",
                "would you count",
                "did you count",
                "exist",
                "are displayed",
                "can we see",
            ],
            [" in the image?", " in this picture?", " in the photo?", " in the scene?", " here?"],
        ),
        *compose(
            ["Count", "Please count", "Could you count", "Count up", "Try to count"],
            [" the {}", " all {}", " all the {}", " every one of the {}"],
            HERE,
            ".",
        ),
        *compose(
            ["Give", "Tell me", "Report", "Say", "State", "What is", "Determine", "Write"],
            [" the number", " the count", " the total number", " the amount", " the quantity"],
            " of {}",
            HERE,
            [".", "?"],
        ),
        *compose(
            ["I want to know", "I would like to know", "Let me know", "Please say", "Tell us"],
            [" how many {} there are", " how many {} you see", " the number of {}"],
            ".",
        ),
        "{}: how many?",
        "Are there many {}? Count them.",
        "number of {} please",
    ],
    "图中有几个{}？": [
        *compose(
            [*IMAGE_ZH, "这里", ""],
            ["有几", "有多少", "一共有几", "能看到几", "共计有几"],
            [*MEASURES, "个"],
            "{}",
            ["？", ""],
        ),
        *compose(
            ["数一数", "数一下", "请数出", "统计", "说说", "我想知道", "算一算"],
            [*IMAGE_ZH, ""],
            ["有几个{}", "有多少个{}", "{}的个数", "{}的数量", "{}有多少"],
            ["。", ""],
        ),
    ],
    "Is there {} in the image?": [
        *compose(
            ["Does ", "Tell me: does ", "I ask whether "],
            [*IMAGE, "it"],
            [" contain", " show", " include", " have", " feature", " depict", " display"],
            " {}?",
        ),
        *compose(
            "Is {} ",
            [
                "visible",
                "present",
                "shown",
                "depicted",
                "displayed",
                "in view",
                "included",
                "there",
                "to be found",
                "somewhere",
                "one of the things",
            ],
            HERE,
            "?",
        ),
        *compose(
            [
                "Can you",
                "Could you",
                "Are you able to",
                "Can we",
                "Can anybody",
                "Do you",
                "Did you",
            ],
            [
                " see",
                " spot",
                " find",
                " detect",
                " recognize",
                " make out",
                " notice",
                " discover",
            ],
            " {}",
            HERE,
            "?",
        ),
        *compose(
            [
                "Check if there is",
                "Tell me if there is",
                "Say whether there is",
                "Do we have",
                "Would you agree that there is",
                "Is it true that there is",
                "Have we got",
                "I wonder if there is",
                "Do you believe there is",
                "Does there seem to be",
            ],
            " {}",
            HERE,
            ["?", "."],
        ),
        *compose(["Any", "Is there any"], [" sign of {}", " trace of {}"], HERE, "?"),
    ],
    "图中有{}吗？": [
        *compose(
            [*IMAGE_ZH, "这里", "图上", ""],
            ["有", "看得到", "能看到", "能发现", "存在", "出现了", "可以看到", "包含", "显示了"],
            "{}吗",
            ["？", ""],
        ),
        *compose(
            [*IMAGE_ZH, "这里", "图上"],
            ["有没有", "有无", "是不是有", "能不能看到", "是否有", "是否包含", "可不可以找到"],
            "{}",
            ["？", ""],
        ),
        *compose(["你", "您", "大家"], ["看到", "发现", "注意到", "找到"], "{}了吗", ["？", ""]),
    ],
    "What does the text say?": [
        *compose(
            [
                "Read",
                "Transcribe",
                "Extract",
                "Recognize",
                "Write down",
                "Type out",
                "Copy",
                "Spell",
                "Give me",
                "Output",
                "Report",
                "Repeat",
            ],
            [" the text", " all text", " the words", " the writing", " the letters", " the sign"],
            HERE,
            ".",
        ),
        *compose(
            ["What text", "Which text", "Which words", "What writing", "What letters"],
            [" can you read", " do you see", " appears", " is visible", " can be read"],
            HERE,
            "?",
        ),
    ],
    "图中的文字是什么？": [
        *compose(
            ["请", "", "帮我"],
            ["读出", "识别", "写出", "提取", "抄写", "输出", "认出"],
            IMAGE_ZH,
            ["的文字", "的字", "写的字", "的单词", "的内容文字"],
            ["。", ""],
        ),
        *compose(IMAGE_ZH, ["写着什么", "有什么字", "的字是什么", "写了什么字"], ["？", ""]),
    ],
    "Locate the text.": compose(
        ["Find", "Detect", "Box", "Mark", "Outline", "Spot", "Draw a box around"],
        [" all text", " the words", " the writing", " every word", " the text"],
        [*HERE, " with boxes"],
        ".",
    ),
    "框出图中的文字": compose(
        ["请框出", "标出", "检测", "找出", "定位", "圈出"],
        [*IMAGE_ZH, ""],
        ["的文字", "所有文字", "的全部文字", "的字"],
        ["。", "的位置。", ""],
    ),
    "Describe this video.": compose(
        ["Describe", "Explain", "Summarize", "Caption", "Tell me about", "Write about"],
        [" the video", " this clip", " what happens here", " the film", " what you see"],
        [".", " for me.", " in words."],
    ),
    "描述这段视频。": compose(
        ["描述", "请说明", "介绍", "概括", "讲讲"],
        ["视频", "这段短片", "视频的内容", "片段", "发生的事"],
        ["。", ""],
    ),
}


SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant that looks at pictures.",
    "You are a vision assistant. Answer the user's questions about images.",
    "You are an assistant for teachers and students. Be short and exact.",
    "You are a careful teacher.",
    "You are terse.",
    "You are a friendly robot.",
    "Answer in short sentences.",
    "Answer truthfully. If you do not know, say so.",
    "You are an expert in object detection.",
    "You answer questions about pictures for a class of beginners.",
    "The user will show you an image and ask a question about it.",
    "Please look at the image with care before you answer.",
    "Only answer what is asked.",
    "Be brief.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Today we work with images and videos. Use the language of the user.",
    "You see images. You say what you see, and nothing else.",
    "你是一个有用的助手。",
    "你是一个看图回答问题的助手。",
    "请用简短的句子回答。",
    "你是一位认真的老师。",
    "请根据图片回答用户的问题，不要编造内容。",
    "你是通义千问，一个多模态助手。",
    "用户会给你看图片，请仔细观察后回答。",
]
# What people write before a picture when the question comes after it.
LEADS = [
    "Look at this picture.",
    "Here is an image.",
    "Here is my photo:",
    "I took this picture yesterday.",
    "I have a question about this image.",
    "Hello!",
    "Image:",
    "This is the picture.",
    "Please look at the photo below.",
    "We found this on the internet.",
    "看这张图片。",
    "这是我昨天拍的照片。",
    "你好！",
    "请看下面的图片：",
    "我想问一个关于图片的问题。",
    "图片：",
]
# What people write after a picture when the question has come before it.
TRAILS = ["Thank you!", "Thanks.", "This is the picture.", "Here it is.", "谢谢。", "这是图片。"]
BETWEEN = ["\n", " ", " and ", "\nThe next picture:\n", "和", "\n下一张：\n", "Then: ", "---\n"]
OPENERS = [
    "Hi, ",
    "Hello, ",
    "Hello! ",
    "Look at the image. ",
    "Look closely: ",
    "Based on the image, ",
    "In this picture, ",
    "I have a question: ",
    "Question: ",
    "Quick question: ",
    "Hey, ",
    "OK, ",
    "Now ",
    "And ",
    "So, ",
    "I would like to know: ",
    "Please answer: ",
    "Would you kindly tell me: ",
]
OPENERS_ZH = [
    "你好，",
    "看图回答：",
    "根据图片，",
    "我想知道，",
    "问题：",
    "麻烦看一下，",
    "那么，",
    "请看图。",
    "老师，",
    "能告诉我吗？",
]
CLOSERS = [" Thanks!", " Thank you.", " Please.", " Please answer in English."]
CLOSERS_ZH = ["谢谢！", "谢谢。", "请用中文回答。", "麻烦了。"]
SMALL_WORDS = {"the", "there", "this", "that", "what", "which", "where", "image", "picture"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def retype(rng, question, zh):
    """What people type: fillers, no capital letters, typing errors outside boxes and quotes."""
    if rng.random() < 0.14:
        if zh:
            question = rng.choice(OPENERS_ZH) + question
        else:
            question = rng.choice(OPENERS) + question[:1].lower() + question[1:]
    if rng.random() < 0.08:
        question += rng.choice(CLOSERS_ZH if zh else CLOSERS)
    exact = "<|" in question or '"' in question or "“" in question
    if zh or exact:
        return question
    style = rng.random()
    if style < 0.1:
        question = question.lower()
    elif style < 0.12:
        question = question.upper()
    if rng.random() < 0.1:
        question = mistype(rng, question)
    if rng.random() < 0.04:
        question = question.rstrip(".?") + rng.choice(["??", " ?", "!", " .", "..."])
    return question


def mistype(rng, question):
    """One typing error in one of the words that carry little meaning, rarely in another."""
    words = question.split(" ")
    small = [i for i, word in enumerate(words) if word.lower().strip("?.,") in SMALL_WORDS]
    long = [i for i, word in enumerate(words) if len(word) >= 6 and word.isalpha()]
    places = small if small and (not long or rng.random() < 0.75) else long
    if not places:
        return question
    index = rng.choice(places)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    words[index] = rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + rng.choice(LETTERS) + word[at + 1 :],
        ]
    )
    return " ".join(words)


def sample_system(rng):
    """The default one, another one, or any words."""
    u = rng.random()
    if u < 0.5:
        return SYSTEMS[0]
    if u < 0.82:
        return rng.choice(SYSTEMS)
    if u < 0.88:
        return " ".join(rng.sample(SYSTEMS, rng.choice([2, 3])))
    words = rng.sample(EVERYDAY, 12) + rng.choice(SYSTEMS).split()
    words += [word.capitalize() for word in rng.sample(EVERYDAY, 2)]
    words += ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 7))) for _ in range(3)]
    space = "" if all(not word.isascii() for word in words[:3]) else " "
    return space.join(rng.sample(words, rng.randint(1, 16)))
