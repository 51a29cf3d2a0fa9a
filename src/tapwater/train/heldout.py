"""Scoring held-out text while training, over all processes."""

from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from tapwater.config import PretrainConfig
from tapwater.data.batch import Batch, batch_of, join
from tapwater.data.corpus import Corpus
from tapwater.data.heldout import heldout_rows
from tapwater.model import Transformer
from tapwater.parallel import MicroBatch, Pipeline, World
from tapwater.train.loss import next_token_loss, rows_of


class Scorer:
    """Sums of nats and bytes of each source's held-out rows; every process calls it alike."""

    def __init__(self, model: Transformer, pipeline: Pipeline | None, world: World, config: PretrainConfig) -> None:
        self._model, self._pipeline, self._world, self._config = model, pipeline, world, config

    def score(self, corpus: Corpus, sequences: int | None) -> dict[str, tuple[float, int]]:
        """{source: (nats, bytes)} of at most `sequences` rows a source (None: all of them)."""
        found: dict[str, tuple[float, int]] = {}
        for source in corpus.sources:
            if corpus.num_documents("heldout", source):
                rows = heldout_rows(corpus, source, self._config.data.sequence_length, sequences)
                found[source] = self._sums(rows)
        return found

    @torch.no_grad()
    def _sums(self, rows: Iterator[Batch]) -> tuple[float, int]:
        config = self._config
        size = config.batch.micro_sequences * config.parallel.dp
        nats, num_bytes = torch.zeros((), dtype=torch.float64), 0
        while taken := list(islice(rows, size)):
            num_bytes += sum(each.num_bytes for each in taken)
            # processes take equal numbers of rows, the last ones of padding: they must meet in every forward pass
            missing = [batch_of([[]], config.data.sequence_length)] * (size - len(taken))
            nats += self._nats(join(list(chain(taken, missing)))).cpu()
        return float(nats), num_bytes

    def _nats(self, batch: Batch) -> Tensor:
        micro = self._config.batch.micro_sequences
        first = self._world.dp_rank * micro
        rows = rows_of(batch.rows(first, first + micro), None, None, self._world.device)
        if self._pipeline is None:
            positions_T = rows.sequences.positions().to(self._world.device)
            hidden_TD = self._model(rows.tokens_T, positions_T, rows.sequences).hidden_TD
            return self._world.sum_dp(next_token_loss(self._model, hidden_TD, rows).double())

        def token_loss(model: Transformer, hidden_TD: Tensor, index: int) -> Tensor:
            return next_token_loss(model, hidden_TD, rows)

        found = self._pipeline.forward([MicroBatch(rows.tokens_T, rows.sequences)], token_loss)
        return self._world.sum_dp(found.loss.double())
