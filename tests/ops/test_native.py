"""Every instruction set this machine runs against the reference, over odd shapes; batches never change a row."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from ops.instruction_sets import forced
from tapwater.errors import ConfigError
from tapwater.ops import native, reference
from tapwater.ops.quant import Format, quantise, stack

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the kernels are not built here: no C++ compiler")


@pytest.fixture(scope="module", params=native.INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.Kernels]:
    yield from forced(request.param, threads=2)


def noise(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("outputs", "columns"), [(16, 32), (1, 1), (50, 70), (17, 33), (576, 576), (130, 1408)])
def test_linear_is_the_reference(kernels: native.Kernels, format: Format, outputs: int, columns: int) -> None:
    weight = quantise(noise(outputs, columns, 0), format)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 37):
        x = noise(rows, columns, rows) * 3
        expected = reference.packed_linear(x, weight)
        torch.testing.assert_close(kernels.linear(x, weight), expected, atol=3e-5 * columns**0.5 * 3, rtol=1e-4)


@pytest.mark.parametrize("format", Format)
def test_a_row_is_the_same_bits_in_any_batch(kernels: native.Kernels, format: Format) -> None:
    weight = quantise(noise(80, 96, 0), format)
    x = noise(512, 96, 1)
    whole = kernels.linear(x, weight)
    for start, stop in ((0, 1), (3, 4), (5, 13), (100, 131), (511, 512)):
        assert torch.equal(kernels.linear(x[start:stop], weight), whole[start:stop])


@pytest.mark.parametrize("format", Format)
def test_extreme_rows(kernels: native.Kernels, format: Format) -> None:
    weight = quantise(noise(32, 64, 0), format)
    x = torch.zeros(4, 64)
    x[1] = 1e-30
    x[2] = 1e30
    x[3, 5] = -7.0
    torch.testing.assert_close(kernels.linear(x, weight), reference.packed_linear(x, weight), rtol=1e-4, atol=1e-4)
    assert not kernels.linear(x, weight)[0].any()


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("hidden", "width"), [(32, 32), (48, 1), (50, 70), (96, 176)])
def test_swiglu_is_the_reference(kernels: native.Kernels, format: Format, hidden: int, width: int) -> None:
    gate, up, down = (
        quantise(noise(*shape, seed) / shape[1] ** 0.5, format)
        for seed, shape in enumerate([(width, hidden), (width, hidden), (hidden, width)])
    )
    for rows in (1, 3, 8, 21):
        x = noise(rows, hidden, rows)
        expected = reference.packed_swiglu(x, gate, up, down)
        # where both sides round to 8 bits or bfloat16, the last bit of the activations between may differ
        error = (kernels.swiglu(x, gate, up, down) - expected).abs().max()
        assert error < 0.01 * expected.abs().max() + 1e-6


def test_a_stack_is_addressed_by_index(kernels: native.Kernels) -> None:
    matrices = [quantise(noise(20, 40, seed), Format.Q8) for seed in range(3)]
    x = noise(5, 40, 7)
    for index, matrix in enumerate(matrices):
        assert torch.equal(kernels.linear(x, stack(matrices), index), kernels.linear(x, matrix))
    with pytest.raises(ValueError, match="matrix 3 of a stack of 3"):
        kernels.linear(x, stack(matrices), 3)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    weight, x = quantise(noise(1000, 256, 0), Format.Q4_MIN), noise(30, 256, 1)
    results = []
    for threads in (1, 2, 3):
        kernels = native.Kernels(threads)
        results.append(kernels.linear(x, weight))
        kernels.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_calls_in_a_row_agree() -> None:
    kernels = native.Kernels(threads=2)
    weight, x = quantise(noise(64, 64, 0), Format.Q4), noise(3, 64, 1)
    first = kernels.linear(x, weight)
    assert all(torch.equal(kernels.linear(x, weight), first) for _ in range(2000))
    kernels.close()


@pytest.mark.parametrize("x", [torch.zeros(2, 63), torch.zeros(64), torch.zeros(2, 64).double()])
def test_a_wrong_input_is_refused(x: torch.Tensor) -> None:
    kernels = native.Kernels(threads=1)
    with pytest.raises(ValueError, match=r"float32 \[rows, 64\]"):
        kernels.linear(x, quantise(noise(16, 64, 0), Format.Q4))
    kernels.close()


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sse9'"):
        native.force_instruction_set("sse9")


@pytest.mark.parametrize("threads", [0, -5])
def test_no_thread_cannot_compute(threads: int) -> None:
    with pytest.raises(ValueError, match=f"got {threads}"):
        native.Kernels(threads)


def test_threads_that_the_system_does_not_give_are_refused() -> None:
    program = (
        "import resource; from tapwater.ops.native import Kernels, library; library();"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        "Kernels(1024)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "engine.threads: the system does not give 1024 threads" in ended.stderr
