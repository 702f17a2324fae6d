"""Autoregressive models of anything with an order: a net over sequences between two ends (``nn.emission``).

    log p(x) = sum_t log p(u_t | u_0, ..., u_{t-1}) + log p(end | u_0, ..., u_T)

for the steps u_1, u_2, ... that a datum is made of (``codecs.steps``): symbols or subwords of a text, levels of a
sound, rows of a sequence, patches of an image. u_0 is the beginning: row i of the net's output is the
distribution of step i + 1, so nothing is left unscored.

The families that share this are in ``sequence`` and ``image_gpt``.

Training is one parallel pass over whole data, or over windows of long ones. A sampler keeps the net's cache: a
step costs the arithmetic of one step. A net of limited context scores longer data in windows that move by a
stride, and samples them in the same windows, so what is sampled is what is scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pofx.codecs.steps import Codec, Plain, Predicted, Span, Subwords, TextCodec
from pofx.codecs.windows import Whole, Windows, context, spans
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, TrainingSet
from pofx.core.likelihood import Exact, Kind, Likelihood, LowerBound, make
from pofx.core.model import Budget, Model, Sampler
from pofx.core.noise import RowNoise
from pofx.core.space import Ragged, Space
from pofx.decode.decoding import Decoding, drafted, search, stops
from pofx.decode.net import NetDecoder
from pofx.decode.strategies import choose
from pofx.families.conditioned import Conditioned
from pofx.nn.emission import Emission, StepHead, TokenHead
from pofx.nn.encoders import Encoded, no_encoder, told
from pofx.nn.heads import Head, LevelLogistics
from pofx.nn.sequence import SequenceNet
from pofx.nn.sites import Heads, heads_for, image_head, side_by_side
from pofx.nn.transformer import Transformer
from pofx.spaces import Audio, Image, Label, Sequence, Table, Text

LOOK = 500  # training rows that are looked at before training
READ = 256  # excerpts that are read together
UNBEGUN = 1 / 32  # share of an excerpt's windows that begin with nothing before them


class Stepwise(Conditioned):
    """Base of families over sequences of steps; a subclass builds ``net`` in ``build``."""

    taxonomy = "explicit density / tractable / autoregressive"
    claims = frozenset({Exact, LowerBound})
    uses_stride = True
    continues = True
    decodes = True
    config: Any

    def __init__(self, config: Any, space: Space, context: Space | None = None) -> None:
        super().__init__(config, space, context)
        self.codec: Codec = self.make_codec()
        self.emission: Emission = self.make_emission()
        self.net: SequenceNet = self.build(config)
        self.given_in = None if context is None else nn.Linear(self.known, config.width, bias=False)

    # -- what a family writes, or may change --------------------------------------------------------------

    def build(self, config: Any) -> SequenceNet:
        raise NotImplementedError

    def make_codec(self) -> Codec:
        if isinstance(self.space, Text) and self.config.vocabulary:
            return Subwords(self.space, self.config.vocabulary)
        if isinstance(self.space, Audio) and self.config.prediction:
            return Predicted(self.space, self.config.prediction)
        assert isinstance(self.space, Ragged)
        return Plain(self.space, single=isinstance(self.space, Audio))

    def make_emission(self) -> Emission:
        config, space = self.config, self.space
        if isinstance(space, Text):
            size = config.vocabulary or space.symbols
            options = {"tied": config.tied, "marginal": config.marginal, "small": self.small_embeddings}
            return TokenHead(size, config.width, has_eos=space.has_eos, **options)
        assert isinstance(space, Audio | Sequence)
        return StepHead(self.step_heads(), config.width, hidden=config.inner_width, has_eos=space.has_eos)

    @property
    def small_embeddings(self) -> bool:
        """Is something added to the embeddings of symbols that starts as small as ``nn.emission.START``?"""
        return False

    def step_heads(self) -> Heads:
        config, space = self.config, self.space
        if isinstance(space, Audio):
            if config.prediction:
                head: Head = LevelLogistics(space.levels, config.components, (1,), errors=True)
            else:
                head = image_head("auto", space.levels, components=config.components, sites=(1,))
            return Heads(side_by_side(1), [head], [[0]])
        assert isinstance(space, Sequence)
        return heads_for(space.step, components=config.components)

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        if isinstance(space, Table):
            return "rows of a table have no order of steps. --sequence COLUMN makes sequences of them; or fit a made."
        if isinstance(space, Label | Image):
            return "its data have no order of steps. Fit a made, a pixelcnn or an image-gpt."
        if reason := no_encoder(context):
            return reason
        if config.vocabulary and not (isinstance(space, Text) and config.vocabulary >= 256):
            return f"vocabulary={config.vocabulary} goes with texts, and is 256 or more. Leave it out for symbols."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        yield from super().idle(space, context, config)
        if isinstance(space, Text):
            yield from ("components", "inner_width")
        else:
            yield from ("vocabulary", "tied", "marginal")
        if not isinstance(space, Audio):
            yield "prediction"

    # -- training -------------------------------------------------------------------------------------------

    def prepare(self, x: Any, c: Tensor | None, weight: Tensor | None, generator: torch.Generator) -> None:
        super().prepare(x, c, weight, generator)
        some = x[torch.randperm(len(x), generator=generator)[:LOOK]]
        if isinstance(self.codec, Subwords):
            assert isinstance(self.space, Text)
            self.codec.learn([self.space.spell(row) for row in some])
        elif isinstance(self.codec, Predicted):
            self.codec.learn(some)
        u = self.codec.encode(some)
        self.emission.prepare(u[~self.emission.filled(u)], ends=len(u) if self._has_eos else 0)

    def training_set(self, x: Any) -> TrainingSet:
        """Whole data where they fit into a block, else windows over them."""
        fill, pad, block = self.emission.fill, self.emission.pad, self.config.block
        if self.codec.fixed or (self._has_eos and self._longest < block and self.codec.kind is Exact):
            return Whole(x, self.codec.encode, fill, pad)
        runs, owners = (x, torch.arange(len(x))) if self._has_eos or isinstance(x, Tensor) else x.runs()
        bounds = [*owners.tolist(), len(x)]

        def stretches(i: int) -> Iterator[Tensor]:
            own = range(bounds[i], bounds[i + 1], READ)
            parts = (x[j : min(j + READ, bounds[i + 1])] for j in own) if self.codec.apart else [runs[i : i + 1]]
            for rows in parts:
                u = self.codec.encode(rows)
                yield u[~self.emission.filled(u)]

        windows = Windows(map(stretches, range(len(runs))), owners, fill, pad, self.emission.kept, block)
        if windows.targets < block:
            raise UsageError(
                f"All training data together have {windows.targets} steps, fewer than one block of {block}.",
                "Give more data, or a smaller block: --options.block.",
            )
        return windows

    def learner(self, recipe: Recipe) -> Learner:
        fill, filled = self.emission.fill, self.emission.filled

        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            u = batch.x
            if not self._has_eos and not self.codec.fixed:  # excerpts have no beginning of their own
                unbegun = batch.rand(generator=generator) < UNBEGUN
                first = torch.where(unbegun.view(-1, *[1] * (u.ndim - 1)), fill, u[:, :1])
                u = torch.cat([first.to(u.dtype), u[:, 1:]], 1)
            inputs, targets = u[:, :-1], u[:, 1:]
            log_p = self.emission.log_prob(self._run(inputs, self.batch_context(batch, generator)), targets)
            idle = self.emission.padded(targets) if self._has_eos else filled(targets)
            if batch.c is not None:  # what follows in a window is of another datum, with another context
                idle = idle | (filled(targets).cumsum(1) > filled(targets).long())
            return {"loss": -log_p.masked_fill(idle, 0.0).sum(1) / self.targets}

        return GradientLearner(self, recipe, objective, self.net.matrices())

    @property
    def targets(self) -> int:
        """By what a piece's loss is divided: the same for all, so that it is near nats per step."""
        return self.codec.fixed or min(self.config.block, self._longest)

    @property
    def _longest(self) -> int:
        """Of the data, in units of their free axis."""
        assert isinstance(self.space, Ragged)
        return self.space.length

    @property
    def _has_eos(self) -> bool:
        return isinstance(self.space, Ragged) and self.space.has_eos

    @property
    def attends(self) -> bool:
        return isinstance(self.net, Transformer)

    def encode_context(self, c: Tensor, dropped: Tensor | None = None) -> Encoded:
        """With the contexts themselves, which a draft encodes, too."""
        return replace(super().encode_context(c, dropped), raw=c)

    def _needed(self, e: Encoded) -> Encoded:
        """With vectors of the net's own width."""
        assert self.given_in is not None
        return replace(super()._needed(e), vector=self.given_in(e.vector))

    def _embed(self, u: Tensor, h: Encoded | None, first: int = 0) -> Tensor:
        """Steps [N, L, ...], from number ``first`` on, and contexts whose vectors are [N, width], or [N, steps, width]
        where each step has its own, -> the net's inputs [N, L, width]."""
        e = self.emission.embed(u)
        if h is None:
            return e
        return e + (h.vector[:, None] if h.vector.ndim == 2 else h.vector[:, first : first + u.shape[1]])

    def _run(self, u: Tensor, h: Encoded | None) -> Tensor:
        """The net's outputs [N, L, width] for steps u [N, L, ...] and contexts h."""
        return self.net(self._embed(u, h), *told(h))

    # -- likelihood -----------------------------------------------------------------------------------------

    @property
    def step_kind(self) -> Kind:
        return self.codec.kind

    def rows_log_prob(self, x: Tensor, c: Encoded | None, budget: Budget, noise: RowNoise) -> Likelihood:
        each = self.rows_log_probs(x, c, None, budget)
        return make(self.step_kind, each.sum(1, dtype=torch.float64), self.space.measure)

    def rows_log_probs(self, x: Tensor, c: Encoded | None, before: Tensor | None, budget: Budget) -> Tensor:
        u, begins, size, width = self._line(x, before)
        log_p = torch.zeros(u.shape[:2], device=u.device)
        for start, first, last in self._spans(u.shape[1] - 1, budget.stride):
            if last >= int(begins.min()):
                y = self._run(u[:, start:last], c)[:, first - 1 - start :]
                log_p[:, first : last + 1] = self.emission.log_prob(y, u[:, first : last + 1])
        j = torch.arange(width + 1, device=u.device)
        return _at(log_p, begins[:, None] + j, 0.0).masked_fill(j >= size[:, None] + int(self._has_eos), 0.0)

    def _line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor, int]:
        """Fill, steps before x, those of x, fill [N, M, ...]; where x begins [N]; its steps [N]; the most of them."""
        fill, filled = self.emission.beginning(len(x)), self.emission.filled
        if self.codec.aligned:  # in one line, for steps may depend on data before them
            sizes = [self._sizes(v) for v in (before, x) if v is not None]
            most, line = x.shape[1], self.codec.encode(x if before is None else self._closed(torch.cat([before, x], 1)))
        else:
            parts = [self.codec.encode(v) for v in (before, x) if v is not None]
            sizes, most, line = [(~filled(u)).sum(1) for u in parts], parts[-1].shape[1], torch.cat(parts, 1)
            line = _at(line, filled(line).long().argsort(dim=1, stable=True), self.emission.fill)
        size, begins = sizes[-1], 1 + sum(sizes[:-1]) + torch.zeros_like(sizes[-1])
        u = torch.cat([fill.to(line.dtype), line, fill.to(line.dtype)], 1)
        return u, begins, size, most

    def _sizes(self, x: Tensor) -> Tensor:
        """How long each datum is [N]."""
        assert isinstance(self.space, Ragged)
        return self.space.lengths(x)

    def _closed(self, x: Tensor) -> Tensor:
        """Data [N, L, ...] with fill between: all of it at the end."""
        assert isinstance(self.space, Ragged)
        gap = (x if x.ndim == 2 else x[..., 0]) == self.space.fill
        return _at(x, gap.long().argsort(dim=1, stable=True), self.space.fill)

    def _spans(self, targets: int, stride: int | None) -> Iterator[tuple[int, int, int]]:
        """The windows of ``nn.windows.spans``; one, where the net takes inputs of any length."""
        block = self.net.longest or targets
        stride = stride or self.stride
        if stride > block:
            raise UsageError(f"A stride of {stride} is longer than the block of {block}.", "Give less.")
        return spans(targets, block, stride)

    @property
    def window(self) -> tuple[int, int] | None:
        return None if self.net.longest is None else (self.net.longest, self.stride)

    def rows_spans(self, x: Tensor) -> list[list[Span]]:
        return self._text_codec.spans(x)

    @property
    def stride(self) -> int:
        """How far the window moves, unless a budget says otherwise: half of it is context at the least."""
        return max(1, (self.net.longest or 2) // 2)

    def rows_per_pass(self) -> int:
        """About 2^24 numbers of the widest layer."""
        each = self.codec.fixed or min(self.config.block, self._longest)
        return max(1, min(1024, 2**24 // (8 * self.config.width * each)))

    def quick_budget(self) -> Budget:
        """Windows end to end, each symbol read once: less context, half the work."""
        return Budget(stride=self.net.longest if self.uses_stride else None)

    def rows_per_draw(self) -> int:
        """A step of many rows costs little more than one of few: the cache alone is a limit."""
        return 512

    # -- samples --------------------------------------------------------------------------------------------

    def rows_sample(self, n: int, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        return self._spelled(self._go_on(self.emission.beginning(n), c, sampler, generator), sampler)

    def rows_sample_after(
        self, before: Tensor, c: Encoded | None, sampler: Sampler, generator: torch.Generator
    ) -> Tensor:
        u = self._begun(before)
        return self._spelled(self._go_on(u, c, sampler, generator), sampler, u)

    def rows_best(self, n: int, before: Tensor, c: Encoded | None, sampler: Sampler) -> Tensor:
        decoding, u = sampler.decoding, self._begun(before)
        if n > decoding.beams:
            raise UsageError(f"{decoding.beams} beams have no {n} best texts.", f"Search with {n} beams or more.")
        found = search(self._decoder(u, c, sampler), self._most(sampler), decoding, u, self._end)
        best = self._told(found[0, :n])
        best = best[:, : max(1, int((best >= 0).sum(1).max()))]
        return self._spelled(best, sampler, u.expand(n, -1))

    def rows_stream(
        self, before: Tensor, c: Encoded | None, sampler: Sampler, generator: torch.Generator
    ) -> Iterator[str]:
        u, decoding = self._begun(before), sampler.decoding
        spell, text, symbols = self._text_codec.detokenizer(u[0, 1:].tolist()), "", list[int]()
        for step in itertools.chain(self._steps(u, c, sampler, generator), [None]):
            if step is not None and int(step) < 0:
                continue
            piece, over = spell(None if step is None else int(step)), False
            if step is not None and isinstance(self.codec, Subwords):  # the last may reach over the length
                symbols.append(int(step))
                x = self._spelled(u.new_tensor([symbols]), sampler, u)[0]
                if over := len(x) >= (sampler.length or self._longest):
                    assert isinstance(self.space, Text)
                    piece = self.space.spell(x)[len(text) :]
            text += piece
            if decoding is not None and (whole := decoding.until_stop(text)) is not None:
                piece, over = piece[: len(piece) - len(text) + len(whole)], True
            yield piece
            if over:
                return

    def _begun(self, before: Tensor) -> Tensor:
        """Fill, then the steps of ``before`` [N, 1 + K, ...]."""
        u = self.codec.encode(before)
        u = u[:, : int((~self.emission.filled(u)).sum(1).max())]
        if self.net.longest and u.shape[1] > self.net.longest:
            raise UsageError(
                f"A beginning of {u.shape[1]} steps is longer than the context of {self.net.longest}.",
                f"Give its last {self.net.longest} steps.",
            )
        return torch.cat([self.emission.beginning(len(u)), u], 1)

    def _most(self, sampler: Sampler) -> int:
        return self.codec.fixed or sampler.length or self._longest

    @torch.inference_mode()
    def _go_on(self, u: Tensor, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """Steps [N, L, ...] drawn after u [N, 1 + K, ...], fill before and after the K or fewer that are given."""
        filled, given, most = self.emission.filled, (~self.emission.filled(u)).sum(1), self._most(sampler)
        if sampler.decoding is not None and sampler.decoding.aligned:  # rows of one length at a time
            out = u.new_full((len(u), most), self.emission.fill)
            for k in given.unique().tolist():
                rows = given == k
                some = None if c is None else c[rows]
                steps = torch.stack(list(self._steps(u[rows, : 1 + k], some, sampler, generator)), 1)
                out[rows, : steps.shape[1]] = steps
        else:
            line = [u[:, : int(given.min()) + 1]]
            line += [step[:, None] for step in self._steps(u, c, sampler, generator)]
            out = _at(torch.cat(line, 1), given[:, None] + 1 + torch.arange(most, device=u.device), self.emission.fill)
        return out[:, : self.codec.fixed or max(1, int((~filled(out)).sum(1).max()))]

    def _steps(self, u: Tensor, c: Encoded | None, sampler: Sampler, generator: torch.Generator) -> Iterator[Tensor]:
        """Steps [N, ...] one after the other, from the end of the shortest beginning of u [N, 1 + K, ...] on.

        Rows begin together: while one still has steps given, the others draw theirs.
        """
        decoding, filled, given = sampler.decoding, self.emission.filled, (~self.emission.filled(u)).sum(1)
        if decoding is not None and not isinstance(self.emission, TokenHead):
            raise Unsupported(f"{self.space} have no symbols to decode.", "Leave out the decoding, or fit texts.")
        stop = None if decoding is None else stops(decoding, self._spell)
        if decoding is not None and decoding.draft is not None:
            other = self._checked(decoding.draft)
            own = c and (other.null_context(len(u)) if c.raw is None else other.encode_context(c.raw))
            target, draft = self._decoder(u, c, sampler), other._decoder(u, own, sampler)
            drawn = drafted(target, draft, self._most(sampler), decoding, generator, u, self._end, stop)
            yield from map(self._told, drawn)
            return
        together, whole = int(given.min()), int(given.max()) + self._most(sampler)
        reader = Reader(self, len(u), c, whole)
        line = [u[:, : together + 1]]
        y, over = reader.read(line[0]), torch.zeros(len(u), dtype=torch.bool, device=u.device)
        if decoding is None and not self._has_eos and together == int(given.max()):  # whatever is drawn comes next
            for t in range(together + 1, whole + 1):
                step = self.emission.sample(y, generator).to(u.dtype)
                yield step
                if t < whole:
                    y = reader.read(step[:, None])
            return
        for t in range(together + 1, whole + 1):
            step = self._draw(y, line, decoding, generator).to(u.dtype)[:, None]
            if t < u.shape[1]:
                step = torch.where(_like(t <= given, step), u[:, t : t + 1], step)
            over = over | filled(step)[:, 0]
            step = torch.where(_like(over, step), self.emission.fill, step).to(u.dtype)
            yield step[:, 0]
            if decoding is not None:
                line.append(step)
            if stop is not None:
                new = torch.cat(line[1:], 1)
                told = together + 1 + torch.arange(new.shape[1], device=u.device) <= given[:, None]
                over = over | stop(new.masked_fill(told, -1))
            if t == whole or bool(over.all()):
                break
            y = reader.read(step)

    def _draw(self, y: Tensor, line: list[Tensor], decoding: Decoding | None, generator: torch.Generator) -> Tensor:
        """A step [N, ...] given the net's output y [N, width] after ``line``."""
        if decoding is None:
            return self.emission.sample(y, generator)
        assert isinstance(self.emission, TokenHead)
        logits = decoding.processor(self.emission.logits(y), decoding.past(line))
        return self._told(choose(logits, decoding.source(generator)))

    # -- texts: symbols that decoding knows ------------------------------------------------------------------

    @property
    def _text_codec(self) -> TextCodec:
        if not isinstance(self.space, Text):
            raise Unsupported(f"{self.space} are no texts.", "Fit texts.")
        codec: Any = self.codec
        return codec

    @property
    def _end(self) -> int | None:
        """The symbol that ends; None where none does."""
        assert isinstance(self.emission, TokenHead)
        return self.emission.end if self._has_eos else None

    def _told(self, symbols: Tensor) -> Tensor:
        """-1 for the end."""
        assert isinstance(self.emission, TokenHead)
        return symbols.masked_fill(symbols == self.emission.end, -1)

    def _spell(self, symbols: list[int]) -> str:
        assert isinstance(self.space, Text)
        return self.space.spell(self.codec.decode(torch.tensor([symbols]))[0])

    def _spelled(self, u: Tensor, sampler: Sampler, before: Tensor | None = None) -> Tensor:
        """Steps u [N, L, ...] drawn after ``before`` [N, 1 + K, ...] as data.

        Where strings stop them, what stands after these in the same step is left out.
        """
        x = self.codec.decode(u) if before is None else self.codec.decode_after(before[:, 1:], u)
        if isinstance(self.codec, Subwords):  # which may reach over the length that was asked for
            x = x[:, : sampler.length or self._longest]
        if sampler.decoding is None or not sampler.decoding.stop:
            return x
        assert isinstance(self.space, Text)
        x = x.clone()
        for row in x:
            row[self.space.after_first(row, sampler.decoding.stop) :] = -1
        return x[:, : max(1, int((x >= 0).sum(1).max()))]

    def _decoder(self, u: Tensor, c: Encoded | None, sampler: Sampler) -> NetDecoder:
        """A decoder that has read fill and beginnings u [N, 1 + K] of one length."""
        assert isinstance(self.emission, TokenHead)
        return NetDecoder(self.net, self.emission, u, self._most(sampler), c, self.stride)

    def _checked(self, draft: Model) -> Stepwise:
        """The draft, which must read and write what this model does."""
        alike = isinstance(draft, Stepwise) and draft.context == self.context and draft._symbols == self._symbols
        if not isinstance(draft, Stepwise) or not alike:
            raise UsageError(
                f"The draft is a {draft.name} over {draft.space}, whose symbols are not those of this {self.name} "
                f"over {self.space}.",
                "Draft with a smaller model that was fitted to the same data with the same vocabulary.",
            )
        return draft

    @property
    def _symbols(self) -> tuple[Any, ...] | None:
        """What its symbols are: the same for models that may draft for each other. None where it has none."""
        if not isinstance(self.space, Text) or not isinstance(self.emission, TokenHead):
            return None
        words = self.codec.json if isinstance(self.codec, Subwords) else ""
        return self.space.alphabet, self.space.has_eos, words, len(self.emission.base)


class Reader:
    """A net that reads steps one after the other, through its cache, in the windows that also score."""

    def __init__(self, model: Stepwise, n: int, h: Encoded | None, length: int) -> None:
        self.model, self.n, self.h, self.length = model, n, h, length
        self.limit = min(length, model.net.longest or length)
        self.cache = model.net.cache(n, self.limit, *told(h))
        self.size, self.past = 0, [model.emission.beginning(n)[:, :0]]

    def read(self, u: Tensor) -> Tensor:
        """Take steps [n, k, ...]; the net's output [n, width] after them."""
        model = self.model
        self.past.append(u)
        if self.size + u.shape[1] > self.limit:  # the window moves on
            self.past = [torch.cat(self.past, 1)[:, -self.limit :]]
            u = self.past[0][:, -context(self.limit, model.stride) :]
            self.cache, self.size = model.net.cache(self.n, self.limit, *told(self.h)), 0
        x = model._embed(u, self.h, self.size)
        self.size += u.shape[1]
        return self.cache.step(x[:, 0]) if x.shape[1] == 1 else self.cache.extend(x)[:, -1]


def _like(flags: Tensor, steps: Tensor) -> Tensor:
    """Flags [N] that broadcast with steps [N, ...]."""
    return flags.view(-1, *[1] * (steps.ndim - 1))


def _at(line: Tensor, index: Tensor, fill: float) -> Tensor:
    """The entries of each row of line [N, M, ...] at index [N, K]; ``fill`` where there are none."""
    found = line[torch.arange(len(line), device=line.device)[:, None], index.clamp(max=line.shape[1] - 1)]
    beyond = index >= line.shape[1]
    return found.masked_fill(beyond.view(*beyond.shape, *[1] * (line.ndim - 2)), fill)
