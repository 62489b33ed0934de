"""The exact Qwen2-VL architecture, a forward pass fast enough to train it, and training-only heads.

The library's forward loops over pictures. Here all rows of a batch share their pictures' sizes, so
that a vision block is one attention call over equal windows, and one prefix (system prompt and
visual tokens), after which each row carries several conversations that do not see one another.
Weights stay in the library's modules; tests compare both forwards.
"""

import torch
import torch.nn.functional as F
from words import CHARACTERS, COLOR_NAMES, COLORS_ZH, KINDS, ZH

HEAD = 64
SECTIONS = [8, 12, 12]


def build_model(tokenizer, config):
    """A randomly initialised Qwen2VLForConditionalGeneration from the run's [model] table."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    token = tokenizer.token_to_id
    end, pad = token("<|im_end|>"), token("<|endoftext|>")
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": config["width"],
        "intermediate_size": config["intermediate"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["width"] // HEAD,
        "num_key_value_heads": config["width"] // HEAD,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        # Width gets the lowest frequencies: with base 10,000 neighbouring columns look the same.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config["rope_base"],
            "mrope_section": SECTIONS,
        },
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": config["vision_depth"],
        "embed_dim": config["vision_width"],
        "hidden_size": config["width"],
        "num_heads": config["vision_width"] // HEAD,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }
    torch.manual_seed(config["seed"])
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


# ---------------------------------------------------------------- blocks, compiled once each


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


def linear(x, weight, bias=None):
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def layer_norm(x, weight, bias):
    return F.layer_norm(x.float(), weight.shape, weight, bias, 1e-6).to(x.dtype)


def rms_norm(x, weight):
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight.to(
        x.dtype
    )


def vision_block(x, cos, sin, n1w, n1b, qkvw, qkvb, ow, ob, n2w, n2b, w1, b1, w2, b2):
    """x (M, L, D): M windows of L patches; cos, sin (L, 64)."""
    m, length, width = x.shape
    qkv = linear(layer_norm(x, n1w, n1b), qkvw, qkvb).view(m, length, 3, width // HEAD, HEAD)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
    x = x + linear(out.transpose(1, 2).reshape(m, length, width), ow, ob)
    hidden = linear(layer_norm(x, n2w, n2b), w1, b1)
    return x + linear(hidden * torch.sigmoid(1.702 * hidden), w2, b2)


def text_layer(x, cos, sin, bias, n1w, qw, qb, kw, kb, vw, vb, ow, n2w, gw, uw, dw):
    """x (N, S, D); cos, sin (N, 1, S, 64); bias (N, 1, S, S): 0 where attention is allowed."""
    n, s, width = x.shape
    h = rms_norm(x, n1w)
    q, k, v = (
        linear(h, w, b).view(n, s, width // HEAD, HEAD).transpose(1, 2)
        for w, b in ((qw, qb), (kw, kb), (vw, vb))
    )
    out = F.scaled_dot_product_attention(
        rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=bias
    )
    x = x + linear(out.transpose(1, 2).reshape(n, s, width), ow)
    h = rms_norm(x, n2w)
    return x + linear(F.silu(linear(h, gw)) * linear(h, uw), dw)


def vision_weights(block):
    attention, mlp = block.attn, block.mlp
    parts = (block.norm1, attention.qkv, attention.proj, block.norm2, mlp.fc1, mlp.fc2)
    return [tensor for part in parts for tensor in (part.weight, part.bias)]


def text_weights(layer):
    a, mlp = layer.self_attn, layer.mlp
    projections = [t for p in (a.q_proj, a.k_proj, a.v_proj) for t in (p.weight, p.bias)]
    feed = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    return [
        layer.input_layernorm.weight,
        *projections,
        a.o_proj.weight,
        layer.post_attention_layernorm.weight,
        *feed,
    ]


class FastForward:
    """The training forward over a library model's own weights."""

    def __init__(self, model, tokenizer, dtype=torch.float32, compiled=False):
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.rope_base = model.config.text_config.rope_parameters["rope_theta"]
        self.image_token = tokenizer.token_to_id("<|image_pad|>")
        self.video_token = tokenizer.token_to_id("<|video_pad|>")
        self.vision_block, self.text_layer = vision_block, text_layer
        if compiled:
            torch._dynamo.config.recompile_limit = 64
            self.vision_block = torch.compile(vision_block, dynamic=True)
            self.text_layer = torch.compile(text_layer, dynamic=True)
        self._vision_rope, self._prefix, self._table = {}, {}, None

    def vision_rope(self, grid):
        """cos, sin (h * w, 64) of one frame: rows and columns in the patches' 2x2 order."""
        _, height, width = grid
        if (height, width) not in self._vision_rope:
            rows, columns = patch_positions(height, width)
            frequencies = 1 / 10000 ** (
                torch.arange(0, HEAD // 2, 2, dtype=torch.float32) / (HEAD // 2)
            )
            angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], -1)
            angles = torch.cat([angles, angles], -1).to(self.device)
            self._vision_rope[height, width] = (angles.cos(), angles.sin())
        return self._vision_rope[height, width]

    def encode(self, pixels, grid):
        """pixel values -> patch features (M, L, Dv) and visual tokens (M * L / 4, D)."""
        visual = self.model.model.visual
        weight = visual.patch_embed.proj.weight.flatten(1)
        x = linear(pixels.to(self.dtype), weight).view(-1, grid[1] * grid[2], weight.shape[0])
        cos, sin = self.vision_rope(grid)
        for block in visual.blocks:
            x = self.vision_block(x, cos, sin, *vision_weights(block))
        merger = visual.merger
        merged = layer_norm(x, merger.ln_q.weight, merger.ln_q.bias).view(-1, 4 * x.shape[-1])
        first, last = merger.mlp[0], merger.mlp[2]
        return x, linear(F.gelu(linear(merged, first.weight, first.bias)), last.weight, last.bias)

    def prefix_layout(self, prefix, grids):
        """(positions (3, P), indices of visual tokens, the first position of what follows)."""
        ids = prefix[None]
        key = (tuple(ids[0].tolist()), tuple(grids))
        if key not in self._prefix:
            kinds = (ids == self.image_token).int() + 2 * (ids == self.video_token).int()
            if not grids:
                positions = torch.arange(ids.shape[1]).expand(3, -1)
            else:
                name = "video_grid_thw" if (kinds == 2).any() else "image_grid_thw"
                positions = self.model.model.get_rope_index(
                    ids,
                    mm_token_type_ids=kinds,
                    attention_mask=torch.ones_like(ids),
                    **{name: torch.tensor(grids)},
                )[0][:, 0]
            visual = torch.nonzero(kinds[0]).flatten().to(self.device)
            following = int(positions[0, -1]) + 1
            self._prefix[key] = (positions.to(self.device), visual, following)
        return self._prefix[key]

    def rope_table(self, positions):
        """cos, sin (B, P, 64) for positions (3, B, P): time, row, column by 8, 12, 12."""
        frequencies = 1 / self.rope_base ** (torch.arange(0, HEAD, 2, device=self.device) / HEAD)
        angles = positions[..., None].float() * frequencies
        chunks = [part[i] for i, part in enumerate(angles.split(SECTIONS, dim=-1))]
        angles = torch.cat(chunks * 2, -1)
        return angles.cos(), angles.sin()

    def rope(self, layout, offsets):
        """cos, sin (N, 1, P + R, 64): the prefix, then each token's offset in its conversation."""
        positions, _, following = layout
        if self._table is None:
            line = torch.arange(4096, device=self.device).expand(3, 1, -1)
            self._table = [t[0] for t in self.rope_table(line)]
        shared = self.rope_table(positions[:, None])
        parts = []
        for table, prefix in zip(self._table, shared, strict=True):
            own = table[following + offsets]
            parts.append(torch.cat([prefix.expand(len(offsets), -1, -1), own], 1)[:, None])
        return parts

    def attention_bias(self, prefix_length, segments, padding):
        """(N, 1, S, S): causal; a conversation sees itself and the prefix, segment 0.

        Rotary positions are relative: padding on the left, once hidden, changes nothing.
        """
        full = F.pad(segments, (prefix_length, 0))
        places = torch.arange(full.shape[1], device=full.device)
        full = full.masked_fill(places < padding[:, None], -2)
        same = (full[:, None, :] == 0) | (full[:, None, :] == full[:, :, None])
        causal = torch.ones(
            full.shape[1], full.shape[1], dtype=torch.bool, device=full.device
        ).tril()
        bias = torch.zeros(same.shape, dtype=self.dtype, device=full.device)
        return bias.masked_fill_(~(same & causal), float("-inf"))[:, None]

    def __call__(self, batch, pixels, grids):
        """Hidden states (N, R, D) of conversations, patch features, visual tokens early, midway.

        pixels and grids: one item for all pictures of one size, or one for each of a row's.
        """
        language = self.model.model.language_model
        ids, prefix, lead, copies = batch["ids"], batch["prefix"], batch["lead"], batch["copies"]
        number, length = ids.shape[0], prefix.shape[0]
        every = list(grids) * (batch["images"] if len(grids) == 1 else 1)
        layout = self.prefix_layout(prefix, every)
        embedding = language.embed_tokens.weight
        tail = F.embedding(prefix[lead.shape[1] :].to(self.device), embedding).to(self.dtype)
        start = F.embedding(lead, embedding).to(self.dtype)
        start = torch.cat([start, tail.expand(number, -1, -1)], 1)
        patches, tokens = [], []
        for part, grid in zip(pixels, grids, strict=True):
            features, merged = self.encode(part, grid)
            patches.append(features)
            tokens.append(merged.view(number // copies, -1, merged.shape[-1]))
        if tokens:
            seen = torch.cat(tokens, 1).repeat_interleave(copies, 0)
            start = start.index_copy(1, layout[1], seen)
        x = torch.cat([start, F.embedding(ids, embedding).to(self.dtype)], 1)
        cos, sin = self.rope(layout, batch["offsets"])
        bias = self.attention_bias(length, batch["segments"], batch["padding"])
        middle = None
        for index, layer in enumerate(language.layers):
            x = self.text_layer(x, cos, sin, bias, *text_weights(layer))
            if index == len(language.layers) // 2 and tokens:
                middle = x[::copies, layout[1]]
        return rms_norm(x[:, length:], language.norm.weight), patches, tokens, middle

    def logits(self, hidden):
        return linear(hidden, self.model.model.language_model.embed_tokens.weight)


def patch_positions(height, width):
    """Row and column of every patch of one frame, in the processor's 2x2 block order."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)

    def blocks(t):
        return t.reshape(height // 2, 2, width // 2, 2).permute(0, 2, 1, 3).flatten()

    return blocks(rows).float(), blocks(columns).float()


# ---------------------------------------------------------------- training-only heads


class DenseHeads(torch.nn.Module):
    """What covers each visual token, in which colour, and where; dropped after training.

    `named` compares a visual token with the embeddings of the kinds' and colours' words in both
    languages, which ties what is seen to the words that the questions use.
    """

    def __init__(self, tokenizer, width, vision_width):
        super().__init__()
        self.kind = torch.nn.Linear(width, len(KINDS) + 2)
        self.color = torch.nn.Linear(width, len(COLOR_NAMES) + 1)
        self.offset = torch.nn.Linear(width, 4)
        self.place = torch.nn.Linear(width, 4)
        self.thirds = torch.nn.Linear(width, 6)
        self.glyph = torch.nn.Linear(vision_width, 2 * (len(CHARACTERS) + 1))
        self.named = torch.nn.Linear(width, 4 * width)
        self.scale = torch.nn.Parameter(torch.tensor(3.0))
        vocabulary = [
            [" " + kind for kind in KINDS],
            [ZH[kind] for kind in KINDS],
            [" " + color for color in COLOR_NAMES],
            list(COLORS_ZH.values()),
        ]
        for index, words in enumerate(vocabulary):
            self.register_buffer(f"words{index}", _token_table(tokenizer, words), persistent=False)

    def named_logits(self, tokens, embedding):
        """Four sets of logits: kinds in English and Chinese, colours in English and Chinese."""
        queries = F.normalize(self.named(tokens).float().view(*tokens.shape[:-1], 4, -1), dim=-1)
        for index in range(4):
            table = getattr(self, f"words{index}")
            names = F.embedding(table.clamp_min(0), embedding) * (table >= 0)[..., None]
            names = F.normalize(names.sum(1).float(), dim=-1)
            yield self.scale.exp() * queries[..., index, :] @ names.T

    def forward(self, patches, tokens, middle, things, glyphs, size, embedding):
        """patches (I, L, Dv), tokens, middle (I, L / 4, D), things, glyphs -> loss, parts."""
        height, width = size
        patches, tokens, middle = patches.float(), tokens.float(), middle.float()
        owner, covered = nearest_thing(things, *token_centers(height, width, things.device))
        kind = torch.where(covered, owner[..., 0], len(KINDS) + 1).long()
        color = owner[..., 1].long()
        weight = covered.float() / (covered.sum() + 1)
        loss_kind = F.cross_entropy(self.kind(tokens).float().flatten(0, 1), kind.flatten())
        per_token = F.cross_entropy(
            self.color(tokens).float().flatten(0, 1), color.flatten(), reduction="none"
        )
        loss_color = (per_token.view_as(weight) * weight).sum()
        loss_name = self.name_loss(tokens, embedding, kind, color, covered)
        box = owner[..., 2:6]
        cx, cy = token_centers(height, width, things.device)
        here = torch.stack([cx, cy, cx, cy], -1)
        span = torch.tensor([width, height, width, height], device=box.device)
        offset = ((self.offset(tokens).float() - (box - here) / 56).abs().mean(-1) * weight).sum()
        place = (
            (self.place(middle).float() - (box / span - 0.5) * 4).abs().mean(-1) * weight
        ).sum()
        thirds = (self.thirds_loss(middle, box / span) * weight).sum()
        loss_glyph = self.glyph_loss(patches, glyphs, height, width)
        parts = torch.stack([loss_kind, loss_color, loss_name, offset, place, thirds, loss_glyph])
        return parts @ parts.new_tensor([1.0, 0.5, 0.5, 2.0, 4.0, 2.0, 1.0]), parts.detach()

    def thirds_loss(self, middle, box):
        """In which third of the width and of the height the thing's centre is: captions say it."""
        center = (box[..., :2] + box[..., 2:]) / 2
        third = (center >= 1 / 3).long() + (center > 2 / 3).long()
        logits = self.thirds(middle).float().unflatten(-1, (2, 3))
        loss = F.cross_entropy(logits.flatten(0, -2), third.flatten(), reduction="none")
        return loss.view_as(third).sum(-1)

    def name_loss(self, tokens, embedding, kind, color, covered):
        kind_en, kind_zh, color_en, color_zh = self.named_logits(tokens, embedding)
        is_kind = covered & (kind < len(KINDS))
        is_color = covered & (color < len(COLOR_NAMES))
        total = 0.0
        for logits, target, mask in (
            (kind_en, kind, is_kind),
            (kind_zh, kind, is_kind),
            (color_en, color, is_color),
            (color_zh, color, is_color),
        ):
            goal = torch.where(mask, target, -100).flatten()
            total = total + F.cross_entropy(logits.flatten(0, 1), goal, reduction="sum") / (
                mask.sum() + 1
            )
        return total / 2

    def glyph_loss(self, patches, glyphs, height, width):
        """The character at a quarter and at three quarters of every patch's width."""
        rows, columns = (t.to(patches.device) for t in patch_positions(height // 14, width // 14))
        y = rows[:, None] * 14 + 7
        x = torch.stack([columns * 14 + 3.5, columns * 14 + 10.5], -1)
        left, top, right, bottom, on = (glyphs[:, :, j, None, None] for j in range(1, 6))
        inside = (x > left - 1) & (x < right + 1) & (on > 0)
        inside = inside & (y > top - 3) & (y < bottom + 3)
        distance = torch.where(inside, (x - (left + right) / 2).abs(), 1e4)
        nearest, index = distance.min(1)
        character = torch.gather(glyphs[:, :, 0], 1, index.flatten(1)).view_as(index).long()
        target = torch.where(nearest < 1e4, character, len(CHARACTERS))
        logits = self.glyph(patches).float().view(*patches.shape[:2], 2, -1)
        weight = torch.where(target < len(CHARACTERS), 1.0, 0.1)
        loss = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / weight.sum()


def _token_table(tokenizer, words):
    rows = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    table = torch.full((len(rows), max(map(len, rows))), -1)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return table


def token_centers(height, width, device):
    ys = (torch.arange(height // 28, device=device) + 0.5) * 28
    xs = (torch.arange(width // 28, device=device) + 0.5) * 28
    cy, cx = torch.meshgrid(ys, xs, indexing="ij")
    return cx.flatten(), cy.flatten()


def nearest_thing(things, cx, cy):
    """What covers each visual token's centre best (I, C, 7), and whether anything does."""
    x1, y1, x2, y2, on = (things[:, :, j, None] for j in range(2, 7))
    half_x, half_y = ((x2 - x1) / 2).clamp_min(8), ((y2 - y1) / 2).clamp_min(8)
    dx, dy = (cx - (x1 + x2) / 2).abs() / half_x, (cy - (y1 + y2) / 2).abs() / half_y
    distance = torch.maximum(dx, dy) + (on < 0.5) * 1e4
    nearest, index = distance.min(1)
    owner = torch.gather(things, 1, index[..., None].expand(-1, -1, things.shape[-1]))
    return owner, nearest < 1.2
