"""The facade: text of streams and completions, stop strings, logprobs, aborts, failures, shutdown."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tapwater.checkpoint import save_hf
from tapwater.config import EngineConfig, ModelConfig
from tapwater.engine import EngineError, FinishReason, SamplingParams
from tapwater.errors import CheckpointError, RequestError
from tapwater.llm import LLM, Completion, Delta, cpu_quota
from tapwater.model import Transformer
from tapwater.text import Tokenizer

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
    eos_token_id=1,
)
ENGINE = EngineConfig(cache_tokens=2048, max_batch_tokens=64, threads=1)
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def tiny_tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the tap water of the town is the best water there is; 水是生命之源。"] * 20, trainer)
    return Tokenizer(backend, bos_token_id=0, eos_token_ids=(1,), chat_template=None, add_bos_token=False)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(Transformer.random(CONFIG, seed=1), tiny_tokenizer(), ENGINE)
    yield llm
    llm.close()


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def idle(llm: LLM) -> bool:
    return llm.num_running == 0 and llm.num_waiting == 0


def test_streamed_and_whole_answers_are_the_tokens_decoded(llm: LLM) -> None:
    prompts = ["the water", "水是", "town " * 20]
    for prompt, completion in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        deltas = list(llm.stream(prompt, GREEDY))
        assert "".join(delta.text for delta in deltas) == completion.text
        assert completion.text == llm.tokenizer.decode(completion.token_ids)
        assert [delta.finish_reason for delta in deltas] == [None] * 39 + [FinishReason.LENGTH]
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(llm.encode(prompt)), 40)
        assert usage == deltas[-1].usage
        assert usage.total_tokens == usage.prompt_tokens + 40


def test_a_stop_string_ends_the_answer_before_it_wherever_token_borders_fall(llm: LLM) -> None:
    whole = llm.generate(["the water"], GREEDY)[0]
    tried = 0
    for start in range(4, len(whole.text) - 4, 3):
        stop = whole.text[start : start + 3]
        if "�" in stop:
            continue
        tried += 1
        (cut,) = llm.generate(["the water"], GREEDY, stop=[stop, "never to be seen"])
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == FinishReason.STOP
        # no token was computed past the one that completed the stop string
        needed = next(n for n in range(1, 41) if stop in llm.tokenizer.decode(whole.token_ids[:n]).rstrip("�"))
        assert cut.usage.completion_tokens == needed
        assert cut.token_ids == whole.token_ids[:needed]
    assert tried > 5


def test_an_end_token_is_counted_but_not_shown(llm: LLM) -> None:
    end = llm.generate(["the"], SamplingParams(temperature=0, logit_bias={1: 100.0}, logprobs=1))[0]
    assert (end.text, end.token_ids, end.finish_reason) == ("", (1,), FinishReason.STOP)
    assert end.usage.completion_tokens == 1
    assert end.logprobs == ()


@pytest.mark.parametrize("stopping", [False, True])
def test_logprob_entries_spell_the_text(llm: LLM, stopping: bool) -> None:
    # special tokens have an entry but no text
    params = SamplingParams(temperature=0, max_tokens=40, logprobs=2, logit_bias={0: -100.0, 1: -100.0})
    whole = llm.generate(["the water"], params)[0]
    stop = [whole.text[20:24]] if stopping else []
    shown: list[Delta] = []
    for delta in llm.stream("the water", params, stop):
        shown.append(delta)
        entries = [entry for each in shown for entry in each.logprobs]
        spelt = b"".join(entry.chosen.token_bytes for entry in entries).decode(errors="replace").rstrip("�")
        text = "".join(each.text for each in shown)
        if delta.finish_reason is None:
            assert text.rstrip("�").startswith(spelt)
    assert spelt.startswith(text.rstrip("�"))  # the last entry may reach into the stop string
    for entry in entries:
        assert entry.chosen.logprob <= entry.top[0].logprob < 0
        assert len(entry.top) == 2


def test_threads_share_the_engine(llm: LLM) -> None:
    expected = llm.generate(["the tap"], GREEDY)[0]
    answers: list[Completion] = []
    threads = [threading.Thread(target=lambda: answers.extend(llm.generate(["the tap"], GREEDY))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.token_ids for answer in answers] == [expected.token_ids] * 8


def test_closing_a_stream_aborts_its_request(llm: LLM) -> None:
    stream = llm.stream("the", SamplingParams(ignore_eos=True, seed=1))
    next(stream)
    stream.close()
    wait_until(lambda: idle(llm))


def test_one_bad_prompt_among_many_starts_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="512") as caught:
        llm.generate(["the", "the water " * 400], SamplingParams(ignore_eos=True))
    assert caught.value.code == "context_length_exceeded"
    wait_until(lambda: idle(llm))


def test_an_engine_failure_is_told_and_survived(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate(["the"], GREEDY)[0]
    model = llm._engine.model

    def broken(*_: object) -> None:
        raise RuntimeError("out of everything")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", broken)
        with pytest.raises(EngineError, match="out of everything"):
            llm.generate(["the", "tap"], GREEDY)
    wait_until(lambda: idle(llm))
    llm._engine.check()
    assert llm.generate(["the"], GREEDY)[0] == expected


def test_a_listener_that_fails_ends_only_its_own_request(llm: LLM) -> None:
    def faulty(_: object) -> None:
        raise ValueError("listener")

    heard: list[object] = []

    def faulty_once(delta: object) -> None:
        heard.append(delta)
        if len(heard) == 2:
            raise ValueError("listener")

    llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True), (), faulty)
    llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True), (), faulty_once)
    assert len(llm.generate(["tap"], GREEDY)[0].token_ids) == 40
    wait_until(lambda: idle(llm))
    assert len(heard) == 3
    assert isinstance(heard[2], EngineError)  # it is told, so that nobody waits for more


def test_close_ends_requests_that_have_not_begun() -> None:
    llm = LLM(Transformer.random(CONFIG, seed=1), tiny_tokenizer(), replace(ENGINE, max_requests=1))
    heard: list[object] = []
    for _ in range(3):
        llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True), (), heard.append)
    llm.close()
    assert len([each for each in heard if isinstance(each, RequestError)]) == 3


def test_a_waiting_request_can_be_aborted() -> None:
    llm = LLM(Transformer.random(CONFIG, seed=1), tiny_tokenizer(), replace(ENGINE, max_requests=1))
    first: list[object] = []
    second: list[object] = []
    running = llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True), (), first.append)
    waiting = llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True), (), second.append)
    waiting.abort()
    wait_until(lambda: second)
    assert isinstance(second[0], RequestError)
    running.abort()
    wait_until(lambda: idle(llm))
    llm.close()
    running.abort()


@pytest.mark.parametrize("drain_s", [0.0, 30.0])
def test_close_drains_or_aborts_and_admits_nothing_more(drain_s: float) -> None:
    llm = LLM(Transformer.random(CONFIG, seed=1), tiny_tokenizer(), ENGINE)
    heard: list[object] = []
    llm.submit(llm.encode("the"), SamplingParams(ignore_eos=True, max_tokens=300), (), heard.append)
    wait_until(lambda: len(heard) > 2)
    llm.close(drain_s)
    last = heard[-1]
    if drain_s:
        assert isinstance(last, Delta)
        assert last.finish_reason == FinishReason.LENGTH
    else:
        assert isinstance(last, RequestError)
        assert last.code == "aborted"
    with pytest.raises(RequestError, match="shutting down"):
        llm.generate(["the"], GREEDY)
    llm.close()


def test_a_saved_model_is_loaded_with_its_tokenizer(llm: LLM, tmp_path: Path) -> None:
    save_hf(Transformer.random(CONFIG, seed=1), tmp_path / "model", llm.tokenizer)
    loaded = LLM.load(tmp_path / "model", ENGINE)
    try:
        assert loaded.generate(["the water"], GREEDY) == llm.generate(["the water"], GREEDY)
    finally:
        loaded.close()


def test_a_tokenizer_larger_than_the_model_is_refused(llm: LLM, tmp_path: Path) -> None:
    small = Transformer.random(ModelConfig(**(vars(CONFIG) | {"vocab_size": 300})), seed=1)
    save_hf(small, tmp_path / "model", llm.tokenizer)
    with pytest.raises(CheckpointError, match="tokenizer has 302 tokens"):
        LLM.load(tmp_path / "model", ENGINE)


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, words in ((tmp_path / "absent", "no such file"), (tmp_path / "notes.txt", "not a model")):
        with pytest.raises(CheckpointError, match=words):
            LLM.load(path, ENGINE)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
    ],
)
def test_a_containers_quota_is_read(files: dict[str, str], cores: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores
