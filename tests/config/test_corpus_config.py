"""Corpus builds: TOML, overrides, placeholders, and what is refused; the recipes of the repository load."""

from pathlib import Path

import pytest

from tapwater.config.corpus import load_corpus_config, resolve_placeholders
from tapwater.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
SMALLEST = 'directory = "c"\n[[sources]]\nname = "a"\nkind = "text"\npaths = ["{here}/x"]\nlicence = "MIT"\n'
TOKENIZER = "[tokenizer]\nvocab_size = 8192\n"


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(SMALLEST + TOKENIZER)
    config = load_corpus_config(path, ["seed=3", "directory=elsewhere", "filters.max_line=22", "fim.rate=0.5"])
    assert (config.seed, config.directory, config.filters.max_line, config.fim.rate) == (3, "elsewhere", 22, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["fim.spm_share=1.5"], "spm_share"),
        (["fim.part_chars_least=80"], "part_chars_least needs part_chars"),
        (["fim.part_chars=100", "fim.part_chars_least=101"], r"between 1 and part_chars \(100\), got 101"),
        (["fim.part_chars=100", "fim.part_chars_least=0"], r"between 1 and part_chars \(100\), got 0"),
    ],
)
def test_shares_and_parts_that_cannot_be_are_refused(settings: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(SMALLEST + TOKENIZER)
    with pytest.raises(ConfigError, match=message):
        load_corpus_config(path, settings)


def test_placeholders_are_filled_and_unknown_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(SMALLEST + TOKENIZER + '[decontamination]\nfiles = ["{here}/eval.jsonl"]\n')
    config = resolve_placeholders(load_corpus_config(path), {"here": "/there"})
    assert config.sources[0].paths == ("/there/x",)
    assert config.decontamination.files == ("/there/eval.jsonl",)
    with pytest.raises(ConfigError, match=r"\{here\}/x has an unknown placeholder; known are \{stdlib\}"):
        resolve_placeholders(load_corpus_config(path), {"stdlib": "/there"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOKENIZER + 'directory = "c"', "unknown field 'directory'"),
        ('directory = "c"\nsources = []\n' + TOKENIZER, "sources is empty"),
        (SMALLEST + "[tokenizer]\n", "one of vocab_size"),
        (SMALLEST + '[tokenizer]\nvocab_size = 8192\nreuse = "x"\n', "one of vocab_size"),
        (SMALLEST.replace('"a"', '"a/b"') + TOKENIZER, "name must be letters"),
        (SMALLEST.replace('"text"', '"word"') + TOKENIZER, "is not one of 'text'"),
        (SMALLEST.replace('licence = "MIT"', "") + TOKENIZER, "missing field 'licence'"),
        (SMALLEST + SMALLEST.partition("\n")[2] + TOKENIZER, "2 of them are named 'a'"),
        (SMALLEST + TOKENIZER + "[duplicates]\nbands = 7\n", "does not divide num_permutations"),
        (SMALLEST + TOKENIZER + "[duplicates]\nthreshold = 0\n", "threshold must be above 0"),
        (SMALLEST + TOKENIZER + "[filters]\nmin_char = 1\n", "did you mean 'min_chars'"),
        (SMALLEST + TOKENIZER + "[heldout]\nshare = 1.0\n", "share must be at least 0 and below 1"),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_corpus_config(path)


@pytest.mark.parametrize("name", ["corpus.toml", "tiny-corpus.toml"])
def test_the_recipes_load(name: str) -> None:
    config = load_corpus_config(CONFIGS / name)
    filled = resolve_placeholders(config, {"stdlib": "/s", "site_packages": "/p"})
    assert all(path.startswith("/") for source in filled.sources for path in source.paths)
