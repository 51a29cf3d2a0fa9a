"""Infills tried while training: of held-out documents of the sources that training rearranges."""

from dataclasses import dataclass

from tapwater.config import PretrainConfig
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.text import FIM_TOKENS, Tokenizer
from tapwater.train.evaluate import Marks, Problem, exact_share, infill_problems, original_text
from tapwater.train.greedy import generate
from tapwater.train.metrics import Filled

LINES_KEPT = 5  # on either side of a hole, with every answer
Answers = list[list[int]]
SEED = 0  # the same corpus and lengths make the same problems, so that runs compare


@dataclass(frozen=True)
class Tried:
    """The shares that were exactly right, prefix first and suffix first, and every answer.

    A share is None where no infills are asked for; the second also where the corpus has no document with the suffix
    first.
    """

    exact: float | None = None
    exact_spm: float | None = None
    filled: tuple[Filled, ...] = ()


class Infills:
    """`evaluation.fim_documents` problems, made once; ConfigError where a model or a corpus cannot have them."""

    def __init__(self, model: Transformer, corpus: Corpus, config: PretrainConfig) -> None:
        self._model, self._config = model, config
        self._problems: list[Problem] = []
        wanted = config.evaluation.fim_documents
        if not wanted:
            return
        if config.parallel.pp > 1:
            raise ConfigError("evaluation: fim_documents needs pp 1: a pipeline's stages do not generate; set it to 0")
        self._tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
        manifest = corpus.manifest
        parts = [self._tokenizer.token_id(token) for token in FIM_TOKENS]
        sources = [each.name for each in manifest.sources if each.infilling and each.heldout.num_documents]
        if not sources or None in parts:
            raise ConfigError(f"evaluation: no source of {corpus.path} has fill-in-the-middle; set fim_documents to 0")
        marks = Marks(manifest.bos_token_id, manifest.eos_token_id, *(each for each in parts if each is not None))
        self._marks = marks
        texts = (
            original_text(corpus.document("heldout", name, number).tolist(), self._tokenizer.decode, marks)
            for name in sources
            for number in range(min(wanted, corpus.num_documents("heldout", name)))
        )
        self._suffix_first = any(each.suffix_first for each in manifest.sources)
        row = config.data.sequence_length
        size = config.evaluation.fim_context or row
        if size > row:
            raise ConfigError(f"evaluation: fim_context {size} is longer than a row, data.sequence_length {row}")
        most = config.evaluation.fim_max_tokens
        self._problems = infill_problems(texts, SEED, self._tokenizer.encode_part, marks, most, size)[:wanted]
        if not self._problems:
            raise ConfigError(
                f"evaluation: none of the first {wanted} held-out documents of each source of {corpus.path} has a line "
                f"or words of at most fim_max_tokens {most} tokens to take out; raise either, or set fim_documents to 0"
            )

    def try_all(self) -> Tried:
        """What the model writes now; every process calls it."""
        problems = self._problems
        if not problems:
            return Tried()
        decode = self._tokenizer.decode
        psm = self._answers([each.prompt for each in problems])
        spm = self._answers([each.prompt_spm for each in problems]) if self._suffix_first else None
        filled = tuple(self._filled(*each) for each in zip(problems, psm, spm or [None] * len(psm), strict=True))
        exact_spm = None if spm is None else exact_share(problems, spm, decode)
        return Tried(exact_share(problems, psm, decode), exact_spm, filled)

    def _answers(self, prompts: Answers) -> Answers:
        return generate(self._model, prompts, self._config.evaluation.fim_max_tokens + 1, self._marks.eos)

    def _filled(self, problem: Problem, answer: list[int], answer_spm: list[int] | None) -> Filled:
        decode, prompt = self._tokenizer.decode, problem.prompt
        begin, hole = prompt.index(self._marks.begin), prompt.index(self._marks.hole)
        before, after = decode(prompt[begin + 1 : hole]), decode(prompt[hole + 1 : -1])
        before = "".join(before.splitlines(keepends=True)[-LINES_KEPT:])
        after = "".join(after.splitlines(keepends=True)[: LINES_KEPT + 1])  # the first is the rest of the hole's own
        spm = None if answer_spm is None else decode(answer_spm)
        return Filled(before, problem.middle, after, decode(answer), spm)
