"""Who computes what in the next step.

There is no prefill phase and no decode phase: every request has `num_tokens` tokens known and `num_computed_tokens`
cached, and a step lets the second catch up with the first under a budget of tokens. A long prompt takes several steps
(chunked prefill) while others decode beside it (continuous batching); when pages run out the youngest request gives
its own back and starts over later (preemption by recompute).

Invariant: every running request is older than every waiting one, and both are kept in order of arrival. So the oldest
request is never preempted, and since any admitted request alone fits the cache, it always finishes.
"""

from array import array
from collections import deque
from dataclasses import dataclass

from tapwater.engine.latent_cache import LatentCache
from tapwater.engine.page_pool import PagePool
from tapwater.engine.request import Request


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` tokens of a request, after those it has cached: all of its prompt, or all generated."""

    request: Request
    num_tokens: int

    @property
    def is_prompt(self) -> bool:
        return self.request.num_computed_tokens < len(self.request.prompt_token_ids)


class Scheduler:
    def __init__(self, pool: PagePool, cache: LatentCache, max_batch_tokens: int, max_requests: int) -> None:
        self.pool = pool
        self.cache = cache
        self.max_batch_tokens = max_batch_tokens
        self.max_requests = max_requests
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that is finished, and free its pages."""
        (self.running if request in self.running else self.waiting).remove(request)
        self._free(request)

    def schedule(self) -> list[Chunk]:
        """The chunks of one step; each request's pages are there when it returns."""
        budget = self.max_batch_tokens
        chunks: list[Chunk] = []
        index = 0
        while index < len(self.running) and budget:
            request = self.running[index]
            size = min(budget, _next_tokens(request))
            if self._make_room(request, size):
                chunks.append(Chunk(request, size))
                budget -= size
                index += 1
        while self.waiting and budget and len(self.running) < self.max_requests:
            request = self.waiting[0]
            # all of its tokens must fit, not just the chunk: else it would be preempted before its prompt is done
            if self.cache.pages_for(request.num_tokens) > self.pool.num_free:
                break
            self.running.append(self.waiting.popleft())
            size = min(budget, _next_tokens(request))
            self._make_room(request, size)
            chunks.append(Chunk(request, size))
            budget -= size
        return chunks

    def preempt(self) -> None:
        """Send the youngest running request back to the head of the queue, its cache forgotten."""
        request = self.running.pop()
        self._free(request)
        self.waiting.appendleft(request)

    def check(self) -> None:
        """AssertionError if pages were lost, or held twice, or a cache is larger than its pages."""
        self.pool.check([request.pages for request in (*self.running, *self.waiting)])
        for request in self.running:
            if self.cache.pages_for(request.num_computed_tokens) > len(request.pages):
                raise AssertionError(f"request {request.request_id}: more tokens cached than its pages hold")

    def _make_room(self, request: Request, size: int) -> bool:
        """Give `request` pages for `size` more tokens, preempting the youngest while there are too few; False if that
        took the request itself."""
        needed = self.cache.pages_for(request.num_computed_tokens + size) - len(request.pages)
        while needed > self.pool.num_free:
            youngest = self.running[-1]
            self.preempt()
            if youngest is request:
                return False
        if needed > 0:
            request.pages.extend(self.pool.take(needed))
        return True

    def _free(self, request: Request) -> None:
        self.pool.release(request.pages)
        request.pages = array("q")
        request.num_computed_tokens = 0


def _next_tokens(request: Request) -> int:
    """Tokens that may be computed next: to the end of the prompt, or all that were generated (after a preemption)."""
    prompt = len(request.prompt_token_ids)
    end = prompt if request.num_computed_tokens < prompt else request.num_tokens
    return end - request.num_computed_tokens
