"""One step of the model: a batch of new tokens -> logits."""

from typing import Protocol

import torch

from model.decoder.attention.base import Attention
from model.decoder.dense import DenseDecoder
from model.sampling.logits import Logits
from model.scheduling.forward_batch import ForwardBatch


class Runner(Protocol):
    """Runs chunks of several sequences at once. Knows nothing of sampling or of text."""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that a step with one row reads, where it is known."""

    def run(self, batch: ForwardBatch) -> Logits:
        """Compute every new token; return the wanted rows of logits, in the batch's order."""


class TorchRunner:
    """A decoder and its attention, in torch: on any machine, any precision."""

    weight_bytes: int | None = None

    def __init__(self, decoder: DenseDecoder, attention: Attention, device: torch.device) -> None:
        self._decoder = decoder
        self._attention = attention
        self._device = device

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> Logits:
        token_ids = torch.from_numpy(batch.token_ids).to(self._device)
        hidden = self._decoder.hidden(token_ids, self._attention.plan(batch))
        rows = torch.from_numpy(batch.logit_rows).to(self._device)
        return Logits.of(self._decoder.logits(hidden[rows.long()]))
