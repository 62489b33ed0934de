"""Panels that ask: their base, questions with their answers, and ``AskPanel``."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import PIL.Image
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import HTML, DisplayHandle, display

from vlkit import bundled
from vlkit.analysis.logprobs import AnswerLogprobs, token_logprobs
from vlkit.datasets.conversations import locate_prompt
from vlkit.errors import MediaError, VlkitError
from vlkit.generation.generate import Chat
from vlkit.generation.reply import Reply, conversation_html
from vlkit.inputs import check_model
from vlkit.media.image import Image
from vlkit.media.video import Video
from vlkit.models.memory import available_memory
from vlkit.plotting.html import byte_text
from vlkit.widgets.media import ChosenMedium, Picker, PicturePicker, item_records, thumbnail
from vlkit.widgets.panel import DrawnPanel, call_code, load_code, on_change, plain_line

_OUTCOMES = {
    "stop": "Done.",
    "length": "The answer was cut off at its longest length; raise it in Options.",
    "cancelled": "Stopped.",
}
_SCORING = "Computing the tokens' probabilities …"
_UPDATES = 0.05  # seconds between two views of an answer that is being written


class ChatTurn(widgets.Widget):
    """A question and its answer, as the browser shows them.

    Attributes:
        question: as it was asked.
        media: the cards of the pictures or clips; ``known`` of them belong to earlier turns.
        state: ``"running"``, ``"done"``, ``"cancelled"``, ``"length"`` or ``"failed"``.
        text: what is written so far; ``progress`` has its pieces and their number per second.
        parts: the finished answer: texts with the numbers of the items that they name.
        items: its boxes, points and quads, as the canvas draws them on ``picture``.
        facts: token counts and seconds.
        raw: the answer as the model wrote it; ``tokens`` has each token's probability.
        code: plain Python that asks the same.
        problem: why there is no answer, or what of it cannot be read.
        reply: the Reply, or None.
        messages: the conversation with this turn.
    """

    question = traitlets.Unicode().tag(sync=True)
    media: traitlets.List = traitlets.List().tag(sync=True)
    known = traitlets.Int().tag(sync=True)
    state = traitlets.Unicode("running").tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    progress: traitlets.List = traitlets.List([0, 0.0]).tag(sync=True)
    thinking = traitlets.Unicode().tag(sync=True)
    parts: traitlets.List = traitlets.List().tag(sync=True)
    items: traitlets.List = traitlets.List().tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    picture_size: traitlets.List = traitlets.List([1, 1]).tag(sync=True)
    facts: traitlets.Dict = traitlets.Dict().tag(sync=True)
    raw = traitlets.Unicode().tag(sync=True)
    tokens: traitlets.List = traitlets.List().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)

    def __init__(self, chat: Chat, asked: Asked, earlier: ChatTurn | None, calls: list[str]):
        self.chat, self.asked, self.next_calls = chat, asked, calls
        self.reply: Reply | None = None
        self.messages = list(chat.messages)
        self.held: tuple = earlier.held if earlier else ()  # of the media that the chat has
        self.calls: list[str] = earlier.calls if earlier else []
        cards = [medium.card for medium in asked.media]
        super().__init__(question=asked.question, media=cards, known=len(self.held))

    def finish(self, reply: Reply) -> None:
        """Show the whole answer."""
        self.reply, self.messages = reply, list(self.chat.messages)
        self.held, self.calls = self.asked.keys, self.next_calls
        items, self.problem = reply.try_grounding()
        with self.hold_sync():
            self.text, self.raw, self.thinking = reply.text, reply.raw, reply.thinking
            self.parts = [[text, list(numbers)] for text, numbers in reply.parts]
            self.facts = {
                **vars(reply.usage), "seconds": reply.seconds, "cost": reply.cost,
                "note": reply.note,
            }  # fmt: skip
            if items and reply.images:
                self.picture = thumbnail(reply.images[-1])
                self.picture_size = list(reply.images[-1].size)
                self.items = item_records(items, {})
            elif items:  # of a clip: its frames with the boxes on each
                frames = reply.plot()
                self.picture, self.picture_size = thumbnail(frames), list(frames.size)
            self.state = "done" if reply.finish_reason == "stop" else reply.finish_reason


@dataclass(frozen=True)
class Asked:
    """A question.

    Attributes:
        question: its words.
        media: what it is about.
        keys: of each medium, with how it is read.
        reading: how the media are read; arguments of vlkit.Image or vlkit.Video.
        options: of vlkit.generate.
    """

    question: str
    media: tuple[ChosenMedium, ...]
    keys: tuple
    reading: dict
    options: dict


class Panel(DrawnPanel):
    """The base of AskPanel, VideoPanel and GroundingPanel: asks questions about chosen media.

    A question with the same media as the last one, or with more, continues the conversation;
    other media begin a new one. The panel always shows all that the model sees.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled samples.
        language: ``"en"`` or ``"zh"``; the browser's by default.
        **traits: more traits of the panel.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        turns: the questions with their answers.
        picker: the media of the next question.
    """

    scripts = ("canvas.js", "panel.js")
    kind, title, continues = "ask", "Ask", True
    needs = ""  # the error of a question without media
    picker_type: type[Picker] = PicturePicker
    reader: type[Image] | type[Video] = Image
    examples_for: Callable[[str], Sequence[str]]  # the first question is the initial prompt
    variant = traitlets.Unicode().tag(sync=True)
    head: traitlets.Dict = traitlets.Dict().tag(sync=True)
    turns: traitlets.List = traitlets.List().tag(sync=True, **widgets.widget_serialization)
    media: traitlets.List = traitlets.List().tag(sync=True)
    samples: traitlets.List = traitlets.List().tag(sync=True)
    editing = traitlets.Int(-1).tag(sync=True)
    saved_id = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, vlm: Any, *, samples: bool = True, language: str | None = None, **traits: Any
    ):
        check_model(vlm)
        self.vlm = vlm
        self.reply: Reply | None = None
        self._saved: DisplayHandle | None = None
        chinese_first = str.isascii if language == "zh" else lambda text: False
        examples = sorted(self.examples_for(vlm.family), key=chinese_first)
        first = {"value": examples[0]}
        start: dict[str, dict] = {"prompt": first, "examples": first | {"options": list(examples)}}
        super().__init__(language, start, variant=self.kind, **traits)
        self._locked = [self.ask_button]
        self.picker: Any = self.picker_type(self.status, samples=samples)
        self.samples = list(self.picker.cards)
        on_change(self._take_example, self.examples)
        on_change(self._leave_example, self.prompt)
        self.picker.observe(lambda _: self._take_media(), "media")
        self._show_head()
        self._take_media()

    # --- asking ----------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask with the present controls and return at once; does nothing while one is answered."""
        if self._running:
            return
        self.reply = None
        with self.status.catching():
            if not self.prompt.value.strip():
                raise VlkitError("the prompt is empty; write a question or choose an example")
            self._ask(self._asked(), self.editing)

    def stop(self) -> None:
        """End the answer within a token and return at once; the text so far stays."""
        if self._running:  # Chat.stop waits for the model, which would freeze the page
            self._stopped.set()
            threading.Thread(target=self.turns[-1].chat.stop, daemon=True).start()

    def clear(self) -> None:
        """Begin a new conversation; does nothing during an answer."""
        if not self._running:
            self.turns, self.editing, self.reply = [], -1, None
            self.status.say("")
            self._show_code()

    @property
    def code(self) -> str:
        """Plain Python of the last question, or of the next one where the controls have changed."""
        asked = self._asked(check=False)
        if self.turns and self.turns[-1].asked == asked:
            return self.turns[-1].code
        return self._code_of(asked, self._calls(asked, self._earlier(asked, self.turns)))

    def leave(self) -> None:
        """The panel's cell is run again: end the work, and leave no saved answer."""
        super().leave()
        self._saved = None

    def _options(self) -> dict:
        names = ("max_new_tokens", "temperature", "seed")
        return {name: getattr(self, name).value for name in names}

    def _media_options(self) -> dict:
        """How media are read; the arguments of vlkit.Image or vlkit.Video."""
        return {}

    def _medium_code(self, medium: ChosenMedium, options: dict) -> str:
        reader = "vlkit." + self.reader.__name__
        return call_code(reader, medium.code, **options) if options else medium.code

    def _asked(self, check: bool = True) -> Asked:
        if check:
            self.picker.check()
        media, reading = self.picker.media, self._media_options()
        keys = tuple((medium.key, *reading.items()) for medium in media)
        return Asked(self.prompt.value, media, keys, reading, self._options())

    def _earlier(self, asked: Asked, turns: Sequence[ChatTurn]) -> ChatTurn | None:
        """The turn that the question continues."""
        last = turns[-1] if turns and self.continues else None
        same = last and last.chat.vlm is self.vlm and asked.keys[: len(last.held)] == last.held
        return last if same else None

    def _ask(self, asked: Asked, place: int = -1) -> None:
        """Ask, in place of the turn ``place`` and those after it."""
        if self.needs and not asked.media:
            raise MediaError(self.needs)
        self._check_model()
        self.reply = None
        turns = self.turns if place < 0 else self.turns[:place]
        earlier = self._earlier(asked, turns)
        chat = earlier.chat if earlier else Chat(self.vlm)
        chat.messages = list(earlier.messages) if earlier else []
        turn = ChatTurn(chat, asked, earlier, self._calls(asked, earlier))
        turn.code = self._code_of(asked, turn.next_calls)
        media = [self.reader(each.asked, **asked.reading) for each in asked.media[turn.known :]]
        self.turns, self.editing, self._stopped = [*turns, turn], -1, threading.Event()
        pieces = chat.stream(asked.question, *media, **asked.options)
        self._start_work(lambda: self._answer(turn, pieces), "Answering …")

    def _answer(self, turn: ChatTurn, pieces: Any) -> None:
        try:
            self._follow(turn, pieces)
            reply = self.reply = turn.chat.replies[-1]
            turn.finish(reply)
            self._finish_turn(turn)  # "Done." is said when nothing changes any more
            problem = "" if self.continues else turn.problem  # a conversation shows it below
            self.status.say(problem or _OUTCOMES[reply.finish_reason])
        except Exception as error:
            if turn.reply is None:
                turn.state, turn.problem = "failed", plain_line(error)
            raise

    def _follow(self, turn: ChatTurn, pieces: Any) -> None:
        text, due, began = "", 0.0, 0.0
        for number, piece in enumerate(pieces):
            text, now = text + piece, time.monotonic()
            began = began or now
            if now >= due:
                turn.text = text
                turn.progress = [number + 1, number / max(now - began, 1e-3)]
                due = now + _UPDATES
            if self._stopped.is_set():
                break
        pieces.close()
        turn.text = text

    def _finish_turn(self, turn: ChatTurn) -> None:
        """Runs in the thread, after the answer is shown."""

    def _finish(self) -> None:
        super()._finish()
        self._show_head()
        self._show_code()
        if self._saved is not None and self.reply is not None:
            answer = conversation_html(self.turns[-1].messages[-2:], [self.reply])
            self._saved.update(HTML(self._saved_html(answer)))

    # --- the code --------------------------------------------------------------------------------

    def _calls(self, asked: Asked, earlier: ChatTurn | None) -> list[str]:
        """``chat.ask(…)`` for each question of the conversation, with this one."""
        known = len(earlier.held) if earlier else 0
        sources = [self._medium_code(each, asked.reading) for each in asked.media[known:]]
        call = call_code("chat.ask", repr(asked.question), *sources, **asked.options)
        return [*(earlier.calls if earlier else []), call]

    def _code_of(self, asked: Asked, calls: list[str]) -> str:
        lines = ["import vlkit", "", f"vlm = {load_code(self.vlm)}"]
        files = [each.name for each in asked.media if each.kind == "upload"]
        lines += [f"# put the uploaded file {name!r} next to the notebook" for name in files]
        if len(calls) > 1:
            lines += ["chat = vlkit.Chat(vlm)", *calls[:-1], f"reply = {calls[-1]}"]
        else:
            sources = [self._medium_code(each, asked.reading) for each in asked.media]
            message = call_code("vlkit.user", repr(asked.question), *sources)
            reply = call_code("vlkit.generate", "vlm", "message", **asked.options)
            lines += [f"message = {message}", f"reply = {reply}"]
        return "\n".join([*lines, "reply"])

    # --- what the browser asks for ---------------------------------------------------------------

    def _take_file(self, name: str, content: bytes) -> None:
        self.picker.add(name, content, "upload")

    def _do_sample(self, name: str, more: bool) -> None:
        self.picker.add(name, bundled.sample(name), "sample", more=more)

    def _do_address(self, text: str) -> None:
        self.picker.add(text, text, "address")

    def _do_remove(self, index: int) -> None:
        self.picker.choose([m for i, m in enumerate(self.picker.media) if i != index])

    def _do_move(self, index: int, to: int) -> None:
        media = list(self.picker.media)
        media.insert(to, media.pop(index))
        self.picker.choose(media)

    def _do_edit(self, turn: int) -> None:
        if self.editing < 0:
            self._draft = self._asked(check=False)
        asked = self.turns[turn].asked if turn >= 0 else self._draft
        self.picker.choose(asked.media)
        self.prompt.value, self.editing = asked.question, turn

    def _do_again(self) -> None:
        """Ask the last question again; where answers are drawn at random, with the next seed."""
        if self._running:
            return
        asked = self.turns[-1].asked
        if self.temperature.value > 0:
            self.seed.value += 1
        self._ask(replace(asked, options=self._options()), len(self.turns) - 1)

    def _do_enlarge(self, turn: int, index: int) -> None:
        """Show a picture of the question under its answer, to zoom in; boxes show their own."""
        shown, content = self.turns[turn], self.turns[turn].asked.media[index].content
        if not shown.items and isinstance(content, PIL.Image.Image):
            shown.picture_size, shown.picture = list(content.size), thumbnail(content)

    def _do_tokens(self, turn: int) -> None:
        if not self._running and self.turns[turn].reply:
            self._start_work(lambda: self._score(self.turns[turn]), _SCORING, "Done.")

    def _score(self, turn: ChatTurn) -> AnswerLogprobs:
        scores = token_logprobs(self.vlm, turn.messages[:-1], answer=turn.reply)
        turn.tokens = [list(pair) for pair in scores.characters]
        return scores

    def _do_picture(self, turn: int) -> None:
        reply = self.turns[turn].reply
        if reply is not None:
            file = io.BytesIO()
            reply.plot().save(file, "PNG")
            self.save_file("vlkit-answer.png", file.getvalue())

    # --- the view --------------------------------------------------------------------------------

    def _take_media(self) -> None:
        self.media = [medium.card for medium in self.picker.media]
        self._show_code()

    def _take_example(self) -> None:
        if self.examples.value:
            self.prompt.value = self.examples.value

    def _leave_example(self) -> None:
        if self.prompt.value != self.examples.value:
            self.examples.value = ""

    def _show_head(self) -> None:
        device, memory = getattr(getattr(self.vlm, "model", None), "device", ""), ""
        if device:  # it imports torch, which a served model's kernel must not
            free, place = available_memory()
            memory = f"{byte_text(free)} {place}"
        self.head = {
            "title": self.title, "model": self.vlm.name, "device": str(device), "memory": memory,
            "about": repr(self.vlm), "scores": self.vlm.scores_tokens,
            "several": self.picker.several,
        }  # fmt: skip

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The panel, and an output without widgets that holds the last answer.

        The browser shows the second where the first is dead, as in a notebook opened again.
        """
        if self._saved is None and get_ipython() is not None:
            self.saved_id = f"vlkit-saved-{self.model_id}"
            self._saved = display(HTML(self._saved_html("")), display_id=True)
        return super()._repr_mimebundle_(**kwargs)

    def _saved_html(self, answer: str) -> str:
        return f'<div id="{self.saved_id}">{answer}</div>'


def examples_for(family: str) -> tuple[str, ...]:
    """Questions about pictures to choose from, in the words of a generation."""
    return (
        "Describe this image.",
        locate_prompt("red circle", family=family),
        "Generate the caption in English with grounding:",
        "这是什么？",
        locate_prompt("红色圆形", family=family, language="zh"),
    )


EXAMPLES = examples_for("qwen2_vl")


class AskPanel(Panel):
    """Ask a model about pictures, and go on asking: answers stream in, their boxes are drawn.

    Errors appear as one line in the panel. Every control is an attribute (``prompt``,
    ``max_new_tokens``, ``temperature``, ``image_tokens``, ``seed``, ``picker``), so code can do
    what a hand can do: ``panel.prompt.value = "这是什么？"; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled sample pictures.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        turns: the questions with their answers.
    """

    title, groups = "Ask about pictures", ("question", "ask")
    examples_for = staticmethod(examples_for)

    def _media_options(self) -> dict:
        return {"max_tokens": self.image_tokens.value} if self.image_tokens.value else {}
