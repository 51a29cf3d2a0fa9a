"""ModelConfig: one frozen description of every model in the family, spelt as Hugging Face's config.json spells it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tapwater.config.parse import from_mapping
from tapwater.errors import ConfigError

MLA_FIELDS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
MOE_FIELDS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
EXPERT_FIELDS = (*MOE_FIELDS, "n_shared_experts", "first_k_dense_replace", "moe_layer_freq", "n_group", "topk_group")
EXPERT_FIELDS += ("topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor")
# topk_method and scoring_func of each architecture; others read the same file as another model
GATES = {
    "llama": (),
    "deepseek": (("greedy", "softmax"),),
    "deepseek_v2": (("greedy", "softmax"), ("group_limited_greedy", "softmax")),
    "deepseek_v3": (("noaux_tc", "sigmoid"),),
}
# Sizes past these are typing errors or damage; building modules for them would hang before any tensor is checked.
LARGEST = {"num_hidden_layers": 4096, "n_routed_experts": 65536, "num_nextn_predict_layers": 64}


@dataclass(frozen=True)
class RopeScaling:
    """YaRN context extension (DeepSeek-V2 report section 3.1.4); `mscale` rules in `model/rope.py`."""

    rope_type: Literal["yarn"]
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "original_max_position_embeddings", "beta_slow"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.factor < 1:
            raise ConfigError(f"factor must be at least 1, got {self.factor}")
        if self.beta_fast <= self.beta_slow:
            raise ConfigError(f"beta_fast {self.beta_fast} must be greater than beta_slow {self.beta_slow}")
        # With only one of the two, DeepSeek's code and transformers compute different models.
        if bool(self.mscale) != bool(self.mscale_all_dim):
            raise ConfigError("mscale and mscale_all_dim must be given together or not at all")


@dataclass(frozen=True)
class ModelConfig:
    """A `llama`, `deepseek` (MHA + MoE), `deepseek_v2` or `deepseek_v3` architecture.

    Field names and meanings are those of Hugging Face's `config.json`. Raises ConfigError, naming the field, for values
    that are impossible or contradict each other.
    """

    model_type: Literal["llama", "deepseek", "deepseek_v2", "deepseek_v3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int | None = None  # llama and deepseek only; None: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006  # the report's value (section 3.1.2); config.json files say 0.02, a placeholder
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    # Multi-head Latent Attention
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    # DeepSeekMoE
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int | None = None
    topk_group: int | None = None
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "greedy"
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    # Multi-token prediction (DeepSeek-V3 report section 2.2)
    num_nextn_predict_layers: int = 0

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_attention()
        self._check_experts()

    # ---- derived sizes

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def is_moe(self) -> bool:
        return self.n_routed_experts is not None

    @property
    def attention_head_dim(self) -> int:
        """Width of one query/key head of grouped attention (llama, deepseek)."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key, rope part included."""
        if self.is_mla:
            return self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim
        return self.attention_head_dim

    @property
    def rope_dim(self) -> int:
        """Number of dimensions of a head that RoPE rotates."""
        return self.mla.qk_rope_head_dim if self.is_mla else self.attention_head_dim

    @property
    def kv_elements_per_token_per_layer(self) -> int:
        """Cached numbers per token and layer: C + R for MLA, keys and values otherwise (report Table 1)."""
        if self.is_mla:
            return self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.attention_head_dim

    @property
    def kv_elements_per_token(self) -> int:
        return self.kv_elements_per_token_per_layer * self.num_hidden_layers

    @property
    def mla(self) -> "MlaDims":
        """The latent attention dimensions, all present; ConfigError for a model without MLA."""
        if None in (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim):
            raise ConfigError(f"{self.model_type}: this model has no latent attention (kv_lora_rank is not set)")
        return MlaDims(self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim)  # pyrefly: ignore

    @property
    def moe(self) -> "MoeDims":
        """The expert dimensions, all present; ConfigError for a dense model."""
        if None in (self.n_routed_experts, self.num_experts_per_tok, self.moe_intermediate_size):
            raise ConfigError(f"{self.model_type}: this model has no experts (n_routed_experts is not set)")
        return MoeDims(
            self.n_routed_experts,  # pyrefly: ignore
            self.n_shared_experts or 0,
            self.num_experts_per_tok,  # pyrefly: ignore
            self.moe_intermediate_size,  # pyrefly: ignore
            self.n_group or 1,
            self.topk_group or 1,
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def is_moe_layer(self, layer: int) -> bool:
        return self.is_moe and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    # ---- checks

    def _check_sizes(self) -> None:
        positive = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
        positive += ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "moe_layer_freq"]
        positive += ["head_dim", "q_lora_rank", *MLA_FIELDS, *MOE_FIELDS, "n_group", "topk_group"]
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**31:
                raise ConfigError(f"{name} must be positive and below 2^31, got {value}")
        for name, largest in LARGEST.items():
            if (getattr(self, name) or 0) > largest:
                raise ConfigError(f"{name} must be at most {largest}, got {getattr(self, name)}")
        for name in ("n_shared_experts", "first_k_dense_replace", "num_nextn_predict_layers", "initializer_range"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.rope_theta <= 1 or self.routed_scaling_factor <= 0:
            raise ConfigError(
                f"rope_theta must be above 1 and routed_scaling_factor above 0, got {self.rope_theta} and "
                f"{self.routed_scaling_factor}"
            )
        for token in (self.bos_token_id, *self.eos_token_ids):
            if token is not None and not 0 <= token < self.vocab_size:
                raise ConfigError(f"bos_token_id/eos_token_id {token} is outside vocab_size {self.vocab_size}")

    def _check_attention(self) -> None:
        present = [name for name in MLA_FIELDS if getattr(self, name) is not None]
        if self.model_type in ("deepseek_v2", "deepseek_v3"):
            if len(present) < len(MLA_FIELDS):
                missing = ", ".join(name for name in MLA_FIELDS if name not in present)
                raise ConfigError(f"{self.model_type} needs latent attention; missing {missing}")
            if self.head_dim is not None:
                raise ConfigError(f"head_dim does not apply to {self.model_type}; it has qk_nope/qk_rope/v_head_dim")
            if self.num_key_value_heads != self.num_attention_heads:
                raise ConfigError(
                    f"num_key_value_heads {self.num_key_value_heads} must equal num_attention_heads "
                    f"{self.num_attention_heads} for {self.model_type}: latent attention has no key-value heads"
                )
        else:
            for name in [*present, *(["q_lora_rank"] if self.q_lora_rank else [])]:
                raise ConfigError(f"{name} does not apply to model_type {self.model_type}")
            if self.num_attention_heads % self.num_key_value_heads:
                raise ConfigError(
                    f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                    f"num_key_value_heads {self.num_key_value_heads}"
                )
            if self.head_dim is None and self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads} and head_dim is not given"
                )
        if self.rope_dim % 2:
            raise ConfigError(f"RoPE rotates pairs: the head's rope dimension must be even, got {self.rope_dim}")

    def _check_experts(self) -> None:
        if not self.is_moe:
            for field in fields(self):
                if field.name in EXPERT_FIELDS and getattr(self, field.name) not in (field.default, 0):
                    raise ConfigError(f"{field.name} is set but n_routed_experts is not")
            return
        if self.model_type == "llama":
            raise ConfigError("n_routed_experts does not apply to model_type llama")
        for name in MOE_FIELDS:
            if getattr(self, name) is None:
                raise ConfigError(f"n_routed_experts is set but {name} is not")
        moe = self.moe
        if moe.num_experts_per_tok > moe.n_routed_experts:
            raise ConfigError(
                f"num_experts_per_tok {moe.num_experts_per_tok} exceeds n_routed_experts {moe.n_routed_experts}"
            )
        if moe.n_routed_experts % moe.n_group:
            raise ConfigError(f"n_group {moe.n_group} does not divide n_routed_experts {moe.n_routed_experts}")
        if moe.topk_group > moe.n_group:
            raise ConfigError(f"topk_group {moe.topk_group} exceeds n_group {moe.n_group}")
        if self.topk_method != "greedy":
            reachable = moe.topk_group * moe.n_routed_experts // moe.n_group
            if moe.num_experts_per_tok > reachable:
                raise ConfigError(
                    f"num_experts_per_tok {moe.num_experts_per_tok} exceeds the {reachable} experts of "
                    f"topk_group {moe.topk_group} groups"
                )
        gate = (self.topk_method, self.scoring_func)
        if gate not in GATES[self.model_type]:
            allowed = " or ".join(f"{method} with {scoring}" for method, scoring in GATES[self.model_type])
            raise ConfigError(
                f"topk_method {gate[0]!r} with scoring_func {gate[1]!r} is not a {self.model_type}: it has {allowed}"
            )
        if self.topk_method == "greedy" and moe.n_group != 1:
            raise ConfigError(f"n_group {moe.n_group} is set, but topk_method greedy has no groups")
        if self.topk_method == "noaux_tc" and moe.n_routed_experts // moe.n_group < 2:
            raise ConfigError("noaux_tc scores a group by its two best experts: n_group leaves fewer than two each")


@dataclass(frozen=True)
class MlaDims:
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class MoeDims:
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_group: int
    topk_group: int


def replace_fields(config: ModelConfig, changes: Mapping[str, Any], where: str) -> ModelConfig:
    """`config` with `changes` (field name to value), checked as strictly as a file would be."""
    return from_mapping(ModelConfig, model_fields(config) | dict(changes), where)


def model_fields(config: ModelConfig) -> dict[str, Any]:
    """Every field by its name, nested tables as they are."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def to_plain(config: ModelConfig) -> dict[str, Any]:
    """The fields that are set, as plain values (nested tables as dicts, tuples as lists)."""
    plain = {name: value for name, value in asdict(config).items() if value is not None}
    if isinstance(plain.get("eos_token_id"), tuple):
        plain["eos_token_id"] = list(plain["eos_token_id"])
    if "rope_scaling" in plain:
        plain["rope_scaling"] = {name: value for name, value in plain["rope_scaling"].items() if value is not None}
    return plain
