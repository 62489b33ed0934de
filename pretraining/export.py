"""Turn averaged weights into a folder that AutoProcessor and AutoModelForImageTextToText load.

python export.py --weights checkpoints/weights --out checkpoints/model
python export.py … --heads dense_heads.safetensors    # the training-only heads too
"""

import argparse
import json
from pathlib import Path

import torch
from model import build_model
from safetensors.torch import load_file, save_file
from tokenizer import SPECIAL_TOKENS
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

HERE = Path(__file__).parent
# Pixels of a picture and of a frame. Training drew every size from 112 x 112 to 560 x 560; small
# pictures are made larger, because small things are named more surely so.
SMALLEST, LARGEST = 224 * 224, 560 * 560
SMALLEST_FRAME, LARGEST_FRAME = 112 * 112, 168 * 224
# Qwen2-VL's conversation format: a default system prompt, pictures in place, optional numbers.
CHAT_TEMPLATE = """\
{%- set images = namespace(n=0) %}{% set videos = namespace(n=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set images.n = images.n + 1 -%}
{%- if add_vision_id %}{{ 'Picture ' ~ images.n ~ ': ' }}{% endif -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set videos.n = videos.n + 1 -%}
{%- if add_vision_id %}{{ 'Video ' ~ videos.n ~ ': ' }}{% endif -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def load_averages(folder):
    """(weights, meta) of a training run; the training-only heads are left behind."""
    tensors = {}
    for path in sorted(folder.glob("part*.safetensors")):
        tensors |= load_file(path)
    weights = {k: v for k, v in tensors.items() if not k.startswith("heads.")}
    return weights, json.loads((folder / "meta.json").read_text())


def export_heads(weights_folder, out):
    tensors = {}
    for path in sorted(weights_folder.glob("part*.safetensors")):
        tensors |= {k: v for k, v in load_file(path).items() if k.startswith("heads.")}
    save_file(tensors, out)


def export(weights_folder, out):
    weights, meta = load_averages(weights_folder)
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    model = build_model(tokenizer, meta["config"]["model"]).to(torch.bfloat16)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    model.generation_config.eos_token_id = [end, pad]
    model.generation_config.pad_token_id = pad
    model.generation_config.do_sample = False
    model.save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(HERE / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            t for t in SPECIAL_TOKENS if t not in ("<|endoftext|>", "<|im_end|>")
        ],
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=SMALLEST, max_pixels=LARGEST),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(min_pixels=SMALLEST_FRAME, max_pixels=LARGEST_FRAME),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=HERE / "checkpoints/weights")
    parser.add_argument("--out", type=Path, default=HERE / "checkpoints/model")
    parser.add_argument("--heads", type=Path, help="file for the training-only heads")
    arguments = parser.parse_args()
    export(arguments.weights, arguments.out)
    if arguments.heads:
        export_heads(arguments.weights, arguments.heads)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
