"""Which optimizer gets which parameter, and the rates it gets."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tapwater.config import replace_fields
from tapwater.config.pretrain import OptimizerSection
from tapwater.model import Sequences, Transformer
from tapwater.train.optim import Optimizers
from tiny import CONFIGS

CONFIG = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 1}, "with mtp")


def names_of(model: Transformer, optimizer: torch.optim.Optimizer, group: int) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(each)] for each in optimizer.param_groups[group]["params"]}


def train(model: Transformer, optimizers: Optimizers, steps: int) -> None:
    tokens, rows = torch.arange(2, 26), Sequences((24,))
    for _ in range(steps):
        hidden = model(tokens, rows.positions(), rows).hidden_TD
        torch.nn.functional.cross_entropy(model.logits(hidden[:-1]), tokens[1:]).backward()
        optimizers.step()
        optimizers.zero_grad()


def test_adamw_takes_everything_and_decays_matrices_alone() -> None:
    model = Transformer.random(CONFIG, seed=1)
    (adamw,) = Optimizers.of(model, OptimizerSection()).list
    assert isinstance(adamw, torch.optim.AdamW)
    decayed, plain = names_of(model, adamw, 0), names_of(model, adamw, 1)
    assert decayed | plain == {name for name, _ in model.named_parameters()}
    assert all(name.endswith("norm.weight") for name in plain)
    assert not any(name.endswith("norm.weight") for name in decayed)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]


def test_muon_takes_hidden_matrices_and_experts() -> None:
    model = Transformer.random(CONFIG, seed=1)
    adamw, muon, stacked = Optimizers.of(model, OptimizerSection(name="muon")).list
    assert names_of(model, stacked, 0) == {name for name, parameter in model.named_parameters() if parameter.ndim == 3}
    tables = names_of(model, adamw, 0)
    assert {"embed_tokens.weight", "lm_head.weight"} < tables
    assert all(name.endswith((".gate.weight", "embed_tokens.weight", "lm_head.weight")) for name in tables)
    hidden = names_of(model, muon, 0)
    assert "layers.0.mlp.gate_proj.weight" in hidden
    assert "mtp.0.eh_proj.weight" in hidden
    counted = sum(len(group["params"]) for each in (adamw, muon, stacked) for group in each.param_groups)
    assert counted == len(list(model.parameters()))


def test_rates_are_shares_of_each_optimizers_own() -> None:
    model = Transformer.random(CONFIG, seed=1)
    optimizers = Optimizers.of(model, OptimizerSection(name="muon", lr=4e-4, muon_lr=0.02))
    optimizers.set_rates(0.25)
    assert [[group["lr"] for group in each.param_groups] for each in optimizers.list] == [[1e-4] * 2, [0.005], [0.005]]


def test_a_tied_head_is_one_parameter_and_a_stage_without_tables_has_no_adamw_group_for_them() -> None:
    tied = Transformer.random(replace_fields(CONFIGS["llama-gqa"], {"tie_word_embeddings": True}, "tied"), seed=1)
    adamw, _ = Optimizers.of(tied, OptimizerSection(name="muon")).list
    assert names_of(tied, adamw, 0) == {"embed_tokens.weight"}
    inner = Optimizers.of(tied.layers, OptimizerSection(name="muon")).list
    assert [len(each.param_groups) for each in inner] == [1, 1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_goes_on_exactly_from_saved_state(name: str) -> None:
    section = OptimizerSection(name=name, lr=3e-3)  # type: ignore[arg-type]
    model = Transformer.random(CONFIGS["v2"], seed=1)
    optimizers = Optimizers.of(model, section)
    train(model, optimizers, 3)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    states = [each.state_dict() for each in optimizers.list]
    again = Transformer.random(CONFIGS["v2"], seed=2)
    again.load_state_dict(saved)
    resumed = Optimizers.of(again, section)
    for optimizer, state in zip(resumed.list, states, strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
    train(model, optimizers, 2)
    train(again, resumed, 2)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert not torch.equal(value, saved[key]) or not value.any(), key


def random_gradients(model: Transformer, step: int) -> dict[str, Tensor]:
    """Of full rank: Muon makes of a direction without gradient whatever bfloat16's rounding left there."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(parameter.shape, generator=generator) for name, parameter in model.named_parameters()}


def sharded_process(rank: int, directory: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    model = fully_shard(Transformer.random(CONFIGS["v2"], seed=1), mesh=init_device_mesh("cpu", (2,)))
    optimizers = Optimizers.of(model, OptimizerSection(name="muon", lr=3e-3))
    for step in range(3):
        gradients = random_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(gradients[name], parameter.device_mesh, parameter.placements)
        optimizers.step()
        optimizers.zero_grad()
    whole = {name: parameter.data.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(whole, f"{directory}/whole.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_parameters_move_as_whole_ones(tmp_path: Path) -> None:
    """Fully sharded over two processes: AdamW's to float32's rounding, Muon's to bfloat16's."""
    torch.multiprocessing.spawn(sharded_process, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "whole.pt")
    model = Transformer.random(CONFIGS["v2"], seed=1)
    start = {name: parameter.data.clone() for name, parameter in model.named_parameters()}
    optimizers = Optimizers.of(model, OptimizerSection(name="muon", lr=3e-3))
    adamw = {id(each) for group in optimizers.list[0].param_groups for each in group["params"]}
    for step in range(3):
        gradients = random_gradients(model, step)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        optimizers.step()
        optimizers.zero_grad()
    for name, parameter in model.named_parameters():
        moved = float((parameter.data - start[name]).abs().max())
        tolerance = 1e-5 if id(parameter) in adamw else 0.05
        assert moved > 0
        torch.testing.assert_close(found[name], parameter.data, rtol=0, atol=tolerance * moved + 1e-7, msg=name)
