"""Families over texts, sounds and sequences: nets for ``continuing``.

gpt         a transformer (Radford et al. 2019)
rnn         an LSTM (Mikolov et al. 2010, Graves 2013)
wavenet     dilated causal convolutions (van den Oord et al. 2016)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pofx.core.family import serving
from pofx.core.learner import Recipe
from pofx.core.options import BELOW_ONE, at_least
from pofx.core.requests import Windowed, WindowedTokens
from pofx.core.space import Space
from pofx.families.continuing import Continuing, StepOptions
from pofx.nn.encoders import has_tokens
from pofx.nn.recurrent import Lstm
from pofx.nn.sequence import SequenceNet
from pofx.nn.transformer import Shape, Transformer, learned
from pofx.nn.wavenet import WaveNet

# ----------------------------------------------------------------------------------------------- gpt


@dataclass(frozen=True)
class GptConfig(StepOptions, Shape):
    """Options of ``gpt``, beside those of its transformer and of its steps.

    Attributes:
        context_as: how the net is told the tokens of a context: each of its layers attends to them ("attention"), or
            they stand before the steps ("prefix"; with context_layers=0 one causal net reads both).
    """

    context_as: Literal["attention", "prefix"] = "attention"


class Gpt(Continuing):
    name = "gpt"
    estimators = (Windowed, WindowedTokens)
    summary = "a transformer predicts each symbol, level or step from all before it"
    paper = "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language models are unsupervised multitask learners"
    Config = GptConfig
    config: GptConfig

    def build(self, config: GptConfig) -> SequenceNet:
        prefix = config.context_as == "prefix" and self.memory > 0
        return Transformer(config, memory=self.memory, prefix=prefix)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if config.context_as == "prefix" and (learned(config) or config.window):
            what = "positions=learned counts from" if learned(config) else f"window={config.window} forgets"
            return f"{what} the first step, and with context_as=prefix the context is before it. Leave out one of them."
        return super().refuses(space, context, config)

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if not has_tokens(context):
            yield "context_as"

    @property
    def small_embeddings(self) -> bool:
        """Positions would be lost beside large ones, and learned late."""
        return learned(self.config)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, width=32, layers=2, n_heads=2, block=32, components=4, inner_width=32)

    @classmethod
    def variants(cls, space: Space) -> dict[str, Any]:
        tiny = cls.tiny(space)
        return {
            "prefix": replace(tiny, context_as="prefix"),
            "context in subwords": replace(tiny, context_vocabulary=300, context_width=16, context_layers=1),
        }

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(
            batch=12, optimizer="muon", lr=5e-3, schedule="linear", warmup=20,
            weight_decay=0.1, betas=(0.9, 0.99), clip=1.0, ema=0.99,
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------- rnn


@dataclass(frozen=True)
class RnnConfig(StepOptions):
    """Options of ``rnn``, beside those of its steps.

    Attributes:
        width: of the state.
        layers: stacked LSTMs.
        dropout: between them, while training.
        block: the longest training piece, over which gradients flow back.
    """

    width: int = 256
    layers: int = 2
    dropout: float = 0.0
    block: int = 128

    ranges = {"dropout": BELOW_ONE}


class Rnn(Continuing):
    name = "rnn"
    summary = "an LSTM predicts each symbol, level or step from the state it keeps of all before it"
    paper = "Graves 2013, Generating sequences with recurrent neural networks"
    Config = RnnConfig
    config: RnnConfig

    def build(self, config: RnnConfig) -> SequenceNet:
        return Lstm(config.width, config.layers, config.dropout)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(cls, space, width=32, layers=1, block=32, components=4, inner_width=32)

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=32, lr=3e-3, clip=1.0, ema=0.99)


# ------------------------------------------------------------------------------------------- wavenet


@dataclass(frozen=True)
class WaveNetConfig(StepOptions):
    """Options of ``wavenet``, beside those of its steps.

    Attributes:
        width: of a step as it enters and leaves the net.
        depth: layers of a stack, whose dilations double.
        stacks: how many of them follow each other.
        residual: channels of the convolutions.
        skip: channels of the sum over all layers.
        block: the longest training piece.
    """

    width: int = 64
    depth: int = 9
    stacks: int = 2
    residual: int = 48
    skip: int = 128
    block: int = 1024
    components: int = 10

    ranges = {"depth": at_least(1, 20)}  # dilations double


class WaveNetFamily(Continuing):
    name = "wavenet"
    summary = "dilated convolutions predict each level, symbol or step from thousands before it"
    paper = "van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior & Kavukcuoglu 2016, WaveNet"
    Config = WaveNetConfig
    config: WaveNetConfig

    def build(self, config: WaveNetConfig) -> SequenceNet:
        return WaveNet(config.width, config.depth, config.stacks, config.residual, config.skip)

    @classmethod
    def tiny(cls, space: Space) -> Any:
        return serving(
            cls, space, width=32, depth=3, stacks=1, residual=16, skip=32, block=32, components=4, inner_width=32
        )

    @classmethod
    def recipe(cls, space: Space) -> Recipe:
        return Recipe(batch=4 if space.name == "audio" else 32, lr=2e-3, warmup=50, clip=1.0, ema=0.99)
