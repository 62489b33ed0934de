"""Build time: cut-out photographs and photographic grounds, shrunk to a few megabytes.

    apt-get download tuxpaint-stamps-default …   # and the packages of grounds.tsv
    for package in *.deb; do dpkg-deb -x $package debian; done
    npm install startbootstrap-agency@7.0.12 …   # those of grounds.tsv whose names hold an @
    python photos.py --debian debian --npm node_modules

Needs atlas.py's build before. `photos.tsv` lists the cut-outs of tuxpaint-stamps-default: "train",
"test" (other photographs of the same things, for evaluate.py alone) and "unknown" (drawn, never
named). `grounds.tsv` lists whole photographs: grounds for "train" and "test", photographs that hold
"unknown" things, and "whole" ones of known things; all but "train" are for evaluate.py alone.
"""

import argparse
import csv
import io
import json
import struct
from pathlib import Path

import numpy as np
from atlas import CELL, MARGIN, hull
from PIL import Image
from words import PHOTOGRAPHS

HERE = Path(__file__).parent
PHOTO = 192  # side of a cut-out's cell; its margin keeps the atlas's proportion
GROUND = 384  # side of a ground's cell
WHOLE = 560  # longest side of a whole photograph
STAMPS = "usr/share/tuxpaint/stamps"
RESOURCES = "usr/share/gcompris-qt/rcc"
SKY = (200, 220, 240)


def cut_out(image):
    """(PHOTO, PHOTO, 4) uint8, not premultiplied: the photograph fitted to its cell."""
    image = image.convert("RGBA")
    alpha = image.getchannel("A").point(lambda v: 255 if v > 40 else 0)
    image = image.crop(alpha.getbbox())
    inner = PHOTO - 2 * MARGIN * PHOTO // CELL
    ratio = inner / max(image.size)
    size = tuple(max(1, round(side * ratio)) for side in image.size)
    small = image.convert("RGBa").resize(size, Image.LANCZOS).convert("RGBA")
    cell = Image.new("RGBA", (PHOTO, PHOTO))
    cell.paste(small, ((PHOTO - size[0]) // 2, (PHOTO - size[1]) // 2))
    return cell


def embedded_pictures(path):
    """The pictures of a Qt resource file, in order: sizes stand in the four bytes before each."""
    data, start = path.read_bytes(), 0
    while True:
        places = [data.find(magic, start) for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF")]
        places = [place for place in places if place >= 0]
        if not places:
            return
        place = min(places)
        length = struct.unpack(">I", data[place - 4 : place])[0] if place >= 4 else 0
        length = length if 0 < length <= len(data) - place else 3_000_000
        start = place + 4
        try:
            image = Image.open(io.BytesIO(data[place : place + length]))
            image.load()
        except (OSError, SyntaxError, ValueError):
            continue
        if min(image.size) >= 100:
            yield image
        start = place + (length if length != 3_000_000 else 16)


class Package:
    """Opens the files of grounds.tsv: a path, or a resource file's name and a picture's number."""

    def __init__(self, debian, npm):
        self.debian, self.npm, self.resources = debian, npm, {}

    def open(self, row):
        name = row["file"]
        if "@" in row["package"]:
            image = Image.open(self.npm / name)
        elif "/" in name:
            image = Image.open(self.debian / name)
        else:
            resource, number = name.split()
            if resource not in self.resources:
                path = self.debian / RESOURCES / f"{resource}.rcc"
                self.resources[resource] = list(embedded_pictures(path))
            image = self.resources[resource][int(number)]
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, SKY)
        opaque.alpha_composite(image)
        return opaque.convert("RGB")


def ground_squares(image):
    """The middle square, and one of half its side where the photograph is large."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    yield image.crop((left, top, left + side, top + side))
    if side >= 700:
        half = side // 2
        left, top = image.width // 8, image.height - half - image.height // 10
        yield image.crop((left, top, left + half, top + half))


def packed(image, form, quality):
    file = io.BytesIO()
    image.save(file, form, quality=quality)
    return np.frombuffer(file.getvalue(), np.uint8)


def build(debian, npm, out):
    Image.MAX_IMAGE_PIXELS = None  # wallpapers; here alone, since tests import this file
    package = Package(debian, npm)
    files, meta = {}, {"photo": PHOTO, "ground": GROUND}
    for use in ("train", "test", "unknown"):
        rows = [row for row in PHOTOGRAPHS if row["use"] == use]
        cells = [cut_out(Image.open(debian / STAMPS / row["file"])) for row in rows]
        alphas = [np.asarray(cell.getchannel("A")) for cell in cells]
        meta[use] = {
            "kinds": [row["english"] for row in rows],
            "hulls": [hull(alpha) for alpha in alphas],
        }
        files |= {f"{use}{i}": packed(cell, "WEBP", 88) for i, cell in enumerate(cells)}
    with open(HERE / "grounds.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    squares = []
    for row in rows:
        if row["use"] == "train":
            squares += [
                s.resize((GROUND, GROUND), Image.LANCZOS) for s in ground_squares(package.open(row))
            ]
    # A coarse picture of each ground, so that what is drawn on it can stand out.
    meta["grounds"] = [np.asarray(s.resize((8, 8), Image.BOX)).tolist() for s in squares]
    files |= {f"ground{i}": packed(square, "JPEG", 88) for i, square in enumerate(squares)}
    save(out / "photos", files, meta)
    evaluation, kinds = {}, []
    for use in ("test", "unknown", "whole"):
        chosen = [row for row in rows if row["use"] == use]
        for i, row in enumerate(chosen):
            image = package.open(row)
            image.thumbnail((WHOLE, WHOLE), Image.LANCZOS)
            evaluation[f"{use}{i}"] = packed(image, "JPEG", 85)
        if use == "whole":
            kinds = [row["english"] for row in chosen]
    save(out / "whole", evaluation, {"kinds": kinds})


def save(path, files, meta):
    np.savez(path.with_suffix(".npz"), **files)
    path.with_suffix(".json").write_text(json.dumps(meta))
    size = path.with_suffix(".npz").stat().st_size >> 10
    print(path.name, len(files), "pictures,", size, "KiB")


def load_pictures(path, prefix):
    """Pillow pictures of one kind, in order."""
    with np.load(path) as files:
        names = [name for name in files if name.rstrip("0123456789") == prefix]
        names.sort(key=lambda name: int(name[len(prefix) :]))
        return [Image.open(io.BytesIO(files[name].tobytes())) for name in names]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debian", type=Path, required=True, help="folder of unpacked packages")
    parser.add_argument("--npm", type=Path, required=True, help="folder node_modules")
    parser.add_argument("--out", type=Path, default=HERE / "build")
    arguments = parser.parse_args()
    build(arguments.debian, arguments.npm, arguments.out)


if __name__ == "__main__":
    main()
