"""A corpus as one HTML file: what is in it, what was dropped and why, with samples to judge by."""

import json
from collections.abc import Mapping
from html import escape
from textwrap import shorten

import numpy as np

from tapwater.cli import report_plots as plots
from tapwater.cli.report_parts import drawing, grid, page, section
from tapwater.data.baselines import read_baselines
from tapwater.data.build import TALLY
from tapwater.data.corpus import Corpus
from tapwater.data.tally import KEPT
from tapwater.errors import DataError

MOST_BARS = 12
LABEL_CHARS = 24
MB = 1e6


def corpus_report(corpus: Corpus) -> str:
    """The page."""
    manifest = corpus.manifest
    trained = sum(each.train.num_tokens for each in manifest.sources)
    heldout = sum(each.heldout.num_tokens for each in manifest.sources)
    subtitle = f"{trained:,} tokens to train on, {heldout:,} held out, a vocabulary of {manifest.vocab_size:,}."
    sections = (
        _sources(corpus),
        _dropped(corpus),
        _lengths(corpus),
        _amounts("Languages", "language", {each.name: each.languages for each in manifest.sources}),
        _amounts("Licences", "licence", {each.name: each.licences for each in manifest.sources}),
        _baselines(corpus),
        _samples(corpus),
        section("Configuration", _text("as it was built", json.dumps(manifest.config, indent=2))),
    )
    return page(corpus.path.resolve().name, "corpus", subtitle, f"Fingerprint {corpus.fingerprint[:16]};", sections)


def _sources(corpus: Corpus) -> str:
    rows = []
    for each in corpus.manifest.sources:
        both = (each.train, each.heldout)
        num_bytes, num_tokens = sum(part.num_bytes for part in both), sum(part.num_tokens for part in both)
        counts = [f"{part.num_documents:,}" for part in both] + [f"{part.num_bytes / MB:,.2f}" for part in both]
        counts += [f"{part.num_tokens:,}" for part in both]
        rows.append((each.name, *counts, f"{num_bytes / max(1, num_tokens):.2f}", f"{each.infilling:,}"))
    header = ("", "documents", "held out", "MB", "held out", "tokens", "held out", "bytes per token", "infilling")
    return section("Sources", grid(header, rows, 8))


def _dropped(corpus: Corpus) -> str:
    rows: list[tuple[str, ...]] = []
    reasons: dict[str, dict[str, float]] = {}
    for each in corpus.manifest.sources:
        kept = each.train.num_bytes + each.heldout.num_bytes
        total = max(1, kept + sum(amount.num_bytes for amount in each.dropped.values()))
        rows.append(
            (each.name, KEPT, f"{each.train.num_documents + each.heldout.num_documents:,}", f"{kept / MB:,.2f}",
             f"{kept / total:.1%}")
        )  # fmt: skip
        for reason, amount in sorted(each.dropped.items(), key=lambda item: -item[1].num_bytes):
            share = amount.num_bytes / total
            numbers = (f"{amount.num_documents:,}", f"{amount.num_bytes / MB:,.2f}", f"{share:.1%}")
            rows.append((each.name, reason, *numbers))
            reasons.setdefault(reason, {})[each.name] = amount.num_bytes / MB
    header = ("", "", "documents", "MB", "share of its bytes")
    table = grid(header, rows, 0)
    if not reasons:
        return section("What was dropped", f"<p>Nothing.</p>{table}")
    return section("What was dropped", _bars("dropped", "dropped by reason", reasons) + table)


def _bars(name: str, what: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    ordered = sorted(groups.items(), key=lambda item: -sum(item[1].values()))[:MOST_BARS]
    largest = {shorten(label, LABEL_CHARS, placeholder=" ..."): values for label, values in ordered}
    words = ", ".join(f"{label} {sum(values.values()):,.1f} MB" for label, values in largest.items())
    height = max(2.2, 0.9 + 0.32 * len(largest) * max(1, 0.6 * len({key for each in largest.values() for key in each})))
    caption = f"MB of text {what}" + (f": the {MOST_BARS} largest" if len(groups) > MOST_BARS else "")
    drawn = drawing(name, f"{what}: {words}", plots.bars(largest, "MB"), caption, height)
    return f'<div class="plots">{drawn}</div>'


def _lengths(corpus: Corpus) -> str:
    """Where the tokens are: the share of them in documents of each length."""
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for source in corpus.sources:
        count = corpus.num_documents("train", source)
        if not count:
            continue
        lengths = np.array([corpus.document_tokens("train", source, number) for number in range(count)])
        powers = np.floor(np.log2(lengths)).astype(int)
        shares = np.bincount(powers, lengths) / lengths.sum()
        curves[source] = [(2.0**power, 100 * share) for power, share in enumerate(shares) if share > 0]
        quantiles = np.quantile(lengths, (0.1, 0.5, 0.9, 1.0), method="lower")
        rows.append((source, *(f"{int(each):,}" for each in quantiles), f"{lengths.mean():,.0f}"))
    if not rows:
        return ""
    words = "; ".join(f"{row[0]} median {row[2]}" for row in rows)
    draw = plots.lines(curves, "tokens of a document, at least, and less than twice", "% of the tokens")
    plot = drawing("lengths", f"lengths of documents in tokens: {words}", draw, "Where the training tokens are.")
    table = grid(("tokens", "10%", "median", "90%", "longest", "mean"), rows, 5)
    return section("Lengths of documents", f'<div class="plots">{plot}</div>{table}')


def _amounts(title: str, what: str, amounts: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        (source, name or "unknown", f"{num_bytes / MB:,.2f}")
        for source, found in amounts.items()
        for name, num_bytes in sorted(found.items(), key=lambda item: -item[1])
    ]
    groups: dict[str, dict[str, float]] = {}
    for source, found in amounts.items():
        for name, num_bytes in found.items():
            groups.setdefault(name or "unknown", {})[source] = num_bytes / MB
    if not groups:
        return ""
    return section(title, _bars(title, f"kept by {what}", groups) + grid(("", what, "MB kept"), rows, 0))


def _baselines(corpus: Corpus) -> str:
    found = read_baselines(corpus.path)
    if not found:
        return ""
    rows = [(each.source, each.method, f"{each.bits_per_byte:.3f}", each.detail) for each in found]
    return section("Held-out text: bits per byte to beat", grid(("", "method", "bits per byte", "how"), rows, 0))


def _samples(corpus: Corpus) -> str:
    path = corpus.path / TALLY
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error!r}; build the corpus anew") from None
    parts = []
    for source, reasons in counts.items():
        for reason, count in sorted(reasons.items(), key=lambda item: item[0] != KEPT):
            shown = [_text(each["name"], each["excerpt"]) for each in count["samples"]]
            parts.append(f"<h3>{escape(source)}: {escape(reason)}</h3>{''.join(shown)}")
    return section("Samples, drawn from each fate", "".join(parts))


def _text(title: str, text: str) -> str:
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{escape(text)}</pre></details>'
    )
