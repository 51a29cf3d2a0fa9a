"""`tapwater quantize`: pack a model for the native kernels, and say what that cost."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, TimeRemainingColumn, TransferSpeedColumn

from tapwater.cli.common import locate, progress_bar
from tapwater.cost.counts import parameters
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from tapwater.checkpoint import PackedDirectory
    from tapwater.checkpoint.packing import PackingSource

SAMPLE = Path(__file__).with_name("sample.txt")


def quantize(
    source: str,
    destination: Path,
    /,
    *,
    format: Literal["q4", "q8", "bf16"] = "q4",
    text: Path | None = None,
    tokens: int = 2048,
) -> None:
    """Pack a model for the native kernels and measure what that costs.

    The new directory loads at once: its weights are mapped as they lie. Interrupted, the same command goes on where it
    stopped. Sizes, errors, and the perplexity before and after are printed at the end.

    Parameters
    ----------
    source
        What to pack: a known name, a .gguf file, a Hugging Face directory or repository.
    destination
        The directory to make.
    format
        4-bit groups with scale and minimum (embedding and head in 8 bits, unless the source has them in 4), 8-bit
        groups, or bfloat16.
    text
        A UTF-8 file to measure the perplexity on; without it a short sample of prose, code and arithmetic.
    tokens
        The most tokens of the text to measure.
    """
    if tokens < 2:
        raise ConfigError(f"--tokens must be at least 2, got {tokens}: the first of a text is not predicted")
    path = locate(source)
    from tapwater.checkpoint import PackedDirectory, open_source, write_packed
    from tapwater.checkpoint.scoring import perplexity
    from tapwater.cli.quality import packed_perplexity, windows
    from tapwater.ops.quant import Format

    original, tokenizer = open_source(path)
    scored = windows(tokenizer, text or SAMPLE, tokens, original.config.max_position_embeddings)
    wanted = {"q4": Format.Q4_MIN, "q8": Format.Q8, "bf16": Format.BF16}[format]
    if not _is_finished(destination, original, wanted):
        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with progress_bar(f"Packing {path.name}", *columns) as progress:
            write_packed(original.config, original, tokenizer, wanted, destination, progress)
    packed = PackedDirectory(destination)
    with progress_bar("Verifying what was written", DownloadColumn()) as progress:
        packed.verify(progress)
    with progress_bar("Perplexity before", MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        before = perplexity(original.config, original, scored, progress)
    with progress_bar("Perplexity after", MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        after = packed_perplexity(packed, scored, progress)
    count = sum(len(window) - 1 for window in scored)
    name = "the built-in sample" if text is None else text.name
    lines = [
        *_facts(original, packed),
        f"perplexity  {before:#.4g} -> {after:#.4g} ({after / before - 1:+.2%}) over {count} tokens of {name}",
    ]
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _is_finished(destination: Path, original: "PackingSource", wanted: str) -> bool:
    """Whether an earlier run has packed this already and was ended as it measured."""
    from tapwater.checkpoint import PackedDirectory
    from tapwater.checkpoint.packed_store import is_packed
    from tapwater.checkpoint.packed_writer import source_bytes

    if not is_packed(destination):
        return False
    found = PackedDirectory(destination).manifest
    asked = (Path(original.where).name, source_bytes(original), wanted)
    return (found.source, found.source_bytes, found.requested) == asked


def _facts(original: "PackingSource", packed: "PackedDirectory") -> list[str]:
    """Sizes, bits per weight, formats, and what was requantised."""
    before, bits = packed.manifest.source_bytes, 8 * packed.nbytes / parameters(packed.config).total
    formats = Counter(record.format for record in packed.manifest.arrays)
    return [
        f"{original.where} -> {packed.path}",
        f"size        {before / 1e6:,.1f} MB -> {packed.nbytes / 1e6:,.1f} MB, {bits:.2f} bits a weight",
        f"arrays      {', '.join(f'{count} {format}' for format, count in formats.items())}",
        *(f"changed     {note}" for note in packed.manifest.notes() or ("nothing: every weight is what it was",)),
    ]
