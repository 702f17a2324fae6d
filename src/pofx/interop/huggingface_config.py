"""config.json of Hugging Face checkpoints, and the ``Shape`` of our transformer that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pofx.core.errors import CorruptCheckpoint, Unsupported, UsageError
from pofx.nn.transformer import Bias, Shape

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
KNOWN = ", ".join(CLASSES)
GPT2 = {"width": "n_embd", "layers": "n_layer", "n_heads": "n_head", "block": "n_positions"}
LLAMA = {
    "width": "hidden_size", "layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "hidden": "intermediate_size", "block": "max_position_embeddings",
}  # fmt: skip
Config = dict[str, Any]


def shape_of(kind: str, config: Config, folder: Path) -> tuple[Shape, int, bool]:
    """The shape, the vocabulary, and whether the embedding is tied. An absent key has transformers' default."""
    get = _Getter(config, folder)
    tied = bool(config.get("tie_word_embeddings", kind == "gpt2"))
    get.only("quantization_config", None, "Read the weights before they were quantized.")
    sizes: dict[str, Any] = {ours: get.size(theirs) for ours, theirs in (GPT2 if kind == "gpt2" else LLAMA).items()}
    if kind == "gpt2":
        get.only("activation_function", "gelu_new", default="gelu_new", also=("gelu_pytorch_tanh",))
        get.only("scale_attn_weights", True, default=True)
        get.only("scale_attn_by_inverse_layer_idx", False, default=False)
        get.only("add_cross_attention", False, default=False)
        more = dict(
            hidden=config.get("n_inner") or 0,
            positions="learned",
            norm="layer",
            eps=config.get("layer_norm_epsilon", 1e-5),
            mlp="gelu",
            qk_norm=False,
            bias="all",
        )
    else:
        get.only("hidden_act", "silu", default="silu")
        more = dict(
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else 0),
            n_kv_heads=config.get("num_key_value_heads") or (0 if kind == "llama" else get.size("num_key_value_heads")),
            positions="rotary",
            theta=_theta(get),
            norm="rms",
            eps=config.get("rms_norm_eps", 1e-6),
            mlp="swiglu",
            qk_norm=kind == "qwen3",
            bias=_bias(kind, get),
            window=_window(kind, get),
        )
    try:
        return Shape(**sizes, **more), get.size("vocab_size"), tied
    except UsageError as error:
        raise CorruptCheckpoint(f"{folder / 'config.json'}: {error}") from error


def _theta(get: _Getter) -> float:
    """The base of rotary positions. transformers 5 keeps all about them in ``rope_parameters``, 4 beside each other."""
    rope: Config = get.config.get("rope_parameters") or get.config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(v, dict) for v in rope.values()):
        kind = "one per kind of layer"
    if kind != "default":
        raise get.unsupported("rope_type", kind, "Read a checkpoint with plain rotary positions.")
    if (part := rope.get("partial_rotary_factor", get.config.get("partial_rotary_factor", 1.0))) != 1.0:
        raise get.unsupported("partial_rotary_factor", part)
    return float((get.config | rope).get("rope_theta", 10000.0))


def _bias(kind: str, get: _Getter) -> Bias:
    if kind == "qwen2":
        return "qkv"
    attention, mlp = (bool(get.config.get(k, False)) for k in ("attention_bias", "mlp_bias"))
    if kind == "llama" and attention == mlp:
        return "all" if mlp else "none"
    if attention or mlp:
        raise get.unsupported("attention_bias and mlp_bias", (attention, mlp), "Llama may have both biases or none.")
    return "none"


def _window(kind: str, get: _Getter) -> int:
    """How far back attention sees in all layers; 0 for no limit."""
    config, layers = get.config, get.size("num_hidden_layers")
    if kind == "llama":
        return 0
    if kind == "mistral":
        return config.get("sliding_window", 4096) or 0
    size = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "sliding_attention" if size and i >= first else "full_attention" for i in range(layers)
    ]
    if len(set(kinds)) != 1 or kinds[0] not in ("full_attention", "sliding_attention"):
        raise get.unsupported("layer_types", kinds, "All layers must have the same window, or none.")
    return (size or 0) if kinds[0] == "sliding_attention" else 0


def architecture(shape: Shape) -> str:
    """The model_type that has this shape. Raises Unsupported where none has, with the options of the nearest."""
    rotary = {"positions": ("rotary",), "norm": ("rms",), "mlp": ("swiglu",)}
    learned = {"positions": ("learned",), "norm": ("layer",), "mlp": ("gelu",)}
    plain: dict[str, tuple[Any, ...]] = {"qk_norm": (False,)}
    whole = {"groups": (shape.n_heads,), "each": (shape.width // shape.n_heads,)}
    kinds: dict[str, dict[str, tuple[Any, ...]]] = {
        "gpt2": learned | plain | whole | {"bias": ("all",), "window": (0,)},
        "llama": rotary | plain | {"bias": ("none", "all"), "window": (0,)},
        "mistral": rotary | plain | {"bias": ("none",)},
        "qwen2": rotary | plain | {"bias": ("qkv",)},
        "qwen3": rotary | {"qk_norm": (True,), "bias": ("none",)},
    }
    wrong = {kind: [k for k, may in has.items() if getattr(shape, k) not in may] for kind, has in kinds.items()}
    kind = min(wrong, key=lambda k: len(wrong[k]))
    if not wrong[kind]:
        return kind
    lacks = ", ".join(f"{k}={getattr(shape, k)!r} (not {kinds[kind][k][0]!r})" for k in wrong[kind])
    options = " ".join(_option(k, kinds[kind][k][0]) for k in wrong[kind])
    raise Unsupported(f"The nearest of {KNOWN} is {kind}, which has no {lacks}.", f"Fit with {options}.")


def _option(name: str, value: Any) -> str:
    """As it is said to ``pofx fit``."""
    if name in ("groups", "each"):
        name, value = {"groups": "n-kv-heads", "each": "head-dim"}[name], 0
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--options.{'' if value else 'no-'}{name}"
    return f"--options.{name} {value}"


def config_of(kind: str, shape: Shape) -> Config:
    """The shape in the words of config.json."""
    config: Config = {theirs: getattr(shape, ours) for ours, theirs in (GPT2 if kind == "gpt2" else LLAMA).items()}
    if kind == "gpt2":
        drop = {f"{k}_pdrop": shape.dropout for k in ("embd", "resid")} | {"attn_pdrop": 0.0}
        inner = {"n_inner": shape.inner, "activation_function": "gelu_new", "layer_norm_epsilon": shape.eps}
        return config | inner | drop
    config |= {
        "num_key_value_heads": shape.groups,
        "head_dim": shape.each,
        "intermediate_size": shape.inner,
        "hidden_act": "silu",
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "attention_dropout": 0.0,
    }
    if kind == "llama":
        config |= {"attention_bias": shape.bias == "all", "mlp_bias": shape.bias == "all"}
    elif kind == "mistral":
        config["sliding_window"] = shape.window
    else:
        config |= {"use_sliding_window": shape.window > 0, "sliding_window": shape.window or None}
        config["max_window_layers"] = 0 if shape.window else shape.layers
    return config


class _Getter:
    """Values of a config.json, with errors that name it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.path = config, folder / "config.json"

    def size(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or value < 1:
            raise CorruptCheckpoint(f"{self.path} has {key}={value}; it needs a whole number from 1.", "Get it again.")
        return value

    def only(self, key: str, value: Any, remedy: str = "", *, default: Any = None, also: tuple[Any, ...] = ()) -> None:
        """Raises Unsupported where the key has another value."""
        if (found := self.config.get(key, default)) not in (value, *also):
            raise self.unsupported(key, found, remedy or f"Only {key}={value!r} is read.")

    def unsupported(self, key: str, value: Any, remedy: str = "") -> Unsupported:
        return Unsupported(f"{self.path} has {key}={value!r}, which this transformer does not have.", remedy)


def kind_of(config: Config, folder: Path) -> str:
    """The model_type. Raises Unsupported where it is not one of ours."""
    if (kind := config.get("model_type")) not in CLASSES:
        raise Unsupported(f"{folder} holds a {kind}.", f"Read one of {KNOWN}.")
    return str(kind)


def ends_of(config: Config, vocabulary: int, folder: Path) -> tuple[int, int]:
    """The symbols that begin and end a text; the first, where several end it."""
    begin, end = config.get("bos_token_id"), config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    found = [s for s in (begin, end) if isinstance(s, int)]
    if not found or not all(0 <= s < vocabulary for s in found):
        raise CorruptCheckpoint(
            f"{folder / 'config.json'} has bos_token_id={begin} and eos_token_id={end}, of {vocabulary} symbols.",
            "Write the number of the symbol that ends a text as eos_token_id.",
        )
    return found[0], found[-1]
