"""``vlkit.load()`` and its ``VLM``; the interface of every model."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Unpack
from weakref import WeakKeyDictionary

from vlkit.errors import ModelError, RemoteError, check_choice, check_whole, one_line, warn_user
from vlkit.files import digest
from vlkit.models.adapters import attach_adapter, find_adapter, load_weights_beside
from vlkit.models.families import SizeRules, family_of, rules_of_processor
from vlkit.models.hub import Hub, ModelFolder, find_model, weight_files
from vlkit.models.memory import Cost, count_cost
from vlkit.settings import HOSTED_OPTIONS, honours_choice
from vlkit.threads import TEMPLATE_SECONDS, leave_busy_cores, limit_time

if TYPE_CHECKING:
    from vlkit.remote.model import HostedOptions, RemoteVLM

# A model on this machine or a hosted one: they share the methods that VLM has below its comment,
# and nothing outside of models and remote asks which of the two a model is.
Model: TypeAlias = "VLM | RemoteVLM"

# models that run elsewhere, by the prefix of their names: the module whose load_remote loads them
HOSTED = {"openai": "vlkit.remote.model", "dashscope": "vlkit.remote.model"}
DTYPES = ("bfloat16", "float16", "float32", "float64")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")
QUIET_BYTES = 10**9  # a smaller model loads in a moment, so without a progress bar
_ROOM = 1.4  # memory needed over that of the weights: also cache and activations
_CHUNK = 1 << 24  # weights that are summed at a time
# settings that change no answer
_WITHOUT_EFFECT = (
    "transformers_version", "peft_version", "base_model_name_or_path", "revision",
)  # fmt: skip
_known: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()  # keys of networks
_QUANTIZERS = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}  # packages that read them
_QUANTIZED = {"4bit": 0.4, "8bit": 0.6}  # size over that of the stored weights


def network_options(
    folder: ModelFolder,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantize: str | None = None,
    trained: bool = False,
) -> dict[str, Any]:
    """Options for ``from_pretrained``; see :func:`vlkit.load`.

    Args:
        folder: the model.
        device, dtype, attn, quantize: as for :func:`vlkit.load`.
        trained: quantize by bitsandbytes on a CPU too, since PEFT knows its layers.

    Raises:
        ModelError: what is wrong and what to do.
    """
    device = _choose_device(device)
    stored = (folder.config.get("quantization_config") or {}).get("quant_method")
    _check_quantizer(folder, stored)
    if device == "cpu" and stored == "fp8":  # without a GPU transformers unpacks FP8 to bfloat16
        if dtype not in ("auto", "bfloat16"):
            raise ModelError(
                f'{folder.name} has FP8 weights, which run on a CPU only with dtype="bfloat16"; '
                "leave dtype out, or load the model without -FP8 in its name"
            )
        dtype = "bfloat16"
    chosen = choose_dtype(dtype, device, folder.config)
    options = {
        "dtype": chosen,
        "attn_implementation": choose_attention(attn, device, chosen),
        "device_map": _choose_map(folder, chosen, quantize) if device == "cuda" else device,
    }
    if quantize and (trained or (device, quantize) != ("cpu", "8bit")):
        options["quantization_config"] = _quantization(quantize, chosen)
    elif quantize:
        options["dtype"] = choose_dtype("auto", "cuda", folder.config)  # as stored, until packed
    return options


def _check_quantizer(folder: ModelFolder, method: str | None) -> None:
    if method and folder.config["model_type"] == "qwen":
        raise ModelError(
            f"{folder.name} is a {method.upper()} copy of Qwen-VL, packed for code that no longer "
            'runs; load Qwen/Qwen-VL-Chat with quantize="4bit"'
        )
    missing = [name for name in _QUANTIZERS.get(method or "", ()) if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{folder.name} has {str(method).upper()} weights, which need {' and '.join(missing)}: "
            f'pip install {" ".join(missing)}; or load the original model with quantize="4bit"'
        )


def _choose_map(folder: ModelFolder, dtype: Any, quantize: str | None) -> str:
    """The GPU with the most free memory if it holds the weights and room to work, else all."""
    import torch

    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    stored = choose_dtype("auto", "cuda", folder.config)
    share = _QUANTIZED[quantize] if quantize else dtype.itemsize / stored.itemsize
    need = _ROOM * share * sum(file.stat().st_size for file in weight_files(folder.path))
    return f"cuda:{free.index(max(free))}" if len(free) > 1 and need < max(free) else "auto"


def _choose_device(device: str) -> str:
    import torch

    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    match = re.fullmatch(r"cpu|mps|cuda(:(\d+))?", str(device))
    if not match:
        raise ModelError(f'device={device!r} is unknown; choose "auto", "cpu", "cuda:0" or "mps"')
    gpus = torch.cuda.device_count()
    if (device == "mps" and not mps) or (device.startswith("cuda") and int(match[2] or 0) >= gpus):
        raise ModelError(f'device={device!r}, but torch sees {gpus} GPUs; use device="auto"')
    return device


def choose_dtype(dtype: str, device: str, config: dict):
    """A torch dtype; "auto" on a GPU is the one in which the weights are stored."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name == "auto" and device == "cpu":
        return torch.float32
    if name == "auto":
        parts = (config, config.get("text_config") or {})
        stored = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
        name = str(stored[0]).removeprefix("torch.") if stored else "bfloat16"
    check_choice("dtype", name, ("auto", *DTYPES), kind=ModelError)
    return getattr(torch, name)


def choose_attention(attn: str, device: str, dtype: Any) -> str:
    """The attention's name in transformers; "auto" takes the fastest that is there."""
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    check_choice("attn", attn, ATTENTIONS, kind=ModelError)
    fits = device.startswith("cuda") and dtype in (torch.bfloat16, torch.float16)
    if attn == "auto":
        return "flash_attention_2" if fits and is_flash_attn_2_available() else "sdpa"
    if attn == "flash_attention_2" and not (fits and is_flash_attn_2_available()):
        raise ModelError(
            'attn="flash_attention_2" needs a CUDA GPU, dtype="bfloat16" or "float16", and '
            '`pip install flash-attn`; attn="auto" takes it where it can be used'
        )
    return attn


def _quantization(quantize: str, dtype: Any):
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        text = f'quantize="{quantize}" needs bitsandbytes: pip install "vlkit[quant]"'
        raise ModelError(text) from error
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


@dataclass(frozen=True)
class Settings:
    """What holds for all rows of a batch.

    Attributes:
        options: for transformers' generate.
        seed: of row 0, or None; row ``i`` has ``seed + i``.
        batch_size: the most rows at a time, or None.
        path: ``"fast"``, ``"library"`` or ``"remote"``.
        note: why it is not the fast one.
        stopped: is set to end the batch.
    """

    options: dict[str, Any]
    seed: int | None
    batch_size: int | None
    path: str
    note: str
    stopped: Event | None = None

    @property
    def limit(self) -> int:
        """The most new tokens."""
        return self.options["max_new_tokens"]

    @property
    def sampling(self) -> tuple[float, float]:
        """Temperature and top_p of a row."""
        return self.options["temperature"] or 0.0, self.options["top_p"] or 1.0

    def seed_of(self, index: int) -> int | None:
        """The seed of one row."""
        return None if self.seed is None else self.seed + index

    def check_stopped(self) -> None:
        """Raises KeyboardInterrupt, as Ctrl-C does, once ``stopped`` is set."""
        if self.stopped is not None and self.stopped.is_set():
            raise KeyboardInterrupt


@dataclass
class Tally:
    """Counted while the rows are answered."""

    new_tokens: int = 0
    computed: int = 0  # prompt tokens, padding included
    padded: int = 0
    batch_size: int = 0
    cost: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def padding(self) -> float:
        """Padding's share of the computed prompt tokens."""
        return self.padded / self.computed if self.computed else 0.0

    def count_group(self, lengths: Sequence[int]) -> None:
        """Count a group of prompts that are computed together."""
        computed = max(lengths) * len(lengths)
        self.computed += computed
        self.padded += computed - sum(lengths)


@dataclass(frozen=True, eq=False)
class VLM:
    """A loaded model with its processor.

    Attributes:
        model: the transformers model, in evaluation mode.
        processor: its transformers processor, padding on the left.
        family: a key of ``FAMILIES``.
        folder: where the weights came from.
        adapter: the adapter's folder, or None.
        max_image_tokens: limit for every picture without one of its own, or None.
        chosen_by: the settings file or variable that named the model, or None.
        thinking: whether its chat template asks for thinking, or None for the template's default.
    """

    model: Any
    processor: Any
    family: str
    folder: ModelFolder
    adapter: str | None = None
    max_image_tokens: int | None = None
    chosen_by: str | None = None
    thinking: bool | None = None

    @property
    def name(self) -> str:
        """What the model was called when it was loaded."""
        return self.folder.name

    @property
    def revision(self) -> str | None:
        """The commit on the hub, or None."""
        return self.folder.revision

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return self.model.config.get_text_config().max_position_embeddings

    # --- what a model on this machine and a hosted one share ---------------------------------

    @property
    def rules(self) -> SizeRules:
        """How large the model sees pictures and frames."""
        return rules_of_processor(self.processor, self.family, self.max_image_tokens)

    @property
    def load_options(self) -> dict[str, Any]:
        """The options that its answers depend on, for code that loads it again."""
        names = ("adapter", "max_image_tokens", "thinking")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def identity(self) -> list[Any]:
        """What an answer depends on besides the question; values for JSON.

        Settings are read each time; the weights only after one of them has changed.
        """
        processors = ("image_processor", "video_processor")
        limits = [_settings(getattr(self.processor, name, None)) for name in processors]
        template = getattr(self.processor, "chat_template", None)
        names = [self.family, self.folder.revision, self.folder.config]
        thinking = [] if self.thinking is None else [self.thinking]
        key = _network_key(self.model)
        return [names, self.max_image_tokens, template, limits, key, *thinking]

    secrets: ClassVar[tuple[str, ...]] = ()  # texts that no file may contain
    scores_tokens: ClassVar[bool] = True  # log-probabilities and attention can be computed

    def require_weights(self) -> None:
        """Raises VlkitError where the weights are not on this machine."""

    def with_thinking(self, thinking: bool | int) -> VLM:
        """The same model with thinking switched on or off.

        Raises:
            ModelError: its chat template has no such switch.
        """
        check_choice("thinking", thinking, (True, False))
        if "enable_thinking" not in str(self.processor.chat_template):
            raise ModelError(
                f"thinking={thinking}: the chat template of {self.name} has no switch for thinking "
                "(enable_thinking); leave thinking= out"
            )
        return replace(self, thinking=bool(thinking))

    def with_limit(self, max_image_tokens: int | None) -> VLM:
        """The same model with another limit for its pictures."""
        return replace(self, max_image_tokens=max_image_tokens)

    def cost(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """The price of these tokens: None."""
        return None

    def memory_cost(self) -> Cost | None:
        """Bytes that a prompt needs, the weights included."""
        held = sum(p.nbytes for p in (*self.model.parameters(), *self.model.buffers()))
        size = self.model.dtype.itemsize
        return count_cost(self.model.config, held, value_bytes=size, held=held)

    @property
    def cache(self) -> Any:
        """What is kept of earlier questions: features of pictures and clips, and Chats' turns.

        An eighth of the memory that was free at first, unless ``cache.most_bytes`` is set; what
        was used longest ago goes first. ``cache.clear()`` empties it. It is empty as well once a
        weight or an adapter has changed, but a change through ``.data`` is not noticed.
        """
        from vlkit.generation.rows import cache_of

        return cache_of(self)

    def answer(
        self,
        messages: list[dict],
        options: dict,
        seed: int | None,
        put: Callable[[str], None] | None = None,
        stopped: Event | None = None,
    ) -> Any:
        """The Reply to one conversation.

        Args:
            messages: checked.
            options: from :func:`vlkit.generation.generate.generation_options`.
            seed: for sampling, or None.
            put: called with each piece of text as it comes.
            stopped: set it to end the answer within a token.
        """
        from vlkit.generation.rows import answer_here

        return answer_here(self, messages, options, seed, put, stopped)

    def answer_path(self) -> tuple[str, str]:
        """How rows of a batch are answered (``"fast"``, ``"library"`` or ``"remote"``), and why."""
        from vlkit.generation.rows import choose_path

        return choose_path(self)

    def answer_rows(
        self, conversations: Sequence[Any], indices: Sequence[int], settings: Settings, tally: Tally
    ) -> Generator[tuple[int, Any], None, None]:
        """(index, Reply or Failure) of many conversations, each as it finishes."""
        from vlkit.generation.rows import answer_rows_here

        return answer_rows_here(self, conversations, indices, settings, tally)

    def __repr__(self) -> str:
        extra = f", adapter={self.adapter!r}" if self.adapter else ""
        extra += f", chosen by {self.chosen_by}" if self.chosen_by else ""
        return (
            f"VLM({self.name!r}, family={self.family!r}, "
            f"{self.model.num_parameters():,} parameters, "
            f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device}{extra})"
        )


@honours_choice
def load(
    model: str | os.PathLike | None = None,
    *,
    hub: Hub = "auto",
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    adapter: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
    **hosted: Unpack[HostedOptions],
) -> VLM | RemoteVLM:
    """Load a model of the Qwen-VL family.

    Args:
        model: ``"tiny"`` (bundled), a folder, a hub id such as ``Qwen/Qwen2-VL-7B-Instruct``, or a
            hosted one: ``"openai:MODEL"`` (any OpenAI-compatible endpoint, with ``base_url=``) or
            ``"dashscope:qwen-vl-max"``.
            None takes what ``VLKIT_MODEL`` or the settings file names, else ``"tiny"``.
        hub: ``"auto"``: local, then cached, then whichever hub answers; ``"modelscope"`` or
            ``"huggingface"`` for one of them alone.
        revision: commit, branch or tag; pin it for results that others can repeat.
        device: ``"auto"`` takes the freest GPU, or all where one does not suffice; else Apple's,
            else the CPU.
        dtype: ``"auto"`` is the checkpoint's on a GPU and float32 on a CPU; or ``"bfloat16"`` …
        attn: ``"auto"`` is flash attention where it is installed and fits, else sdpa.
        quantize: ``"4bit"`` or ``"8bit"`` through bitsandbytes (``pip install "vlkit[quant]"``);
            ``"8bit"`` on a CPU needs no package (:mod:`vlkit.models.int8`).
        adapter: folder or hub id of a PEFT adapter made for this model.
        max_image_tokens: shrink every picture to at most this many tokens.
        **hosted: of hosted models alone: ``base_url``, ``api_key``, ``region``, ``family``,
            ``prices``, ``timeout`` …; see :class:`vlkit.remote.HostedOptions`. ``thinking`` is
            also for models on this machine, as for :func:`vlkit.generate`.

    Returns:
        A :class:`VLM`; of a hosted model a :class:`vlkit.remote.RemoteVLM`.

    Raises:
        RemoteError: a hosted model that cannot be reached as asked.
        ModelError: what is wrong and what to do. Weights are safetensors only (of Qwen-VL also
            PyTorch's ``.bin``, of which nothing but tensors is read), and no code from a model
            folder is ever run.
    """
    if not isinstance(model, str | os.PathLike):
        raise ModelError(f'model={model!r} must be "tiny", a folder or a hub id, as text')
    check_choice("quantize", quantize, ("4bit", "8bit", None), kind=ModelError)
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True, kind=ModelError)
    options: dict[str, Any] = {
        "hub": hub, "revision": revision, "device": device, "dtype": dtype, "attn": attn,
        "quantize": quantize, "adapter": adapter,
    }  # fmt: skip
    if prefix := hosted_prefix(model):
        if given := [name for name, value in options.items() if value not in ("auto", None)]:
            raise RemoteError(f"{given[0]}= is for models on this machine; {model} is hosted")
        remote = import_module(HOSTED[prefix])
        return remote.load_remote(model, max_image_tokens=max_image_tokens, **hosted)
    thinking = hosted.pop("thinking", None)
    for name in hosted:
        if name in HOSTED_OPTIONS:
            raise ModelError(f'{name}= is for hosted models, such as "openai:…"; {model} runs here')
        raise ModelError(f"load() has no option {name}=; see help(vlkit.load)")
    vlm = load_here(model, max_image_tokens=max_image_tokens, **options)
    return vlm if thinking is None else vlm.with_thinking(thinking)


def hosted_prefix(model: Any) -> str | None:
    """The prefix of a hosted model's name, such as ``"openai"`` of ``"openai:gpt-x"``, or None."""
    prefix = model.partition(":")[0].lower() if isinstance(model, str) and ":" in model else None
    return prefix if prefix in HOSTED else None


def load_here(
    model: str | os.PathLike,
    *,
    hub: Hub = "auto",
    revision: str | None = None,
    adapter: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
    **network_settings: Any,
) -> VLM:
    """:func:`load` for a model on this machine; see :func:`network_options` for other options."""
    folder = find_model(model, hub=hub, revision=revision)
    family = family_of(folder.config, folder.name)
    options = network_options(folder, **network_settings)
    adapter_path = None if adapter is None else find_adapter(adapter, folder, family)
    processor = load_processor(folder)
    network = _load_network(folder, options)
    if adapter_path is not None:
        network = attach_adapter(network, adapter_path, folder)
        load_weights_beside(network, adapter_path, folder)
    if network_settings.get("quantize") and "quantization_config" not in options:
        from vlkit.models.int8 import pack

        pack(network, folder.name)
    name = None if adapter is None else os.fspath(adapter)
    leave_busy_cores(network)
    return VLM(network.eval(), processor, family, folder, name, max_image_tokens)


def first_generation(config: dict) -> Any:
    """The module of Qwen-VL, whose classes transformers then knows; None for other generations."""
    return import_module("vlkit.models.qwen_vl") if config.get("model_type") == "qwen" else None


def _load_network(folder: ModelFolder, options: dict[str, Any]):
    import torch
    from transformers import AutoModelForImageTextToText

    first = first_generation(folder.config)
    try:
        with _quiet_loading(folder.path):
            network, info = AutoModelForImageTextToText.from_pretrained(
                folder.path,
                use_safetensors=weight_files(folder.path)[0].suffix == ".safetensors",
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are listed in info, and refused below
                **options,
            )
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f'{folder.name} does not fit into the GPU\'s memory; try quantize="4bit", a smaller '
            "model or more GPUs"
        ) from error
    except Exception as error:  # transformers has no family of errors
        raise ModelError(f"{folder.name} could not be loaded: {one_line(error)}") from error
    if first:
        first.set_endings(network)
    for layer in network.modules():  # on a CPU bitsandbytes repacks layers, of these sizes alone
        packs = hasattr(layer, "support_avx512bf16_for_cpu")
        if packs and (layer.out_features % 32 or layer.in_features % 64):
            layer.support_avx512bf16_for_cpu = False
    _check_loaded(folder.path, info)
    places = set(map(str, getattr(network, "hf_device_map", {}).values()))
    if options["device_map"] == "auto" and places & {"cpu", "disk"}:
        warn_user(
            f"{folder.name} does not fit into the GPU's memory; a part runs on the CPU, slowly"
        )
    return network


def _check_loaded(path: Path, info: dict) -> None:
    wrong = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"{path}: {len(wrong)} weights are missing or have other shapes than in config.json "
            f"({wrong[0]} …) and would be random; download the model again"
        )
    if unused := sorted(info["unexpected_keys"]):
        warn_user(
            f"{path}: {len(unused)} weights do not belong to the model that config.json describes "
            f"({unused[0]} …) and are ignored"
        )


@contextmanager
def hide_small_bar(size: int):
    """No progress bar of transformers while a small model of ``size`` bytes is read or written."""
    from transformers.utils import logging as transformers_logging

    hide = size <= QUIET_BYTES and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()


@contextmanager
def _quiet_loading(path: Path):
    """No progress bar for a small model, and no report of weights: `_check_loaded` makes one."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_not_report)
    try:
        with hide_small_bar(sum(file.stat().st_size for file in weight_files(path))):
            yield
    finally:
        logger.removeFilter(_is_not_report)


def _is_not_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def load_processor(folder: ModelFolder):
    """A model folder's processor, padding on the left. Raises ModelError."""
    from transformers import AutoProcessor

    options = {"trust_remote_code": False, "local_files_only": True, "padding_side": "left"}
    try:
        first = first_generation(folder.config)
        read = first.load_processor if first else AutoProcessor.from_pretrained
        processor: Any = read(folder.path, **options)
    except Exception as error:  # as above
        raise ModelError(
            f"{folder.path} has no usable processor ({one_line(error)}); it needs the "
            "tokenizer and preprocessor files of the original model next to the weights"
        ) from error
    _check_template(processor, folder)
    processor.video_processor.cap_pixels_per_frame = True  # as qwen-vl-utils limits clips
    return processor


def _check_template(processor: Any, folder: ModelFolder) -> None:
    """Raises ModelError where there is no chat template; warns of one for text alone."""
    remedy = "copy chat_template.jinja of the original model into it"
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"{folder.path} has no chat template; {remedy}")
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        with limit_template():
            shown = processor.apply_chat_template(question, tokenize=False)
        if processor.image_token in shown:
            return
    except ModelError:
        raise
    except Exception:  # templates raise any exception
        pass
    warn_user(f"{folder.path} has a chat template of a text model, without pictures; {remedy}")


@contextmanager
def limit_template() -> Iterator[None]:
    """Raises ModelError where a chat template that is applied in the block does not end."""
    try:
        with limit_time(TEMPLATE_SECONDS):
            yield
    except TimeoutError:
        raise ModelError(
            f"the model's chat template did not end within {TEMPLATE_SECONDS:g} s; copy "
            "chat_template.jinja of the original model into its folder"
        ) from None


def base_model(vlm: VLM) -> Any:
    """The transformers model without an adapter's wrapper; its layers keep the adapter."""
    return vlm.model.get_base_model() if hasattr(vlm.model, "get_base_model") else vlm.model


def weights_state(network: Any) -> list:
    """Equal as long as no weight or adapter has changed; a change through ``.data`` is not seen."""
    _count_steps()
    modules = list_modules(network)
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    adapters = [
        repr([getattr(part, name, None) for name in names])
        for part in modules  # transformers' models have a method of this name
        if isinstance(getattr(type(part), "disable_adapters", None), property)
    ]
    return [weights, adapters]


@cache
def _count_steps() -> None:
    """Let torch's optimizers count each step as a change; fused ones do not by themselves."""
    from torch.autograd.graph import increment_version
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def count(optimizer: Any, *_: Any) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        increment_version([p for p in trained if p.grad is not None])

    register_optimizer_step_post_hook(count)


def list_modules(network: Any) -> list[Any]:
    """All modules; in a tenth of the time of ``network.modules()``, which each question would pay.

    One that has two places comes twice.
    """
    found = [network]
    for module in found:  # it grows meanwhile
        found += [child for child in module._modules.values() if child is not None]
    return found


def _settings(config: Any) -> dict:
    """The values of a configuration on which answers depend; {} for None."""
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return {name: values[name] for name in values if name not in _WITHOUT_EFFECT}


def _network_key(network: Any) -> str:
    state, _ = weights_state(network)
    known, key = _known.get(network, (None, ""))
    if known != state:
        parameters = list(network.named_parameters())
        shapes = [(name, str(p.dtype), list(p.shape)) for name, p in parameters]
        key = digest([shapes, _checksums([p for _, p in parameters])])
        _known[network] = (state, key)
    adapters = map(_settings, getattr(network, "peft_config", {}).values())  # with their scaling
    return digest([key, _settings(getattr(network, "generation_config", None)), *adapters])


def _checksums(parameters: list) -> list[int]:
    """Exact sums of the weights' bits, the same on every device and number of threads."""
    import torch

    sums = []
    for parameter in parameters:
        if parameter.device.type == "meta":  # offloaded to disk
            continue
        bits = parameter.detach().contiguous().view(-1).view(torch.uint8)
        whole = 4 if bits.numel() % 4 == 0 and bits.storage_offset() % 4 == 0 else 1
        bits = bits.view(torch.int32) if whole == 4 else bits
        chunks = [chunk.sum(dtype=torch.int64) for chunk in bits.split(_CHUNK)]
        sums += [int(value) for value in torch.stack(chunks).tolist()] if chunks else []
    return sums
