"""eSASRec: SASRec with gated LiGR blocks.

Petrov, Semenov et al., "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion", RecSys 2025
(arXiv 2508.06450), found SASRec's task, LiGR blocks and a sampled softmax to be the best combination of known parts. The
blocks are from Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact", 2025
(arXiv 2502.03417). With s the logistic function, per block:
    x = x + s(W1 x + b1) * Att(LN(x)),  x = x + s(W2 x + b2) * FFN(LN(x));  FFN(y) = C (silu(A y) * B y), without biases
Inputs, states and scores are those of `sasrec`: x = dropout(LN(e + p)) before the blocks, state = LN(x) behind them.

Deviations: the loss is chosen by the training, not by the model (`sampled_softmax` is the paper's); both LN outside the
blocks are ours; attention weights are not dropped out and positions count from the oldest item read, as in `sasrec`.
"""

from torch import Tensor, nn
from torch.nn import functional

from distilrec.students.attention import AttentionSettings, Block
from distilrec.students.sasrec import SASRec


class ESASRecSettings(AttentionSettings):
    """Settings of eSASRec. `inner_size` is the width inside the feed-forward part, of A y and of B y each."""


class LiGRBlock(Block):
    """Attention block whose residuals are gated and whose feed-forward part is a SwiGLU."""

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings)
        width = settings.hidden_size
        self.inner = nn.Linear(width, 2 * settings.inner_size, bias=False)  # A and B in one
        self.outer = nn.Linear(settings.inner_size, width, bias=False)
        self.attention_gate = nn.Linear(width, width)
        self.feed_gate = nn.Linear(width, width)

    def add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """See `Block.add_attended`."""
        return x + self.attention_gate(x).sigmoid() * self.dropout(attended)

    def add_fed(self, x: Tensor) -> Tensor:
        """See `Block.add_fed`."""
        gate, value = self.inner(self.feed_norm(x)).chunk(2, dim=-1)
        return x + self.feed_gate(x).sigmoid() * self.dropout(self.outer(functional.silu(gate) * value))


class ESASRec(SASRec):
    """Self-attentive sequential recommender with gated residuals."""

    name = "esasrec"
    Settings = ESASRecSettings

    @staticmethod
    def _block(settings: AttentionSettings) -> Block:
        return LiGRBlock(settings)
