"""The same metrics for TensorBoard, which draws them while a run goes on."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from tapwater.errors import ConfigError
from tapwater.train.metrics import Evaluation, Filled, StepMetrics, summarise


class TensorBoard:
    """Writes `<run>/tensorboard`; steps after `resumed_step` of an earlier process are hidden. Close it at the end.

    Raises ConfigError when the package is not installed.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # slow to load
        except ImportError:
            raise ConfigError("training writes for TensorBoard: pip install 'tapwater[train]'") from None
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=resumed_step + 1)

    def step(self, metrics: StepMetrics) -> None:
        values = {
            "loss/total": metrics.loss,
            "loss/cross_entropy": metrics.ce,
            "loss/mtp": metrics.mtp_loss,
            "balance/expert": metrics.expert_loss,
            "balance/device": metrics.device_loss,
            "balance/communication": metrics.communication_loss,
            "optimizer/lr": metrics.lr,
            "optimizer/grad_norm": metrics.grad_norm,
            "speed/tokens_per_s": metrics.tokens_per_s,
            "speed/mfu": metrics.mfu,
            "progress/tokens": metrics.tokens,
            "progress/cost_usd": None if metrics.cost_usd is None else float(metrics.cost_usd),
        }
        for layer, load_E in enumerate(metrics.load_LE):
            load = summarise(load_E)
            values |= {f"load_max/{layer}": load.max_over_mean, f"load_min/{layer}": load.min_over_mean}
            values[f"load_unused/{layer}"] = load.unused
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, metrics.step)

    def evaluation(self, evaluation: Evaluation, infills: Sequence[Filled]) -> None:
        named = {"all": evaluation.bits_per_byte, **evaluation.sources}
        for source, value in named.items():
            self._writer.add_scalar(f"bits_per_byte/{source}", value, evaluation.step)
        if evaluation.fim_exact is not None:
            self._writer.add_scalar("fim/exact", evaluation.fim_exact, evaluation.step)
        if evaluation.fim_exact_spm is not None:
            self._writer.add_scalar("fim/exact_spm", evaluation.fim_exact_spm, evaluation.step)
        if infills:
            self._writer.add_text("fim/infills", _as_markdown(infills), evaluation.step)

    def close(self) -> None:
        self._writer.close()


def _as_markdown(infills: Sequence[Filled]) -> str:
    """Each wanted middle with what was written, as code blocks: indented, so that no text can end one."""
    columns = [("wanted", "wanted"), ("wrote", "wrote"), ("wrote_spm", "wrote, suffix first")]
    parts = [
        f"{label}:\n\n{indent(value, ' ' * 4, lambda line: True)}\n"
        for each in infills
        for name, label in columns
        if (value := getattr(each, name)) is not None
    ]
    return "\n".join(parts)
