"""The report: everything in it, nothing from outside, no text that becomes markup."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from fake_runs import answer, ask, boxed, model, picture, saved
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app
from vlkit.errors import VlkitError
from vlkit.records import Run, bibtex, read_run, report

EVIL = '<script>alert("x")</script><img src=http://evil/x onerror=y> `a` | *b* & {{ 9999*9999 }}'


class Tags(HTMLParser):
    """All tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        assert not [k for k, _ in attributes if k.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    """A run with everything hostile that a user or a model can write."""
    path = saved(tmp_path, "a.png")
    raw = boxed(EVIL, 20, 10, 120, 60)
    with Run(EVIL, directory=tmp_path / "runs", notes=EVIL) as run:
        vlm = model(EVIL)
        ask(vlm, vlkit.user(EVIL, path), reply=answer(raw, images=[picture()]), seed=4)
        ask(
            vlm,
            [
                vlkit.system(EVIL),
                vlkit.user("first"),
                vlkit.assistant(EVIL),
                vlkit.user("and now?"),
            ],
        )
        with pytest.raises(OSError):
            ask(vlm, "?", reply=OSError(EVIL))
        run.log(**{EVIL: EVIL, "score": 0.123456})
        run.add(EVIL, EVIL)
        run.add(picture(), EVIL)
        import pandas

        run.add(pandas.DataFrame({EVIL: [EVIL]}), EVIL)
        truth = [[vlkit.Box("cat", 0, 0, 10, 10)], []]
        vlkit.evaluate_grounding(truth, truth, coco=False, bootstrap=10)
    return run


def test_the_page_needs_nothing_from_outside_and_no_text_is_markup(run, tmp_path):
    truth = {"a.png": [vlkit.Box(EVIL, 20, 10, 120, 60)]}
    path = report(run, tmp_path / "r.html", truth=truth, extra=[(EVIL, [(EVIL, 1)])])
    page = path.read_text(encoding="utf-8")
    found = Tags(page)
    assert "script" not in found.tags and "link" not in found.tags and "99980001" not in found.text
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert not re.search(r"url\(|@import", page)
    assert found.tags.count("img") == 2
    assert found.text.count(EVIL) >= 12


def test_the_page_says_everything(run, tmp_path):
    truth = {"a.png": [vlkit.Box("cat", 20, 10, 120, 60), vlkit.Box("far", 150, 80, 160, 90)]}
    found = Tags(report(run, tmp_path / "r.html", truth=truth).read_text(encoding="utf-8"))
    for title in ("Results", "Answers", "Settings", "Environment", "How to repeat it", "To cite"):
        assert title in found.text
    assert "OSError" in found.text and "and now?" in found.text and "0.1235" in found.text
    assert (
        "seed 4" in found.text
        and "accuracy@0.5" in found.text
        and "1.000 (1.000–1.000)" in found.text
    )
    assert "vlkit.records.replay" in found.text and "@article{wang2024qwen2vl" in found.text
    box = re.search(r"20\s*10\s*120\s*60\s*([\d.]+)", found.text)
    assert float(box[1]) == 1.0


def test_answers_are_clean_text_with_named_things_and_the_raw_text_in_a_fold(tmp_path):
    cat, dog = boxed("a <cat>", 20, 10, 120, 60), boxed("a dog", 130, 10, 190, 60)
    raw = f"I see {cat} and {dog}.<|im_end|>"
    with Run("r", directory=tmp_path / "runs") as run:
        question = vlkit.user("What is there?", saved(tmp_path))
        ask(model(), question, reply=answer(raw, images=[picture()]))
        ask(model(), "And?", reply=answer("Nothing."))
    page = report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    shown = re.search(r'<p class="text">(.*?)</p>\n<details>.*?<pre>(.*?)</pre>', page, re.DOTALL)
    assert re.sub("<[^>]+>", "", shown[1]) == "I see a &lt;cat&gt; and a dog."
    marks = re.findall(r"border-bottom:3px solid (#\w+)[^>]*>([^<]+)<", shown[1])
    assert [name for _, name in marks] == ["a &lt;cat&gt;", "a dog"]
    assert marks[0][0] != marks[1][0]  # as in the picture
    assert unescape(shown[2]) == raw
    assert page.count("<details>") == 1  # the second answer is not more than its text
    text = report(run, tmp_path / "r.md").read_text(encoding="utf-8")
    assert "> I see a \\<cat\\> and a dog." in text and "(100,100)" not in text


def test_many_answers_are_cut(tmp_path):
    with Run("r", directory=tmp_path) as run:
        for number in range(5):
            ask(model(), f"question {number}")
    text = Tags(report(run, tmp_path / "r.html", most=2).read_text(encoding="utf-8")).text
    assert "question 0" in text and "question 2" in text and "question 1" not in text
    assert "2 of 5 are shown" in text


def test_an_empty_run_has_a_page(tmp_path):
    with Run("r", directory=tmp_path) as run:
        pass
    assert "0" in Tags(report(run, tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert report(run, tmp_path / "r.md").is_file()


def test_markdown_for_an_appendix(run, tmp_path):
    text = report(run, tmp_path / "r.md").read_text(encoding="utf-8")
    assert "<" not in text.replace("\\<", "") and "\\| \\*b\\*" in text
    links = re.findall(r"\]\((r_files/[^)]+)\)", text)
    assert len(links) == 2 and all((tmp_path / link).is_file() for link in links)
    assert "[@wang2024qwen2vl]" in text and "> " in text


FAMILIES = {
    "qwen2_vl": "2409.12191",
    "qwen2_5_vl": "2502.13923",
    "qwen3_vl": "2511.21631",
    "qwen_vl": "2308.12966",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bibtex_of_the_models_used(tmp_path, family):
    with Run("r", directory=tmp_path) as run:
        ask(model(family=family), "?")
        ask(model("m2", family=family), "?")
    text = bibtex(run)
    assert text.count("@") == 2 and text.startswith("@software{vlkit,")
    citation = yaml.safe_load((Path(vlkit.__file__).parents[1] / "CITATION.cff").read_text())
    assert citation["title"] in text and str(citation["version"]) in text
    assert citation["authors"][0]["name"] in text
    assert f"arXiv:{FAMILIES[family]}" in text
    assert text.count("{") == text.count("}")
    assert report(run, tmp_path / "r.bib").read_text(encoding="utf-8") == text


def test_bibtex_of_a_model_on_a_hub(tmp_path):
    with Run("r", directory=tmp_path) as run:
        ask(model("tiny"), "?")
    record = read_run(run)
    facts = {"name": "Qwen/Qwen3.5-27B", "family": "qwen3_5", "hub": "huggingface"}
    record.models["hub"] = facts | {"commit": "c" * 40}
    (entry,) = re.findall(r"@misc\{.*?^\}", bibtex(record), re.DOTALL | re.MULTILINE)
    assert r"\url{https://huggingface.co/Qwen/Qwen3.5-27B}" in entry and "c" * 40 in entry


@pytest.mark.parametrize("name", ["r.docx", "r"])
def test_other_endings_are_refused(run, tmp_path, name):
    with pytest.raises(VlkitError, match=r"must end in \.html, \.pdf, \.md or \.bib"):
        report(run, tmp_path / name)


def test_a_pdf_needs_a_browser(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(VlkitError, match="needs Chromium, Chrome or Edge"):
        report(run, tmp_path / "r.pdf")
    assert not (tmp_path / "r.pdf").exists()


# --- the words of `vlkit run` ---------------------------------------------------------------------


@pytest.fixture
def run_words(monkeypatch, tmp_path):
    """``run_words(words)``: the notebook and the parameters that `vlkit run` takes from them."""
    taken = []

    def note(notebook, parameters, **options):
        taken.append((notebook, parameters))
        return notebook

    monkeypatch.setattr("vlkit.cli.notebooks.run_notebook", note)

    def run(*words):
        CliRunner().invoke(app, ["run", *words], catch_exceptions=False)
        return taken[-1]

    return run


def test_values_of_parameters(run_words):
    path, given = run_words(
        "a.ipynb", "-p", "MODEL", "tiny", "-p", "SEED", "3", "-p", "SIZES", "[1, 2]",
        "-p", "FAST", "true",
    )  # fmt: skip
    assert path.name == "a.ipynb"
    assert given == {"MODEL": "tiny", "SEED": 3, "SIZES": [1, 2], "FAST": True}
    assert run_words("-p", "MODEL", "x", "a.ipynb")[1] == {"MODEL": "x"}
    with pytest.raises(VlkitError, match="2 names and 1 values"):
        run_words("a.ipynb", "-p", "A", "1", "-p", "B")
