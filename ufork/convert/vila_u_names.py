"""Names of VILA-U's tensors: its image tokenizer and its RQ head, by ufork's names.

UniFork's release has the same tensors behind a prefix (specification of the release, section 1).
"""

import re
from collections.abc import Sequence

_Rules = Sequence[tuple[str, str]]
_TOKENIZER: _Rules = (
    (r"encoder\.position_embedding_NE", "siglip_model.vision_model.embeddings.position_embedding.weight"),
    (r"encoder\.patch_embedding\.", "siglip_model.vision_model.embeddings.patch_embedding."),
    (r"encoder\.layers\.", "siglip_model.vision_model.encoder.layers."),
    (r"\.attention_norm\.", ".layer_norm1."),
    (r"\.mlp_norm\.", ".layer_norm2."),
    (r"\.mlp_up\.", ".mlp.fc1."),
    (r"\.mlp_down\.", ".mlp.fc2."),
    (r"\.attention\.(q|k|v)[a-z]+\.", r".self_attn.\1_proj."),
    (r"\.attention\.out\.", ".self_attn.out_proj."),
    (r"quantizer\.codebook", "quantizer.codebooks.0.weight"),
    (r"post_quantizer\.", "post_quant_conv."),
    (r"decoder\.middle\.0\.", "decoder.mid.block_1."),
    (r"decoder\.middle\.1\.", "decoder.mid.attn_1."),
    (r"decoder\.middle\.2\.", "decoder.mid.block_2."),
    (r"decoder\.levels\.(\d+)\.blocks\.", r"decoder.up.\1.block."),
    (r"decoder\.levels\.(\d+)\.attentions\.", r"decoder.up.\1.attn."),
    (r"decoder\.levels\.(\d+)\.upsample\.1\.", r"decoder.up.\1.upsample.conv."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"(attn_1|attn\.\d+)\.(q|k|v)[a-z]+\.", r"\1.\2."),
    (r"(attn_1|attn\.\d+)\.out\.", r"\1.proj_out."),
)
_RQ_HEAD: _Rules = (
    (r"from_body\.", "in_mlp_2."),
    (r"from_codes\.", "in_mlp_1."),
    (r"depth_positions_CP", "pos_emb_d"),
    (r"out_norm\.", "classifier_mlp.layer_norm."),
    (r"out\.", "classifier_mlp.linear."),
    (r"(blocks\.\d+)\.attention_norm\.", r"\1.ln1."),
    (r"(blocks\.\d+)\.mlp_norm\.", r"\1.ln2."),
    (r"(blocks\.\d+)\.attention\.widen\.", r"\1.attn_in_proj."),
    (r"(blocks\.\d+)\.attention\.narrow\.", r"\1.attn_out_proj."),
    (r"(blocks\.\d+)\.attention\.mix\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.attention\.", r"\1.attn."),
    (r"(blocks\.\d+)\.mlp_up\.", r"\1.mlp.0."),
    (r"(blocks\.\d+)\.mlp_down\.", r"\1.mlp.2."),
    (r"blocks\.", "head_transformer.blocks."),
)


def tokenizer_name(name: str) -> str:
    """Returns VILA-U's name of the tensor `name` of `ufork.vision.vila_u.tokenizer.VilaU`."""
    return "rqvaesiglip." + _renamed(name, _TOKENIZER)


def rq_head_name(name: str) -> str:
    """Returns VILA-U's name of the parameter `name` of `ufork.model.rq_head.RqHead`."""
    return "rqtransformer." + _renamed(name, _RQ_HEAD)


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(f"(?<![a-z_]){pattern}" if pattern[0].isalpha() else pattern, replacement, name)
    return name
