"""Stepwise models of data of free length: texts, sounds, sequences of rows (``codecs.stepped``).

Training is one parallel pass over whole data, or over windows of long ones. A net of limited context measures longer
data in windows that move by a stride, and samples them in the same windows, so what is sampled is what is measured. A
datum may be given what comes before it; symbols of texts may be decoded by rules that change what is drawn.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pofx.codecs.stepped import Stepped, stepped
from pofx.codecs.steps import Codec, Span, TextCodec
from pofx.codecs.windows import spans, whole, windows_over
from pofx.core.abilities import Ability, Continues, Decodes, Searches
from pofx.core.errors import UsageError
from pofx.core.learner import Batch, GradientLearner, Learner, Recipe, TrainingSet
from pofx.core.likelihood import KINDS, Exact, Likelihood, make
from pofx.core.model import Model
from pofx.core.noise import RowNoise
from pofx.core.options import AMOUNT, BELOW_ONE, at_least
from pofx.core.requests import Decoding, ExactLikelihood, Request, Sampler, StepByStep, Tokenised, Windowed
from pofx.core.space import Ragged, Space
from pofx.decode.decoding import drawn, search, until_stop
from pofx.decode.net import NetDecoder
from pofx.families.conditioned import ContextOptions
from pofx.families.stepwise import Stepwise
from pofx.nn.emission import Emission, TokenHead
from pofx.nn.encoders import Encoded, no_encoder
from pofx.spaces import Text

UNBEGUN = 1 / 32  # share of an excerpt's windows that begin with nothing before them


@dataclass(frozen=True)
class StepOptions(ContextOptions):
    """Options of how a step enters and leaves any of the nets.

    Attributes:
        vocabulary: of subwords learned from a text (byte-pair encoding); 0 for its characters or bytes.
        tied: one matrix embeds symbols and reads them out.
        marginal: symbols start at their frequencies, kept beside the weights; exports need it off.
        components: of the mixture that a number's distribution is.
        prediction: samples before one of sound that predict it linearly, the net modelling the errors; 0 for none.
        inner_width: of the masked MLP inside a step of several values.
        smoothing: share of the probability of each symbol that training spreads evenly over all of them (Szegedy et
            al. 2016), for data that may end. It is a loss alone: the likelihood is the model's own.
    """

    vocabulary: int = 0
    tied: bool = False
    marginal: bool = True
    components: int = 8
    prediction: int = 16
    inner_width: int = 128
    smoothing: float = 0.0

    ranges = {"vocabulary": AMOUNT, "prediction": at_least(0, 1024), "smoothing": BELOW_ONE}


class Continuing(Stepwise, Continues, Decodes, Searches):
    """Base of families over data of free length; a subclass builds ``net`` in ``build``."""

    estimators: ClassVar[tuple[type[Request], ...]] = (ExactLikelihood, Tokenised)
    samplers: ClassVar[tuple[type[Sampler], ...]] = (StepByStep, Decoding)
    space: Ragged

    @classmethod
    def refuses(cls, space: Space, context: Space | None, config: Any) -> str | None:
        known = stepped(space)
        if known is None:
            return "its data have no order of steps. (--sequence COLUMN makes sequences of the rows of a table.)"
        if reason := no_encoder(context):
            return reason
        if config.vocabulary and not ("vocabulary" in known.options(config) and config.vocabulary >= 256):
            return f"vocabulary={config.vocabulary} goes with texts, and is 256 or more. Leave it out for symbols."
        if config.smoothing and not space.has_eos and "smoothing" in known.options(config):
            return "smoothing spreads over the end, too, and excerpts have none. Leave out smoothing."
        return None

    @classmethod
    def lacks(cls, ability: type[Ability], space: Space) -> str | None:
        if ability in (Decodes, Searches) and space.alphabet is None:
            return f"{space} have no symbols to decode. Leave out the decoding, or fit texts."
        return None

    @classmethod
    def idle(cls, space: Space, context: Space | None, config: Any) -> Iterable[str]:
        known = stepped(space)
        used = () if known is None else known.options(config)
        own = (f.name for f in dataclasses.fields(StepOptions) if f.name not in ContextOptions.__dataclass_fields__)
        yield from (*super().idle(space, context, config), *(name for name in own if name not in used))

    # -- the parts ------------------------------------------------------------------------------------------

    @property
    def _of_space(self) -> Stepped:
        known = stepped(self.space)
        assert known is not None
        return known

    def make_codec(self) -> Codec:
        return self._of_space.codec(self.config)

    def make_emission(self) -> Emission:
        return self._of_space.emission(self.config, self.small_embeddings)

    @property
    def small_embeddings(self) -> bool:
        """Is something added to the embeddings of symbols that starts as small as ``nn.emission.START``?"""
        return False

    @property
    def has_eos(self) -> bool:
        return self.space.has_eos

    @property
    def steps(self) -> int:
        return min(self.config.block, self.space.length)

    # -- training -------------------------------------------------------------------------------------------

    def training_set(self, x: Any) -> TrainingSet:
        """Whole data where they fit into a block, else windows over them."""
        fill, pad, block = self.emission.fill, self.emission.pad, self.config.block
        short = self.space.length < block and self.codec.kind is Exact
        if self.has_eos and (short or self.context is not None):
            # in a window over several data only the first is learned, since each has its own context
            pieces = whole(x, self.codec.encode, self.emission.filled, fill, pad, block)
            if pieces is not None:
                return pieces

        def steps(rows: Tensor) -> Tensor:
            u = self.codec.encode(rows)
            return u[~self.emission.filled(u)]

        joined, apart = not self.has_eos, self.codec.apart
        return windows_over(x, steps, fill, pad, self.emission.kept, block, joined=joined, apart=apart)

    def learner(self, recipe: Recipe) -> Learner:
        fill, filled = self.emission.fill, self.emission.filled

        def objective(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            u = batch.x
            if not self.has_eos:  # excerpts have no beginning of their own
                unbegun = batch.rand(generator=generator) < UNBEGUN
                first = torch.where(_like(unbegun, u), fill, u[:, :1])
                u = torch.cat([first.to(u.dtype), u[:, 1:]], 1)
            inputs, targets = u[:, :-1], u[:, 1:]
            idle = self.emission.padded(targets) if self.has_eos else filled(targets)
            if batch.c is not None:  # what follows in a window is of another datum, with another context
                idle = idle | (filled(targets).cumsum(1) > filled(targets).long())
            y = self.outputs(inputs, self.batch_context(batch, generator))
            log_p = log_p_of(y[~idle], targets[~idle])  # a softmax over many symbols costs more than the rest
            each = torch.zeros_like(idle, dtype=log_p.dtype).masked_scatter(~idle, log_p)
            return {"loss": -each.sum(1) / self.steps}

        smooth = self.config.smoothing
        log_p_of = partial(self._head.log_prob, smoothing=smooth) if smooth else self.emission.log_prob
        return GradientLearner(self, recipe, objective, self.matrices())

    # -- likelihood -----------------------------------------------------------------------------------------

    def answers(self, asked: type[Request] | type[Sampler]) -> bool:
        if issubclass(asked, Sampler):
            return asked is not Decoding or isinstance(self.emission, TokenHead)
        return KINDS[asked.kind] is self.codec.kind

    def rows_log_prob(self, x: Tensor, c: Encoded | None, request: Request, noise: RowNoise) -> Likelihood:
        each = self.rows_log_probs(x, c, None, request)
        return make(self.codec.kind, each.sum(1, dtype=torch.float64), self.space.measure)

    def rows_log_probs(self, x: Tensor, c: Encoded | None, before: Tensor | None, request: Request) -> Tensor:
        u, begins, size, width = self._line(x, before)
        log_p = torch.zeros(u.shape[:2], device=u.device)
        stride = request.stride if isinstance(request, Windowed) else self.stride
        for start, first, last in self._spans(u.shape[1] - 1, stride):
            if last >= int(begins.min()):
                y = self.outputs(u[:, start:last], c)[:, first - 1 - start :]
                log_p[:, first : last + 1] = self.emission.log_prob(y, u[:, first : last + 1])
        j = torch.arange(width + 1, device=u.device)
        return _at(log_p, begins[:, None] + j, 0.0).masked_fill(j >= size[:, None] + int(self.has_eos), 0.0)

    def _line(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor, int]:
        """Fill, steps before x, those of x, fill [N, M, ...]; where x begins [N]; its steps [N]; the most of them."""
        fill, filled = self.emission.beginning(len(x)), self.emission.filled
        if self.codec.aligned:  # in one line, for steps may depend on data before them
            sizes = [self.space.lengths(v) for v in (before, x) if v is not None]
            most, line = x.shape[1], self.codec.encode(x if before is None else self._closed(torch.cat([before, x], 1)))
        else:
            parts = [self.codec.encode(v) for v in (before, x) if v is not None]
            sizes, most, line = [(~filled(u)).sum(1) for u in parts], parts[-1].shape[1], torch.cat(parts, 1)
            line = _at(line, filled(line).long().argsort(dim=1, stable=True), self.emission.fill)
        size, begins = sizes[-1], 1 + sum(sizes[:-1]) + torch.zeros_like(sizes[-1])
        u = torch.cat([fill.to(line.dtype), line, fill.to(line.dtype)], 1)
        return u, begins, size, most

    def _closed(self, x: Tensor) -> Tensor:
        """Data [N, L, ...] with fill between: all of it at the end."""
        gap = (x if x.ndim == 2 else x[..., 0]) == self.space.fill
        return _at(x, gap.long().argsort(dim=1, stable=True), self.space.fill)

    def _spans(self, targets: int, stride: int) -> Iterator[tuple[int, int, int]]:
        """The windows of ``codecs.windows.spans``; one, where the net takes inputs of any length."""
        block = self.net.longest or targets
        if stride > block:
            raise UsageError(f"A stride of {stride} is longer than the block of {block}.", "Give less.")
        return spans(targets, block, stride)

    @property
    def window(self) -> int | None:
        return self.net.longest

    def rows_spans(self, x: Tensor) -> list[list[Span]]:
        return self._text_codec.spans(x)

    @property
    def stride(self) -> int:
        """How far the window moves, unless a request says otherwise: half of it is context at the least."""
        return max(1, (self.net.longest or 2) // 2)

    def default_request(self, kind: type[Request] | None = None) -> Request:
        kind = kind or self.own_estimators[0]
        return kind(self.stride) if issubclass(kind, Windowed) else kind()

    def quick_request(self) -> Request:
        """Windows end to end, each symbol read once: less context, half the work."""
        request = self.default_request()
        return replace(request, stride=self.net.longest or self.stride) if isinstance(request, Windowed) else request

    # -- samples --------------------------------------------------------------------------------------------

    def rows_sample(self, n: int, c: Encoded | None, sampler: Any, generator: torch.Generator) -> Tensor:
        return self._spelled(self._go_on(self.emission.beginning(n), c, sampler, generator), sampler)

    def rows_sample_after(self, before: Tensor, c: Encoded | None, sampler: Any, generator: torch.Generator) -> Tensor:
        u = self._begun(before)
        return self._spelled(self._go_on(u, c, sampler, generator), sampler, u)

    def rows_best(self, n: int, before: Tensor, c: Encoded | None, sampler: Any) -> Tensor:
        if n > sampler.beams:
            raise UsageError(f"{sampler.beams} beams have no {n} best texts.", f"Search with {n} beams or more.")
        u, most = self._begun(before), self._most(sampler)
        given = (~self.emission.filled(u)).sum(1)
        out = u.new_full((len(u), n, most), self.emission.fill)
        for k in given.unique().tolist():  # rows of one length at a time, so many that all beams are few
            for rows in (given == k).nonzero()[:, 0].split(max(1, self.rows_per_draw() // sampler.beams)):
                begun, own = u[rows, : 1 + k], None if c is None else c[rows]
                found = self._told(search(self._decoder(begun, own, most), most, sampler, begun, self._end)[:, :n])
                out[rows, :, : found.shape[2]] = found
        best = out.flatten(0, 1)
        best = best[:, : max(1, int((best >= 0).sum(1).max()))]
        return self._spelled(best, sampler, u.repeat_interleave(n, 0)).unflatten(0, (-1, n))

    def rows_stream(self, before: Tensor, c: Encoded | None, sampler: Any, generator: torch.Generator) -> Iterator[str]:
        u = self._begun(before)
        spell, text, symbols = self._text_codec.detokenizer(u[0, 1:].tolist()), "", list[int]()
        for step in itertools.chain(self._steps(u, c, sampler, generator), [None]):
            if step is not None and int(step) < 0:
                continue
            piece, over = spell(None if step is None else int(step)), False
            if step is not None and not self.codec.aligned:  # the last may reach over the length
                symbols.append(int(step))
                x = self._spelled(u.new_tensor([symbols]), sampler, u)[0]
                if over := len(x) >= self._most(sampler):
                    piece = self.space.spell(x)[len(text) :]
            text += piece
            if isinstance(sampler, Decoding) and (whole := until_stop(sampler, text)) is not None:
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

    def _most(self, sampler: StepByStep) -> int:
        return sampler.length or self.space.length

    @torch.inference_mode()
    def _go_on(self, u: Tensor, c: Encoded | None, sampler: StepByStep, generator: torch.Generator) -> Tensor:
        """Steps [N, L, ...] drawn after u [N, 1 + K, ...], fill before and after the K or fewer that are given."""
        filled, given, most = self.emission.filled, (~self.emission.filled(u)).sum(1), self._most(sampler)
        if isinstance(sampler, Decoding) and sampler.draft is not None:  # rows of one length at a time
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
        return out[:, : max(1, int((~filled(out)).sum(1).max()))]

    def _steps(self, u: Tensor, c: Encoded | None, sampler: StepByStep, generator: torch.Generator) -> Iterator[Tensor]:
        """Steps [N, ...] one after the other, from the end of the shortest beginning of u [N, 1 + K, ...] on.

        Rows begin together: while one still has steps given, the others draw theirs.
        """
        filled, given = self.emission.filled, (~self.emission.filled(u)).sum(1)
        together, whole = int(given.min()), int(given.max()) + self._most(sampler)
        if isinstance(sampler, Decoding):
            yield from map(self._told, self._decoded(u, c, sampler, together, whole, generator))
            return
        free = not self.has_eos and together == int(given.max())  # whatever is drawn comes next
        over, step = torch.zeros_like(given, dtype=torch.bool), u[:, : together + 1]
        reader = self.reader(len(u), c, whole, self.stride)
        temperature = getattr(sampler, "temperature", None) or 1.0  # of frames of a sound
        for t in range(together + 1, whole + 1):
            step = self.emission.sample(reader.read(step)[:, -1], generator, temperature).to(u.dtype)[:, None]
            if not free:
                if t < u.shape[1]:
                    step = torch.where(_like(t <= given, step), u[:, t : t + 1], step)
                over = over | filled(step)[:, 0]
                step = torch.where(_like(over, step), self.emission.fill, step).to(u.dtype)
            yield step[:, 0]
            if not free and bool(over.all()):
                return

    # -- texts: symbols that decoding knows ------------------------------------------------------------------

    @property
    def _head(self) -> TokenHead:
        assert isinstance(self.emission, TokenHead)
        return self.emission

    @property
    def _text_codec(self) -> TextCodec:
        codec: Any = self.codec
        return codec

    @property
    def _end(self) -> int | None:
        """The symbol that ends; None where none does."""
        return self._head.end if self.has_eos else None

    def _told(self, symbols: Tensor) -> Tensor:
        """-1 for the end."""
        return symbols.masked_fill(symbols == self._head.end, -1)

    def _spell(self, symbols: list[int]) -> str:
        return self.space.spell(self.codec.decode(torch.tensor([symbols]))[0])

    def _spelled(self, u: Tensor, sampler: StepByStep, before: Tensor | None = None) -> Tensor:
        """Steps u [N, L, ...] drawn after ``before`` [N, 1 + K, ...] as data.

        Where strings stop them, what stands after these in the same step is left out.
        """
        x = self.codec.decode(u) if before is None else self.codec.decode_after(before[:, 1:], u)
        x = x[:, : self._most(sampler)]  # a step of several symbols may reach over the length that was asked for
        if not isinstance(sampler, Decoding) or not sampler.stop:
            return x
        assert isinstance(self.space, Text)
        x = x.clone()
        for row in x:
            row[self.space.after_first(row, sampler.stop) :] = -1
        return x[:, : max(1, int((x >= 0).sum(1).max()))]

    def _decoded(
        self, u: Tensor, c: Encoded | None, decoding: Decoding, together: int, whole: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Symbols [N] one after the other, up to so many, after so many of ``u`` that all rows have."""
        begun, told = u[:, : 1 + together], u[:, 1 + together :]
        most, draft = whole - together, None
        if decoding.draft is not None:
            other = self._checked(decoding.draft)
            own = c and (other.null_context(len(u)) if c.raw is None else other.encode_context(c.raw))
            draft = other._decoder(begun, own, most)
        decoder = self._decoder(begun, c, most)
        return drawn(decoder, draft, most, decoding, generator, begun, told, self._end, self._spell)

    def _decoder(self, u: Tensor, c: Encoded | None, most: int) -> NetDecoder:
        """A decoder that has read fill and beginnings u [N, 1 + K] of one length."""
        return NetDecoder(self.net, self._head, u, most, c, self.stride)

    def _checked(self, draft: Model) -> Continuing:
        """The draft, which must read and write what this model does."""
        same = type(draft.space) is type(self.space) and draft.context == self.context
        if not (isinstance(draft, Continuing) and same and draft._symbols == self._symbols):
            raise UsageError(
                f"The draft is a {draft.name} over {draft.space}, whose symbols are not those of this {self.name} "
                f"over {self.space}.",
                "Draft with a smaller model that was fitted to the same data with the same vocabulary.",
            )
        return draft

    @property
    def _symbols(self) -> tuple[Any, ...]:
        """What its symbols are: the same for models that may draft for each other."""
        return self.space.alphabet, self.has_eos, self._text_codec.json, len(self._head.base)


def _like(flags: Tensor, steps: Tensor) -> Tensor:
    """Flags [N] that broadcast with steps [N, ...]."""
    return flags.view(-1, *[1] * (steps.ndim - 1))


def _at(line: Tensor, index: Tensor, fill: float) -> Tensor:
    """The entries of each row of line [N, M, ...] at index [N, K]; ``fill`` where there are none."""
    found = line[torch.arange(len(line), device=line.device)[:, None], index.clamp(max=line.shape[1] - 1)]
    beyond = index >= line.shape[1]
    return found.masked_fill(beyond.view(*beyond.shape, *[1] * (line.ndim - 2)), fill)
