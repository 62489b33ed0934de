"""The sample pictures, their records and the label font are what they say."""

import json
import runpy
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont, ImageOps

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data/samples"
FONT = ROOT / "vlkit/fonts/NotoSansSC-subset.otf"
SCRIPT = runpy.run_path(str(ROOT / "data/draw_samples.py"))
RECORDS = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
DRAWN = [record for record in RECORDS if record["kind"] == "drawn"]
PHOTOS = [record for record in RECORDS if record["kind"] == "photo"]
COMPOSITIONS = {composition.file: composition for composition in SCRIPT["COMPOSITIONS"]}
COMPOSED = [record for record in PHOTOS if record["file"] in COMPOSITIONS]
CLIPS = [record for record in RECORDS if record["kind"] == "clip"]
DRAWN_CLIPS = [record for record in CLIPS if record["objects"]]
PICTURES = DRAWN + PHOTOS
OBJECTS = [(record, item) for record in DRAWN for item in record["objects"]]
CENTER, RIM = (0.5, 0.5), (0.1125, 0.5)  # where a shape is solid, as fractions of its box


def each(records):
    return pytest.mark.parametrize("record", records, ids=[record["name"] for record in records])


def each_object():
    names = [f"{record['name']}-{item['label']}" for record, item in OBJECTS]
    return pytest.mark.parametrize("record, item", OBJECTS, ids=names)


def upright(record):
    """The picture as float RGB (height, width, 3), 0 to 255, alpha on white."""
    picture = ImageOps.exif_transpose(Image.open(SAMPLES / record["file"]))
    if picture.mode.startswith("I"):
        gray = np.asarray(picture).astype(float) / 257
        return np.repeat(gray[..., None], 3, axis=2)
    picture = picture.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(canvas, picture).convert("RGB")).astype(float)


def expected_color(record, color):
    rgb = SCRIPT["COLORS"][color][1]
    if record["name"] == "gray16":
        return np.full(3, float(Image.new("RGB", (1, 1), rgb).convert("L").getpixel((0, 0))))
    return np.array(rgb, float)


def crop_around(pixels, box, margin):
    """The pixels of a box with a margin, and the crop's top left corner (x, y)."""
    x1, y1 = (max(0, round(v) - margin) for v in box[:2])
    x2, y2 = (round(v) + margin for v in box[2:])
    return pixels[y1:y2, x1:x2], (x1, y1)


def extent(covered, corner):
    """The tight box (x1, y1, x2, y2) of a boolean mask that begins at corner."""
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    x, y = corner
    return [x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1]


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_records_and_files_are_the_same_set():
    assert len(DRAWN) >= 14 and len(PHOTOS) >= 4 and len(DRAWN_CLIPS) >= 5
    assert len(PICTURES) + len(CLIPS) == len(RECORDS)
    files = {path.name for path in SAMPLES.iterdir()} - {"samples.json", "GPL-2.txt"}
    assert sorted(record["file"] for record in RECORDS) == sorted(files)
    assert len({record["name"] for record in RECORDS}) == len(RECORDS)


def test_every_shape_and_color_is_drawn():
    assert {item["shape"] for _, item in OBJECTS} == set(SCRIPT["SHAPES"])
    assert {item["color"] for _, item in OBJECTS} == set(SCRIPT["COLORS"])


@each(RECORDS)
def test_record_is_complete(record):
    assert record["name"] == Path(record["file"]).stem
    assert record["objects"] or record["kind"] == "clip"
    assert record["about"] and record["source"] and record["licence"]
    for chinese in (record["about_zh"], *(item["label_zh"] for item in record["objects"])):
        assert any("一" <= character <= "鿿" for character in chinese)
    assert f"`{record['file']}`" in (ROOT / "data/README.md").read_text(encoding="utf-8")


@each(PICTURES)
def test_size_is_that_of_the_upright_picture(record):
    with Image.open(SAMPLES / record["file"]) as picture:
        assert ImageOps.exif_transpose(picture).size == (record["width"], record["height"])


@each(PICTURES)
def test_boxes_lie_inside_the_picture(record):
    texts = [record["text"]] if record["text"] else []
    for item in record["objects"] + texts:
        x1, y1, x2, y2 = item["box"]
        assert 0 <= x1 < x2 <= record["width"] and 0 <= y1 < y2 <= record["height"]


@each(DRAWN)
def test_drawn_boxes_do_not_overlap(record):
    boxes = [item["box"] for item in record["objects"]]
    boxes += [record["text"]["box"]] if record["text"] else []
    pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
    assert not [pair for pair in pairs if overlap(*pair)]


@each_object()
def test_labels_name_color_and_shape(record, item):
    color_zh, shape_zh = SCRIPT["COLORS"][item["color"]][0], SCRIPT["SHAPES"][item["shape"]]
    assert item["label"] == f"{item['color']} {item['shape']}"
    assert item["label_zh"] == color_zh + shape_zh


@each_object()
def test_object_has_its_color_where_it_is_solid(record, item):
    x1, y1, x2, y2 = item["box"]
    across, down = RIM if item["shape"] == "ring" else CENTER
    x, y = round(x1 + across * (x2 - x1)), round(y1 + down * (y2 - y1))
    patch = upright(record)[y - 2 : y + 3, x - 2 : x + 3]
    assert np.abs(patch - expected_color(record, item["color"])).max() < 12


@each([record for record in DRAWN if any(i["shape"] == "ring" for i in record["objects"])])
def test_rings_are_hollow(record):
    pixels = upright(record)
    for item in (item for item in record["objects"] if item["shape"] == "ring"):
        x1, y1, x2, y2 = item["box"]
        center = pixels[round((y1 + y2) / 2), round((x1 + x2) / 2)]
        assert np.abs(center - expected_color(record, item["color"])).max() > 60


@each_object()
def test_object_fills_its_box_tightly(record, item):
    crop, corner = crop_around(upright(record), item["box"], margin=2)
    distance = np.abs(crop - expected_color(record, item["color"])).max(axis=2)
    covered = distance < 0.75 * distance[0, 0]  # the corner is background
    assert np.abs(np.subtract(extent(covered, corner), item["box"])).max() <= 2


@each([record for record in DRAWN if record["text"]])
def test_word_fills_its_box_tightly(record):
    crop, corner = crop_around(upright(record), record["text"]["box"], margin=6)
    covered = np.abs(crop - crop[0, 0]).max(axis=2) > 60
    assert np.abs(np.subtract(extent(covered, corner), record["text"]["box"])).max() <= 1
    assert record["text"]["text"] in record["about"]


def test_the_odd_files_are_odd():
    with Image.open(SAMPLES / "rotated.jpg") as picture:
        assert picture.getexif()[0x0112] == 6 and picture.size == (400, 300)
    with Image.open(SAMPLES / "transparent.png") as picture:
        assert picture.mode == "RGBA" and picture.getpixel((0, 0)) == (0, 0, 0, 0)
    with Image.open(SAMPLES / "gray16.png") as picture:
        assert picture.mode == "I;16" and np.asarray(picture).max() > 255


def test_the_pair_has_two_labels_in_common():
    first, second = (
        {item["label"] for record in DRAWN if record["name"] == name for item in record["objects"]}
        for name in ("pair_first", "pair_second")
    )
    assert first & second == {"red circle", "blue star"} and first != second


@each(PHOTOS)
def test_photographs_are_small_jpegs(record):
    with Image.open(SAMPLES / record["file"]) as picture:
        assert picture.format == "JPEG" and max(picture.size) <= 640


@each(COMPOSED)
def test_composed_picture_is_its_ground_but_for_the_boxes(record):
    ground = SCRIPT["draw_bands"](COMPOSITIONS[record["file"]]).convert("RGB")
    covered = np.abs(upright(record) - np.asarray(ground, dtype=float)).max(axis=2) > 40
    for item in record["objects"]:
        x1, y1, x2, y2 = (round(v) for v in item["box"])
        others = [o["box"] for o in record["objects"] if o is not item]
        if not any(overlap(item["box"], other) for other in others):
            assert (
                np.abs(np.subtract(extent(covered[y1:y2, x1:x2], (x1, y1)), item["box"])).max() < 6
            )
    for item in record["objects"]:
        x1, y1, x2, y2 = (round(v) for v in item["box"])
        covered[y1 - 3 : y2 + 3, max(0, x1 - 3) : x2 + 3] = False  # and what JPEG spreads
    assert not covered.any()


@each(COMPOSED)
def test_composed_picture_has_the_things_of_its_composition(record):
    stamps = COMPOSITIONS[record["file"]].stamps
    for item, (_, label, label_zh, left, bottom, height) in zip(
        record["objects"], stamps, strict=True
    ):
        x1, y1, _, y2 = item["box"]
        assert (item["label"], item["label_zh"]) == (label, label_zh)
        assert (x1, y1, y2) == (left, bottom - height, bottom)


def test_composed_pictures_carry_the_licence_of_their_photographs():
    text = (SAMPLES / "GPL-2.txt").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in text and "Version 2, June 1991" in text
    assert {record["licence"] for record in COMPOSED} == {"GPL-2.0-or-later (GPL-2.txt)"}
    assert len(COMPOSED) == 4 and all("tuxpaint-stamps-default" in r["source"] for r in COMPOSED)


def test_drawing_again_gives_the_committed_pictures(tmp_path):
    assert json.loads(json.dumps(SCRIPT["draw_all"](tmp_path))) == DRAWN
    for record in DRAWN:
        with Image.open(tmp_path / record["file"]) as new:
            with Image.open(SAMPLES / record["file"]) as kept:
                difference = np.subtract(np.asarray(new, dtype=int), np.asarray(kept, dtype=int))
        # Only the decoding of a JPEG may depend on the library's version.
        allowed = 3 if record["file"].endswith(".jpg") else 0
        assert np.abs(difference).max() <= allowed, record["file"]


# --- clips ---------------------------------------------------------------------------------------


def frames_of(path):
    """All frames as int RGB (count, height, width, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(
            int
        )


def seen_box(frame, item):
    """The tight box of the pixels of the thing's colour, give or take what the codec lost."""
    rgb = np.array(SCRIPT["COLORS"][item["color"]][1])
    distance = np.abs(frame - rgb).max(axis=2)
    return extent(distance < 0.35 * distance[2, 2], (0, 0))  # there is the ground


def turns_of(item, frames):
    """The direction of each leg of a thing's way, from where it is seen."""
    count = len(item["directions"])
    stops = [round(k * (len(frames) - 1) / count) for k in range(count + 1)]
    centers = [np.array(seen_box(frames[k], item)).reshape(2, 2).mean(axis=0) for k in stops]
    for start, end in pairwise(centers):
        (dx, dy), far = end - start, np.abs(end - start).max()
        along = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else "down" if dy > 0 else "up"
        yield along if far > 20 else "still"


@each(CLIPS)
def test_clips_are_short_and_small(record):
    assert 2 <= record["duration"] <= 6
    assert (SAMPLES / record["file"]).stat().st_size < (100_000 if record["objects"] else 400_000)


@each(CLIPS)
def test_clip_has_the_size_and_frames_of_its_record(record):
    frames = frames_of(SAMPLES / record["file"])
    assert frames.shape == (record["frames"], record["height"], record["width"], 3)
    assert record["frames"] == record["fps"] * record["duration"]


@each(DRAWN_CLIPS)
def test_things_in_a_clip_move_as_their_record_says(record):
    frames = frames_of(SAMPLES / record["file"])
    for item in record["objects"]:
        assert item["label"] == f"{item['color']} {item['shape']}"
        assert list(turns_of(item, frames)) == item["directions"]
        for frame, box in ((frames[0], item["first_box"]), (frames[-1], item["last_box"])):
            assert np.abs(np.subtract(seen_box(frame, item), box)).max() <= 4


def test_the_clips_show_what_a_lesson_needs():
    found = {tuple(i["directions"]) for record in DRAWN_CLIPS for i in record["objects"]}
    assert {(name,) for name in ("right", "left", "up", "down", "still")} <= found
    assert {Path(record["file"]).suffix for record in CLIPS} == {".mp4", ".gif"}
    fast, slow = next(r["objects"] for r in CLIPS if r["name"] == "fast_and_slow")
    ways = [item["last_box"][0] - item["first_box"][0] for item in (fast, slow)]
    assert ways[0] == 3 * ways[1] > 0


def test_drawing_the_clips_again_gives_the_same_frames(tmp_path):
    assert json.loads(json.dumps(SCRIPT["draw_clips"](tmp_path))) == DRAWN_CLIPS
    for record in DRAWN_CLIPS:
        new, kept = (frames_of(folder / record["file"]) for folder in (tmp_path, SAMPLES))
        assert np.abs(new - kept).mean() < 1  # encoders differ a little from version to version


def test_the_film_has_no_sound_and_names_its_author():
    (film,) = [record for record in CLIPS if not record["objects"]]
    with av.open(str(SAMPLES / film["file"])) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert film["licence"] == "CC-BY-3.0" and "Blender Foundation" in film["source"]
    assert "© 2008 Blender Foundation" in (ROOT / "data/README.md").read_text(encoding="utf-8")


def glyph(character):
    font = ImageFont.truetype(FONT, 32, layout_engine=ImageFont.Layout.BASIC)
    return bytes(font.getmask(character))


@pytest.mark.parametrize("character", "红圆鑫龍ひアé→，“A9")
def test_font_draws(character):
    missing = glyph("\U000e0fff")
    assert any(missing) and any(glyph(character)) and glyph(character) != missing


def test_font_has_every_character_of_the_records():
    font = FT2Font(str(FONT))
    text = "".join(record["about"] + record["about_zh"] for record in RECORDS)
    assert not [character for character in set(text) if not font.get_char_index(ord(character))]


def test_font_has_its_own_name_and_its_licence_beside_it():
    assert FontProperties(fname=FONT).get_name() == "Vlkit Sans SC"
    assert "SIL OPEN FONT LICENSE Version 1.1" in (FONT.parent / "OFL.txt").read_text()
    assert FONT.stat().st_size < 2.5e6
