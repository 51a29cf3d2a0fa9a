"""Which pages of the cache are free. Every page is either free or held by exactly one request."""

from collections.abc import Iterable, Sequence


class PagePool:
    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        # a stack: the page released last is taken first, while it is still in the processor's cache
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages; the caller has made sure that they are free."""
        if count > len(self._free):
            raise AssertionError(f"page pool: {count} pages wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def release(self, pages: Iterable[int]) -> None:
        self._free.extend(pages)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """AssertionError unless free and held pages are, together, every page exactly once."""
        owned = [page for pages in held for page in pages]
        if sorted(owned + self._free) != list(range(self.num_pages)):
            raise AssertionError(
                f"page pool: {len(self._free)} free and {len(owned)} held pages are not the {self.num_pages} there are"
            )
