"""Words, near-duplicates and contamination against brute force over Python's own sets and regular expressions."""

import json
import random
import re
import unicodedata
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwater.config.corpus import DecontaminationSection, DuplicatesSection
from tapwater.data.decontamination import Decontamination
from tapwater.data.duplicates import EXACT, NEAR, UNIQUE, DuplicateIndex, signatures
from tapwater.data.words import hash_ngrams, hash_words
from tapwater.errors import DataError

WORD = re.compile(r"[a-z0-9_\u0080-\u2fff]+|[\u3000-\U0010ffff][a-z0-9_\u0080-\u2fff]*")
TEXTS = st.lists(st.text(st.sampled_from("abAB_9 .\n-é三。"), max_size=40), max_size=6)


def words_of(text: str) -> list[str]:
    return WORD.findall(re.sub("[A-Z]", lambda match: match.group().lower(), text))


@given(TEXTS)
def test_words_are_those_of_the_expression(texts: list[str]) -> None:
    runs = hash_words([text.encode() for text in texts])
    expected = [words_of(text) for text in texts]
    assert np.diff(runs.offsets).tolist() == [len(words) for words in expected]
    flat = [word for words in expected for word in words]
    pairs = set(zip(flat, runs.hashes.tolist(), strict=True))
    assert len(pairs) == len(set(flat)) == len(set(runs.hashes.tolist()))


def test_long_words_differ_by_their_start_and_length() -> None:
    long = ["x" * 63 + "a", "x" * 63 + "b", "x" * 64, "x" * 65, "x" * 1000, "x" * 8, "x" * 9, "y" * 8]
    assert len(set(hash_words([" ".join(long).encode()]).hashes.tolist())) == len(long)


@given(TEXTS, st.integers(2, 4))
def test_ngrams_stay_in_their_document(texts: list[str], length: int) -> None:
    grams = hash_ngrams(hash_words([text.encode() for text in texts]), length)
    for number, text in enumerate(texts):
        words = words_of(text)
        expected = {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}
        found = grams.hashes[grams.offsets[number] : grams.offsets[number + 1]]
        assert len(found) == max(len(words) - length + 1, 0)
        assert len(set(found.tolist())) == len(expected)


def shingles(text: str, length: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def edited(words: list[str], chance: random.Random, share: float) -> list[str]:
    return [f"new{chance.randrange(10**6)}" if chance.random() < share else word for word in words]


def corpus() -> list[str]:
    """Twelve texts, each with copies in which ever more words differ: similarities of 0 to 1."""
    chance = random.Random(1)
    texts = []
    for _ in range(12):
        words = [f"word{chance.randrange(5000)}" for _ in range(400)]
        texts += [" ".join(edited(words, chance, share)) for share in (0, 0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3)]
    chance.shuffle(texts)
    return texts


def fates(texts: list[str], directory: Path, config: DuplicatesSection, batch: int = 7) -> list[int]:
    utf8 = [text.encode() for text in texts]
    with DuplicateIndex(directory, config) as index:
        for start in range(0, len(utf8), batch):
            part = utf8[start : start + batch]
            index.add(part, hash_words(part))
    return index.fates(lambda *_: None).tolist()


def test_signatures_estimate_the_similarity() -> None:
    texts = corpus()[:40]
    sets = [shingles(text, 5) for text in texts]
    signed = signatures(hash_ngrams(hash_words([text.encode() for text in texts]), 5), 512)
    errors = [
        (signed[one] == signed[other]).mean() - jaccard(sets[one], sets[other])
        for one, other in combinations(range(len(texts)), 2)
    ]
    assert max(map(abs, errors)) < 0.11  # five standard deviations of 512 draws
    assert abs(np.mean(errors)) < 0.005


def test_near_duplicates_are_those_of_brute_force(tmp_path: Path) -> None:
    texts, threshold = corpus(), 0.7
    config = DuplicatesSection(threshold=threshold, num_permutations=512, bands=128)
    found = fates(texts, tmp_path, config)
    sets = [shingles(text, 5) for text in texts]
    for number, fate in enumerate(found):
        similar = max((jaccard(sets[number], sets[earlier]) for earlier in range(number)), default=0.0)
        if texts[number] in texts[:number]:
            assert fate == EXACT
        elif abs(similar - threshold) > 0.08:  # nearer, the estimate may fall on either side
            assert fate == (NEAR if similar > threshold else UNIQUE), (number, similar)
    assert {UNIQUE, EXACT, NEAR} == set(found)


def test_batches_do_not_matter(tmp_path: Path) -> None:
    texts = corpus()
    results = []
    for batch in (1, 13, 1000):
        (tmp_path / str(batch)).mkdir()
        results.append(fates(texts, tmp_path / str(batch), DuplicatesSection(), batch))
    assert results[0] == results[1] == results[2]


def test_short_documents_are_only_compared_exactly(tmp_path: Path) -> None:
    assert fates(["a b", "c d", "a b", "", ""], tmp_path, DuplicatesSection()) == [UNIQUE, UNIQUE, EXACT, UNIQUE, EXACT]


def test_without_near_duplicates(tmp_path: Path) -> None:
    assert set(fates(corpus(), tmp_path, DuplicatesSection(near="none"))) == {UNIQUE, EXACT}


def test_no_document_at_all(tmp_path: Path) -> None:
    assert fates([], tmp_path, DuplicatesSection()) == []


def numbered(start: int, stop: int) -> str:
    return " ".join(f"w{number}" for number in range(start, stop))


def test_contamination_is_thirteen_words_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"question": "{numbered(0, 20)}", "more": {{"choices": ["{numbered(50, 59)}"]}}}}\n'
    )
    (tmp_path / "b.txt").write_text(numbered(100, 130) + "\n一二三四五六七八九十百千万")
    files = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"))
    decontamination = Decontamination(DecontaminationSection(files=files))
    texts = {
        f"x {numbered(3, 16)} y": True,
        f"x {numbered(3, 15)} y": False,
        "W5, w6; w7 W8 w9.\n w10 w11 w12 (w13) w14 w15 w16 w17": True,
        f"x {numbered(50, 59)} y": True,  # a choice of nine words, whole
        f"x {numbered(50, 58)} y": False,
        f"{numbered(110, 123)}": True,
        "百科：一二三四五六七八九十百千万。": True,
        "一二三四五六七八九十": False,
        "": False,
    }
    found = decontamination.contaminated(hash_words([text.encode() for text in texts]))
    assert found.tolist() == list(texts.values())


def test_contamination_is_that_of_brute_force(tmp_path: Path) -> None:
    chance = random.Random(2)
    vocabulary = [f"v{number}" for number in range(6)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(" ".join(chance.choices(vocabulary, k=size))) + "\n" for size in (5, 5, 6, 7, 8, 9, 11))
    )
    rows = [json.loads(line).split() for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    known = {tuple(row[start : start + 8]) for row in rows for start in range(len(row) - 7)}
    texts = [" ".join(chance.choices(vocabulary, k=chance.randrange(60))) for _ in range(300)]
    for number in range(0, 300, 4):
        texts[number] += " " + " ".join(chance.choice(rows)[: chance.randrange(6, 10)])
    expected = [not known.isdisjoint(shingles(text, 8)) for text in texts]
    decontamination = Decontamination(DecontaminationSection(files=(str(tmp_path / "a.jsonl"),), ngram_words=8))
    found = decontamination.contaminated(hash_words([text.encode() for text in texts]))
    assert found.tolist() == expected
    assert 10 < sum(expected) < 290


def test_bad_evaluation_files(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("b.txt", b"\xff", "not UTF-8"),
        ("c.jsonl", b"", "holds no text"),
        ("d.jsonl", b'["seven words are too few to know"]', "no text of .* has 8 words"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words):
            Decontamination(DecontaminationSection(files=(str(tmp_path / name),)))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Decontamination(DecontaminationSection(files=(str(tmp_path / "nowhere.txt"),)))


def test_evaluations_are_spelt_as_documents_are(tmp_path: Path) -> None:
    text = "the café was closed at noon and the naïve visitors went off"
    row = {"answers": ["\ud83d", unicodedata.normalize("NFD", text)]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    decontamination = Decontamination(DecontaminationSection(files=(str(tmp_path / "a.jsonl"),)))
    assert decontamination.contaminated(hash_words([text.encode()])).tolist() == [True]
