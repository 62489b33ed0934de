"""Draw batches of scenes from their layer tables, on the GPU or, slowly, on the CPU.

Every layer is one atlas cell: turned, scaled, recoloured and laid over what is below it. On a GPU
one Triton kernel does this tile by tile; `composite_torch` is the same in plain PyTorch.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scenes import LAYER_FIELDS, MIP_LEVELS

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TILE = 32


class Texture:
    """All cells at every level of smoothness: drawings, then photographs, then grounds.

    Minified layers read a smoother level, as mipmaps do, though all levels keep one size. Rows are
    counted as `Art.texture_row` does; the three parts have cells of different sizes.
    """

    def __init__(self, parts, device):
        self.parts = [smoothed(torch.from_numpy(cells), device) for cells in parts]
        self.starts = [0]
        for part in self.parts:
            self.starts.append(self.starts[-1] + len(part))
        self.cells = [part.shape[1] for part in self.parts]
        self.flat = None
        if self.parts[0].is_cuda:  # the kernel wants one piece of memory
            while len(self.parts) < 3:
                self.parts.append(self.parts[0][:0])
                self.cells.append(self.cells[0])
                self.starts.append(self.starts[-1])
            self.flat = torch.cat([part.flatten() for part in self.parts])
            self.parts = []

    def __getitem__(self, rows):
        """Cells of these rows, (N, cell, cell, 4) each, by part: pairs of (which rows, cells)."""
        for index, part in enumerate(self.parts):
            inside = (rows >= self.starts[index]) & (rows < self.starts[index + 1])
            if bool(inside.any()):
                yield inside, part[rows[inside] - self.starts[index]]


def load_texture(path, device):
    """atlas.npz and, if the same build has them, the photographs of photos.npz."""
    parts, photos = [np.load(path)["cells"]], Path(path).with_name("photos.npz")
    if photos.exists():
        named, unnamed = (load_cells(photos, use) for use in ("train", "unknown"))
        parts += [with_mirrored(np.concatenate([named, unnamed])), load_cells(photos, "ground")]
    return Texture(parts, device)


def make_texture(cells, device):
    return Texture([cells], device)


def load_cells(path, prefix):
    """Premultiplied pictures (N, cell, cell, 4) of photos.py's archive."""
    with np.load(path) as files:
        names = [name for name in files if name.rstrip("0123456789") == prefix]
        names.sort(key=lambda name: int(name[len(prefix) :]))
        pictures = [Image.open(io.BytesIO(files[name].tobytes())) for name in names]
        return np.stack([np.asarray(picture.convert("RGBa")) for picture in pictures])


def with_mirrored(cells):
    return np.stack([cells, cells[:, :, ::-1]], 1).reshape(-1, *cells.shape[1:])


def smoothed(cells, device):
    """(levels * entries, cell, cell, 4) uint8: every cell, then the cells ever more smoothed."""
    cells = cells.to(device)
    levels = [cells]
    for level in range(1, MIP_LEVELS):
        smooth = []
        for chunk in cells.split(256):
            x = chunk.permute(0, 3, 1, 2).float()
            x = F.interpolate(
                F.avg_pool2d(x, 2**level), x.shape[-2:], mode="bilinear", align_corners=False
            )
            smooth.append(x.permute(0, 2, 3, 1).round().to(torch.uint8))
        levels.append(torch.cat(smooth))
    return torch.cat(levels).contiguous()


def composite_torch(texture, image, layers):
    """image (N, 3, H, W), layers (N, L, LAYER_FIELDS) -> image with all layers painted."""
    height, width = image.shape[-2:]
    image = image.clone()
    ys = torch.arange(height, device=image.device).view(1, -1, 1) + 0.5
    xs = torch.arange(width, device=image.device).view(1, 1, -1) + 0.5
    for index in range(layers.shape[1]):
        shown = torch.nonzero(layers[:, index, 7] > 0).flatten()
        for inside, cells in texture[layers[shown, index, 0].long()]:
            where = shown[inside]
            row = layers[where, index]
            _, cx, cy, hx, hy, c, s, opacity = (row[:, j, None, None] for j in range(8))
            dx, dy = xs - cx, ys - cy
            u, v = (dx * c + dy * s) / hx.clamp_min(1e-3), (dy * c - dx * s) / hy.clamp_min(1e-3)
            cells = cells.permute(0, 3, 1, 2).float() / 255
            sampled = F.grid_sample(cells, torch.stack([u, v], -1), align_corners=False)
            matrix, shade = row[:, 8:17].view(-1, 3, 3), row[:, 17, None, None, None]
            color = torch.einsum("nij,njhw->nihw", matrix, sampled[:, :3]) * (
                1 + shade * v[:, None]
            )
            opacity = opacity[:, None]
            image[where] = image[where] * (1 - sampled[:, 3:] * opacity) + color * opacity
    return image


if triton is not None:

    @triton.jit
    def _tap(texture, base, x, y, weight, r, g, b, a, cell):
        inside = (x >= 0) & (x < cell) & (y >= 0) & (y < cell)
        at = texture + base + (y * cell + x) * 4
        r += weight * tl.load(at, mask=inside, other=0).to(tl.float32)
        g += weight * tl.load(at + 1, mask=inside, other=0).to(tl.float32)
        b += weight * tl.load(at + 2, mask=inside, other=0).to(tl.float32)
        a += weight * tl.load(at + 3, mask=inside, other=0).to(tl.float32)
        return r, g, b, a

    @triton.jit(do_not_specialize=["height", "width", "count", "photos", "grounds"])
    def _composite_kernel(
        texture,
        image,
        layers,
        height,
        width,
        count,
        photos,
        grounds,
        CELL: tl.constexpr,
        PHOTO: tl.constexpr,
        GROUND: tl.constexpr,
        TILE: tl.constexpr,
        FIELDS: tl.constexpr,
    ):
        picture = tl.program_id(0).to(tl.int64)
        tiles_x = (width + TILE - 1) // TILE
        top = (tl.program_id(1) // tiles_x) * TILE
        left = (tl.program_id(1) % tiles_x) * TILE
        ys = top + tl.arange(0, TILE)[:, None]
        xs = left + tl.arange(0, TILE)[None, :]
        visible = (ys < height) & (xs < width)
        plane = height * width
        at = image + picture * 3 * plane + ys * width + xs
        red = tl.load(at, mask=visible, other=0.0)
        green = tl.load(at + plane, mask=visible, other=0.0)
        blue = tl.load(at + 2 * plane, mask=visible, other=0.0)
        for index in range(count):
            row = layers + (picture * count + index) * FIELDS
            cx, cy = tl.load(row + 1), tl.load(row + 2)
            hx, hy = tl.load(row + 3), tl.load(row + 4)
            c, s = tl.load(row + 5), tl.load(row + 6)
            opacity = tl.load(row + 7)
            reach_x = tl.abs(c) * hx + tl.abs(s) * hy + 1
            reach_y = tl.abs(s) * hx + tl.abs(c) * hy + 1
            meets = (cx + reach_x > left) & (cx - reach_x < left + TILE)
            meets = meets & (cy + reach_y > top) & (cy - reach_y < top + TILE)
            if (opacity > 0) & meets:
                dx, dy = xs + 0.5 - cx, ys + 0.5 - cy
                v = (dy * c - dx * s) / hy
                entry = tl.load(row).to(tl.int64)
                drawn = tl.minimum(entry, photos) * (CELL * CELL * 4)
                shot = tl.minimum(tl.maximum(entry - photos, 0), grounds - photos)
                behind = tl.maximum(entry - grounds, 0) * (GROUND * GROUND * 4)
                base = drawn + shot * (PHOTO * PHOTO * 4) + behind
                cell = tl.where(entry < photos, CELL, tl.where(entry < grounds, PHOTO, GROUND))
                tx = ((dx * c + dy * s) / hx + 1) * (cell / 2) - 0.5
                ty = (v + 1) * (cell / 2) - 0.5
                x0f, y0f = tl.floor(tx), tl.floor(ty)
                fx, fy = tx - x0f, ty - y0f
                x0, y0 = x0f.to(tl.int32), y0f.to(tl.int32)
                r = tl.zeros((TILE, TILE), tl.float32)
                g = tl.zeros((TILE, TILE), tl.float32)
                b = tl.zeros((TILE, TILE), tl.float32)
                a = tl.zeros((TILE, TILE), tl.float32)
                r, g, b, a = _tap(texture, base, x0, y0, (1 - fx) * (1 - fy), r, g, b, a, cell)
                r, g, b, a = _tap(texture, base, x0 + 1, y0, fx * (1 - fy), r, g, b, a, cell)
                r, g, b, a = _tap(texture, base, x0, y0 + 1, (1 - fx) * fy, r, g, b, a, cell)
                r, g, b, a = _tap(texture, base, x0 + 1, y0 + 1, fx * fy, r, g, b, a, cell)
                gain = opacity / 255 * (1 + tl.load(row + 17) * v)
                keep = 1 - a * (opacity / 255)
                m = row + 8
                red = red * keep + gain * (tl.load(m) * r + tl.load(m + 1) * g + tl.load(m + 2) * b)
                green = green * keep + gain * (
                    tl.load(m + 3) * r + tl.load(m + 4) * g + tl.load(m + 5) * b
                )
                blue = blue * keep + gain * (
                    tl.load(m + 6) * r + tl.load(m + 7) * g + tl.load(m + 8) * b
                )
        tl.store(at, red, mask=visible)
        tl.store(at + plane, green, mask=visible)
        tl.store(at + 2 * plane, blue, mask=visible)


def composite_triton(texture, image, layers):
    """The same as `composite_torch`, in place."""
    image, layers = image.contiguous(), layers.contiguous()
    number, _, height, width = image.shape
    tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
    _composite_kernel[(number, tiles)](
        texture.flat,
        image,
        layers,
        height,
        width,
        layers.shape[1],
        *texture.starts[1:3],
        CELL=texture.cells[0],
        PHOTO=texture.cells[1],
        GROUND=texture.cells[2],
        TILE=TILE,
        FIELDS=LAYER_FIELDS,
    )
    return image


def paint_background(rows, height, width, generator):
    """rows (N, BACKGROUND_FIELDS) -> (N, 3, height, width)."""
    number, device = rows.shape[0], rows.device
    corners = rows[:, :12].view(number, 2, 2, 3).permute(0, 3, 1, 2)
    image = F.interpolate(corners, (height, width), mode="bilinear", align_corners=True)
    ys = torch.linspace(0, 1, height, device=device).view(1, 1, -1, 1)
    horizon = torch.where(ys > 0.6, corners[:, :, 1:, :1], corners[:, :, :1, :1])
    image = torch.where(rows[:, 19].view(-1, 1, 1, 1) > 0, horizon, image)
    cells = 2 ** int(torch.randint(2, 6, (), generator=generator))
    size = (max(2, height // cells), max(2, width // cells))
    rough = F.interpolate(
        torch.randn(number, 3, *size, device=device), (height, width), mode="bilinear"
    )
    image = image + rough * rows[:, 12].view(-1, 1, 1, 1)
    xs = torch.arange(width, device=device).view(1, 1, -1)
    ys = torch.arange(height, device=device).view(1, -1, 1)
    fx, fy, phase = (rows[:, j].view(-1, 1, 1) for j in (15, 16, 17))
    wave = torch.sin(2 * math.pi * (xs * fx + ys * fy + phase))
    across = torch.sin(2 * math.pi * (xs * fy - ys * fx + phase))
    pattern = torch.where(rows[:, 18].view(-1, 1, 1) > 0, wave * across, wave)
    image = image + (pattern * 4).clamp(-1, 1)[:, None] * rows[:, 14].view(-1, 1, 1, 1)
    return image.clamp(0, 1)


# The quantisation tables of the JPEG standard (annex K).
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = (
    """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99"""
    + 32 * " 99"
)
_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def _cosine_matrix():
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def jpeg(image, quality):
    """What JPEG at `quality` (N,), 10 to 95, does to (N, 3, H, W) in 0 to 1."""
    number, _, height, width = image.shape
    device = image.device
    padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    ycc = torch.einsum("ij,njhw->nihw", _YCC.to(device), padded * 255 - 128)
    chroma = F.interpolate(F.avg_pool2d(ycc[:, 1:], 2), scale_factor=2, mode="nearest")
    ycc = torch.cat([ycc[:, :1], chroma], 1)
    tables = torch.tensor(
        [[int(v) for v in t.split()] for t in (_LUMA, _CHROMA, _CHROMA)], device=device
    )
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50).view(-1, 1, 1, 1, 1, 1)
    step = (tables.view(1, 3, 1, 8, 1, 8) * scale).clamp_min(1)
    blocks = ycc.view(number, 3, padded.shape[2] // 8, 8, padded.shape[3] // 8, 8)
    cosine = _cosine_matrix().to(device)
    waves = torch.einsum("ki,ncaibj,lj->ncakbl", cosine, blocks, cosine)
    blocks = torch.einsum("ki,ncakbl,lj->ncaibj", cosine, (waves / step).round() * step, cosine)
    rgb = torch.einsum(
        "ij,njhw->nihw", torch.linalg.inv(_YCC).to(device), blocks.reshape(padded.shape)
    )
    return ((rgb[..., :height, :width] + 128) / 255).clamp(0, 1)


def degrade(image, generator, soft=1.0):
    """What cameras and files do: noise and JPEG to a part of the pictures.

    With `soft` below 1 all were that much smaller before, and have been enlarged to their size.
    """
    number, _, height, width = image.shape
    if soft < 1:
        size = (round(height * soft), round(width * soft))
        image = F.interpolate(image, size, mode="bilinear", antialias=True)

    def chance(share):
        return torch.rand(number, 1, 1, 1, device=image.device) < share

    strength = torch.rand(number, 1, 1, 1, device=image.device) * 0.035 * chance(0.5)
    image = (image + torch.randn_like(image) * strength).clamp(0, 1)
    if float(torch.rand((), generator=generator)) < 0.35:
        quality = 30 + 65 * torch.rand(number, device=image.device)
        image = torch.where(chance(0.5), jpeg(image, quality), image)
    if soft < 1:
        image = F.interpolate(image, (height, width), mode="bicubic").clamp(0, 1)
    return image


@torch.no_grad()
def render(texture, layers, backgrounds, height, width, generator, soft=1.0):
    """layers (N, L, LAYER_FIELDS), backgrounds (N, BACKGROUND_FIELDS) -> (N, 3, H, W) in 0 to 1.

    `generator` is a CPU generator for what a whole batch shares; pixels use the device's own.
    """
    image = paint_background(backgrounds, height, width, generator)
    composite = composite_triton if image.is_cuda else composite_torch
    image = composite(texture, image, layers).clamp(0, 1)
    return (degrade(image, generator, soft) * 255).round() / 255


def normalise(image):
    mean, std = (torch.tensor(v, device=image.device).view(-1, 1, 1) for v in (MEAN, STD))
    return (image - mean) / std


def patchify(frames):
    """(N, T, 3, H, W) normalised -> pixel values (N * patches, 1176) and the grid (t, h, w).

    A single frame is doubled. Patches come in blocks of 2x2, in the library's order.
    """
    number, time, channels, height, width = frames.shape
    if time == 1:
        frames, time = frames.repeat(1, 2, 1, 1, 1), 2
    grid = (time // 2, height // 14, width // 14)
    x = frames.reshape(number, grid[0], 2, channels, grid[1] // 2, 2, 14, grid[2] // 2, 2, 14)
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return x.reshape(number * grid[0] * grid[1] * grid[2], channels * 2 * 14 * 14), grid
