"""The notebooks with smaller parameters, and the assertions on their results and answers."""

import re
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"

# notebook: (smaller parameters, assertions run in its kernel after the last cell)
CASES = {
    "00_setup": (
        "MAX_NEW_TOKENS = 64",
        """
        assert not vlkit.doctor().problems
        assert reply.text.startswith("公交车") and len(reply.boxes) == 1
        tokens = options[["image tokens", "video tokens"]].T
        assert list(tokens["text only"]) == [0, 0] and 0 < tokens["limits in pixels"].iloc[0] <= 51
        assert (tokens["two pictures"] > 0).sum() == 1 and files.wait(10) is not None
        assert tokens["clip by URL, 1 fps"].iloc[1] > 0 and "red circle" in replies[3].text
        box = next(b for b in samples["city_street"].boxes if b.label == "bus")
        assert vlkit.iou(reply.boxes[0], box) > 0.5
        """,
    ),
    "01_image_inference": (
        "BUDGETS = [36, 100]; LOG_PICTURES = 3",
        """
        assert len(chat.messages) == 6
        assert pieces.reply.finish_reason == "cancelled"
        assert list(table["image tokens"] <= [36, 100]) == [True, True]
        assert table["mean IoU"].max() > 0.5
        assert log.found.mean() > 0.6
        bus = next(b for b in samples["city_street"].boxes if b.label == "bus")
        assert vlkit.iou(chinese.boxes[0], bus) > 0.5
        assert "one black ring" in limits["How many black rings are there?"]  # two
        assert "yellow circle" not in limits["What is the rightmost shape?"]
        arrow = next(b for b in samples["large"].boxes if b.label == "pink arrow")
        assert vlkit.iou(reply.boxes[0], arrow) < 0.5  # seen with 16 tokens
        assert panel.reply is None
        """,
    ),
    "02_video_inference": (
        "MAX_NEW_TOKENS = 32; RATES = [1, 2]",
        """
        assert clip.indices == (0, 14, 27, 41, 54, 68, 81, 95)
        assert "red circle" in reply.text and "right" in reply.text
        assert "up" in moved.text and "hexagon" in faster.text
        assert set("棕色十字静止") <= set(chinese.text)
        assert table["right"].max() > 0.7 and list(table.index) == [1, 2]
        assert ["right" in parts[0].text, "left" in parts[1].text] == [True, True]
        box = next(b for b in vlkit.samples()["three_shapes"].boxes if b.label == "green triangle")
        assert vlkit.iou(both.boxes[0], box) > 0.5
        assert len(chat.messages) == 6 and "右" in chat.messages[-1]["content"][0]["text"]
        assert panel.reply is None and panel.view.tokens == 192
        assert flight.usage.video_tokens > 0 and len(flight.clips[0].indices) == 8
        assert all(len(differences) for differences in found.values())
        """,
    ),
    "03_batch_inference": (
        "MAX_NEW_TOKENS = 24; ROWS = 8; BATCH_SIZES = [1, 4]; REPEATS = 2",
        """
        assert len(frame) == 31 and frame["error"].isna().all()
        assert pandas.read_csv("answers.csv")["text"].tolist() == frame["text"].tolist()
        assert "red circle" in frame.set_index("name")["text"]["three_shapes"]
        assert checked["found"].mean() > 0.9 and len(checked) > 60
        assert list(table.index) == ["loop", "batch of 1", "batch of 4"] and report.agreement == 1
        assert (table["same answers as the loop"][1:] == 1).all() and passes.shape == (3, 2)
        assert (table["min"] <= table["median"]).all() and (table["median"] <= table["max"]).all()
        assert list(failed["error"].notna()) == [False, True, True]
        assert first.report.stopped and rest.report.resumed == 6
        assert [reply.raw for reply in rest] == [reply.raw for reply in loop]
        assert changed.report.resumed == 0 and len(lines) == 16
        assert panel.results == [] and len(panel.conversations) == 31
        """,
    ),
    "04_grounding": (
        "QUESTIONS = 12; WORST = 2",
        """
        assert sum("black ring" in box.label for box in listed.boxes) == 2  # and counts one
        assert set(written) == set(FORMATS)
        right = vlkit.parse_grounding(written["qwen2_5_vl"], family="qwen2_5_vl", **sizes)
        assert min(map(vlkit.iou, right, truth)) > 0.98
        found = vlkit.diagnose_boxes([bare], [truth], [(1600, 1200)], input_sizes=[seen])
        assert found.best == "resized pixels" and found.sure
        star = next(b for b in samples["rotated"].boxes if b.label == "yellow star")
        assert vlkit.iou(both[0].boxes[0], star) > 0.5 > vlkit.iou(both[1].boxes[0], star)
        assert all(own > 0.5 > other for own, other in ious.values()) and len(ious) == 3
        assert panel.reply is None and panel.drawn is None and len(panel.canvas.truth) == 1
        assert run.evaluation.accuracy > 0.7 and len(run.questions) == 12
        assert (table.loc[best] > 2 * table.loc["area"]).all()
        assert all(found.values.sum() > 0 for found in maps)
        names = ("coffee", "circles")
        asked = {name: vlkit.user("Detect all objects.", samples[name].path) for name in names}
        found = {n: vlkit.token_logprobs(vlm, message) for n, message in asked.items()}
        sure = {n: [c for _, c in scored.confidences] for n, scored in found.items()}
        assert min(sure["circles"]) > sum(sure["coffee"]) / max(1, len(sure["coffee"]))
        """,
    ),
    "05_lora_finetuning": (
        "ROWS = 96; TEST_ROWS = 30; TRY_ROWS = 16",
        """
        assert run.finished and run.steps == 6 and checks.passed
        assert 0.2 < before.accuracy < 0.8 and len(gained) >= 4
        assert low <= gain.mean() <= high and matrices
        assert set(results) == set(tries) and results["rank 1"][0].effect > 0
        assert compared.scores["base"].grounding.accuracy > 0.9
        assert list(same) == list(after.table["answer"])
        pictures = [{e.media[0]["image"] for e in side} for side in (learnt, held_out, test)]
        assert pictures[0].isdisjoint(pictures[1]) and pictures[2].isdisjoint(pictures[0])
        written = {*run.output_dir.parent.iterdir(), merged, exported, file.parent}
        assert {str(path.parent) for path in written} == {folder}
        assert (exported / "args.json").is_file() and file.read_text().count("<image>") == 50
        assert panel.run is None and "train_data" in panel.code
        assert len(panel.saved.look["options"]) == len(tries) + 1
        """,
    ),
    "06_hosted_and_serving": (
        "MAX_NEW_TOKENS = 16",
        """
        described = vlkit.generate(vlm, vlkit.user("Describe this image.", picture))
        assert answer.choices[0].message.content == described.text
        assert local.text == reply.text and min(ious) > 0.99 and len(ious) == 3
        assert len(served) == len(samples) and all(same) and served.report.failures == 0
        assert "does not read files" in refused
        said = vlkit.generate(vlm, vlkit.user(call["messages"][0]["content"][1]["text"], picture))
        assert SPEND is False and "".join(pieces) == said.text and len(pieces) > 3
        asked_for = vlkit.locate_prompt("蓝色正方形", family=vlm.family, language="zh")
        assert asked_for == "框出图中蓝色正方形的位置" and recipe.model_name == "qwen-vl-chat"
        assert answered["choices"][0]["message"]["content"] == described.text
        assert meta.read_text().count("<img>media") == 4
        """,
    ),
    "07_experiment_report": (
        "BUDGETS = [20, 49]; PICTURES = 10; REPEATS = 2",
        """
        assert list(table.index) == ["20 tokens", "49 tokens"]
        assert table[metric].iloc[1] > table[metric].iloc[0] and table[metric].iloc[1] > 0.9
        assert list(losses.index) == list(table.index) and losses["difference"].iloc[-1] == 0
        step = table[metric].diff().iloc[1]
        assert abs(losses["difference"].iloc[0] + step) < 1e-9
        assert losses["good enough"].iloc[-1] and (losses["low"] <= losses["difference"]).all()
        assert not losses["good enough"][losses["low"] < -TOLERANCE].any()
        assert run.record.values["chosen"] == chosen and len(run.record.answers) == 2 * len(asked)
        assert against.summary[metric]["tuned"] < 0.5 < against.summary[metric]["base"]
        assert list(again.rows["status"]) == ["same"] * 4 + ["cannot"] and not again.identical
        assert any("temperature" in name for name in difference.settings.index)
        assert len(difference.rows) and not difference.rows["same"].all()
        assert "How far can pictures be shrunk?" in page.read_text(encoding="utf-8")
        assert "wang2024qwen2vl" in cite.read_text(encoding="utf-8")
        """,
    ),
    "08_inside_the_model": (
        "MAX_NEW_TOKENS = 30",
        """
        assert difference.mean() < 1e-5 and difference.max() < 0.02
        assert torch.allclose(merged, encoded.pooler_output, atol=1e-4)
        assert torch.equal(positions, reference) and is_picture.sum() == high * wide
        assert "You are a helpful assistant." in prompt and prompt.count("<|image_pad|>") == 1
        assert answer == whole == reply.raw and slow[-1] > 180 and fast[-1] == 1
        boxes = {box.label: box for box in vlkit.samples()["three_shapes"].boxes}
        assert vlkit.iou(reply.boxes[0], boxes["blue square"]) > 0.8
        square = boxes["blue square"]
        inside = torch.zeros(high, wide, dtype=bool)
        scale = 28 * high / picture.height, 28 * wide / picture.width
        y1, y2 = round(square.y1 * scale[0] / 28), round(square.y2 * scale[0] / 28)
        x1, x2 = round(square.x1 * scale[1] / 28), round(square.x2 * scale[1] / 28)
        inside[y1:y2, x1:x2] = True
        rows = [look[0, :, -1, first : first + high * wide].mean(0) for look in looks]
        shares = [float(r.view(high, wide)[inside].sum() / r.sum()) for r in rows]
        assert max(shares) > 4 * inside.float().mean()  # a layer that looks at the square
        assert losses[0] > 5 and losses[-1] < 0.2 and write()[0] == "A wug.<|im_end|>"
        """,
    ),
    "09_your_own_boxes": (
        "PICTURES = 20; EPOCHS = 1",
        """
        assert len(scenes) == 20 and len(asked) == 16 and not held_out & {q.image for q in learnt}
        assert costs[1][0] == 15301 and costs[1][1] <= 1024
        labels = base.evaluation.by_label["accuracy@0.5"]
        assert labels["cat"] == 0 and labels["camera"] == 1
        assert {each.prompt for each in asked} >= {"Locate the cat.", "Locate the camera."}
        assert found["base"].mean() == base.evaluation.accuracy
        assert found["tuned"].mean() == tuned.evaluation.accuracy
        assert low <= gain.mean() <= high and run.finished and run.steps == 12
        assert sum(bool(reply.boxes) for reply in before) == 0
        text = page.read_text(encoding="utf-8")
        assert "Zero-shot, by label" in text and "Locate the cat." in text
        """,
    ),
}

# What must hold after a notebook's hidden answer to its exercise
ANSWERS = {
    "00_setup": """
        assert absent.text == "There is no pink heart in the image." and absent.boxes == []
        """,
    "01_image_inference": """
        assert all("gray ring" in seen[side] for side in (60, 120, 240))
        assert not any("blue" in text for text in seen.values()) and "ring" not in seen[30]
        """,
    "02_video_inference": """
        assert all("right" in directions["moves_right", frames] for frames in (2, 3, 4))
        turned = [directions["there_and_back", frames] for frames in (2, 3, 4)]
        assert turned[0] == "It stays still." and turned[0] not in turned[1:]
        """,
    "03_batch_inference": """
        hexagons = things["zh"].str.endswith("六边形")
        assert things[hexagons]["iou, zh"].max() < 0.5 < things[hexagons]["iou, en"].min()
        assert things[~hexagons][["iou, zh", "iou, en"]].min().min() > 0.5 and hexagons.sum() > 1
        """,
    "04_grounding": """
        assert named.best == "resized pixels" and named.sure
        assert unnamed.verdict.startswith("No reading fits")
        """,
    "05_lora_finetuning": """
        speaks, bare_words = spelling["as it speaks"], spelling["bare"]  # first and last loss
        assert bare_words[0] > 1.5 * speaks[0] and bare_words[1] > speaks[1] and len(speaks) == 2
        """,
    "06_hosted_and_serving": """
        assert 0 < len(refusals) < 40 and all(wait.isdigit() for wait in refusals)
        """,
    "07_experiment_report": """
        assert ends["IoU"][12] < 0.5 and ends["IoU"][1200] < 0.5 and ends["IoU"][144] > 0.9
        assert ends["side as seen"][12] < 28 < ends["side as seen"][36]
        """,
    "08_inside_the_model": """
        label = "<|object_ref_start|>the blue square<|object_ref_end|>"
        assert swapped.startswith(label) and reply.raw.startswith(label) and swapped != reply.raw
        assert "no blue square" in plain and positions is kept
        """,
    "09_your_own_boxes": """
        assert boxes < invented["tuned"].sum()
        assert still.evaluation.accuracy > base.evaluation.accuracy
        """,
}
EARLIER = {"08_inside_the_model": "(whole, slow)"}  # the cell after which the answer is to be run

# What a notebook warns of on purpose, a part of each text: its cell and its panel read the folder.
WARNINGS = {
    "03_batch_inference": ["left out 9 of 40 that cannot be read as pictures"],
    "04_grounding": ["rotated.jpg is rotated by its EXIF tag"],  # in its answer: another's format
}


def prepare(name, tmp_path):
    """The notebook with other parameters, cells of assertions, and its exercise's answer."""
    parameters, checks = CASES[name]
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    tagged = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    tagged.source += "\n" + parameters
    answer = [hidden_answer(notebook), unindented(ANSWERS[name])]
    places = [i for i, cell in enumerate(notebook.cells) if EARLIER.get(name, "\0") in cell.source]
    place = places[0] + 1 if places else len(notebook.cells)
    notebook.cells[place:place] = map(nbformat.v4.new_code_cell, answer)
    last = place if not places else len(notebook.cells)  # assertions come before a last answer
    notebook.cells.insert(last, nbformat.v4.new_code_cell(unindented(checks)))
    return notebook


def hidden_answer(notebook):
    """The code in the fold under the exercise."""
    fold = notebook.cells[-1].source.partition("<details><summary>Answer</summary>")[2]
    return re.search(r"^```python\n(.*?)^```$", fold, re.DOTALL | re.MULTILINE)[1]


def unindented(lines):
    return "\n".join(line.strip() for line in lines.strip().splitlines())
