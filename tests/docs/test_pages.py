"""README, documentation and notebooks say what is so: commands, names, links, tables, figures."""

import importlib
import itertools
import re
import shlex
import sys
from pathlib import Path

import click
import nbformat
import numpy
import PIL.Image
import pytest
import typer

from vlkit.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
CARDS = ["data/README.md", "data/tiny-qwen2-vl/README.md", "pretraining/README.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMAND = typer.main.get_command(app)


def prose(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    fenced = {"markdown": "{}", "code": "```python\n{}\n```"}
    return "\n\n".join(fenced[cell.cell_type].format(cell.source) for cell in cells)


TEXTS = {
    path.relative_to(ROOT).as_posix(): prose(path)
    for path in [ROOT / "README.md", *PAGES, *NOTEBOOKS, *(ROOT / card for card in CARDS)]
}
every_text = pytest.mark.parametrize("name", TEXTS)


def blocks(text, *kinds):
    found = re.findall(r"^ *```(\S*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [code for kind, code in found if kind in kinds]


def shell_lines(text):
    """Commands of a shell: the lines of blocks without a language, and code in running text."""
    for block in blocks(text, "", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`((?:vlkit|make|python|accelerate|torchrun) [^`]+)`", outside)


def vlkit_words(line):
    """What follows `vlkit` in a line, or None where it is no command of vlkit."""
    found = re.match(r"(?:.* -m )?vlkit (?P<rest>[a-z].*)", line)
    return None if found is None else shlex.split(found["rest"], comments=True)


def check_command(words, whole):
    """The command and each of its options exist; whole, the line is parsed as the shell would."""
    command = COMMAND.commands.get(words[0])
    assert command, f"vlkit {words[0]} does not exist"
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    others = command.context_settings.get("ignore_unknown_options")
    for word in words[1:]:
        option = word.partition("=")[0]
        assert not option.startswith("--") or option in known or others, f"{words[0]} {option}"
    if whole:
        with command.make_context(words[0], words[1:]):
            pass


@every_text
def test_commands_of_vlkit_are_accepted(name):
    lines = [words for line in shell_lines(TEXTS[name]) if (words := vlkit_words(line))]
    for words in lines:
        parsed = "…" not in " ".join(words) and len(words) > 1
        try:
            check_command(words, whole=parsed and not words[-1].isupper())
        except click.UsageError as error:
            in_words = "`vlkit " + " ".join(words) in TEXTS[name]
            missing = isinstance(error, click.MissingParameter)
            assert missing and in_words, f"vlkit {shlex.join(words)}: {error.format_message()}"


@every_text
def test_make_targets_and_scripts_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for line in shell_lines(TEXTS[name]):
        if found := re.fullmatch(r"make ((?:[a-z]+ ?)+)", line):
            assert set(found[1].split()) <= targets, line
        elif found := re.search(r"(?:^|\s)([\w./-]+\.py)\b(.*)", line):
            homes = [ROOT / found[1], (ROOT / name).parent / found[1]]
            script = next((path for path in homes if path.is_file()), None)
            assert script, line
            code = script.read_text(encoding="utf-8")
            for option in re.findall(r"--([a-z][\w-]*)", found[2]):
                assert option in code or option.replace("-", "_") in code, line


@every_text
def test_every_name_of_vlkit_exists(name):
    text = re.sub(r"https?://\S+", "", TEXTS[name])
    for dotted in set(re.findall(r"(?<![\w./-])vlkit((?:\.[A-Za-z_]\w*)+)", text)):
        value, path = importlib.import_module("vlkit"), "vlkit"
        for part in dotted[1:].split("."):
            if part == "__version__" or value is None:
                break
            if not hasattr(value, part):
                value = importlib.import_module(f"{path}.{part}")  # a module, or it is not there
            else:
                value = getattr(value, part)
            path = f"{path}.{part}"
            if isinstance(value, property):
                value = None


@every_text
def test_code_compiles(name):
    for code in blocks(TEXTS[name], "python", "py"):
        compile(code, name, "exec")


@every_text
def test_links_inside_the_repository_resolve(name):
    text = re.sub(r"^ *```.*?^ *```$", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "`code`", text)
    for target in re.findall(r"\]\((?!https?:|attachment:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in titles}
            assert anchor in slugs, f"{name}: {target}"


@every_text
def test_files_of_the_repository_that_are_named_exist(name):
    roots = "benchmarks|data|docs|notebooks|pretraining|scripts|tests|vlkit"
    for path in re.findall(rf"`((?:{roots})/[\w./-]*)`", TEXTS[name]):
        ignored = path.startswith(("pretraining/build", "pretraining/checkpoints"))
        assert ignored or (ROOT / path).exists() or (ROOT / name).parent.joinpath(path).exists(), (
            f"{name}: {path}"
        )


def test_the_map_of_the_course_matches_the_notebooks():
    sys.path.insert(0, str(ROOT / "scripts"))
    from write_index import table

    assert table() in TEXTS["notebooks/index.ipynb"]
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", table())
    assert linked == [path.name for path in NOTEBOOKS if path.name[0].isdigit()]


def test_every_page_is_in_the_site():
    listed = re.search(r"```{toctree}\n:hidden:\n\n(.*?)\n```", TEXTS["docs/index.md"], re.DOTALL)[
        1
    ]
    assert {path.stem for path in PAGES} - {"index"} == set(listed.split())


def test_every_exercise_has_a_solution():
    guide = TEXTS["docs/teaching.md"]
    for path in NOTEBOOKS:
        exercise = re.search(r"\*\*Exercise\.\*\* (.+)", prose(path))
        if exercise:
            section = guide.partition(f"\n### {path.name[:2]} · ")[2].partition("\n### ")[0]
            asked = re.search(r"^> (.+)$", section, re.MULTILINE)
            assert asked and exercise[1].startswith(asked[1]), path.name


def test_the_plan_of_ninety_minutes_names_sections_that_are_there():
    plan = TEXTS["docs/teaching.md"].partition("## Ninety minutes")[2].partition("\n## ")[0]
    lines = [line.split("|") for line in plan.splitlines() if re.match(r"\| \d", line)]
    times = [tuple(map(int, minutes.split("–"))) for _, minutes, *_ in lines]
    assert times[0][0] == 0 and times[-1][1] == 90
    assert all(before[1] == after[0] for before, after in itertools.pairwise(times))
    places = [line[3].strip() for line in lines if line[3].strip()]
    assert len(places) == 6
    for number, where in (place.split(", ", 1) for place in places):
        (name,) = [name for name in TEXTS if name.startswith(f"notebooks/{number}")]
        titles = re.findall(r"^## (.+)$", TEXTS[name], re.MULTILINE)
        for section in re.findall(r"\*(.+?)\*", where):
            assert section in titles, f"{name}: {section}"


def test_every_term_of_the_glossary_is_in_the_notebooks_that_it_names():
    rows = re.findall(r"^\| (.+?) \| .+ \| ([\d, ]+) \|$", TEXTS["docs/glossary.md"], re.MULTILINE)
    assert len(rows) > 40
    for terms, numbers in rows:
        for number in numbers.split(", "):
            (name,) = [name for name in TEXTS if name.startswith(f"notebooks/{number}")]
            words = TEXTS[name].lower().replace("_", " ")
            for term in terms.lower().split(", "):
                beginning = term.split()[0].removesuffix("s")[:9]  # hallucination, hallucinates
                assert beginning in words, f"{name}: {term}"


def test_the_figures_are_what_the_code_draws(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    from figures import FOLDER, main

    main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in FOLDER.glob("*.png"))
    for name in drawn:
        kept, new = (
            numpy.asarray(PIL.Image.open(folder / name).convert("RGB"), dtype=int)
            for folder in (FOLDER, tmp_path)
        )
        assert kept.shape == new.shape and abs(kept - new).mean() < 1, name
