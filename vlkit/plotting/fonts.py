"""The bundled font, system fonts for what it lacks, widths of texts."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

from vlkit.errors import warn_user

Font = ImageFont.FreeTypeFont


_NO_CHARACTER = "\U0010ffff"  # every font draws its missing-glyph sign for it
_SPECIAL = re.compile("bold|black|heavy|light|thin|ital|obli|cond|narrow|mono|serif|math|emoji")

# the font that comes with vlkit: Latin, kana and the Chinese characters of GB 2312
FONT_PATH = str(files("vlkit") / "fonts" / "NotoSansSC-subset.otf")

_warned_scripts: set[str] = set()


@lru_cache(maxsize=64)
def load_font(size: float, path: str | None = None) -> Font:
    """A font, by default vlkit's own, in a size in pixels."""
    return ImageFont.truetype(path or FONT_PATH, size)


def text_height(font: Font) -> tuple[float, float]:
    """(top, height) of letters: their offset from the drawing position, and how high they are."""
    _, top, _, bottom = font.getbbox("Åg国")
    return top, bottom - top


def text_width(text: str, font: Font) -> float:
    """Pixels from the text's beginning to its end, as :func:`draw_text` writes it."""
    return sum(run_font.getlength(run) for run_font, run in _split_by_font(text, font))


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
    """Write one line; characters that the font lacks are drawn with the system's fonts.

    A character that no font has is shown as an empty box, with one warning for each script.
    """
    x, y = place
    baseline = y + font.getmetrics()[0]
    for run_font, run in _split_by_font(text, font):
        if run_font is font:
            draw.text((x, y), run, fill, font)
        else:
            draw.text((x, baseline), run, fill, run_font, anchor="ls")
        x += run_font.getlength(run)


def font_families(texts: Iterable[str]) -> list[str]:
    """The names of the fonts that matplotlib needs for these texts, vlkit's own first."""
    from matplotlib.font_manager import fontManager

    paths = dict.fromkeys(path for text in texts for path in _font_paths(text) if path)
    # draws an empty box for any character; _warn_missing_font has warned of those
    last_resort = {font.name for font in fontManager.ttflist if "Last Resort" in font.name}
    return [*map(_register, (FONT_PATH, *paths)), *last_resort, "sans-serif"]


@cache
def _register(path: str) -> str:
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(path)
    return FontProperties(fname=path).get_name()


# --- which font has a character -------------------------------------------------------------------


def _split_by_font(text: str, font: Font) -> list[tuple[Font, str]]:
    """The text in runs of characters that one font draws."""
    if text.isascii():
        return [(font, text)]
    pairs = groupby(zip(_font_paths(text), text, strict=True), lambda pair: pair[0])
    runs = [(path, "".join(letter for _, letter in group)) for path, group in pairs]
    return [(load_font(font.size, path) if path else font, run) for path, run in runs]


def _font_paths(text: str) -> list[str | None]:
    """For each character the path of the system's font that has it; None for vlkit's own."""
    paths: list[str | None] = []
    for before, letter in pairwise(" " + text):
        if unicodedata.category(letter)[0] != "M" or not paths:
            paths.append(None if letter.isspace() else _font_path(letter))
            continue
        if paths[-1] is None and len(unicodedata.normalize("NFC", before + letter)) > 1:
            paths[-1] = _font_path(letter)  # an accent and its base letter in one font
        paths.append(paths[-1])
    for place, letter in enumerate(text[1:-1], 1):
        if letter.isspace() and paths[place - 1] == paths[place + 1]:
            paths[place] = paths[place - 1]  # keeps right-to-left words in order
    return paths


@lru_cache(maxsize=1 << 14)
def _font_path(letter: str) -> str | None:
    if letter.isascii() or _has_glyph(letter, FONT_PATH):
        return None
    for path in _system_fonts():
        if ord(letter) in _code_points(path) and _has_glyph(letter, path):
            return path
    _warn_missing_font(letter)
    return None


def _has_glyph(letter: str, path: str) -> bool:
    if unicodedata.category(letter)[0] == "M":  # alone it would be drawn on a dotted circle
        return ord(letter) in _code_points(path)
    mask, missing = (load_font(20, path).getmask(text) for text in (letter, _NO_CHARACTER))
    return mask.getbbox() is not None and bytes(mask) != bytes(missing)


@cache
def _system_fonts() -> list[str]:
    """The system's fonts and matplotlib's DejaVu Sans, regular sans-serif fonts first."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple:
        name = Path(path).stem.lower()
        return bool(_SPECIAL.search(name)), "sans" not in name, name, path

    dejavu = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return sorted({*findSystemFonts(), str(dejavu)}, key=rank)


@cache
def _code_points(path: str) -> np.ndarray:
    """The characters of an outline font; empty for a bitmap font or one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        # an array takes little memory; there may be 500 fonts
        return np.array(list(font.get_charmap()) if font.scalable else [], np.uint32)
    except (OSError, RuntimeError):  # deleted since, or of a kind that FreeType does not read
        return np.array([], np.uint32)


def _warn_missing_font(letter: str) -> None:
    """Warn once for each script, at the line outside vlkit that called."""
    script = unicodedata.name(letter, "unknown").partition(" ")[0].capitalize()
    kind = "symbols" if unicodedata.category(letter)[0] in "SC" else f"{script} letters"
    if kind in _warned_scripts:
        return
    _warned_scripts.add(kind)
    warn_user(
        f"no font on this machine has {kind} such as {letter}: pictures show empty boxes for them; "
        "install a font that does, such as Noto (Debian: fonts-noto), and start Python again"
    )
