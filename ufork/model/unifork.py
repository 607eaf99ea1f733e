"""The Y-shaped model: a trunk shared by all samples, and one branch per task above it.

    packed sequence -> Trunk: embeddings, layers -> hidden TD -> Branch of its task: layers, norm, head -> summed loss

Trunk and branch share nothing but the hidden states, so they can run on different ranks. With
`separate_first_layers`, each task has its own first layers in the trunk, below the shared ones.

Shapes: T tokens, D hidden size, I image positions, M images, C codes per position, E features of a code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ufork.model.config import Dimensions, ModelConfig
from ufork.model.decoder import DecoderLayer
from ufork.model.image_embedding import BEGIN_MARK, END_MARK, CodeEmbedding, ImageProjector
from ufork.model.layers.attention import Attend, PackedAttention
from ufork.model.layers.attention_kernels import AttentionKernel, sdpa_attention
from ufork.model.layers.normalization import RMSNorm
from ufork.model.layers.rotary import Rotary, RotaryKernel, rotate
from ufork.model.rq_head import RqHead
from ufork.model.text_head import TextHead
from ufork.vocabulary import PackedSequence, Task

TOKEN_EMBEDDING, TIED_HEAD = "trunk.token_embedding.weight", "branches.understanding.head.weight"
"""The two weights that `tie_word_embeddings` ties; the second is a parameter only if the trunk is on another stage."""


class DecoderStack(nn.Module):
    """Consecutive decoder layers, numbered from `first_layer` along a task's path."""

    def __init__(self, config: ModelConfig, *, first_layer: int, num_layers: int):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config, first_layer + i) for i in range(num_layers))
        self.recompute = False
        """Whether the backward pass recomputes each layer's activations (activation checkpointing)."""
        self.rotary_kernel: RotaryKernel = rotate

    def forward(self, hidden_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Maps TD to TD."""
        rotary = Rotary(
            positions_T,
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            dtype=hidden_TD.dtype,
            kernel=self.rotary_kernel,
        )
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                hidden_TD = checkpoint(
                    layer,
                    hidden_TD,
                    rotary,
                    attend,
                    use_reentrant=False,
                    preserve_rng_state=False,  # no randomness
                )
            else:
                hidden_TD = layer(hidden_TD, rotary, attend)
        return hidden_TD


class Trunk(nn.Module):
    """Token and image embeddings, the first layers of each task if they are separate, and the shared layers."""

    def __init__(self, config: ModelConfig, dimensions: Dimensions):
        super().__init__()
        self.token_embedding = nn.Embedding(dimensions.vocab_size, config.hidden_size)
        self.code_embedding = CodeEmbedding(dimensions.codebook_size, dimensions.code_width)
        self.projector = ImageProjector(dimensions.code_width, config.hidden_size)
        num_first = config.separate_first_layers
        self.first_stacks = nn.ModuleDict(
            {task: DecoderStack(config, first_layer=0, num_layers=num_first) for task in config.tasks if num_first}
        )
        self.stack = DecoderStack(config, first_layer=num_first, num_layers=config.trunk_layers)

    def forward(self, packed: PackedSequence, attend: Attend) -> Tensor:
        """Returns hidden states TD at the fork."""
        return self.states(self.embed(packed), packed.task, packed.positions_T, attend)

    def states(self, embedded_TD: Tensor, task: Task, positions_T: Tensor, attend: Attend) -> Tensor:
        """Returns hidden states TD at the fork, of the inputs of the first layer."""
        return self.stack(self.first_states(embedded_TD, task, positions_T, attend), positions_T, attend)

    def first_states(self, embedded_TD: Tensor, task: Task, positions_T: Tensor, attend: Attend) -> Tensor:
        """Returns the inputs TD of the shared layers: those of the first layer, unless the task has its own layers."""
        return self.first_stacks[task](embedded_TD, positions_T, attend) if task in self.first_stacks else embedded_TD

    def embed(self, packed: PackedSequence) -> Tensor:
        """Returns inputs TD of the first layer: text tokens, and image features between their marks."""
        index, values = self.embed_images(packed)
        return self.token_embedding(packed.token_ids_T).index_copy(0, index, values)

    def embed_images(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        """Returns the positions that belong to images, and their embeddings."""
        begins_M, ends_M = packed.image_begins_M, packed.image_ends_M
        marks = torch.cat((torch.full_like(begins_M, BEGIN_MARK), torch.full_like(ends_M, END_MARK)))
        embedded = self.projector(self.code_embedding(packed.codes_IC)[:, -1], marks)
        return torch.cat((packed.image_positions_I, begins_M, ends_M)), torch.cat(embedded)


class Branch(nn.Module):
    """Layers and final norm of one task; subclasses add the head."""

    def __init__(self, config: ModelConfig, task: Task):
        super().__init__()
        num_layers = config.branch_layers(task)
        self.stack = DecoderStack(config, first_layer=config.path_layers(task) - num_layers, num_layers=num_layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def states(self, hidden_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Returns the inputs of the head, TD."""
        return self.norm(self.stack(hidden_TD, positions_T, attend))


class UnderstandingBranch(Branch):
    """Predicts text."""

    def __init__(self, config: ModelConfig, text_head: TextHead):
        super().__init__(config, Task.UNDERSTANDING)
        self.head = text_head

    def forward(self, hidden_TD: Tensor, packed: PackedSequence, attend: Attend) -> Tensor:
        """Returns the sum of cross-entropies over the labelled tokens."""
        return self.head(self.states(hidden_TD, packed.positions_T, attend), packed.labels_T, packed.num_targets)


class GenerationBranch(Branch):
    """Predicts the codes of images."""

    def __init__(self, config: ModelConfig, dimensions: Dimensions):
        super().__init__(config, Task.GENERATION)
        self.code_embedding = CodeEmbedding(dimensions.codebook_size, dimensions.code_width)
        self.head = RqHead(config.rq_head, dimensions, config.hidden_size)

    def forward(self, hidden_TD: Tensor, packed: PackedSequence, attend: Attend) -> Tensor:
        """Returns the sum of cross-entropies over the codes; the token before a position predicts its codes."""
        states_TD = self.states(hidden_TD, packed.positions_T, attend)
        code_sums_ICE = self.code_embedding(packed.codes_IC)
        states_ID = states_TD.index_select(0, packed.image_positions_I - 1)
        return self.head(states_ID, code_sums_ICE, packed.codes_IC, packed.seed)


class UniFork(nn.Module):
    """Trunk and branches: all of them, or those that one stage holds, under the same parameter names.

    A tied text head without the trunk has its own weight, which training keeps equal to the token embedding.
    """

    def __init__(
        self,
        config: ModelConfig,
        dimensions: Dimensions,
        kernel: AttentionKernel = sdpa_attention,
        *,
        with_trunk: bool = True,
        branches: Sequence[Task] | None = None,
    ):
        """Builds the trunk if `with_trunk`, and the `branches` (None: all of `config.tasks`)."""
        super().__init__()
        self.config, self.dimensions, self.kernel = config, dimensions, kernel
        self.trunk = Trunk(config, dimensions) if with_trunk else None
        tasks = config.tasks if branches is None else branches
        self.branches = nn.ModuleDict({task: self._branch(task) for task in tasks})

    def _branch(self, task: Task) -> Branch:
        if task is Task.GENERATION:
            return GenerationBranch(self.config, self.dimensions)
        if self.trunk and self.config.tie_word_embeddings:
            return UnderstandingBranch(self.config, TextHead(self.trunk.token_embedding.weight))  # type: ignore[arg-type]
        own = nn.Parameter(torch.empty(self.dimensions.vocab_size, self.config.hidden_size))
        return UnderstandingBranch(self.config, TextHead(own))

    def forward(self, packed: PackedSequence) -> Tensor:
        """Returns the summed cross-entropy of the packed sequence, a scalar in fp32."""
        assert self.trunk
        attend = PackedAttention(packed, self.kernel)
        return self.branches[packed.task](self.trunk(packed, attend), packed, attend)

    def set_recompute(self, recompute: bool) -> None:
        """Turns activation checkpointing of the decoder layers on or off."""
        for module in self.modules():
            if isinstance(module, DecoderStack):
                module.recompute = recompute

    def set_codebook(self, codebook_KE: Tensor) -> None:
        """Copies the image tokenizer's codebook into the frozen code embeddings."""
        for module in self.modules():
            if isinstance(module, CodeEmbedding):
                module.codebook_KE.copy_(codebook_KE)
