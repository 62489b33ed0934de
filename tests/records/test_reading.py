"""Runs on the disk: what is in them, what never is, and how they are read back."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fake_runs import answer, ask, boxed, model, picture, saved
from jsonschema import Draft7Validator
from linear import grows_linearly

import vlkit
from vlkit import records
from vlkit.errors import VlkitError
from vlkit.records import Run, diff, read_run, runs
from vlkit.records.facts import LEFT_OUT, weights_hash, without_secrets
from vlkit.records.media import MediaStore
from vlkit.records.reports import sections

SECRET = "kd83-Jw9x-secret-0192"


def everything(folder: Path) -> bytes:
    """All bytes and names below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


# --- what is recorded -----------------------------------------------------------------------------


def test_an_answer_with_all_that_belongs_to_it(tmp_path):
    path, vlm = saved(tmp_path), model(max_image_tokens=128)
    raw = boxed("cat", 20, 10, 120, 60)
    with Run("cats", directory=tmp_path / "runs", notes="why") as run:
        message = vlkit.user("Where is the cat?", vlkit.Image(path, max_tokens=64))
        ask(vlm, message, reply=answer(raw, tokens=(5, 6, 7), images=[picture()]), seed=3)
    record = read_run(run)
    (line,) = record.answers
    assert line["kind"] == "generate" and line["tokens"] == [5, 6, 7] and line["raw"] == raw
    assert line["boxes"] == [{"label": "cat", "x1": 20, "y1": 10, "x2": 120, "y2": 60}]
    assert line["options"] == {"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": 3}
    assert line["usage"]["image_tokens"] == 64 and line["input_sizes"] == [[200, 100]]
    (media,) = line["media"]
    assert media["name"] == "a.png" and media["of"] == "file"
    assert media["options"] == {"max_tokens": 64} and (run.path / media["thumbnail"]).is_file()
    assert record.models[line["model"]]["max_image_tokens"] == 128
    assert line["memory"]["process"] > 10**6
    manifest = record.manifest
    assert manifest["vlkit_run"] == 1 and manifest["notes"] == "why" and record.status == "finished"
    assert manifest["environment"]["packages"]["torch"] and manifest["git"].keys() == {
        "commit",
        "dirty",
    }


def test_errors_are_recorded_and_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), Run("r", directory=tmp_path) as run:
        ask(model(), "?", reply=ZeroDivisionError("no\nsecond line"))
    record = read_run(run)
    assert record.answers[0]["error"] == "no"
    assert record.answers[0]["error_kind"] == "ZeroDivisionError"
    assert record.status == "failed" and record.manifest["error"] == "ZeroDivisionError: no"


def test_what_cannot_be_recorded_is_a_warning_and_the_answer_is_given(tmp_path):
    with Run("r", directory=tmp_path) as run:
        os.mkdir(run.path / "records.jsonl")
        with pytest.warns(UserWarning, match="run 'r' could not record this"):
            assert ask(model(), "?").text == "Yes."


def test_without_a_run_nothing_is_written_and_nothing_is_imported(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fake_runs import ask, model\n"
        "assert ask(model(), '?').text == 'Yes.'\n"
        "print('vlkit.records' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1] / "helpers")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"] and not list(tmp_path.iterdir())


def test_own_results_and_evaluations(tmp_path):
    box = vlkit.Box("a", 0, 0, 10, 10)
    with Run("r", directory=tmp_path) as run:
        run.log(accuracy=0.5, about="x", wrong=float("nan"))
        vlkit.evaluate_grounding([[box], []], [[box], [box]], coco=False, bootstrap=0)
    record = read_run(run)
    assert record.values == {"accuracy": 0.5, "about": "x", "wrong": None}
    assert record.metrics["accuracy@0.5"] == 0.5 and record.metrics["accuracy"] == 0.5


# --- who records into which run -------------------------------------------------------------------


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_two_runs_in_two_threads_do_not_mix(tmp_path):
    barrier, paths = threading.Barrier(2), {}

    def work(name):
        with Run(name, directory=tmp_path) as run:
            for _ in range(20):
                barrier.wait(60)
                ask(model(name), name)
            paths[name] = run.path

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for name in "ab":
        texts = [a["messages"][0]["content"][0]["text"] for a in read_run(paths[name]).answers]
        assert texts == [name] * 20


def test_a_threads_own_run_stays_out_of_the_main_threads(tmp_path):
    def own():
        with Run("own", directory=tmp_path) as run:
            ask(model(), "mine")
        found.append(run)

    found = []
    with Run("main", directory=tmp_path) as run:
        in_thread(own)
        in_thread(lambda: ask(model(), "a panel's"))
    in_thread(lambda: ask(model(), "too late"))
    count = [len(read_run(each).answers) for each in (run, found[0])]
    assert count == [1, 1]


def test_runs_in_runs_record_into_both(tmp_path):
    with Run("outer", directory=tmp_path) as outer:
        ask(model(), "1")
        with Run("inner", directory=tmp_path) as inner:
            ask(model(), "2")
        ask(model(), "3")
    assert [len(read_run(each).answers) for each in (outer, inner)] == [3, 1]
    assert outer.path != inner.path


def test_a_process_records_into_the_run_that_it_is_told(tmp_path, monkeypatch):
    with Run("told", directory=tmp_path) as run:
        pass
    (run.path / "records.jsonl").write_bytes(b'{"record": "answer", "tor')  # another was killed
    monkeypatch.setenv("VLKIT_RUN", str(run.path))
    ask(model(), "?")
    record = read_run(run)
    assert len(record.answers) == 1 and record.torn == 1 and set(record.models) == {"model 1"}


# --- secrets --------------------------------------------------------------------------------------

CASES = {
    "https://u:pw@host/p.png": "https://host/p.png",
    "see https://host/a?X-Amz-Signature=abc&x=1 now": "see https://host/a?… now",
    "https://host/a?width=3#top": "https://host/a?width=3#top",
    "s3://host/a?access_token=1": "s3://host/a?…",
    "sk-" + "a1" * 12: LEFT_OUT,
    "Authorization: Bearer " + "ab" * 10: f"Authorization: Bearer {LEFT_OUT}",
    "hf_" + "Ab3" * 10: LEFT_OUT,
    "key ghp_" + "a" * 30 + "!": f"key {LEFT_OUT}!",
    "eyJhbGciOi.eyJzdWIiOiI.abcdef": LEFT_OUT,
    "the keyboard's token: sk-8, a cat": "the keyboard's token: sk-8, a cat",
    "http://[broken?token=1": "http://[broken",
}


@pytest.mark.parametrize("text", CASES, ids=range(len(CASES)))
def test_secrets_in_texts(text):
    assert without_secrets(text) == CASES[text]
    assert without_secrets({"a": [text, 1]}) == {"a": [CASES[text], 1]}


@pytest.mark.parametrize("name", ["MY_API_KEY", "HF_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_values_of_secret_variables(monkeypatch, name):
    monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HOME_TOWN", "Bremerhaven-Mitte")
    assert (
        without_secrets(f"a {SECRET} in Bremerhaven-Mitte") == f"a {LEFT_OUT} in Bremerhaven-Mitte"
    )


NAMED = {
    "password=hunter2": "password=*",
    "api-key: 9f8e7d6c5b4a": "api-key: *",
    'the config {"clientSecret": "abc", "n": 1}': 'the config {"clientSecret": "*", "n": 1}',
    "aws_secret_access_key=AbC/dEfG now": "aws_secret_access_key=* now",
    "Authorization: Basic dXNlcjpwYXNz": "Authorization: Basic *",
    "密码：abc12345": "密码：*",
    "see https://host/cb#access_token=1": "see https://host/cb",
}
HARMLESS = (
    "What is the password? It is below the token: red",
    '[{"bbox_2d": [1, 2, 3, 4], "label": "password"}]',
    "max_new_tokens=4096, tokenizer: qwen2",
)


@pytest.mark.parametrize("text", NAMED, ids=range(len(NAMED)))
def test_secrets_that_only_their_name_shows_in_texts(text):
    assert without_secrets(text) == NAMED[text].replace("*", LEFT_OUT)


@pytest.mark.parametrize("text", HARMLESS)
def test_texts_about_secrets_stay(text):
    assert without_secrets(text) == text


def test_secrets_that_only_their_name_shows_in_nested_data():
    config = {
        "password": "S3cret", "pwd": 12345678, "db": [{"API-Key": "x", "port": 5432}],
        "credentials": {"user": "me", "all": ["a", ["b"]]}, "headers": {"authorization": "Token q"},
    }  # fmt: skip
    assert without_secrets(config) == {
        "password": LEFT_OUT, "pwd": LEFT_OUT, "db": [{"API-Key": LEFT_OUT, "port": 5432}],
        "credentials": {"user": LEFT_OUT, "all": [LEFT_OUT, [LEFT_OUT]]},
        "headers": {"authorization": LEFT_OUT},
    }  # fmt: skip


def test_columns_of_secrets_are_left_out_of_an_added_table(tmp_path):
    import pandas

    table = pandas.DataFrame({"user": ["me"], "DB password": ["S3cret"], "token": ["red"]})
    with Run("r", directory=tmp_path) as run:
        run.add(table)
    (line,) = read_run(run).of("exhibit")
    assert line["rows"] == [["me", LEFT_OUT, "red"]] and table.iloc[0, 1] == "S3cret"


def test_counts_and_labels_with_such_names_stay():
    facts = {
        "max_new_tokens": 256, "tokens": [5, 6], "token": 7, "seed": 1, "key": "ab12",
        "by_label": {"password field": {"truths": 1200, "accuracy@0.5": 0.5}},
    }  # fmt: skip
    assert without_secrets(facts) == facts


@pytest.mark.parametrize("part", ["token", "password='", "api_key ", "authorization: basic ", "a"])
def test_a_long_text_is_cleaned_in_linear_time(part):
    assert grows_linearly(without_secrets, part * (300_000 // len(part)))


def test_no_secret_is_anywhere_in_a_run_or_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    key = "0f9e8d7c6b5a-client"
    identity = {"base_url": f"https://u:{key}@host/v1?api_key={key}"}
    hosted = model(identity=identity, secrets=(key,))
    url = "https://host/p.png?sig=QWERTYUIOP123"
    with pytest.raises(ValueError), Run(f"run {SECRET}", directory=tmp_path / "r") as run:
        ask(hosted, vlkit.user(f"{SECRET} and {key}", url), reply=answer(images=[picture()]))
        ask(hosted, "?", reply=answer(f"It is {SECRET}.", tokens=(7, 8)))
        run.log(note=SECRET, **{SECRET: 1})
        run.add(f"text {key}")
        raise ValueError(SECRET)
    for ending in ("html", "md", "bib"):
        records.report(run, tmp_path / "r" / f"report.{ending}")
    found = everything(tmp_path / "r")
    assert not [each for each in (SECRET, key, "QWERTYUIOP123") if each.encode() in found]
    first, second = read_run(run).answers
    assert first["secrets_left_out"] and second["tokens"] is None


# --- runs that somebody else made -----------------------------------------------------------------


def edited(tmp_path, change):
    """A run with an answer, an evaluation and exhibits, and its lines changed by hand."""
    with Run("a", directory=tmp_path / "runs") as run:
        ask(model(), vlkit.user("?", saved(tmp_path)), reply=answer(images=[picture()]))
        run.log(score=1)
        run.add("text", "caption")
        run.add(picture(), "figure")
        truth = [[vlkit.Box("cat", 0, 0, 10, 10)]]
        vlkit.evaluate_grounding(truth, truth, coco=False, bootstrap=0)
    path = run.path / "records.jsonl"
    lines = {}
    for line in map(json.loads, path.read_text().splitlines()):
        lines[line["record"]] = line  # of two exhibits the last, the figure
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return run.path


ODD = {
    "no usage": lambda lines: lines["answer"].pop("usage"),
    "usage is text": lambda lines: lines["answer"].update(usage="many"),
    "no messages": lambda lines: lines["answer"].pop("messages"),
    "empty messages": lambda lines: lines["answer"].update(messages=[]),
    "messages are text": lambda lines: lines["answer"].update(messages="?"),
    "media out of range": lambda lines: lines["answer"].update(media=[]),
    "a message without a role": lambda lines: lines["answer"]["messages"][0].pop("role"),
    "a message without content": lambda lines: lines["answer"]["messages"][0].pop("content"),
    "a box without sides": lambda lines: lines["answer"].update(boxes=[{"label": "a"}]),
    "a box of text": lambda lines: lines["answer"].update(boxes=["a"]),
    "options are a list": lambda lines: lines["answer"].update(options=[1]),
    "an option is a list": lambda lines: lines["answer"]["options"].update(seed=[1]),
    "finish_reason is a number": lambda lines: lines["answer"].update(finish_reason=3),
    "neither answer nor error": lambda lines: lines["answer"].pop("raw"),
    "model without a name": lambda lines: lines["model"].pop("name"),
    "values are a list": lambda lines: lines["values"].update(values=[1]),
    "evaluation without metrics": lambda lines: lines["evaluation"].update(evaluation={}),
    "metric is text": lambda lines: metrics_of(lines)["overall"].update(x="y"),
    "figure without a file": lambda lines: lines["exhibit"].pop("file"),
    "figure's file is a list": lambda lines: lines["exhibit"].update(file=["a"]),
    "table without rows": lambda lines: lines["exhibit"].update(exhibit="table", columns=["a"]),
    "kind is a list": lambda lines: lines["exhibit"].update(record=["a"]),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_line_costs_itself_and_is_counted(tmp_path, change):
    path = edited(tmp_path, change)
    record = read_run(path)
    assert (record.torn, len(record.lines)) == (1, 4)
    assert "1 line of records.jsonl cut off or broken" in record.gap
    for ending in ("html", "md", "bib"):
        records.report(path, tmp_path / f"r.{ending}")
    assert len(records.runs(tmp_path / "runs")) == 1
    assert str(records.diff(path, path)) and str(records.replay(path))


def test_other_tools_can_check_a_run_by_its_published_schema(tmp_path):
    schema = json.loads((files("vlkit.records") / "schema.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    path = edited(tmp_path, lambda lines: None)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (path / "records.jsonl").open(encoding="utf-8")]
    fits = Draft7Validator({"$ref": "#/definitions/line", **schema}).is_valid
    assert {line["record"] for line in lines} > {"answer", "model"} and all(map(fits, lines))
    assert Draft7Validator({"$ref": "#/definitions/manifest", **schema}).is_valid(manifest)
    (answer_line,) = (line for line in lines if line["record"] == "answer")
    for name in ("kind", "model", "messages", "media", "usage", "text"):
        assert not fits({key: value for key, value in answer_line.items() if key != name}), name


def metrics_of(lines):
    return lines["evaluation"]["evaluation"]


EDITED = {
    "sizes of three": lambda lines: lines["answer"].update(input_sizes=[[1, 2, 3]]),
    "a metric without a value": lambda lines: metrics_of(lines)["overall"].update(x={}),
    "labels with other columns": lambda lines: metrics_of(lines)["by_label"].update(x={}),
    "a table of uneven rows": lambda lines: lines["exhibit"].update(
        exhibit="table", columns=["a"], rows=[[1, 2], [], [[3]]]
    ),
    "a training with odd losses": lambda lines: lines["values"].update(
        record="training", state="ended", arguments={"a": [1]}, losses=[[1], [2, 3, 4]]
    ),
    "the file is no picture": lambda lines: lines["answer"]["media"][0].update(
        of="pixels", path="records.jsonl"
    ),
    "kept is a folder": lambda lines: lines["answer"]["media"][0].update(kept="figures"),
}  # fmt: skip


@pytest.mark.parametrize("change", EDITED.values(), ids=EDITED)
def test_an_edited_line_is_shown_as_far_as_it_goes(tmp_path, change):
    path = edited(tmp_path, change)
    assert read_run(path).torn == 0
    for ending in ("html", "md", "bib"):
        records.report(path, tmp_path / f"r.{ending}")
    assert len(records.runs(tmp_path / "runs")) == 1
    assert str(records.diff(path, path)) and str(records.replay(path))


def test_the_commands_of_an_edited_run_are_quoted(tmp_path):
    path = edited(tmp_path, lambda lines: None)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["environment"]["packages"]["torch"] = "2;touch x\n```\n<script>"
    (path / "manifest.json").write_text(json.dumps(manifest))
    path = path.rename(path.with_name("a$(touch x)"))
    _, commands = sections.how_to_repeat(read_run(path))
    install, replay = commands.split("\n")
    assert shlex.split(install)[2] == "torch==2;touch x ``` <script>"
    assert shlex.split(replay)[:2] == ["python", "-c"] and len(shlex.split(replay)) == 3


def test_a_line_nested_too_deeply_costs_itself(tmp_path):
    path = edited(tmp_path, lambda lines: None)
    with (path / "records.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    assert read_run(path).torn == 1 and len(records.runs(tmp_path / "runs")) == 1


ODD_MANIFESTS = ["[" * 100_000, "{}", '{"vlkit_run": 1}', '{"vlkit_run": 99, "name": "a"}', "[1]"]


@pytest.mark.parametrize("text", ODD_MANIFESTS, ids=range(len(ODD_MANIFESTS)))
def test_a_damaged_manifest_is_named_and_other_runs_are_listed(tmp_path, text):
    with Run("b", directory=tmp_path / "runs"):
        pass
    path = edited(tmp_path, lambda lines: None)
    (path / "manifest.json").write_text(text)
    with pytest.raises(VlkitError, match="is damaged"):
        read_run(path)
    with pytest.warns(UserWarning, match="it is not in the table"):
        assert list(records.runs(tmp_path / "runs")["name"]) == ["b"]


@pytest.mark.parametrize("way", ["absolute", "parents", "link", "linked folder"])
def test_files_outside_a_run_are_not_in_its_report(tmp_path, way):
    secret = saved(tmp_path, "private.png", "red")
    ways = {"absolute": str(secret), "parents": "../../private.png"}
    name = ways.get(way, "figures/private.png")
    path = edited(
        tmp_path,
        lambda lines: (
            lines["exhibit"].update(file=name),
            lines["answer"]["media"][0].update(thumbnail=name, kept=name, path="gone.png"),
        ),
    )
    if way == "link":
        (path / name).symlink_to(secret)
    elif way == "linked folder":
        shutil.rmtree(path / "figures")
        (path / "figures").symlink_to(tmp_path)
    shown = sections.exhibits(read_run(path))
    assert shown[0]["content"] is None
    assert sections.view_answer(read_run(path), 0, {})["picture"] is None
    for ending in ("html", "md"):
        records.report(path, tmp_path / f"r.{ending}")
    assert "<img" not in (tmp_path / "r.html").read_text()
    assert not list((tmp_path / "r_files").iterdir())


# --- media ----------------------------------------------------------------------------------------


def sources(folder):
    """Every kind of source, and the Replies' pictures or clips for it."""
    path = saved(folder, "file.png", "red")
    data = path.read_bytes()
    frames = [picture(color) for color in ("red", "green")]
    image = lambda source: {"type": "image", "image": source}  # noqa: E731
    return {
        "file": (image(str(path)), [picture("red")]),
        "bytes": (image(data), [picture("red")]),
        "pixels": (image(picture("blue")), [picture("blue")]),
        "array": (image(np.asarray(picture("blue"))), [picture("blue")]),
        "frames": ({"type": "video", "video": frames}, []),
    }


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["file", "bytes", "pixels", "array", "frames"])
def test_media_are_found_again_where_they_are_files_or_were_kept(tmp_path, kind, keep):
    item, shown = sources(tmp_path)[kind]
    store = MediaStore(tmp_path / "run", keep)
    facts = json.loads(json.dumps(store.describe(item, shown, 0)))
    source, reason = MediaStore(tmp_path / "run", False).find(facts)
    if keep or kind == "file":
        first = source[0] if kind == "frames" else source
        wanted = {"file": "red", "bytes": "red", "frames": "red"}.get(kind, "blue")
        assert vlkit.load_image(first).getpixel((0, 0)) == picture(wanted).getpixel((0, 0))
    else:
        assert source is None and "keep_media=True" in reason


def test_media_that_were_changed_or_are_gone(tmp_path):
    path, store = saved(tmp_path), MediaStore(tmp_path / "run", False)
    facts = store.describe({"type": "image", "image": str(path)}, [picture()], 0)
    saved(tmp_path, "a.png", "red")
    assert store.find(facts) == (None, "a.png has other content now")
    path.unlink()
    assert store.find(facts) == (None, "a.png no longer exists")


def test_run_and_media_may_move_together(tmp_path):
    (tmp_path / "here").mkdir()
    path, store = saved(tmp_path / "here"), MediaStore(tmp_path / "here" / "run", False)
    facts = store.describe({"type": "image", "image": str(path)}, [picture()], 0)
    (tmp_path / "here").rename(tmp_path / "there")
    source, _ = MediaStore(tmp_path / "there" / "run", False).find(facts)
    assert Path(source) == tmp_path / "there" / "a.png"


def test_a_picture_read_from_a_file_is_found_there(tmp_path):
    path, store = saved(tmp_path), MediaStore(tmp_path / "run", False)
    read = vlkit.load_image(path)
    facts = store.describe({"type": "image", "image": read}, [read], 0)
    assert facts["of"] == "pixels" and facts["name"] == "a.png"
    assert Path(store.find(facts)[0]) == path


# --- weights and code -----------------------------------------------------------------------------


def shard(path: Path, value: int) -> None:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [10**6], "data_offsets": [0, 10**6]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([value]) * 10**6)


@pytest.mark.parametrize("limit, of", [(10**9, "files"), (10, "headers")])
def test_other_weights_have_another_hash(tmp_path, monkeypatch, limit, of):
    monkeypatch.setattr("vlkit.records.facts.WHOLE_BYTES", limit)
    shard(tmp_path / "model.safetensors", 1)
    first = weights_hash(tmp_path)
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert weights_hash(tmp_path) == first and first["of"] == of
    shard(tmp_path / "model.safetensors", 2)  # another training: the same header and size
    assert weights_hash(tmp_path)["sha256"] != first["sha256"]


def test_a_hubs_own_sums_are_taken_without_reading(tmp_path):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"")
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(blob)
    assert weights_hash(folder)["of"] == "hub"


def test_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    from vlkit.records.facts import git_state

    assert git_state(Path("/")) is None
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], [*name, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = git_state(tmp_path)
    (tmp_path / "a").write_text("2")
    assert clean["dirty"] is False and len(clean["commit"]) == 40
    assert git_state(tmp_path) == {**clean, "dirty": True}


# --- reading back ---------------------------------------------------------------------------------


def test_a_file_cut_anywhere_gives_its_whole_lines(tmp_path):
    with Run("r", directory=tmp_path) as run:
        for number in range(3):
            ask(model("ü"), f"{number}")
    path = run.path / "records.jsonl"
    content = path.read_bytes()
    for end in range(0, len(content) + 1, 7):
        path.write_bytes(content[:end])
        record = read_run(run)
        whole = content[:end].count(b"\n")
        assert (
            whole <= len(record.lines) <= whole + 1 and len(record.lines) + record.torn <= whole + 1
        )


def test_a_run_that_was_cut_says_so_and_is_still_written_up(tmp_path):
    with Run("r", directory=tmp_path) as run:
        for number in range(3):
            message = vlkit.user(f"{number}", picture())
            ask(model(), message, reply=answer(images=[picture()]))
    path = run.path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\0" * 40 + b"".join(lines)[:-20])  # the model's line and the last are lost
    for thumbnail in (run.path / "thumbnails").iterdir():
        thumbnail.unlink()
    assert read_run(run).gap == "2 lines of records.jsonl cut off or broken, and left out"
    for name in ("r.html", "r.md"):
        text = records.report(run, tmp_path / name).read_text(encoding="utf-8")
        assert "2 lines of records.jsonl cut off" in text and "model 1 (its line is lost)" in text
    again = records.replay(run.path)
    assert list(again.rows["status"]) == ["cannot", "cannot"]
    assert str(again).startswith("r: 2 answers, 2 cannot; 2 lines of records.jsonl cut off")


def test_a_question_whose_models_line_is_lost_cannot_be_asked_again(tmp_path):
    with Run("r", directory=tmp_path) as run:
        ask(model(), "Hello!")
    path = run.path / "records.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    assert records.replay(run.path).rows["reason"].item() == (
        "the line that describes model 1 is missing from the run's records"
    )
    assert read_run(run).gap == "1 line of records.jsonl gone since the run ended"
    assert str(records.replay(run.path)).startswith("r: 1 answer, 1 cannot; 1 line of")


def test_lines_that_are_gone_are_missed_and_later_ones_are_none_too_many(tmp_path):
    with Run("r", directory=tmp_path) as run:
        for number in range(4):
            run.log(number=number)
    path = run.path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert read_run(run).gap == "2 lines of records.jsonl gone since the run ended"
    page = records.report(run, tmp_path / "r.md").read_text(encoding="utf-8")
    assert "Incomplete: 2 lines of records.jsonl gone" in page
    path.write_bytes(b"".join(lines))
    run.log(number=5)
    assert read_run(run).gap == ""
    with Run("empty", directory=tmp_path) as run:
        pass
    assert read_run(run).gap == ""


def test_a_broken_manifest_is_not_called_missing(tmp_path):
    (tmp_path / "manifest.json").write_text('{"vlkit_run": 1, "na')
    with pytest.raises(VlkitError, match=r"manifest\.json is damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_the_end_of_a_turn_that_a_service_keeps_to_itself_is_no_difference(tmp_path, end):
    found = []
    for name, tokens, raw in (("here", (1, 2), f"Yes.{end}"), ("there", (), "Yes.")):
        with Run(name, directory=tmp_path) as run:
            ask(model(name), "Is it?", reply=answer(raw, tokens=tokens))
        found.append(run)
    compared = diff(*found)
    assert compared.rows["same"].all() and "answers that differ" not in compared._repr_html_()


def test_runs_lists_them_oldest_first(tmp_path):
    with Run("one", directory=tmp_path) as one:
        ask(model("m"), "?")
        one.log(score=0.25)
    two = Run("two", directory=tmp_path).open()
    (tmp_path / "no run").mkdir()
    frame = runs(tmp_path)
    two.close()
    assert list(frame["name"]) == ["one", "two"] and list(frame["answers"]) == [1, 0]
    assert list(frame["status"]) == ["finished", "unfinished"] and frame["score"][0] == 0.25
    assert frame["models"][0] == "m" and frame["new_tokens"][0] == 2
    assert runs(tmp_path)["status"].tolist() == ["finished", "finished"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: read_run(p), "is not a run of vlkit"),
        (lambda p: read_run(3), "is not a run"),
        (lambda p: runs(p / "nowhere"), "is not a folder"),
        (lambda p: Run(""), "must be a text"),
        (lambda p: records.report(p), "is not a run"),
        (lambda p: vlkit.seed_everything(-1), "seed=-1 must be"),
    ],
)
def test_errors_say_what_to_do(tmp_path, call, message):
    with pytest.raises(VlkitError, match=message):
        call(tmp_path)


def test_a_newer_version_is_refused(tmp_path):
    with Run("r", directory=tmp_path) as run:
        pass
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"vlkit_run": 2}))
    with pytest.raises(VlkitError, match="newer vlkit"):
        read_run(run)


# --- two runs side by side ------------------------------------------------------------------------


def a_run(folder, name, path, box, value, **options):
    with Run(name, directory=folder) as run:
        raw = boxed("cat", *box)
        reply = answer(raw, tokens=(1, 2, *box), images=[picture()])
        ask(model("m"), vlkit.user("Where?", path), reply=reply, **options)
        ask(model("m"), "Same?", reply=answer("Yes."))
        ask(model("m"), f"only {name}")
        run.log(score=value)
    return run


def test_diff_pairs_answers_and_measures_boxes(tmp_path):
    path = saved(tmp_path)
    a = a_run(tmp_path / "runs", "a", path, (0, 0, 100, 50), 0.25, max_new_tokens=5)
    b = a_run(tmp_path / "runs", "b", path, (50, 0, 150, 50), 0.75, max_new_tokens=9)
    found = diff(a.path, b)
    assert list(found.rows["question"]) == ["Where?", "Same?"]
    assert list(found.rows["same"]) == [False, True] and found.rows["at"][0] == 2
    assert found.rows["iou"][0] == pytest.approx(1 / 3) and np.isnan(found.rows["iou"][1])
    assert found.metrics.loc["score", "difference"] == 0.5
    assert found.settings.loc["max_new_tokens"].tolist() == [[5, 256], [9, 256]]
    assert found.only_a == ["only a"] and found.only_b == ["only b"]
    page = found._repr_html_()
    assert "<img" in page and "0.33" in page


def test_diff_pairs_other_limits_of_the_same_picture(tmp_path):
    path, made = saved(tmp_path), []
    for tokens in (64, 16):
        with Run(f"{tokens}", directory=tmp_path / "runs") as run:
            image = vlkit.Image(path, max_tokens=tokens)
            ask(model(), vlkit.user("?", image), reply=answer(images=[picture()]))
        made.append(run)
    found = diff(*made)
    assert len(found.rows) == 1 and "limits of media" in found.settings.index


# --- what a user adds -----------------------------------------------------------------------------


def test_exhibits(tmp_path):
    import pandas
    from matplotlib.figure import Figure

    with Run("r", directory=tmp_path) as run:
        run.add(pandas.DataFrame({"x": [1, None]}, index=["a", "b"]), "a table")
        run.add(Figure(figsize=(1, 1)), "a figure")
        run.add(picture())
        run.add("words")
        with pytest.raises(VlkitError, match="a set cannot be added"):
            run.add({1})
    table, figure, image, text = read_run(run).of("exhibit")
    assert table["columns"] == ["", "x"] and table["rows"] == [["a", 1], ["b", None]]
    assert PIL.Image.open(run.path / figure["file"]).width > 100
    assert PIL.Image.open(run.path / image["file"]).size == (200, 100) and text["text"] == "words"
