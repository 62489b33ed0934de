"""Errors in Chinese: real ones of the package, as a panel's script translates them."""

import pytest

import vlkit
from vlkit.errors import VlkitError
from vlkit.media.video import probe_clip
from vlkit.widgets.panel import front

TRANSLATE = """async ([script, texts]) => {
    const { default: translator } = await import(URL.createObjectURL(
        new Blob([script], { type: 'text/javascript' })));
    return texts.map((text) => [translator('zh')(text), translator('en')(text)]);
}"""


@pytest.fixture
def translate(browser):
    """``translate(texts)``: each in Chinese, and in English."""
    page = browser.new_page()
    script = front("controls.js", default="translator")
    yield lambda texts: page.evaluate(TRANSLATE, [script, texts])
    page.close()


def errors_of_real_files(folder):
    (folder / "empty.png").touch()
    (folder / "notes.png").write_text("no picture at all")
    (folder / "cut.jpg").write_bytes(vlkit.sample("cat").read_bytes()[:9000])
    (folder / "notes.mp4").write_text("no clip at all")
    (folder / "table.csv").write_bytes("名".encode("gbk"))
    for read, name in (
        (vlkit.load_image, "nowhere.png"), (vlkit.load_image, "empty.png"),
        (vlkit.load_image, "notes.png"), (vlkit.load_image, "cut.jpg"),
        (probe_clip, "notes.mp4"), (probe_clip, "nowhere.mp4"),
        (vlkit.read_conversations, "table.csv"), (vlkit.read_conversations, "nowhere.csv"),
    ):  # fmt: skip
        with pytest.raises(VlkitError) as raised:
            read(folder / name)
        yield name, str(raised.value)


def test_errors_with_names_in_them_are_chinese(translate, tmp_path):
    named = dict(errors_of_real_files(tmp_path))
    translations = translate(list(named.values()))
    for (name, english), (chinese, same) in zip(named.items(), translations, strict=True):
        assert same == english
        assert "\u4e00" <= max(chinese) and name in chinese and "does not" not in chinese, english
        words = chinese.replace(str(tmp_path), "").replace(name, "")
        assert sum(letter.isascii() and letter.isalpha() for letter in words) < 60, chinese


def test_other_texts_stay_as_they_are(translate):
    texts = ["a purple star", "RuntimeError: out of memory", "step 3", "{n} rows", "4-bit s"]
    assert translate(texts) == [[text, text] for text in texts]
