"""Infills tried while training: of held-out documents of the sources that training rearranges."""

from tapwater.config import PretrainConfig
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.text import FIM_TOKENS, Tokenizer
from tapwater.train.evaluate import Marks, Problem, exact_share, infill_problems, original_text
from tapwater.train.greedy import generate

SEED = 0  # the same corpus and lengths make the same problems, so that runs compare


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
        self._eos = marks.eos
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

    def exact_shares(self) -> tuple[float | None, float | None]:
        """The shares the model gets exactly right with the prefix first and with the suffix first.

        None where no infills are asked for; the second also where the corpus has no document with the suffix first.
        Every process calls it.
        """
        if not self._problems:
            return None, None
        psm = self._share([problem.prompt for problem in self._problems])
        return psm, self._share([each.prompt_spm for each in self._problems]) if self._suffix_first else None

    def _share(self, prompts: list[list[int]]) -> float:
        answers = generate(self._model, prompts, self._config.evaluation.fim_max_tokens + 1, self._eos)
        return exact_share(self._problems, answers, self._tokenizer.decode)
