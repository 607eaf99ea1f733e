"""An independent implementation of the release's specification: body, RQ head, losses and greedy decoding.

    tensors by the release's names, padded rows -> inputs -> hidden states -> losses; or tokens or codes one by one

It is written from the specification alone, as plainly as possible: rows are padded as the release pads them, nothing is
packed or cached, and gradients are autograd's. Images are given as codes; the golden tensors check the tokenizer.

Shapes: R rows, T tokens of the longest row with its image, D hidden size, H heads, W width of a head, N positions of an
image, P positions of several images, C codes per position, E width of a code, K codebook size, V vocabulary.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ufork.infer.padded_rows import IMAGE_PLACEHOLDER, PaddedRows
from ufork.vocabulary import IGNORED_LABEL, Task

TOWER = "model.vision_tower.vision_tower."
RQ_HEAD, TOKENIZER = f"{TOWER}rqtransformer.", f"{TOWER}rqvaesiglip."
CODEBOOK = f"{TOKENIZER}quantizer.codebooks.0.weight"
EMBEDDING, TEXT_HEAD = "model.embed_tokens.weight", "lm_head.weight"
MARKS = "model.mm_projector.token_embedding.weight"
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Release:
    """A checkpoint whose text head is a copy of the token embedding."""

    tensors: dict[str, Tensor]
    """By the release's names, without the text head; all but the image tokenizer's take gradients."""
    config: dict[str, Any]
    """The checkpoint's."""
    rq_config: dict[str, Any]
    """The RQ head's, from the image tokenizer's config."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the checkpoint in `folder`."""
        files = folder.glob("*.safetensors")
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items() if name != TEXT_HEAD}
        for name, tensor in tensors.items():
            tensor.requires_grad_(not name.startswith(TOKENIZER))
        tower = json.loads((folder / "vision_tower/config.json").read_text())
        config = json.loads((folder / "config.json").read_text())
        return cls(tensors=tensors, config=config, rq_config=tower["rqtransformer"])

    # Inputs (section 4)

    def inputs(self, rows: PaddedRows) -> list[Tensor]:
        """Returns the inputs TD of each row without padding; an image is [begin, N features, end]."""
        result = []
        for row in range(len(rows.token_ids_RT)):
            parts = []
            for token in rows.token_ids_RT[row][rows.mask_RT[row]].tolist():
                if token == IMAGE_PLACEHOLDER:
                    assert rows.codes_RNC is not None
                    begin, end = self.tensors[MARKS].split(1)
                    parts += [begin, self._project(rows.codes_RNC[row]), end]
                else:
                    parts.append(self.tensors[EMBEDDING][None, token])
            result.append(torch.cat(parts))
        return result

    def _project(self, codes_PC: Tensor) -> Tensor:
        features_PE = self.tensors[CODEBOOK][codes_PC].sum(-2)
        hidden = F.gelu(self._linear("model.mm_projector.linear1", features_PE))
        return self._linear("model.mm_projector.linear2", hidden)

    # Body (section 2)

    def states(self, inputs_RTD: Tensor, mask_RT: Tensor, task: Task) -> Tensor:
        """Returns the outputs RTD of the branch's norm."""
        num_layers = self.config["num_hidden_layers"]
        layers = [f"model.layers.{i}." for i in range(num_layers)]
        if task is Task.GENERATION:
            shared = num_layers // 2
            layers[shared:] = [f"model.gen_fork_layers.{i}." for i in range(num_layers - shared)]
        num_tokens = inputs_RTD.shape[1]
        seen_RTT = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril() & mask_RT[:, None, :]
        seen_RTT = seen_RTT | torch.eye(num_tokens, dtype=torch.bool)  # so that padding sees something
        for layer in layers:
            inputs_RTD = self._layer(layer, inputs_RTD, seen_RTT)
        return self._rms_norm("model.norm_gen" if task is Task.GENERATION else "model.norm", inputs_RTD)

    def _layer(self, name: str, x_RTD: Tensor, seen_RTT: Tensor) -> Tensor:
        num_heads, num_kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        normed = self._rms_norm(f"{name}input_layernorm", x_RTD)
        query, key, value = (
            self._linear(f"{name}self_attn.{kind}_proj", normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for kind, heads in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads))
        )
        query, key = self._rotate(query), self._rotate(key)
        key, value = (x.repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (key, value))
        x_RTD = x_RTD + self._linear(f"{name}self_attn.o_proj", _attend(query, key, value, seen_RTT[:, None]))
        normed = self._rms_norm(f"{name}post_attention_layernorm", x_RTD)
        gate = F.silu(self._linear(f"{name}mlp.gate_proj", normed))
        return x_RTD + self._linear(f"{name}mlp.down_proj", gate * self._linear(f"{name}mlp.up_proj", normed))

    def _rotate(self, x_RHTW: Tensor) -> Tensor:
        """Rotates by positions that count from 0 over the padded row."""
        num_tokens, width = x_RHTW.shape[-2:]
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        angles_TW = torch.outer(torch.arange(num_tokens), frequencies).repeat(1, 2)
        first, second = x_RHTW.chunk(2, dim=-1)
        return x_RHTW * angles_TW.cos() + torch.cat((-second, first), dim=-1) * angles_TW.sin()

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.tensors[f"{name}.weight"] * x * torch.rsqrt(mean_square + self.config["rms_norm_eps"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    # RQ head (section 6)

    def code_logits(self, states_PD: Tensor, codes_PC: Tensor) -> Tensor:
        """Returns the logits PCK of the codes that follow the given ones, of the first one first."""
        sums_PCE = self.tensors[CODEBOOK][codes_PC].cumsum(-2)
        x = torch.cat(
            (
                self._linear(f"{RQ_HEAD}in_mlp_2", states_PD)[:, None],
                self._linear(f"{RQ_HEAD}in_mlp_1", sums_PCE),
            ),
            dim=1,
        )
        num_codes = x.shape[1]
        x = x + self.tensors[f"{RQ_HEAD}pos_emb_d"][:, :num_codes]
        causal = torch.ones(num_codes, num_codes, dtype=torch.bool).tril()
        for block in range(self.rq_config["head"]["n_layer"]):
            name = f"{RQ_HEAD}head_transformer.blocks.{block}."
            inner = self._linear(f"{name}attn_in_proj", self._layer_norm(f"{name}ln1", x))
            query, key, value = (
                self._linear(f"{name}attn.{kind}", inner)
                .unflatten(-1, (self.rq_config["head"]["block"]["n_head"], -1))
                .transpose(1, 2)
                for kind in ("query", "key", "value")
            )
            attended = self._linear(f"{name}attn.proj", _attend(query, key, value, causal))
            x = x + self._linear(f"{name}attn_out_proj", attended)
            hidden = F.gelu(self._linear(f"{name}mlp.0", self._layer_norm(f"{name}ln2", x)))
            x = x + self._linear(f"{name}mlp.2", hidden)
        classifier = f"{RQ_HEAD}classifier_mlp."
        return self._linear(f"{classifier}linear", self._layer_norm(f"{classifier}layer_norm", x))

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)

    # Losses (section 5)

    def loss(self, rows: PaddedRows) -> Tensor:
        """Returns the mean cross-entropy of the rows' targets."""
        inputs = self.inputs(rows)
        states_RTD = self.states(*_padded(inputs, "right"), rows.task)
        images = [_place_of_image(ids[mask]) for ids, mask in zip(rows.token_ids_RT, rows.mask_RT, strict=True)]
        if rows.task is Task.GENERATION:
            assert rows.codes_RNC is not None
            num_positions = rows.codes_RNC.shape[1]
            states_PD = torch.cat([s[i : i + num_positions] for s, i in zip(states_RTD, images, strict=True)])
            codes_PC = rows.codes_RNC.flatten(0, 1)
            return F.cross_entropy(self.code_logits(states_PD, codes_PC[:, :-1]).flatten(0, 1), codes_PC.flatten())
        assert rows.labels_RT is not None
        labels = []
        for row, image in enumerate(images):
            label = rows.labels_RT[row][rows.mask_RT[row]]
            num_added = len(inputs[row]) - len(label) + 1  # an image takes the place of its placeholder
            unlabelled = torch.full((num_added if image is not None else 0,), IGNORED_LABEL)
            labels.append(label if image is None else torch.cat((label[:image], unlabelled, label[image + 1 :])))
        labels_RT = pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL)
        logits_RTV = F.linear(states_RTD, self.tensors[EMBEDDING])
        return F.cross_entropy(logits_RTV[:, :-1].flatten(0, 1), labels_RT[:, 1:].flatten())

    # Greedy decoding, of rows that are padded on the left

    @torch.no_grad()
    def answers(self, rows: PaddedRows, *, end_id: int, max_tokens: int) -> list[list[int]]:
        """Returns the most likely tokens after each row, up to and with `end_id` or `max_tokens` of them."""
        inputs_RTD, mask_RT = _padded(self.inputs(rows), "left")
        tokens = []
        for _ in range(max_tokens):
            last_RD = self.states(inputs_RTD, mask_RT, Task.UNDERSTANDING)[:, -1]
            tokens.append(F.linear(last_RD, self.tensors[EMBEDDING]).argmax(-1))
            inputs_RTD, mask_RT = _longer(inputs_RTD, mask_RT, self.tensors[EMBEDDING][tokens[-1]])
        answers = torch.stack(tokens, dim=1).tolist()
        return [answer[: answer.index(end_id) + 1] if end_id in answer else answer for answer in answers]

    @torch.no_grad()
    def drawings(
        self, prompts: list[Tensor], unconditional: list[Tensor], *, guidance: float, num_positions: int
    ) -> Tensor:
        """Returns the most likely codes RNC after token ids; the unconditional rows follow the others in the batch."""
        texts = [*prompts, *unconditional]
        begin = self.tensors[MARKS][:1]
        inputs_RTD, mask_RT = _padded([torch.cat((self.tensors[EMBEDDING][ids], begin)) for ids in texts], "left")
        positions = []
        for _ in range(num_positions):
            last_RD = self.states(inputs_RTD, mask_RT, Task.GENERATION)[:, -1]
            codes_RC = torch.zeros(len(texts), 0, dtype=torch.int64)
            for _ in range(self.tensors[f"{RQ_HEAD}pos_emb_d"].shape[1]):
                conditional, null = self.code_logits(last_RD, codes_RC)[:, -1].chunk(2)
                chosen = (null + guidance * (conditional - null)).argmax(-1)
                codes_RC = torch.cat((codes_RC, chosen.repeat(2)[:, None]), dim=1)
            positions.append(codes_RC[: len(prompts)])
            inputs_RTD, mask_RT = _longer(inputs_RTD, mask_RT, self._project(codes_RC))
        return torch.stack(positions, dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Attention over RHTW, heads joined again: RT(HW)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _padded(inputs: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Returns rows RTD, padded with zeros, and their mask RT."""
    rows = pad_sequence(inputs, batch_first=True, padding_side=side)
    ones = [torch.ones(len(row), dtype=torch.bool) for row in inputs]
    return rows, pad_sequence(ones, batch_first=True, padding_side=side)


def _longer(inputs_RTD: Tensor, mask_RT: Tensor, next_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns rows with one more input each, and their mask."""
    seen_R1 = torch.ones(len(mask_RT), 1, dtype=torch.bool)
    return torch.cat((inputs_RTD, next_RD[:, None]), dim=1), torch.cat((mask_RT, seen_R1), dim=1)


def _place_of_image(token_ids: Tensor) -> int | None:
    places = (token_ids == IMAGE_PLACEHOLDER).nonzero().flatten().tolist()
    return places[0] if places else None
