"""Tables of `tapwater data`."""

import sys
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from tapwater.cli.text_table import text_table

if TYPE_CHECKING:
    from tapwater.data.baselines import Baseline
    from tapwater.data.corpus import Corpus


def show_corpus(corpus: "Corpus") -> None:
    """What is in a corpus, and what was dropped."""
    manifest = corpus.manifest
    rows = []
    for each in manifest.sources:
        train, heldout = each.train, each.heldout
        per_token = (train.num_bytes + heldout.num_bytes) / max(1, train.num_tokens + heldout.num_tokens)
        counts = (f"{train.num_documents:,}", f"{heldout.num_documents:,}", f"{train.num_bytes / 1e6:,.1f}")
        licences = _shares(each.licences)
        rows.append((each.name, *counts, f"{train.num_tokens:,}", f"{per_token:.2f}", f"{each.infilling:,}", licences))
    header = ("source", "train docs", "held-out", "train MB", "train tokens", "bytes/token", "infilling", "licences")
    dropped = [
        (each.name, reason, f"{amount.num_documents:,}", f"{amount.num_bytes / 1e6:,.1f}", "")
        for each in manifest.sources
        for reason, amount in sorted(each.dropped.items(), key=lambda item: -item[1].num_bytes)
    ]
    sys.stdout.write(
        f"{corpus.path}\nvocabulary  {manifest.vocab_size:,} tokens\nfingerprint {corpus.fingerprint[:16]}\n\n"
        + text_table(header, rows, "lrrrrrrl")
        + ("\n" + text_table(("source", "dropped as", "docs", "MB", ""), dropped, "llrrl") if dropped else "")
    )


def _shares(amounts: Mapping[str, int]) -> str:
    total = max(1, sum(amounts.values()))
    ordered = sorted(amounts.items(), key=lambda item: -item[1])
    named = [
        f"{shorten(name or 'unknown', 24, placeholder=' ...')} {amount / total:.0%}" for name, amount in ordered[:4]
    ]
    return ", ".join(named) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def show_baselines(found: "Sequence[Baseline]") -> None:
    """A line for each source and method."""
    rows = [(each.source, each.method, f"{each.bits_per_byte:.3f}", each.detail) for each in found]
    sys.stdout.write(text_table(("source", "method", "bits/byte", "how"), rows, "llrl"))
