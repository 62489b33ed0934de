"""Train from scratch or resume: one call of a run that may be spread over several.

    python train.py --seconds 520 --state /tmp/state.pt --out weights   # repeat until it says done
    python train.py --config config.toml restart.toml --model ../data/tiny-qwen2-vl …   # go on

The schedule's clock is the seconds actually trained, saved with everything else in the state file.
Without a state file `--weights` starts from exported averages, `--elapsed` seconds in; `--model`
starts a new schedule from a finished folder and the heads in dense_heads.safetensors.

On several GPUs of one host, with as many batches a step as there are GPUs:

    torchrun --nproc-per-node 4 train.py …
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import BatchMaker, stream
from model import DenseHeads, FastForward, build_model
from optimizer import build_optimizers
from questions import TASK_NAMES
from renderer import load_texture, normalise, patchify, render
from safetensors.torch import load_file, save_file
from scenes import Art
from tokenizers import Tokenizer

HERE = Path(__file__).parent
PART_BYTES = 15 * 2**20
RANK, GPUS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
CLOCK_STEPS = 10  # between two times that all GPUs agree on the clock


def load_config(paths, smoke=False):
    """The first file's settings, with the later files' in their place."""
    config = {}
    for path in paths:
        merge(config, tomllib.loads(Path(path).read_text()))
    if smoke:
        config["model"] |= config["smoke"]["model"]
        config["data"]["batch_tokens"] = config["smoke"]["batch_tokens"]
    return config


def merge(config, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


class Trainer:
    def __init__(self, config, art, texture, tokenizer, device, compiled):
        self.config, self.art, self.texture, self.tokenizer = config, art, texture, tokenizer
        self.device = device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = build_model(tokenizer, config["model"]).to(device).train()
        model = config["model"]
        self.heads = DenseHeads(tokenizer, model["width"], model["vision_width"]).to(device)
        self.forward = FastForward(self.model, tokenizer, dtype, compiled)
        self.optimizers = build_optimizers(self.model, self.heads, config)
        self.parameters = list(self.model.parameters())
        self.averages = [p.detach().clone() for p in self.parameters]
        self.step, self.elapsed, self.first_step = 0, 0.0, 0
        self.generator = torch.Generator().manual_seed(config["seed"] + RANK)
        self.statistics = Statistics(device)

    @property
    def progress(self):
        return min(1.0, self.elapsed / (self.config["minutes"] * 60))

    def loss(self, batch):
        batch = {  # the prefix is a key of a cache: reading it back would wait for the GPU
            k: v.to(self.device, non_blocking=True) if torch.is_tensor(v) and k != "prefix" else v
            for k, v in batch.items()
        }
        pixels, grids = self.draw(batch)
        hidden, patches, tokens, middle = self.forward(batch, pixels, grids)
        logits = self.forward.logits(hidden.flatten(0, 1)[batch["places"]]).float()
        losses = F.cross_entropy(logits, batch["targets"], reduction="none")
        loss = (losses * batch["weights"]).sum() / batch["weights"].sum()
        dense, parts = torch.zeros((), device=self.device), None
        if "things" in batch:
            dense, parts = self.dense_loss(batch, patches, tokens, middle)
        self.statistics.add(batch, loss, logits, parts)
        return loss, dense

    def draw(self, batch):
        """Pixel values and the grid of a picture or clip, for each of the batch's sizes."""
        pixels, grids = [], []
        for index, (height, width) in enumerate(batch["sizes"]):
            layers, backgrounds = (part(batch, k, index) for k in ("layers", "backgrounds"))
            size = (height, width, self.generator, batch["soft"])
            image = render(self.texture, layers, backgrounds, *size)
            frames = normalise(image).view(-1, batch["frames"], 3, height, width)
            values, grid = patchify(frames)
            pixels.append(values)
            grids.append(grid)
        return pixels, grids

    def dense_loss(self, batch, patches, tokens, middle):
        embedding = self.model.model.language_model.embed_tokens.weight
        middles = middle.split([t.shape[1] for t in tokens], 1)
        losses, statistics = [], []
        for index, size in enumerate(batch["sizes"]):
            things, glyphs = part(batch, "things", index), part(batch, "glyphs", index)
            shaped = [
                features.reshape(len(things), -1, features.shape[-1])
                for features in (patches[index], tokens[index], middles[index])
            ]
            loss, parts = self.heads(*shaped, things, glyphs, size, embedding)
            losses.append(loss)
            statistics.append(parts)
        return torch.stack(losses).mean(), torch.stack(statistics).mean(0)

    def train_step(self, batch):
        rate = self.rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        loss, dense = self.loss(batch)
        (loss + self.dense_weight() * dense).backward()
        if GPUS > 1:
            average_gradients([*self.parameters, *self.heads.parameters()])
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.config["average"], (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1

    def rate(self):
        """Warm up in steps, hold, then fall linearly to 1% over the rest of the run."""
        warm = min(1.0, (self.step - self.first_step + 1) / self.config["warmup_steps"])
        hold = self.config["hold"]
        fall = 1.0 if self.progress < hold else 1 - 0.99 * (self.progress - hold) / (1 - hold)
        return warm * fall

    def dense_weight(self):
        fade = min(1.0, max(0.0, (self.progress - 0.35) / 0.4))
        full, floor = self.config["dense_weight"], self.config["dense_floor"]
        return full + (floor - full) * fade

    def compile(self, maker, seconds=240):
        """Forward and backward on a few batches of every kind before the clock starts."""
        start, seen, number = time.time(), {}, 10**8
        while (
            min([seen.get(kind, 0) for kind in ("image", "clip", "album")]) < 1
            and time.time() - start < seconds
        ):
            batch = maker.make(number, 0.99)
            number += 1
            if seen.get(batch["kind"], 0) < 3:
                seen[batch["kind"]] = seen.get(batch["kind"], 0) + 1
                loss, dense = self.loss(batch)
                (loss + dense).backward()
                self.model.zero_grad(set_to_none=True)
                self.heads.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.statistics = Statistics(self.device)
        return time.time() - start

    def state(self):
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "averages": self.averages,
            "step": self.step,
            "elapsed": self.elapsed,
            "generator": self.generator.get_state(),
            "cuda": torch.cuda.get_rng_state() if self.device == "cuda" else None,
        }

    def load_state(self, state):
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.averages = [a.to(self.device) for a in state["averages"]]
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.generator.set_state(state["generator"].cpu())
        if RANK:
            self.generator.manual_seed(self.config["seed"] + RANK + GPUS * self.step)
        if self.device == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"].cpu())

    def load_weights(self, folder, elapsed):
        """Start again from exported averages: same weights, fresh optimisers, a short warm-up."""
        meta = json.loads((folder / "meta.json").read_text())
        tensors = {}
        for path in sorted(folder.glob("part*.safetensors")):
            tensors |= load_file(path)
        heads = {k[6:]: tensors.pop(k).float() for k in list(tensors) if k.startswith("heads.")}
        self.model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
        self.model.tie_weights()
        self.heads.load_state_dict(heads, strict=False)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.step = self.first_step = meta["step"]
        self.elapsed = meta["elapsed"] if elapsed is None else elapsed

    def load_model(self, folder, heads=HERE / "dense_heads.safetensors"):
        """Start a new schedule from a finished model folder and the heads that belong to it.

        Tokens and kinds that the folder did not have begin as `transplant` and `add_kinds` say.
        """
        from transformers import AutoModelForImageTextToText

        source = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        weights = source.state_dict()
        before = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = transplant(weights[name], before, self.tokenizer)
        self.model.load_state_dict(weights)
        kept = {k.removeprefix("heads."): v.float() for k, v in load_file(heads).items()}
        for name in ("kind.weight", "kind.bias"):
            kept[name] = add_kinds(kept[name], self.heads.state_dict()[name])
        self.heads.load_state_dict(kept, strict=False)  # a new head starts afresh
        self.averages = [p.detach().clone() for p in self.parameters]

    def save_weights(self, folder):
        """The averaged weights in bfloat16, in parts of at most 15 MiB."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = dict(
            zip([n for n, _ in self.model.named_parameters()], self.averages, strict=True)
        )
        tensors |= {"heads." + k: v for k, v in self.heads.state_dict().items()}
        parts, used = [{}], 0
        for name, tensor in tensors.items():
            tensor = tensor.detach().to(torch.bfloat16).cpu().contiguous()
            if used + tensor.nbytes > PART_BYTES:
                parts.append({})
                used = 0
            parts[-1][name] = tensor
            used += tensor.nbytes
        for index, part in enumerate(parts):
            save_file(part, folder / f"part{index}.safetensors")
        meta = {"step": self.step, "elapsed": self.elapsed, "config": self.config}
        (folder / "meta.json").write_text(json.dumps(meta))


def average_gradients(parameters):
    """The mean over all GPUs; what had no part in a GPU's batch counts as zero."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters]
    flat = torch.nn.utils.parameters_to_vector(gradients) / GPUS
    torch.distributed.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [v.view_as(g) for v, g in zip(parts, gradients, strict=True)])


def agree(device, elapsed, stop):
    """The first GPU's clock, and whether it stops."""
    values = torch.tensor([elapsed, float(stop)], dtype=torch.float64, device=device)
    torch.distributed.broadcast(values, 0)
    elapsed, stop = values.tolist()
    return elapsed, bool(stop)


def transplant(embedding, before, after):
    """Embeddings for another vocabulary: a token's own, or the mean of those that spell it."""
    if before.get_vocab() == after.get_vocab():
        return embedding
    known, rows = before.get_vocab(), []
    for token, index in sorted(after.get_vocab().items(), key=lambda item: item[1]):
        if token in known:
            rows.append(embedding[known[token]])
        else:
            ids = before.encode(after.decode([index]), add_special_tokens=False).ids
            rows.append(embedding[ids].mean(0) if ids else embedding.mean(0))
    return torch.stack(rows)


def add_kinds(old, new):
    """Rows of the head for kinds: the old ones first; "a word" and "nothing" stay last."""
    new = new.detach().cpu().clone()
    new[: len(old) - 2], new[-2:] = old[:-2], old[-2:]
    return new


def part(batch, name, index):
    """What belongs to the pictures of one of the batch's sizes, rows and pictures in one axis."""
    tensor = batch[name]
    return (tensor if len(batch["sizes"]) == 1 else tensor[:, index : index + 1]).flatten(0, 1)


class Statistics:
    """Sums on the device: losses by kind, and whole answers right (teacher-forced) by task."""

    def __init__(self, device):
        self.right = torch.zeros(len(TASK_NAMES), device=device)
        self.asked = torch.zeros(len(TASK_NAMES), device=device)
        self.losses, self.parts = {}, []

    def add(self, batch, loss, logits, parts):
        with torch.no_grad():
            wrong = (logits.argmax(-1) != batch["targets"]).float()
            tasks = batch["tasks"]
            missed = torch.zeros(len(tasks), device=wrong.device).scatter_add_(
                0, batch["answers"], wrong
            )
            self.right.scatter_add_(0, tasks, (missed == 0).float())
            self.asked.scatter_add_(0, tasks, torch.ones_like(missed))
            self.losses.setdefault(batch["kind"], []).append(loss.detach())
            if parts is not None:
                self.parts.append(parts)

    def line(self, tasks=True):
        losses = " ".join(
            f"{k} {torch.stack(v).mean():.3f}" for k, v in sorted(self.losses.items())
        )
        text = f"loss {losses}"
        if self.parts:
            parts = torch.stack(self.parts).mean(0).tolist()
            text += " | dense " + " ".join(f"{v:.3f}" for v in parts)
        if tasks:
            share = (self.right / self.asked.clamp_min(1)).tolist()
            asked = self.asked.tolist()
            rows = [f"{n} {s:.2f}" for n, s, a in zip(TASK_NAMES, share, asked, strict=True) if a]
            text += "\n    " + ", ".join(rows)
        return text


def run(trainer, maker, arguments):
    """Train until the schedule, the call's seconds or its steps are used up, or a signal comes."""
    stop = {"now": False}
    signal.signal(signal.SIGTERM, lambda *_: stop.update(now=True))
    progress = multiprocessing.Value("d", trainer.progress)
    first, pin = trainer.step, trainer.device == "cuda"
    batches = stream(maker, first * GPUS + RANK, GPUS, progress, arguments.workers, pin)
    started = saved = last = time.time()
    waited = 0.0
    while trainer.progress < 1 and not stop["now"]:
        before = time.time()
        batch = next(batches)
        waited += time.time() - before
        trainer.train_step(batch)
        if trainer.step % 20 == 0 and trainer.device == "cuda":
            torch.cuda.synchronize()  # keep the clock honest
        now, steps = time.time(), trainer.step - first
        over = now - started > arguments.seconds or steps == (arguments.steps or -1)
        if GPUS == 1:
            trainer.elapsed, last = trainer.elapsed + now - last, now
        elif trainer.step % CLOCK_STEPS == 0:
            elapsed = trainer.elapsed + now - last
            trainer.elapsed, over = agree(trainer.device, elapsed, over or stop["now"])
            last = now
        else:
            over = False
        progress.value = trainer.progress
        if trainer.step % arguments.log_every == 0 and RANK == 0:
            report(trainer, now - started, waited, steps, arguments)
        if now - saved > 150 and arguments.state and RANK == 0:
            save_state(trainer, arguments)
            saved = last = time.time()
        if over:
            break


def report(trainer, seconds, waited, steps, arguments):
    text = trainer.statistics.line(tasks=trainer.step % (4 * arguments.log_every) == 0)
    rate = steps / max(seconds, 1e-6)
    print(
        f"step {trainer.step} at {trainer.elapsed:.0f}s ({rate:.1f}/s, waited {waited:.0f}s) "
        f"lr x{trainer.rate():.3f} {text}",
        flush=True,
    )
    if not math.isfinite(float(trainer.parameters[0].detach().sum())):
        raise FloatingPointError(f"weights are not finite at step {trainer.step}")
    trainer.statistics = Statistics(trainer.device)


def save_state(trainer, arguments):
    state = Path(arguments.state)
    torch.save(trainer.state(), state.with_suffix(".new"))
    state.with_suffix(".new").rename(state)
    if arguments.out:
        trainer.save_weights(arguments.out)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, nargs="+", default=[HERE / "config.toml"])
    parser.add_argument("--seconds", type=float, default=1e9, help="of training in this call")
    parser.add_argument("--steps", type=int, default=0, help="at most, in this call")
    parser.add_argument("--state", help="file with the full state; resumed if it is there")
    parser.add_argument("--weights", type=Path, help="folder of exported averages to start from")
    parser.add_argument(
        "--elapsed", type=float, help="with --weights: where in the schedule to start"
    )
    parser.add_argument("--model", type=Path, help="finished model folder to go on from")
    parser.add_argument(
        "--heads", type=Path, default=HERE / "dense_heads.safetensors", help="that belong to it"
    )
    parser.add_argument("--minutes", type=float, help="length of the whole schedule")
    parser.add_argument("--out", type=Path, help="folder for the averaged weights")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=250)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args(argv)


def main():
    arguments = parse_arguments()
    if GPUS > 1:
        if arguments.device == "cuda":
            torch.cuda.set_device(RANK)
        torch.distributed.init_process_group("nccl" if arguments.device == "cuda" else "gloo")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = load_config(arguments.config)
    config["minutes"] = arguments.minutes or config["minutes"]
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    art = Art.load(HERE / "build/atlas.json")
    texture = load_texture(HERE / "build/atlas.npz", arguments.device)
    compiled = arguments.device == "cuda" and not arguments.no_compile
    trainer = Trainer(config, art, texture, tokenizer, arguments.device, compiled)
    if arguments.state and Path(arguments.state).exists():
        trainer.load_state(torch.load(arguments.state, map_location="cpu"))
    elif arguments.weights:
        trainer.load_weights(arguments.weights, arguments.elapsed)
    elif arguments.model:
        trainer.load_model(arguments.model, arguments.heads)
    maker = BatchMaker(config["data"], art, tokenizer)
    size = sum(p.numel() for p in trainer.parameters) / 1e6
    print(
        f"{size:.2f} M parameters, step {trainer.step}, "
        f"{trainer.elapsed:.0f}s of {config['minutes'] * 60:.0f}s",
        flush=True,
    )
    if compiled:
        print(f"compiled in {trainer.compile(maker):.0f}s", flush=True)
    if GPUS > 1:
        torch.distributed.barrier()
    run(trainer, maker, arguments)
    if GPUS > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if RANK:
        return
    report(trainer, 1, 0, 0, arguments)
    if arguments.state:
        save_state(trainer, arguments)
    elif arguments.out:
        trainer.save_weights(arguments.out)
    print(
        "done" if trainer.progress >= 1 else "stopped",
        f"at step {trainer.step}, {trainer.elapsed:.0f}s",
        flush=True,
    )


if __name__ == "__main__":
    main()
