"""The engine: token ids in, token ids out, one step at a time.

A request's life: `create` checks it -> `add` queues it -> each `step` the scheduler picks chunks, the model computes
them, requests whose last token was computed get a new one -> an end token, a limit, or the caller's `finish` ends it
and frees its pages.
"""

import operator
import secrets
from collections.abc import Sequence
from itertools import count

import torch

from tapwater.config import EngineConfig
from tapwater.engine.batch import build_batch
from tapwater.engine.latent_cache import LatentCache
from tapwater.engine.page_pool import PagePool
from tapwater.engine.request import FinishReason, Request, RequestFailure, SamplingParams, TokenOutput
from tapwater.engine.sampler import sample
from tapwater.engine.scheduler import Scheduler
from tapwater.errors import ConfigError, RequestError
from tapwater.model import PackedTransformer, Transformer


class Engine:
    """Continuous batching over one model; not thread-safe (see loop.py)."""

    def __init__(
        self, model: Transformer | PackedTransformer, config: EngineConfig, eos_token_ids: Sequence[int]
    ) -> None:
        num_pages = config.cache_tokens // config.page_size
        self.max_context = config.max_context or min(model.config.max_position_embeddings, config.cache_tokens)
        if self.max_context > min(model.config.max_position_embeddings, config.cache_tokens):
            raise ConfigError(
                f"engine.max_context {config.max_context} is more than the model's "
                f"{model.config.max_position_embeddings} or the cache's {config.cache_tokens} tokens"
            )
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.cache = LatentCache(model, num_pages, config.page_size)
        self.scheduler = Scheduler(PagePool(num_pages), self.cache, config.max_batch_tokens, config.max_requests)
        self._ids = count()

    def create(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> Request:
        """A request that can be honoured; RequestError says what is wrong with one that cannot. Thread-safe."""
        try:
            prompt = [operator.index(token) for token in prompt_token_ids]
        except TypeError:
            raise RequestError("the prompt must be a list of token ids", param="prompt") from None
        vocab = self.model.config.vocab_size
        if not prompt:
            raise RequestError("the prompt is empty: at least one token is needed", param="prompt")
        for token in prompt:
            if not 0 <= token < vocab:
                raise RequestError(f"prompt token id {token} is outside the vocabulary of {vocab}", param="prompt")
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in tokens:
                if not 0 <= token < vocab:
                    raise RequestError(f"{name}: token id {token} is outside the vocabulary of {vocab}", param=name)
        room = self.max_context - len(prompt)
        if room < 1:
            raise RequestError(
                f"This model's context holds {self.max_context} tokens and at least one must be left for the answer; "
                f"the prompt has {len(prompt)} tokens. Shorten the prompt.",
                param="prompt",
                code="context_length_exceeded",
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"This model's context holds {self.max_context} tokens; the prompt has {len(prompt)} and max_tokens "
                f"asks for {params.max_tokens}, together {len(prompt) + params.max_tokens}. Shorten the prompt or "
                "lower max_tokens.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return Request(
            request_id=next(self._ids),
            prompt_token_ids=prompt,
            params=params,
            max_total_tokens=len(prompt) + (params.max_tokens or room),
            generator=torch.Generator().manual_seed(seed),
        )

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def step(self) -> list[TokenOutput | RequestFailure]:
        """Compute one batch; the new tokens, one for each request that had its last known token computed.

        A request whose logits are not numbers (damaged weights, overflow) fails; the others get their token.
        """
        # a model's weights have just gone through the caches, so entering the mode is slow: the loop enters it once
        if torch.is_inference_mode_enabled():
            return self._step()
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[TokenOutput | RequestFailure]:
        chunks = self.scheduler.schedule()
        batch = build_batch(chunks, self.cache)
        hidden_TD = self.model(batch.tokens_T, batch.positions_T, batch.view).hidden_TD
        for chunk in chunks:
            chunk.request.num_computed_tokens += chunk.num_tokens
        if not batch.sampling:
            return []
        every = len(batch.rows) == hidden_TD.shape[0]
        prediction = self.model.predict(hidden_TD if every else hidden_TD[batch.rows])
        outputs: list[TokenOutput | RequestFailure] = []
        for row, request in enumerate(batch.sampling):
            if not prediction.is_finite[row]:
                self.finish(request, FinishReason.ABORT)
                outputs.append(RequestFailure(request.request_id, "the model's logits are not finite numbers"))
                continue
            token, logprobs = sample(prediction, row, request)
            request.output_token_ids.append(token)
            reason = self._finish_reason(request, token)
            if reason is not None:
                self.finish(request, reason)
            outputs.append(TokenOutput(request.request_id, token, logprobs, reason))
        return outputs

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request and free its pages; one that has ended already stays as it is."""
        if request.finish_reason is None:
            self.scheduler.remove(request)
            request.finish_reason = reason

    def is_end_token(self, token: int, params: SamplingParams) -> bool:
        return token in params.stop_token_ids or (token in self.eos_token_ids and not params.ignore_eos)

    def check(self) -> None:
        """AssertionError if an invariant of the scheduler or the page pool is broken."""
        self.scheduler.check()

    def _finish_reason(self, request: Request, token: int) -> FinishReason | None:
        if self.is_end_token(token, request.params):
            return FinishReason.STOP
        if request.num_tokens >= request.max_total_tokens:
            return FinishReason.LENGTH
        return None
