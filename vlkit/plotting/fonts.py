"""Letters: vlkit's own font, and for what it lacks the fonts that the system has."""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont


_NO_CHARACTER = "\U0010ffff"  # every font draws its sign for what is missing


_SPECIAL = re.compile("bold|black|heavy|light|thin|ital|obli|cond|narrow|mono|serif|math|emoji")


_told: set[str] = set()


def font_path() -> str:
    """The font that vlkit brings: Latin, kana and the Chinese characters of GB 2312."""
    return str(files("vlkit") / "fonts" / "NotoSansSC-subset.otf")


@lru_cache(maxsize=64)
def load_font(size: float, path: str | None = None) -> Font:
    """A font, by default vlkit's own, in a size in pixels."""
    return ImageFont.truetype(path or font_path(), size)


def text_height(font: Font) -> tuple[float, float]:
    """Where letters begin below the drawing position, and how high they are, for every text."""
    _, top, _, bottom = font.getbbox("Åg国")
    return top, bottom - top


def text_width(text: str, font: Font) -> float:
    """Pixels from the text's beginning to its end, as :func:`draw_text` writes it."""
    return sum(own.getlength(run) for own, run in _runs(text, font))


def fit_text(text: str, font: Font, width: float) -> str:
    """The text, shortened to a width in pixels."""
    if text_width(text, font) <= width:
        return text
    while text and text_width(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str, font: Font
) -> None:
    """Write on one line; letters that the font lacks come from the system's fonts.

    Where no font has one, the line shows an empty box, and a warning says so once for each script.
    """
    x, y = place
    baseline = y + font.getmetrics()[0]
    for own, run in _runs(text, font):
        if own is font:
            draw.text((x, y), run, fill, font)
        else:
            draw.text((x, baseline), run, fill, own, anchor="ls")
        x += own.getlength(run)


def font_families(texts: Iterable[str]) -> list[str]:
    """The names of the fonts that matplotlib needs for these texts, vlkit's own first."""
    from matplotlib.font_manager import fontManager

    paths = dict.fromkeys(path for text in texts for path in _paths(text) if path)
    empty = {each.name for each in fontManager.ttflist if "Last Resort" in each.name}
    return [*map(_register, (font_path(), *paths)), *empty]  # boxes, of which _tell has told


@cache
def _register(path: str) -> str:
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(path)
    return FontProperties(fname=path).get_name()


# --- which font has a letter ----------------------------------------------------------------------


def _runs(text: str, font: Font) -> list[tuple[Font, str]]:
    """The text in pieces, each with the font that draws it."""
    if text.isascii():
        return [(font, text)]
    pairs = groupby(zip(_paths(text), text, strict=True), lambda pair: pair[0])
    runs = [(path, "".join(letter for _, letter in group)) for path, group in pairs]
    return [(load_font(font.size, path) if path else font, run) for path, run in runs]


def _paths(text: str) -> list[str | None]:
    """For each letter the system's font that has it; None is vlkit's own."""
    paths: list[str | None] = []
    for before, letter in pairwise(" " + text):
        if unicodedata.category(letter)[0] != "M" or not paths:
            paths.append(None if letter.isspace() else _path(letter))
            continue
        if paths[-1] is None and len(unicodedata.normalize("NFC", before + letter)) > 1:
            paths[-1] = _path(letter)  # an accent, in one font with what it stands on
        paths.append(paths[-1])
    for place, letter in enumerate(text[1:-1], 1):
        if letter.isspace() and paths[place - 1] == paths[place + 1]:
            paths[place] = paths[place - 1]  # words that run from right to left stay in order
    return paths


@lru_cache(maxsize=1 << 14)
def _path(letter: str) -> str | None:
    if letter.isascii() or _draws(letter, font_path()):
        return None
    for path in _system_fonts():
        if ord(letter) in _letters(path) and _draws(letter, path):
            return path
    _tell(letter)
    return None


def _draws(letter: str, path: str) -> bool:
    if unicodedata.category(letter)[0] == "M":  # drawn on a circle where it stands alone
        return ord(letter) in _letters(path)
    mask, missing = (load_font(20, path).getmask(each) for each in (letter, _NO_CHARACTER))
    return mask.getbbox() is not None and bytes(mask) != bytes(missing)


@cache
def _system_fonts() -> list[str]:
    """The system's fonts, regular ones without serifs first; and one that matplotlib brings."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple:
        name = Path(path).stem.lower()
        return bool(_SPECIAL.search(name)), "sans" not in name, name, path

    brought = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return sorted({*findSystemFonts(), str(brought)}, key=rank)


@cache
def _letters(path: str) -> np.ndarray:
    """The code points of an outline font, none of another; small, as there may be 500 fonts."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return np.array(list(font.get_charmap()) if font.scalable else [], np.uint32)
    except (OSError, RuntimeError):  # no longer there, or of a kind that FreeType does not read
        return np.array([], np.uint32)


def _tell(letter: str) -> None:
    """Warn once for a script, at the line outside vlkit that asked."""
    script = unicodedata.name(letter, "unknown").partition(" ")[0].capitalize()
    kind = "symbols" if unicodedata.category(letter)[0] in "SC" else f"{script} letters"
    if kind in _told:
        return
    _told.add(kind)
    level, frame = 1, sys._getframe()
    while frame.f_back and Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"no font on this machine has {kind} such as {letter}: pictures show empty boxes for them; "
        "install a font that does, such as Noto (Debian: fonts-noto), and start Python again",
        stacklevel=level,
    )
