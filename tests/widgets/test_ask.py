"""Panels driven by their traits and buttons, on the bundled model."""

import datetime
import threading
from dataclasses import replace
from itertools import pairwise

import pytest

import vlkit
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box
from vlkit.widgets import EXAMPLES, AskPanel, LoraPanel

LONG = 60  # seconds that no test should need


@pytest.fixture
def panel(vlm):
    return AskPanel(vlm)


@pytest.fixture
def endless(vlm, monkeypatch):
    """A panel whose model only ends at max_new_tokens."""
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    panel = AskPanel(vlm)
    panel.max_new_tokens.value = 2048
    yield panel
    panel.stop()
    assert panel.wait(LONG)


def ask(panel, prompt, sample=None):
    panel.prompt.value = prompt
    if sample is not None:
        panel.picker.sample.value = sample
    panel.ask_button.click()
    assert panel.wait(LONG)
    return panel.reply


def upload(panel, **files):
    now = datetime.datetime.now(tz=datetime.UTC)
    panel.picker.upload.value = [
        {"name": name, "type": "", "size": len(data), "content": data, "last_modified": now}
        for name, data in files.items()
    ]


def iou(a: Box, b: Box) -> float:
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    shared = max(width, 0) * max(height, 0)
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in (a, b)]
    return shared / (sum(areas) - shared)


def wait_for_text(panel, timeout=LONG):
    """Until the first words stand in the panel."""
    written = threading.Event()
    panel.turns[-1].observe(lambda change: change["new"] and written.set(), names="text")
    assert panel.turns[-1].text or written.wait(timeout)


def seen_while_asking(panel, *question):
    """Asks; every text that the last turn showed on the way, and the Reply."""
    seen = []

    def follow(change):
        for turn in change["new"]:
            turn.observe(lambda text: seen.append(text["new"]), names="text")

    panel.observe(follow, names="turns")
    return seen, ask(panel, *question)


@pytest.mark.parametrize("prompt", ["Locate the red circle.", "框出图中红色圆形的位置"])
def test_boxes_of_a_sample_are_where_the_scene_has_them(panel, prompt):
    reply = ask(panel, prompt, "three_shapes")
    (truth,) = [b for b in vlkit.samples()["three_shapes"].boxes if b.label == "red circle"]
    assert len(reply.boxes) == 1
    assert iou(reply.boxes[0], truth) > 0.5
    (turn,) = panel.turns
    assert turn.picture.startswith("data:image/") and turn.picture_size == [400, 300]
    assert turn.items[0]["points"] == [list(reply.boxes[0].xyxy[:2]), list(reply.boxes[0].xyxy[2:])]
    assert "".join(text for text, _ in turn.parts) == reply.boxes[0].label
    assert (turn.text, turn.raw) == (reply.text, reply.raw)
    assert turn.facts["new_tokens"] == reply.usage.new_tokens
    assert (turn.question, turn.media[0]["name"]) == (prompt, "three_shapes")
    assert "Done." in panel.status.value


def test_first_click_on_a_new_panel_describes_the_first_sample(panel):
    panel.ask_button.click()
    assert panel.wait(LONG)
    assert "red circle" in panel.reply.text


def test_examples_fill_the_prompt_and_own_words_leave_them(panel):
    panel.examples.value = EXAMPLES[-1]
    assert panel.prompt.value == EXAMPLES[-1]
    panel.prompt.value = "What color is the square?"
    assert panel.examples.value == ""
    assert panel.prompt.value == "What color is the square?"


def test_stop_keeps_what_is_written(endless):
    endless.ask()
    assert (endless.ask_button.disabled, endless.stop_button.disabled) == (True, False)
    wait_for_text(endless)
    endless.stop_button.click()
    assert endless.wait(LONG)
    assert endless.reply.finish_reason == "cancelled"
    assert 0 < endless.reply.usage.new_tokens < 2048
    assert "Stopped." in endless.status.value
    assert (endless.ask_button.disabled, endless.stop_button.disabled) == (False, True)


def test_a_second_ask_leaves_the_first_alone(endless):
    endless.ask()
    thread = endless._thread
    endless.ask()
    assert endless._thread is thread
    assert endless.reply is None
    assert endless.wait(0.01) is False


def test_another_panel_answers_while_one_is_busy(endless, panel):
    endless.ask()
    wait_for_text(endless)
    panel.max_new_tokens.value = 8
    reply = ask(panel, "Describe this image.", "red_circle")
    assert "red" in reply.text
    assert endless.wait(0) is False


@pytest.mark.parametrize(
    ("prompt", "tokens", "line"),
    [
        ("  ", 16, "the prompt is empty"),
        ("word " * 50_000, 16, "exceed tiny"),  # raised by the model's thread
    ],
)
def test_an_error_is_one_line_and_the_panel_goes_on(panel, prompt, tokens, line, capsys):
    panel.max_new_tokens.value = tokens
    assert ask(panel, prompt) is None
    assert 'role="alert"' in panel.status.value
    assert line in panel.status.value
    assert "\n" not in panel.status.value
    assert "red circle" in ask(panel, "Describe this image.", "red_circle").text
    assert 'role="alert"' not in panel.status.value
    assert capsys.readouterr() == ("", "")


def test_a_foreign_error_is_shown_too(panel, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("first line <b>\nsecond line")

    monkeypatch.setattr(type(panel.vlm.processor), "__call__", fail)
    assert ask(panel, "Describe this image.") is None
    assert "RuntimeError: first line &lt;b&gt;</div>" in panel.status.value
    assert not panel.ask_button.disabled


def test_uploads_are_asked_about_in_order(panel):
    names = ["pair_first", "pair_second"]
    upload(panel, **{f"{name}.png": vlkit.sample(name).read_bytes() for name in names})
    assert panel.picker.sample.value == ""
    assert [card["name"] for card in panel.media] == ["pair_first.png", "pair_second.png"]
    assert all(card["thumb"].startswith("data:image/") for card in panel.media)
    reply = ask(panel, "Describe this image.")
    originals = [vlkit.load_image(vlkit.sample(name)) for name in names]
    assert [image.tobytes() for image in reply.images] == [each.tobytes() for each in originals]
    panel.picker.sample.value = "red_circle"
    assert panel.picker.upload.value == ()
    assert [card["name"] for card in panel.media] == ["red_circle"]
    panel.picker.sample.value = ""
    assert panel.media == []


def test_uploads_boxes_are_those_of_the_same_sample(panel):
    upload(panel, **{"shapes.png": vlkit.sample("three_shapes").read_bytes()})
    (truth,) = [b for b in vlkit.samples()["three_shapes"].boxes if b.label == "blue square"]
    (box,) = ask(panel, "Locate the blue square.").boxes
    assert iou(box, truth) > 0.5


def test_an_upload_that_is_no_picture_is_refused_by_name(panel):
    upload(panel, **{"<i>notes</i>.png": b"no picture at all"})
    assert ">&lt;i&gt;notes&lt;/i&gt;.png is not a picture: " in panel.status.value
    assert ask(panel, "Describe this image.") is None
    assert 'role="alert"' in panel.status.value
    panel.picker.sample.value = "red_circle"
    assert 'role="alert"' not in panel.status.value


def test_text_of_users_and_models_is_data(panel):
    upload(panel, **{"<script>.png": vlkit.sample("red_circle").read_bytes()})
    panel.max_new_tokens.value = 4
    question = "<script>alert(1)</script> Describe this image."
    ask(panel, question)
    assert panel.turns[-1].question == question and panel.media[0]["name"] == "<script>.png"
    assert question in panel.code and "<script" not in panel.status.value
    assert "<script>" not in panel.reply._repr_html_()
    assert "innerHTML" not in str(panel._esm)  # the browser shows them as text


def test_streamed_text_is_the_models_own(panel, monkeypatch):
    tokenizer = panel.vlm.processor.tokenizer
    monkeypatch.setattr(type(tokenizer), "decode", lambda *args, **kwargs: "<script> & \n")
    seen, _ = seen_while_asking(panel, "Describe this image.")
    assert any("<script> & " in value for value in seen)


@pytest.mark.parametrize("prompt", ['Say "it\'s" \\n {0} \n', "这是什么？"])
def test_code_gives_the_same_answer(panel, vlm, prompt):
    panel.temperature.value, panel.seed.value, panel.image_tokens.value = 0.7, 3, 16
    panel.max_new_tokens.value = 24
    reply = ask(panel, prompt, "six_shapes")
    assert reply.usage.image_tokens <= 16
    namespace = {}
    exec(panel.code, namespace)  # as it is, in a new notebook
    assert namespace["reply"].raw == reply.raw
    assert namespace["message"]["content"][-1]["text"] == prompt


def test_code_follows_every_control_and_names_the_model(panel):
    panel.picker.sample.value = ""
    assert panel.code.splitlines()[2:] == [
        "vlm = vlkit.load('tiny')",
        "message = vlkit.user('Describe this image.')",
        "reply = vlkit.generate(vlm, message, max_new_tokens=256, temperature=0.0, seed=0)",
        "reply",
    ]
    panel.seed.value = 12
    assert "seed=12" in panel.shown_code
    upload(panel, **{"a'b.png": vlkit.sample("red_circle").read_bytes()})
    assert '"a\'b.png")' in panel.code
    assert '# put the uploaded file "a\'b.png" next to the notebook' in panel.code


def test_a_panel_without_samples_asks_about_uploads_and_text(vlm):
    panel = AskPanel(vlm, samples=False)
    assert panel.samples == [] and panel.media == []
    panel.max_new_tokens.value = 4
    assert ask(panel, "这是什么？").images == ()


def test_streaming_shows_the_answer_as_it_grows(panel):
    texts, reply = seen_while_asking(
        panel, "Generate the caption in English with grounding:", "ten_shapes"
    )
    assert len(texts) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == reply.text


@pytest.mark.parametrize(
    "panel", ["AskPanel", "BatchPanel", "GroundingPanel", "LoraPanel", "VideoPanel"]
)
@pytest.mark.parametrize("wrong", ["tiny", None])
def test_a_panel_of_no_model_is_refused_at_once(panel, wrong):
    with pytest.raises(VlkitError, match=r"is not a loaded model; pass what vlkit\.load"):
        getattr(vlkit.widgets, panel)(wrong)


def test_one_line_stands_for_a_panel_where_widgets_are_not_shown(panel):
    assert repr(panel) == "AskPanel: run this cell in Jupyter to use it"


# --- the conversation ----------------------------------------------------------------------------


def test_a_second_question_about_the_same_picture_continues_the_chat(panel, vlm):
    first = ask(panel, "Detect all objects.", "six_shapes")
    second = ask(panel, "What color is the heart?")
    assert "ink" in second.text and len(panel.turns) == 2
    assert [turn.known for turn in panel.turns] == [0, 1]
    assert [message["role"] for message in panel.turns[1].messages] == ["user", "assistant"] * 2
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.new_tokens - 1
    namespace = {}
    exec(panel.code, namespace)
    assert namespace["reply"].raw == second.raw and len(namespace["chat"].messages) == 4
    for turn in panel.turns:
        exec(turn.code, namespace)
        assert namespace["reply"].raw == turn.raw


def test_the_model_sees_the_chosen_media_and_no_other(panel):
    ask(panel, "Describe this image.", "red_circle")
    other = ask(panel, "Describe this image.", "six_shapes")  # another picture: a new conversation
    assert len(panel.turns) == 2 and panel.turns[1].known == 0 and len(other.images) == 1
    panel._receive({"do": "sample", "name": "cat", "more": True}, [])  # one more: it continues
    both = ask(panel, "And this one?")
    assert (panel.turns[2].known, len(both.images)) == (1, 2)
    panel._receive({"do": "remove", "index": 0}, [])  # the model cannot forget it: a new one
    assert len(ask(panel, "And this one?").images) == 1 and panel.turns[3].known == 0
    panel.image_tokens.value = 16
    assert ask(panel, "And this one?").usage.image_tokens <= 16 and panel.turns[4].known == 0


def test_pictures_are_added_moved_and_removed(panel):
    for name in ("cat", "coffee"):
        panel._receive({"do": "sample", "name": name, "more": True}, [])
    names = lambda: [card["name"] for card in panel.media]  # noqa: E731
    assert names() == ["red_circle", "cat", "coffee"] and panel.picker.sample.value == ""
    panel._receive({"do": "move", "index": 2, "to": 0}, [])
    assert names() == ["coffee", "red_circle", "cat"]
    panel._receive({"do": "address", "text": str(vlkit.sample("hello"))}, [])
    assert names() == [str(vlkit.sample("hello"))]  # a file of one's own replaces samples
    panel._receive({"do": "address", "text": "/no/such.png"}, [])
    assert "/no/such.png does not exist" in panel.status.text
    assert panel.media[1]["problem"] and ask(panel, "What is this?") is None
    panel._receive({"do": "remove", "index": 1}, [])
    assert panel.status.text == ""


def test_a_file_in_pieces_is_one_upload_and_each_piece_is_acknowledged(panel, monkeypatch):
    sent = []
    monkeypatch.setattr(panel, "send", lambda content, buffers=None: sent.append(content))
    content = vlkit.sample("cat").read_bytes()
    pieces = [content[:100], content[100:5000], content[5000:]]
    for number, piece in enumerate(pieces):
        chunk = {"do": "chunk", "id": "1", "name": "cat.jpg", "last": number == 2}
        panel._receive(chunk, [memoryview(piece)])
    assert sent == [{"do": "got", "id": "1"}] * 3
    assert panel.picker.upload.value == ({"name": "cat.jpg", "content": content},)
    assert panel.media[0]["about"] == "451 × 300"


def test_a_model_is_not_changed_while_it_is_asked_nor_asked_while_it_changes(endless):
    other = LoraPanel(endless.vlm)
    endless.ask()
    wait_for_text(endless)
    other.start()
    assert other.wait(LONG) and "another panel is using this model" in other.status.value
    assert not endless.stop_button.disabled and endless.turns[0].state == "running"
    endless.stop()
    assert endless.wait(LONG) and endless.reply.text
    other.stop_button.disabled = False  # as during a run
    endless.ask()
    assert "another panel is using this model" in endless.status.value
    assert len(endless.turns) == 1 and endless.reply is None
    other.stop_button.disabled = True


def test_another_model_begins_another_conversation(panel):
    ask(panel, "What is this?")
    panel.vlm = replace(panel.vlm)
    ask(panel, "And this?")
    assert [len(turn.messages) for turn in panel.turns] == [2, 2] and panel.turns[1].known == 0
    ask(panel, "And this?")
    assert len(panel.turns[2].messages) == 4


def test_a_draft_outlives_an_edit_that_is_cancelled(panel):
    ask(panel, "What is this?", "hello")
    panel.picker.sample.value, panel.prompt.value = "cat", "half a quest"
    for turn in (0, 0, -1):
        panel._receive({"do": "edit", "turn": turn}, [])
    assert (panel.prompt.value, panel.media[0]["name"]) == ("half a quest", "cat")
    assert panel.editing == -1


def test_a_changed_picture_belongs_to_the_next_question(endless):
    endless.ask()
    wait_for_text(endless)
    endless.picker.sample.value = "cat"
    endless.prompt.value = "What is this?"
    (turn,) = endless.turns
    assert (turn.question, turn.media[0]["name"]) == ("Describe this image.", "red_circle")
    assert endless.stop_button.disabled is False and turn.progress[0] > 0


def test_edit_again_and_clear(panel):
    ask(panel, "Describe this image.", "six_shapes")
    ask(panel, "What color is the heart?")
    panel._receive({"do": "again"}, [])
    assert panel.wait(LONG) and len(panel.turns) == 2 and "ink" in panel.reply.text
    panel.picker.sample.value = "cat"
    panel._receive({"do": "edit", "turn": 0}, [])
    assert (panel.prompt.value, panel.media[0]["name"]) == ("Describe this image.", "six_shapes")
    ask(panel, "Locate the purple star.")
    assert [turn.question for turn in panel.turns] == ["Locate the purple star."]
    assert len(panel.reply.boxes) == 1 and panel.editing == -1
    panel._receive({"do": "click", "name": "clear_button"}, [])
    assert panel.turns == [] and panel.reply is None


def test_asked_again_at_a_temperature_takes_the_next_seed(panel):
    panel.temperature.value, panel.max_new_tokens.value = 1.5, 12
    ask(panel, "Describe this image.")
    panel._receive({"do": "again"}, [])
    assert panel.wait(LONG) and panel.seed.value == 1 and "seed=1" in panel.turns[0].code


def test_probabilities_of_a_turn_are_those_of_token_logprobs(panel, vlm):
    ask(panel, "Describe this image.", "six_shapes")
    ask(panel, "What color is the heart?")
    panel._receive({"do": "tokens", "turn": 1}, [])
    assert panel.wait(LONG)
    scores = vlkit.token_logprobs(vlm, panel.turns[1].messages[:-1], answer=panel.reply)
    assert panel.turns[1].tokens == [list(pair) for pair in scores.characters]
    assert "".join(token for token, _ in panel.turns[1].tokens) == panel.reply.raw


def test_controls_keep_their_limits_and_messages_set_them(panel):
    panel._receive({"do": "set", "name": "temperature", "value": 9}, [])
    assert panel.temperature.value == 2.0 == panel.controls["temperature"]["value"]
    panel._receive({"do": "click", "name": "ask_button"}, [])
    assert panel.wait(LONG) and panel.reply is not None


def test_an_answer_is_also_an_output_without_widgets(panel, monkeypatch):
    shown = []
    monkeypatch.setattr("vlkit.widgets.ask.get_ipython", lambda: True)

    class Handle:
        def update(self, output):
            shown.append(output.data)

    monkeypatch.setattr("vlkit.widgets.ask.display", lambda *a, **k: Handle())
    panel._repr_mimebundle_()
    reply = ask(panel, "Locate the red circle.", "three_shapes")
    assert panel.saved_id in shown[-1] and "Locate the red circle." in shown[-1]
    assert "<img" in shown[-1] and reply.boxes[0].label in shown[-1]


def test_a_cell_that_is_run_again_stops_its_panel(vlm, monkeypatch):
    from types import SimpleNamespace

    registered = {"pre_run_cell": []}
    register = lambda event, function: registered[event].append(function)  # noqa: E731
    shell = SimpleNamespace(
        get_parent=lambda: {"metadata": {"cellId": "a"}},
        events=SimpleNamespace(callbacks=registered, register=register),
    )
    monkeypatch.setattr("vlkit.widgets.panel.get_ipython", lambda: shell)
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    old, other = AskPanel(vlm), AskPanel(vlm)
    old.max_new_tokens.value = 2048
    old.ask()
    wait_for_text(old)
    (stop,) = registered["pre_run_cell"]
    stop(SimpleNamespace(cell_id="b"))
    assert old._running
    stop(SimpleNamespace(cell_id="a"))
    assert old.wait(LONG) and old.reply.finish_reason == "cancelled" and not other._running


def test_a_picture_of_a_question_is_shown_large_where_no_box_has_one(panel):
    ask(panel, "What color is the heart?", "six_shapes")
    turn = panel.turns[-1]
    assert turn.picture == ""
    panel._receive({"do": "enlarge", "turn": 0, "index": 0}, [])
    assert turn.picture.startswith("data:image/") and turn.picture_size == [480, 320]
    ask(panel, "Locate the purple star.")
    before = panel.turns[-1].picture
    panel._receive({"do": "enlarge", "turn": 1, "index": 0}, [])
    assert panel.turns[-1].picture == before != ""


def test_another_picture_chosen_during_an_answer_leaves_the_status(panel):
    panel.status.say("Answering …")
    panel.picker.sample.value = "cat"
    assert panel.status.text == "Answering …"
    panel.status.say("Done.")
    panel.picker.sample.value = "six_shapes"
    assert panel.status.text == ""
