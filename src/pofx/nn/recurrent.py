"""The recurrent net: an LSTM's state sums up all that came before (Hochreiter & Schmidhuber 1997)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pofx.core.errors import Unsupported
from pofx.nn.sequence import Cache, SequenceNet


class Lstm(SequenceNet):
    """Inputs [N, L, width] -> outputs [N, L, width] by stacked LSTMs, with dropout between them while training."""

    lstm: nn.LSTM

    def __init__(self, width: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.reach = width, None
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_hh"):  # gates that forget start open (Jozefowicz et al. 2015)
                with torch.no_grad():
                    bias[width : 2 * width] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.advance(x)[0]

    def advance(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs [N, L, width] and the state after them, from ``state`` on."""
        # in float32 on CPUs: PyTorch refuses an LSTM in bfloat16 on those without AVX-512
        with torch.autocast("cpu", enabled=False):
            y: Tensor
            y, state = self.lstm(x.to(next(self.lstm.parameters()).dtype), state)
        return y, state

    def cache(self, n: int, length: int) -> Cache:
        return LstmCache(self, n)


class LstmCache:
    """The state of every layer [layers, n, width]: its size does not depend on the length."""

    def __init__(self, net: Lstm, n: int) -> None:
        zero = next(net.parameters()).new_zeros(net.lstm.num_layers, n, net.width)
        self.net, self.state = net, (zero, zero)

    def step(self, x: Tensor) -> Tensor:
        return self.extend(x[:, None])[:, 0]

    def extend(self, x: Tensor) -> Tensor:
        y, self.state = self.net.advance(x, self.state)
        return y

    def reorder(self, rows: Tensor) -> None:
        h, c = self.state
        self.state = h[:, rows], c[:, rows]

    def rewind(self, k: int) -> None:
        raise Unsupported("A recurrent state cannot go back.", "Use a gpt for speculative decoding.")
