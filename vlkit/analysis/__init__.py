"""What a model sees, what that costs, where it looks, how sure it is."""

from vlkit.lazy import lazy_names

_HOMES = {
    "preflight": [],
    "attention": ["AttentionMap", "attention_map"],
    "logprobs": ["AnswerLogprobs", "token_logprobs"],
    "input_paths": ["compare_paths"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
