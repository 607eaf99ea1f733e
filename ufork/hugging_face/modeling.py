"""UniFork as a model of transformers: `generate` answers questions about images, `draw` makes images from text.

    token ids, images -> image codes -> Y-shaped model -> text logits (understanding), logits of codes (generation)

The layers are ufork's own. Here is what transformers wants around them: padded batches and its key-value cache.
An exported folder holds this module joined with what it uses (`bundle.py`), and its tensors have ufork's names.

Shapes: B rows, T tokens of a row, L tokens with those in the cache, M images, R and S rows and columns of an image's
positions, I image positions of a row, C codes per position, K codebook size, V vocabulary, H query heads, G key and
value heads, W features of a head, D hidden size.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from ufork.hugging_face.configuration import UniForkConfig
from ufork.infer.config import DrawConfig
from ufork.infer.draw import draw_codes
from ufork.infer.fused import can_fuse, fuse_products
from ufork.infer.steps import steps_on
from ufork.model.image_embedding import CodeEmbedding
from ufork.model.kernels import choose_kernels, use_kernels
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.causal import causal_attention
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING, UniFork
from ufork.vision.patches import to_bytes
from ufork.vocabulary import PADDING, ControlToken, PackedSequence, Prompt, Task


class UniForkForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Trunk and branches, with the image tokenizer, which stays in fp32."""

    config_class = UniForkConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["image_tokenizer"]

    def __init__(self, config: UniForkConfig):
        super().__init__(config)
        self.model = UniFork(config.body(), config.dimensions())
        self.image_tokenizer = config.network()(config.vision())
        for module in self.model.modules():
            if isinstance(module, CodeEmbedding):  # its codebook is that of the image tokenizer, which is stored once
                module.register_buffer("codebook_KE", module.codebook_KE, persistent=False)
        # which of these are tied is `tie_word_embeddings`
        tied = {f"model.{TIED_HEAD}": f"model.{TOKEN_EMBEDDING}"}
        self._tied_weights_keys = tied if Task.UNDERSTANDING in self.model.branches else {}
        self._drawing: tuple[Any, UniFork] | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embedding of text tokens."""
        return self.model.trunk.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of text tokens."""
        self.model.trunk.token_embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values: Tensor | None = None,
        codes: Tensor | None = None,
        task: str = Task.UNDERSTANDING,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Computes the logits of the next text token, or those of image codes.

        Args:
            input_ids: BT; `image_token_id` once for each position of an image, and before and after them.
            attention_mask: BL, 0 at padding, which may stand on either side.
            position_ids: BT; counted from the first real token of each row by default.
            past_key_values: keys and values of earlier tokens.
            pixel_values: images [M, 3, rows, columns] in -1..1, in the order of the text (`UniForkImageProcessor`).
            codes: in place of `pixel_values`, codes MRSC of the images.
            task: the branch, understanding or generation.
            use_cache: whether to return a cache.
            logits_to_keep: number of tokens at the end of each row that have text logits; 0 for all.
            unused: what transformers passes to every model.

        Returns:
            logits BTV; in generation BICK, of the codes at each image position given those before it.
        """
        if task not in self.model.branches:
            raise ValueError(f"this model has no {task} branch, only {', '.join(self.model.branches)}")
        if codes is None and pixel_values is not None:
            codes = self.encode_images(pixel_values)
        batch_size, num_tokens = input_ids.shape
        if past_key_values is None and use_cache and task == Task.UNDERSTANDING:
            past_key_values = DynamicCache(config=self.config)
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, num_past)
        packed = self._packed(Task(task), input_ids, position_ids, attention_mask, codes)
        self._share_codebook()
        embedded_TD = self.model.trunk.embed(packed)
        mask: Any = create_causal_mask(  # of sdpa: a tensor, or None for causal attention
            config=self.config,
            inputs_embeds=embedded_TD.unflatten(0, (batch_size, num_tokens)),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        attend = _BatchAttention(batch_size, past_key_values, mask)
        branch = self.model.branches[task]
        hidden_TD = self.model.trunk.states(embedded_TD, packed.task, packed.positions_T, attend)
        states_TD = branch.states(hidden_TD, packed.positions_T, attend)
        if packed.task is Task.GENERATION:
            states_ID = states_TD.index_select(0, packed.image_positions_I - 1)
            logits = branch.head.out(branch.head.states(states_ID, branch.code_embedding(packed.codes_IC)))
            logits = logits.unflatten(0, (batch_size, -1))
        else:
            logits = branch.head.logits(states_TD.unflatten(0, (batch_size, num_tokens))[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Returns codes MRSC of images [M, 3, rows, columns] in -1..1."""
        images = to_bytes(pixel_values).permute(0, 2, 3, 1)
        batches = images.split(self.image_tokenizer.batch_images)
        return torch.cat([self.image_tokenizer.encode_images(batch) for batch in batches])

    @torch.no_grad()
    def decode_images(self, codes: Tensor) -> Tensor:
        """Returns images, uint8 [M, rows, columns, 3], of codes MRSC."""
        batches = codes.split(self.image_tokenizer.batch_images)
        return torch.cat([self.image_tokenizer.decode_images(batch) for batch in batches])

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[str], tokenizer: Any, *, seeds: Sequence[int] | None = None, **sampling: Any
    ) -> Tensor:
        """Draws an image per prompt; each depends on its prompt, its seed and the sampling, and not on its batch.

        On CPUs the first call after a change of the weights copies them in the order in which products read them.

        Args:
            prompts: texts.
            tokenizer: the model's tokenizer, or its processor.
            seeds: one per prompt; `seed` and the numbers that follow it by default.
            sampling: guidance, temperature, top_k, top_p, seed, batch_prompts (`DrawConfig`); the defaults are those in
                `config.drawing`.

        Returns:
            uint8 [M, rows, columns, 3].
        """
        config = DrawConfig(**{**(self.config.drawing or {}), **sampling})
        seeds = range(config.seed, config.seed + len(prompts)) if seeds is None else seeds
        vision, model, steps = self.image_tokenizer.config, self._model_for_drawing(), steps_on(self.device)
        images = []
        for start in range(0, len(prompts), config.batch_prompts):
            batch = slice(start, start + config.batch_prompts)
            codes_BNC = draw_codes(
                model,
                _PromptTokenizer(tokenizer),  # type: ignore[arg-type]
                prompts[batch],
                config,
                num_positions=vision.num_positions,
                seeds=seeds[batch],
                steps=steps,
            )
            images.append(self.decode_images(codes_BNC.unflatten(1, (vision.grid_rows, vision.grid_columns))))
        return torch.cat(images)

    def _model_for_drawing(self) -> UniFork:
        """Returns the model with this device's fastest kernels; the same one as long as no parameter changes.

        It has the same parameters, except where products are fused on a CPU: those are made of a copy. Tensors of a
        file lie anywhere in memory, and rounding depends on it: other codes would be drawn than by ufork, which loads
        into memory that torch has allocated.
        """
        parameters = list(self.model.parameters())
        key = (self.device, self.dtype, *(parameter._version for parameter in parameters))
        if self._drawing is None or self._drawing[0] != key:
            self._drawing = None
            self._share_codebook()
            fuses = can_fuse(self.device, self.dtype)
            shared = {} if fuses else {id(tensor): tensor for tensor in (*parameters, *self.model.buffers())}
            model = copy.deepcopy(self.model, shared).eval()
            model.kernel = choose_attention_kernel(self.device, self.dtype)
            use_kernels(model, choose_kernels(self.device))
            if fuses:
                fuse_products(model)
            self._drawing = key, model
        return self._drawing[1]

    def _share_codebook(self) -> None:
        for module in self.model.modules():
            if isinstance(module, CodeEmbedding):
                module.codebook_KE = self.image_tokenizer.codebook

    def _packed(
        self,
        task: Task,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        codes_MRSC: Tensor | None,
    ) -> PackedSequence:
        """Returns the rows one after the other, with the indices of their images."""
        nothing = torch.empty(0, dtype=torch.long, device=input_ids.device)
        begins_M = ends_M = image_positions_I = nothing
        codes_IC = nothing.view(0, self.model.dimensions.codes_per_position)
        if codes_MRSC is not None:
            is_image = input_ids == self.config.image_token_id
            if attention_mask is not None and attention_mask.dim() == 2:
                is_image &= attention_mask[:, -input_ids.shape[1] :] != 0
            places, codes_IC = is_image.flatten().nonzero().squeeze(1), codes_MRSC.flatten(0, 2).to(input_ids.device)
            if len(places) != len(codes_IC) + 2 * len(codes_MRSC):
                raise ValueError(
                    f"the text has {len(places)} image tokens; {len(codes_MRSC)} images need"
                    f" {codes_MRSC[0, ..., 0].numel() + 2} each. Let the processor lay text and images out"
                )
            places_MN = places.view(len(codes_MRSC), -1)
            begins_M, image_positions_I, ends_M = places_MN[:, 0], places_MN[:, 1:-1].flatten(), places_MN[:, -1]
        return PackedSequence(
            task=task,
            token_ids_T=input_ids.flatten(),
            positions_T=position_ids.expand_as(input_ids).flatten(),
            segment_starts_S1=nothing,
            longest_segment=input_ids.shape[1],
            labels_T=nothing,
            image_positions_I=image_positions_I,
            image_begins_M=begins_M,
            image_ends_M=ends_M,
            codes_IC=codes_IC,
            num_targets=0,
            num_real_tokens=input_ids.numel(),
            sample_ids=(),
        )


class _BatchAttention:
    """`Attend` over the rows of a padded batch; transformers' cache keeps keys and values."""

    def __init__(self, batch_size: int, cache: Cache | None, mask_B1TL: Tensor | None):
        """Without a mask, attention is causal."""
        self.batch_size, self.cache, self.mask_B1TL = batch_size, cache, mask_B1TL

    def __call__(self, layer: int, query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor) -> Tensor:
        """Returns the attention output THW."""
        query, key, value = (
            x.unflatten(0, (self.batch_size, -1)).transpose(1, 2) for x in (query_THW, key_TGW, value_TGW)
        )
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        if self.mask_B1TL is None and query.shape[2] == key.shape[2]:
            mixed = causal_attention(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask_B1TL, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(0, 1)


class _PromptTokenizer:
    """What `draw_codes` asks of a text tokenizer, of a tokenizer or processor of transformers."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.padding_id = self.tokenizer.convert_tokens_to_ids(PADDING)

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the token ids of `prompt`. No text becomes a control token, whatever it holds."""
        token_ids: list[int] = []
        for piece in (prompt,) if isinstance(prompt, str) else prompt:
            if isinstance(piece, ControlToken):
                token_ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            else:
                token_ids += self.tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
        return token_ids


def _positions(input_ids: Tensor, attention_mask: Tensor | None, num_past: int) -> Tensor:
    """Returns BT, counted from the first real token of each row."""
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(num_past, num_past + input_ids.shape[1], device=input_ids.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
