"""What a step did, in numbers."""

from tapwater.config import ModelConfig, PretrainConfig
from tapwater.cost.counts import training_flops_per_token
from tapwater.data.batch import Batch
from tapwater.train.clock import Clock
from tapwater.train.metrics import StepMetrics
from tapwater.train.step import Trained


class Meter:
    """Makes the metrics of steps; `peak` is the FLOPs a second of all processes together that MFU is a share of."""

    def __init__(self, config: PretrainConfig, peak: float, clock: Clock) -> None:
        self._config, self._peak, self._clock = config, peak, clock

    def step(
        self, number: int, tokens: int, batch: Batch, trained: Trained, rate_share: float, seconds: float
    ) -> StepMetrics:
        """Step `number`, from 1, which took `seconds`; `tokens` were read by then, its own among them."""
        losses, config = trained.losses, self._config
        tokens_per_s = batch.tokens_BS.size / seconds
        return StepMetrics(
            step=number,
            loss=float(losses.total(config.train.mtp_weight)),
            ce=float(losses.ce),
            expert_loss=float(losses.expert),
            device_loss=float(losses.device),
            communication_loss=float(losses.communication),
            mtp_loss=float(losses.mtp) if config.model.num_nextn_predict_layers else None,
            lr=rate_share * config.optimizer.lr,
            grad_norm=trained.grad_norm,
            sequences=batch.tokens_BS.shape[0],
            tokens=tokens,
            tokens_per_s=tokens_per_s,
            mfu=flops_per_token_of(config.model, batch) * tokens_per_s / self._peak,
            seconds=seconds,
            cost_usd=self._clock.spent().cost_usd,
            load_LE=[[int(count) for count in row] for row in losses.load_LE.tolist()],
        )


def flops_per_token_of(config: ModelConfig, batch: Batch) -> float:
    """Documents do not attend to each other: a token's work is that of its own document's length."""
    lengths = [length for row in batch.lengths for length in row]
    mean = sum(length * length for length in lengths) / sum(lengths)
    return training_flops_per_token(config, mean).total
