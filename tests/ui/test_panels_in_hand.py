"""What a hand does with panels, whichever they are: media in, zoom, folds, themes, languages."""

import io
import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from panels import choose_sample, give, give_all
from playwright.sync_api import expect

import vlkit

THEMES = ("Light", "Dark", "Dark High Contrast")
REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELL = """import vlkit

vlm = vlkit.load()
panel = vlkit.widgets.{name}(vlm{more})
panel"""
# the panels of tables and forms, with something in each of their parts
WORK = {
    "BatchPanel": """panel = vlkit.widgets.BatchPanel(vlkit.load(), "some.csv", "Locate it.")
panel.start()
panel.wait(60)
panel.save()
panel.results
""",
    "LoraPanel": """panel = vlkit.widgets.LoraPanel(vlkit.load())
cost = {"rows": 36, "held_out": 4, "tokens": 97, "trained": 307200, "share": 0.016, "steps": 27,
        "memory": 1e8, "available": 1e9, "place": "RAM", "fits": False, "seconds": 100}
points = [[step, 3 - step / 10] for step in range(20)]
rows = [{"question": "What is this?", "answer": "A zib.", "picture": None}]
panel.view = panel.view | {"cost": cost, "rows": rows,
    "tried": {"question": "What?", "before": "a cat", "after": "a dog"},
    "comparison": {"scores": {"base": 0.5, "after": 1.0}, "rows": [["0", "q", "t", "b", "a"]]}}
panel.saved.look = {"options": ["runs/lora-1", "runs/lora-2"]}
panel.curves = {"losses": points, "evaluations": points[::5], "metrics": [], "steps": 20,
                "samples": [["q", "t", "a"]]}
panel.progress = {"step": 3, "steps": 20, "left": 70.0, "memory": 1e9}""",
    "ModelChooser": """panel = vlkit.widgets.ModelChooser()
panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"
panel.try_out()
panel.wait(60)""",
}
# each text of the panel with its contrast to what is behind it (WCAG 2.2), and its size
CONTRASTS = """(root) => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
    const light = (color) => color.map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        if (!element) return [255, 255, 255];
        const color = rgba(getComputedStyle(element).backgroundColor);
        return color[3] === 1 ? color.slice(0, 3) : over(color, behind(element.parentElement));
    };
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest(':disabled, style')) continue;
        const ground = behind(element);
        const [a, b] = [over(rgba(getComputedStyle(element).color), ground), ground].map(light);
        found.push([text, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
    }
    return found;
}"""
# the classes of what has the focus, and of what it is in
FOCUSED = """() => { let classes = '';
    for (let e = document.activeElement; e && !e.matches('.vlkit-talk'); e = e.parentElement)
        classes += ` ${e.className}`;
    return classes; }"""
# controls without a name, and texts that are cut off
NAMELESS = """(root) => [...root.querySelectorAll(
    'button, input, select, textarea, summary, [tabindex]')]
    .filter((element) => !(element.getAttribute('aria-label') || element.textContent.trim()
        || element.labels?.length)).map((element) => element.outerHTML.slice(0, 120))"""
CUT = """(root) => [...root.querySelectorAll(
    'label, button, summary, h3, .vlkit-facts, .vlkit-hint')]
    .filter((element) => element.checkVisibility() && element.scrollWidth > element.clientWidth + 2
        && getComputedStyle(element).display !== 'inline')
    .map((element) => element.textContent)"""


@pytest.fixture
def open_panel(run_cells):
    def open_one(name, more=""):
        notebook = run_cells(CELL.format(name=name, more=more), height=1300)
        panel = notebook.page.locator(".vlkit-talk")
        expect(panel).to_be_visible()
        return notebook, panel

    return open_one


def enlarge_fonts(page):
    """JupyterLab's own fonts at 150 %."""
    for name, size in (("ui", "20px"), ("content", "21px")):
        setting = f"document.documentElement.style.setProperty('--jp-{name}-font-size1', '{size}')"
        page.evaluate(setting)


def png(*size, noise=False):
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels) if noise else PIL.Image.new("RGB", size, "teal")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_pictures_are_dropped_pasted_moved_and_removed(open_panel):
    notebook, panel = open_panel("AskPanel")
    names = panel.locator(".vlkit-tray-name b")
    give(panel, "drop", "dropped.png", vlkit.sample("hello").read_bytes())
    expect(names).to_have_text(["dropped.png"])  # in place of the sample
    give(panel, "paste", "pasted.png", png(30, 20))
    expect(names).to_have_text(["dropped.png", "pasted.png"])
    panel.get_by_role("button", name="Move pasted.png forward").click()
    expect(names).to_have_text(["pasted.png", "dropped.png"])
    panel.get_by_role("button", name="Remove pasted.png").click()
    expect(names).to_have_text(["dropped.png"])
    give(panel, "drop", "notes.txt", b"no picture", "text/plain")
    expect(panel.locator(".vlkit-upload-note")).to_contain_text("notes.txt is not a picture")
    expect(names).to_have_text(["dropped.png"])
    panel.locator(".vlkit-address").fill(str(vlkit.sample("cat")))
    panel.locator(".vlkit-address").press("Enter")
    expect(panel.locator(".vlkit-tray li").nth(1)).to_contain_text("451 × 300")
    sizes = notebook.run_code("print([m.content.size for m in panel.picker.media])")
    assert sizes.strip() == "[(400, 300), (451, 300)]" and notebook.page_errors == []


def test_three_pictures_are_put_in_order_and_removed_by_keys_alone(open_panel):
    notebook, panel = open_panel("AskPanel")
    keyboard, names = notebook.page.keyboard, panel.locator(".vlkit-tray-name b")
    files = [(f"{n}.png", "image/png", png(30 + i, 20)) for i, n in enumerate("abc")]
    give_all(panel, "drop", files)
    expect(names).to_have_text(["a.png", "b.png", "c.png"])
    panel.get_by_role("button", name="Move c.png forward").focus()
    keyboard.press("Enter")
    expect(names).to_have_text(["a.png", "c.png", "b.png"])
    expect(panel.get_by_role("button", name="Move c.png forward")).to_be_focused()
    keyboard.press("Enter")
    expect(names).to_have_text(["c.png", "a.png", "b.png"])
    expect(panel.get_by_role("button", name="Move c.png back")).to_be_focused()
    panel.get_by_role("button", name="Remove c.png").focus()
    for left in (["a.png", "b.png"], ["b.png"], []):
        keyboard.press("Enter")
        expect(names).to_have_text(left)
    expect(panel.locator(".vlkit-browse")).to_be_focused()
    panel.locator(".vlkit-example").nth(1).focus()
    keyboard.press("Enter")
    expect(panel.locator(".vlkit-prompt textarea")).to_have_value("Locate the red circle.")
    expect(panel.locator(".vlkit-example").nth(1)).to_be_focused()


def test_a_question_waits_for_its_files_and_for_a_typed_address(open_panel):
    _, panel = open_panel("AskPanel")
    prompt, about = panel.locator(".vlkit-prompt textarea"), panel.locator(".vlkit-about")
    give(panel, "drop", "late.png", png(1100, 1000, noise=True))  # 3 MB: it comes in two pieces
    prompt.press("Control+Enter")
    expect(about).to_have_text(["about late.png"])
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    panel.get_by_role("button", name="Remove late.png").click()
    panel.locator(".vlkit-address").fill(f" {vlkit.sample('cat')} ")
    prompt.press("Control+Enter")
    expect(about).to_have_count(2)
    expect(about.nth(1)).to_have_text(f"about {vlkit.sample('cat')}")
    expect(panel.locator(".vlkit-address")).to_have_value("")


def test_what_is_typed_stands_over_the_answer_and_a_draft_outlives_an_edit(open_panel):
    notebook, panel = open_panel("AskPanel")
    prompt = panel.locator(".vlkit-prompt textarea")
    typed = "Is <|box_start|>(1,2),(3,4)<|box_end|> <b>red</b>? <|im_end|>"
    prompt.fill(typed)
    prompt.press("Control+Enter")
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    expect(panel.locator(".vlkit-asked-text")).to_have_text(typed)
    expect(prompt).to_have_value(typed)
    prompt.fill("half a quest")
    panel.locator(".vlkit-edit").click()
    expect(prompt).to_have_value(typed)
    panel.get_by_role("button", name="Cancel").click()
    expect(prompt).to_have_value("half a quest")
    expect(prompt).to_be_focused()
    assert notebook.run_code("print(panel.prompt.value)").strip() == "half a quest"


def test_one_of_two_dropped_pictures_is_taken_with_a_word_and_a_torn_one_leaves_room(open_panel):
    _, panel = open_panel("GroundingPanel")
    files = [(name, "image/png", png(30, 20)) for name in ("first.png", "second.png")]
    give_all(panel, "drop", files)
    expect(panel.locator(".vlkit-tray")).to_contain_text("second.png")
    note = panel.locator(".vlkit-upload-note")
    expect(note).to_have_text("one file at a time: only second.png was taken")
    give(panel, "drop", "torn.png", b"these are notes")
    wrong = "torn.png is not a picture: its 15 bytes begin with 'these are no'"
    expect(panel.locator(".vlkit-status")).to_contain_text(wrong)
    expect(panel.locator(".vlkit-drop")).to_be_visible()


def test_a_kernel_that_was_restarted_is_noticed(open_panel):
    notebook, panel = open_panel("AskPanel")
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    expect(panel.locator(".vlkit-unanswered")).to_be_hidden()
    restart = "() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()"
    notebook.page.evaluate(restart)
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-unanswered")).to_contain_text("Python has not answered yet")


def test_panels_on_one_page_keep_their_look(run_cells):
    """Each brings its style sheet; the order in which they are shown must not matter."""
    notebook = run_cells(
        "import vlkit\nvlm = vlkit.load()\nvlkit.widgets.AskPanel(vlm)",
        "vlkit.widgets.LoraPanel(vlm)", "vlkit.widgets.BatchPanel(vlm)",
    )  # fmt: skip
    looks = {
        ".vlkit-prompt textarea >> nth=0": ("border-top-width", "0px"),
        ".vlkit-address": ("min-width", "154px"),  # 11 em
        ".vlkit-lora .vlkit-question": ("background-color", "rgba(0, 0, 0, 0)"),
    }
    for place, (name, value) in looks.items():
        element = notebook.page.locator(place)
        read = "(element, name) => getComputedStyle(element)[name]"
        assert element.evaluate(read, name) == value, place


def test_a_picture_above_the_servers_limit_arrives_smaller_and_says_so(open_panel):
    """A plain JupyterLab takes messages of 10 MiB."""
    large = png(4600, 1100, noise=True)
    assert len(large) > 13_000_000
    notebook, panel = open_panel("AskPanel")
    give(panel, "drop", "large.png", large)
    note = panel.locator(".vlkit-upload-note")
    expect(note).to_contain_text("made smaller for sending: 4096 × 979 pixels")
    expect(panel.locator(".vlkit-tray")).to_contain_text("4096 × 979")
    assert notebook.page_errors == []


def test_a_large_clip_arrives_whole_in_pieces(open_panel):
    clip = vlkit.sample("moves_up").read_bytes()
    whole = clip + b"\x00\x00\x00\x08free" + bytes(0)
    whole += (12_000_000).to_bytes(4, "big") + b"free" + bytes(12_000_000 - 8)  # an empty box
    notebook, panel = open_panel("VideoPanel")
    give(panel, "drop", "large.mp4", whole, "video/mp4")
    expect(panel.locator(".vlkit-tray")).to_contain_text("large.mp4")
    got = notebook.run_code(
        "import hashlib; print(hashlib.sha256(panel.picker.media[0].source).hexdigest())"
    )
    import hashlib

    assert got.strip() == hashlib.sha256(whole).hexdigest()


def wait_for_items(notebook, name, count):
    """Until the kernel has this many boxes that are ``corrected`` or ``hidden``."""
    deadline = time.monotonic() + 60
    code = f"print(sum(bool(record.get({name!r})) for record in panel.canvas.items))"
    while notebook.run_code(code).strip() != str(count):
        assert time.monotonic() < deadline, f"{count} {name}"
        notebook.page.wait_for_timeout(50)


def test_zoom_pan_pin_hide_and_correct(open_panel):
    notebook, panel = open_panel("GroundingPanel")
    choose_sample(panel, "three_shapes")
    panel.locator(".vlkit-prompt textarea").fill("Detect all objects.")
    panel.locator(".vlkit-prompt textarea").press("Control+Enter")
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    main = panel.locator(".vlkit-main-picture")
    image, stage = main.locator(".vlkit-canvas-stage img"), main.locator(".vlkit-canvas-stage")
    width = image.bounding_box()["width"]
    tag = main.locator(".vlkit-canvas-tag").first
    high = tag.bounding_box()["height"]
    main.get_by_role("button", name="Zoom in").click()
    assert image.bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.01)
    assert tag.bounding_box()["height"] == pytest.approx(high, abs=1)  # labels keep their size
    stage.focus()
    notebook.page.keyboard.press("0")
    assert image.bounding_box()["width"] == pytest.approx(width, rel=0.01)
    main.locator(".vlkit-chip").first.click()
    expect(main.locator(".vlkit-canvas-handle")).to_have_count(4)
    handle = main.locator(".vlkit-canvas-handle").nth(2).bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    notebook.page.mouse.move(x, y)
    notebook.page.mouse.down()
    notebook.page.mouse.move(x + 20, y + 10, steps=4)
    notebook.page.mouse.up()
    expect(main.locator(".vlkit-chip").first).to_contain_text("corrected")
    wait_for_items(notebook, "corrected", 1)
    box = json.loads(
        notebook.run_code("import json; print(json.dumps(panel.export()['boxes'][0]))")
    )
    old = json.loads(notebook.run_code("print(json.dumps(panel.reply.boxes[0].xyxy))"))
    scale = width / 400
    assert box["corrected"] and (box["x1"], box["y1"]) == (old[0], old[1])
    near = pytest.approx([old[2] + 20 / scale, old[3] + 10 / scale], abs=2)
    assert [box["x2"], box["y2"]] == near
    main.locator(".vlkit-eye").nth(1).click()
    expect(main.locator(".vlkit-canvas-stage g.vlkit-canvas-dim")).to_have_count(1)
    wait_for_items(notebook, "hidden", 1)
    labels = "print([box['label'] for box in panel.export()['boxes']])"
    assert notebook.run_code(labels).strip() == "['a red circle', 'a green triangle']"
    main.locator(".vlkit-chip").nth(2).press("Enter")  # keys alone: another box, moved and hidden
    stage.focus()
    notebook.page.keyboard.press("ArrowRight")
    expect(main.locator(".vlkit-chip").nth(2)).to_contain_text("corrected")
    wait_for_items(notebook, "corrected", 2)
    moved = json.loads(notebook.run_code("print(json.dumps(panel.export()['boxes'][1]['x1']))"))
    assert moved == pytest.approx(
        float(notebook.run_code("print(panel.reply.boxes[2].x1 + 4)")), abs=0.01
    )
    notebook.page.keyboard.press("Delete")
    expect(main.locator(".vlkit-canvas-off")).to_have_count(2)
    wait_for_items(notebook, "hidden", 2)
    assert notebook.run_code(labels).strip() == "['a red circle']"
    undo = main.get_by_role("button", name="Undo the last correction")
    notebook.page.keyboard.press("Control+z")
    wait_for_items(notebook, "hidden", 1)
    undo.click()
    wait_for_items(notebook, "corrected", 1)
    undo.click()
    undo.click()
    wait_for_items(notebook, "corrected", 0)
    expect(undo).to_be_hidden()
    same = "b['x1'], b['y1'], b['x2'], b['y2']"
    same = f"[({same}) for b in panel.export()['boxes']] == [b.xyxy for b in panel.reply.boxes]"
    assert notebook.run_code(f"print({same})").strip() == "True"
    assert notebook.page_errors == []


@pytest.mark.parametrize("size", [(300, 6000), (6000, 200)])
def test_a_very_tall_or_wide_picture_begins_readable(open_panel, size):
    notebook, panel = open_panel("GroundingPanel")
    give(panel, "drop", "strip.png", png(*size))
    image = panel.locator(".vlkit-main-picture .vlkit-canvas-stage img")
    expect(image).to_have_attribute("alt", "strip.png")
    readable = """(image) => {
        const { width, height } = image.getBoundingClientRect();
        return Math.min(width, height) >= 60;
    }"""
    notebook.page.wait_for_function(readable, arg=image.element_handle())


def test_everything_has_a_name_contrast_room_and_a_place_in_the_order_of_tab(open_panel):
    notebook, panel = open_panel("AskPanel")
    choose_sample(panel, "six_shapes")
    panel.locator(".vlkit-prompt textarea").fill("Detect all objects.")
    panel.locator(".vlkit-prompt textarea").press("Control+Enter")
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    for summary in panel.locator("summary").all():
        summary.focus()
        if summary.locator("xpath=..").get_attribute("open") is None:
            notebook.page.keyboard.press("Enter")
    panel.get_by_role("button", name="Show probabilities").click()
    expect(panel.locator(".vlkit-raw span").first).to_be_visible()
    expect(panel.locator(".vlkit-seed input")).to_be_visible()
    assert panel.evaluate(NAMELESS) == []
    reached = set()
    panel.locator(".vlkit-samples > summary").focus()
    for _ in range(40):
        notebook.page.keyboard.press("Tab")
        reached.add(notebook.page.evaluate(FOCUSED))
    wanted = ("vlkit-sample", "vlkit-prompt", "vlkit-ask-button", "vlkit-example", "vlkit-code")
    assert all(any(name in each for each in reached) for name in wanted), reached
    panel.locator(".vlkit-ask-button").focus()
    notebook.page.keyboard.press("Shift+Tab")
    ring = "getComputedStyle(document.activeElement).outlineWidth"
    assert notebook.page.evaluate(ring) == "2px"
    for theme in THEMES:
        notebook.set_theme(f"JupyterLab {theme}")
        weak = [found for found in panel.evaluate(CONTRASTS) if found[1] < 4.5]
        assert weak == [], theme
    enlarge_fonts(notebook.page)
    assert panel.evaluate(CUT) == []


@pytest.mark.parametrize("name", WORK)
def test_tables_and_forms_have_names_contrast_and_room(run_cells, tmp_path, name):
    rows = "image,what\n{},circle\nnowhere.png,square\n".format(vlkit.sample("red_circle"))
    (tmp_path / "some.csv").write_text(rows)
    settings = "import os\nos.environ['VLKIT_SETTINGS'] = 'settings.json'\nimport vlkit\n"
    notebook = run_cells(settings + WORK[name] + "\npanel", height=1300)
    panel = notebook.page.locator(".vlkit-work")
    expect(panel).to_be_visible()
    for summary in panel.locator("summary").all():
        if summary.is_visible() and summary.locator("xpath=..").get_attribute("open") is None:
            summary.click()
    assert panel.evaluate(NAMELESS) == []
    for theme in THEMES:
        notebook.set_theme(f"JupyterLab {theme}")
        found = panel.evaluate(CONTRASTS)
        assert len(found) > 30 and [text for text in found if text[1] < 4.5] == [], theme
    enlarge_fonts(notebook.page)
    assert panel.evaluate(CUT) == []
    assert panel.evaluate("root => root.scrollWidth <= root.clientWidth + 1")
    assert notebook.page_errors == []


def test_the_doctors_words_are_readable_in_every_theme(run_cells):
    notebook = run_cells("import vlkit\nvlkit.doctor()")
    table = notebook.page.locator(".jp-OutputArea-output table")
    expect(table).to_contain_text("accelerator")
    for theme in THEMES:
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.wait_for_timeout(300)
        assert [text for text in table.evaluate(CONTRASTS) if text[1] < 4.5] == [], theme


@pytest.mark.parametrize("name", ["AskPanel", "VideoPanel", "GroundingPanel"])
def test_no_panel_is_wider_than_its_page(open_panel, name):
    notebook, panel = open_panel(name)
    toggle = "() => window.jupyterapp.commands.execute('application:toggle-left-area')"
    notebook.page.evaluate(toggle)  # the file browser has no room on a phone
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    REPORTS.mkdir(parents=True, exist_ok=True)
    for width in (1400, 420):
        notebook.page.set_viewport_size({"width": width, "height": 1200})
        fits = "root => root.scrollWidth <= root.clientWidth + 1"
        notebook.page.wait_for_function(fits, arg=panel.element_handle())
        for theme in ("Dark", "Light"):
            notebook.set_theme(f"JupyterLab {theme}")
            panel.locator(".vlkit-head").scroll_into_view_if_needed()
            shot = REPORTS / f"{name.lower()}_{theme.lower()}_{width}.png"
            notebook.page.screenshot(path=shot)
    assert notebook.page_errors == []


def test_in_chinese(open_panel):
    _, panel = open_panel("AskPanel", ', language="zh"')
    expect(panel.locator("h3")).to_have_text("图片问答")
    expect(panel.locator(".vlkit-ask-button")).to_have_text("提问")
    expect(panel.locator(".vlkit-prompt textarea")).to_have_value("这是什么？")
    expect(panel.locator(".vlkit-example").first).to_have_text("这是什么？")
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("完成。")
    expect(panel.locator(".vlkit-facts")).to_contain_text("生成")


def test_a_saved_notebook_opened_again_shows_the_last_answer(open_panel):
    notebook, panel = open_panel("AskPanel")
    panel.get_by_role("button", name="Locate the red circle.").click()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    page, saved = notebook.page, '[id^="vlkit-saved-"]'
    expect(page.locator(saved)).to_be_hidden()
    expect(page.locator(f"{saved} img")).to_have_count(1)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1500)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.reload()
    expect(page.locator(f"{saved} img")).to_be_visible()
    expect(page.locator(saved)).to_contain_text("red circle")


def test_a_cell_that_is_run_again_stops_the_old_answer(open_panel):
    notebook, panel = open_panel("AskPanel")
    notebook.run_code("vlm.model.generation_config.eos_token_id = None; old = panel")
    notebook.run_code("panel.max_new_tokens.value = 2000; panel.ask()")
    expect(panel.locator(".vlkit-facts")).to_contain_text("tokens/s")
    notebook.run_all(120)
    assert notebook.run_code("print(old.wait(60), old.reply.finish_reason)").split() == [
        "True", "cancelled",
    ]  # fmt: skip
