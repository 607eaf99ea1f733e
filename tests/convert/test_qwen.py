"""Qwen models made into the start of a UniFork model: it computes what transformers does, and errors have reasons."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.convert.tiny_qwen import SIZES, SMALL, save_qwen
from tests.golden_files import write_vila_u
from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import encoded_sample, packed_sequence, tiny_tokenizer
from ufork.convert import vila_u
from ufork.convert.config import BranchingConfig
from ufork.convert.qwen import QwenConfig, convert, source_layers
from ufork.errors import CheckpointError, ConfigError, TokenizerError
from ufork.infer.fused import can_fuse, fuse_products
from ufork.infer.sequences import Sequences
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.initialization import initialize
from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig, load_weights, meta_model, put_weights
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.train.initial_model import InitialModel
from ufork.train.step import run_step
from ufork.vocabulary import Task

TOKENS = [5, 6, 7, 250, 9, 10, 11, 12, 13]


@pytest.fixture(scope="module", params=[(2, True), (2, False), (3, True), (3, False)], ids="Qwen{0[0]}, {0[1]}".format)
def converted(request, tmp_path_factory):
    """Returns transformers' model, saved in shards, and the folder of ours."""
    generation, tied = request.param
    folder = tmp_path_factory.mktemp("qwen")
    qwen = save_qwen(folder / "theirs", generation, tied=tied, max_shard_size="40KB")
    assert len(list((folder / "theirs").glob("*.safetensors"))) > 2
    convert(folder / "theirs", folder / "ours", SMALL)
    return qwen, folder / "ours"


@pytest.fixture
def qwen2(tmp_path):
    """Returns a folder of Qwen2 that tests may damage."""
    save_qwen(tmp_path / "theirs", 2, tied=True)
    return tmp_path / "theirs"


def loaded(folder) -> UniFork:
    weights, config = load_weights(folder)
    model = UniFork(config.model, config.dimensions)
    put_weights(model, weights, origin=str(folder))
    return model.eval()


@torch.inference_mode()
def test_logits_of_text_are_transformers(converted):
    qwen, folder = converted
    model = loaded(folder)
    branch = model.branches[Task.UNDERSTANDING]
    packed = packed_sequence(Task.UNDERSTANDING, texts=[TOKENS, TOKENS[3:]], images=False, seq_len=20)
    attend = PackedAttention(packed, model.kernel)
    logits = branch.head.logits(branch.states(model.trunk(packed, attend), packed.positions_T, attend))
    for start, tokens in ((0, TOKENS), (len(TOKENS), TOKENS[3:])):
        expected = qwen(input_ids=torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits[start : start + len(tokens)], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_generation_branch_starts_as_the_same_layers_and_norm(converted):
    qwen, folder = converted
    model = loaded(folder)
    packed = packed_sequence(Task.GENERATION, texts=[TOKENS], images=False, seq_len=len(TOKENS))
    attend = PackedAttention(packed, model.kernel)
    states = model.branches[Task.GENERATION].states(model.trunk(packed, attend), packed.positions_T, attend)
    expected = qwen.model(input_ids=torch.tensor([TOKENS])).last_hidden_state[0]
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("static", [False, True])
@torch.inference_mode()
def test_cached_decoding_is_transformers(converted, static, fused):
    qwen, folder = converted
    model = loaded(folder)
    if fused:
        if not can_fuse(torch.device("cpu"), torch.float32):
            pytest.skip("this CPU has no AVX2, or torch no oneDNN")
        fuse_products(model)
    texts = [TOKENS, TOKENS[2:]]
    prompts = [encoded_sample(Task.UNDERSTANDING, text[:3], image=False) for text in texts]
    sequences = Sequences(model, Task.UNDERSTANDING, device=torch.device("cpu"), static=static)
    states = [sequences.start(prompts, num_new_tokens=4, image_is_open=False)]
    for step in range(3, 7):
        states.append(sequences.step(model.trunk.token_embedding(torch.tensor([text[step] for text in texts]))))
    logits_BTV = model.branches[Task.UNDERSTANDING].head.logits(torch.stack(states, dim=1))
    for text, logits in zip(texts, logits_BTV, strict=True):
        expected = qwen(input_ids=torch.tensor([text[:7]])).logits[0, 2:]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


LAYOUTS = {"tp 2": LayoutConfig(colocated_tp=2), "dp 2": LayoutConfig(), "forked": LayoutConfig(kind="forked")}


def run_steps(rank_env: RankEnvironment, folder, layout: LayoutConfig):
    """The losses of both tasks and the gradient's norm in each of two steps of training that starts from `folder`."""
    torch.set_num_threads(1)
    with join_world(rank_env, layout, timeout_seconds=120) as world:
        config = load_weights(folder)[1]
        codebook = torch.zeros(config.dimensions.codebook_size, config.dimensions.code_width)
        initial = InitialModel(config=config, codebook_KE=codebook, folder=folder)
        train = TrainConfig(
            global_batch_size=GlobalBatchSize(understanding=2, generation=2), optimizer="sgd", precision="fp32"
        )
        stage = open_stage(world, train, model=initial.build(world.coordinate.stage), layout=layout, seq_len=20)
        sequences = {}
        if stage.reads_data:
            numbers = range(world.coordinate.dp_rank, 2, world.dp_group.size())
            sequences = {task: [text_sequence(task, number) for number in numbers] for task in Task}
        results = [run_step(stage, sequences, 0.1) for _ in range(2)]
        stage.engine.close()
        return torch.tensor([[*result.losses.values(), result.gradient_norm] for result in results])


def text_sequence(task: Task, number: int):
    images = task is Task.GENERATION
    return packed_sequence(task, texts=[TOKENS[number:]], images=images, seq_len=20, seed=number)


@pytest.mark.slow
@pytest.mark.parametrize("converted", [(2, True), (3, False)], indirect=True)
@torch.no_grad()
def test_training_begins_at_transformers_loss_and_is_that_of_one_process_in_every_layout(converted):
    qwen, folder = converted
    (expected,) = run_on_ranks(run_steps, 1, folder, LayoutConfig())
    texts = [torch.tensor(TOKENS[number:]) for number in range(2)]
    logits = [qwen(input_ids=text[None]).logits[0, :-1] for text in texts]
    first_loss = cross_entropy(torch.cat(logits), torch.cat([text[1:] for text in texts]))
    torch.testing.assert_close(expected[0, 0], first_loss, rtol=1e-5, atol=0)
    assert expected[1, 0] < expected[0, 0]
    for layout in LAYOUTS.values():
        for found in run_on_ranks(run_steps, num_ranks_of(layout) or 2, folder, layout):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_projector_and_the_rq_head_are_those_of_a_run_with_that_seed(qwen2, tmp_path):
    convert(qwen2, tmp_path / "ours", [*SMALL, "seed=3"])
    weights, config = load_weights(tmp_path / "ours")
    random = UniFork(config.model, config.dimensions)
    initialize(random, 3)
    expected = {
        name: parameter
        for name, parameter in random.named_parameters()
        if name.startswith(("trunk.projector.", "branches.generation.head."))
    }
    assert len(expected) > 20
    for name, parameter in expected.items():
        assert weights[name].equal(parameter), name


def test_the_rq_head_may_be_vila_us(tmp_path):
    vila_u.convert(write_vila_u(tmp_path), tmp_path / "vila-u")
    rq_head = tmp_path / "vila-u/rq_head"
    save_qwen(tmp_path / "theirs", 2, tied=True, hidden_size=48)
    convert(tmp_path / "theirs", tmp_path / "ours", [f"rq_head_folder={rq_head}"])
    weights, config = load_weights(tmp_path / "ours")
    expected = load_file(rq_head / "model.safetensors")
    assert len(expected) > 20 and all(weights[name].equal(tensor) for name, tensor in expected.items())
    assert (config.dimensions.codebook_size, config.model.rq_head.num_blocks) == (128, 2)
    with pytest.raises(ConfigError, match="code_width: the RQ head in rq_head_folder=.* has its own"):
        convert(tmp_path / "theirs", tmp_path / "ours", [f"rq_head_folder={rq_head}", "code_width=32"])
    save_qwen(tmp_path / "small", 2, tied=True)
    with pytest.raises(ConfigError, match="for a body of width 48, and the text model's is 32"):
        convert(tmp_path / "small", tmp_path / "ours", [f"rq_head_folder={rq_head}"])


def test_weights_keep_their_precision(qwen2, tmp_path):
    stored = load_file(qwen2 / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in stored.items()}, qwen2 / "model.safetensors")
    convert(qwen2, tmp_path / "ours", SMALL)
    weights, _ = load_weights(tmp_path / "ours")
    assert weights["trunk.token_embedding.weight"].equal(stored["model.embed_tokens.weight"].bfloat16())
    assert weights["trunk.projector.first.weight"].dtype == torch.float32


def test_a_tied_head_may_be_stored_twice(qwen2, tmp_path):
    stored = load_file(qwen2 / "model.safetensors")
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, qwen2 / "model.safetensors")
    convert(qwen2, tmp_path / "ours", SMALL)


def layers_of(num_layers: int, **values) -> list[list[int]]:
    """Returns Qwen's layers of the trunk and of both branches."""
    qwen = QwenConfig(model_type="qwen2", **{**SIZES, "num_hidden_layers": num_layers}, rms_norm_eps=1e-6)
    config = qwen.model(BranchingConfig(**values))
    stacks: dict[str, list[int]] = {"trunk": [], "branches.understanding": [], "branches.generation": []}
    for name, layer in source_layers(config, num_layers).items():
        stacks[name.partition(".stack")[0]].append(layer)
    return list(stacks.values())


@pytest.mark.parametrize(
    ("num_layers", "values", "expected"),
    [
        (4, {}, [[0, 1], [2, 3], [2, 3]]),
        (5, {}, [[0, 1], [2, 3, 4], [2, 3, 4]]),
        (6, {"trunk_layers": 2, "generation_layers": 2}, [[0, 1], [2, 3, 4, 5], [3, 5]]),
        (6, {"trunk_layers": 3, "generation_layers": 1}, [[0, 1, 2], [3, 4, 5], [5]]),
        (4, {"generation_layers": 4}, [[0, 1], [2, 3], [2, 2, 3, 3]]),
        (5, {"trunk_layers": 2, "generation_layers": 4}, [[0, 1], [2, 3, 4], [2, 3, 4, 4]]),
        (4, {"understanding_layers": 0}, [[0, 1], [], [2, 3]]),
        (4, {"trunk_layers": 4}, [[0, 1, 2, 3], [], []]),
        (4, {"trunk_layers": 0}, [[], [0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_layers_that_the_trunk_and_branches_start_as(num_layers, values, expected):
    assert layers_of(num_layers, **values) == expected


def test_separate_first_layers_are_the_lowest_for_each_task():
    qwen = QwenConfig(model_type="qwen2", **{**SIZES, "num_hidden_layers": 6}, rms_norm_eps=1e-6)
    config = qwen.model(BranchingConfig(separate_first_layers=1))
    assert source_layers(config, 6) == {
        **{f"trunk.stack.layers.{i}": 1 + i for i in range(2)},
        **{f"trunk.first_stacks.{task}.layers.0": 0 for task in Task},
        **{f"branches.{task}.stack.layers.{i}": 3 + i for task in Task for i in range(3)},
    }


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (["trunk_layers=9"], "trunk_layers=9: the text model has 5 layers"),
        (["trunk_layers=5", "generation_layers=2"], "trunk_layers=5: the trunk has all layers"),
        (["generation_layer=2"], "nearest known one is 'generation_layers'"),
    ],
)
def test_values_that_do_not_fit_are_named(qwen2, tmp_path, values, fault):
    with pytest.raises(ConfigError, match=fault):
        convert(qwen2, tmp_path / "ours", values)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, "rope_parameters.rope_type"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": None}, "neither rope_theta nor rope_parameters"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"intermediate_size": 10**30}, "intermediate_size"),
    ],
)
def test_models_that_are_computed_otherwise_are_refused_by_key(qwen2, tmp_path, change, fault):
    path = qwen2 / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"config.json(?s:.*){fault}"):
        convert(qwen2, tmp_path / "ours", SMALL)


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_config_that_cannot_be_read_is_named(qwen2, tmp_path, content):
    (qwen2 / "config.json").unlink() if content is None else (qwen2 / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json"):
        convert(qwen2, tmp_path / "ours", SMALL)


@pytest.mark.parametrize(
    ("name", "tensor", "fault"),
    [
        ("model.layers.3.mlp.up_proj.weight", None, r"missing: model.layers.\*.mlp.up_proj.weight: .*complete"),
        ("model.norm.weight", torch.ones(31), r"mis-shaped: model.norm.weight: \[31\], expected \[32\]"),
        ("model.layers.0.self_attn.q_norm.weight", torch.ones(8), r"unexpected: .*q_norm.*no such tensor"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", torch.ones(8), "unexpected: .*mixture of experts"),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(8), "unexpected: .*quantized"),
    ],
)
def test_other_tensors_are_named_with_the_reason(qwen2, tmp_path, name, tensor, fault):
    stored = load_file(qwen2 / "model.safetensors")
    stored.pop(name, None)
    save_file(stored if tensor is None else {**stored, name: tensor}, qwen2 / "model.safetensors")
    with pytest.raises(CheckpointError, match=fault):
        convert(qwen2, tmp_path / "ours", SMALL)
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(tmp_path):
    Qwen2ForCausalLM(Qwen2Config(**SIZES | {"vocab_size": 200})).save_pretrained(tmp_path / "theirs")
    tiny_tokenizer().save(tmp_path / "theirs")
    with pytest.raises(TokenizerError, match=r"the tokenizer has \d+ tokens .* the model embeds 200"):
        convert(tmp_path / "theirs", tmp_path / "ours", SMALL)


QWEN25_05B = dict(
    model_type="qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151_936,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
)
QWEN3_06B = dict(
    QWEN25_05B,
    model_type="qwen3",
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)


def millions(named) -> float:
    return round(sum(math.prod(parameter.shape) for _, parameter in named) / 1e6, 1)


@pytest.mark.parametrize(
    ("values", "text_millions", "body_millions"),
    [(QWEN25_05B, 494.0, 673.0), (QWEN3_06B, 596.0, 816.3)],
    ids=["Qwen2.5-0.5B", "Qwen3-0.6B"],
)
def test_parameters_of_published_sizes(values, text_millions, body_millions):
    """The text model's are those of its card, and 673.0M and 401.9M those of the specification of the release."""
    qwen = QwenConfig.from_mapping(values, origin="here")
    config = qwen.model(BranchingConfig())
    dimensions = Dimensions(vocab_size=qwen.vocab_size, codebook_size=16_384, code_width=1024, codes_per_position=4)
    named = list(meta_model(WeightsConfig(model=config, dimensions=dimensions)).named_parameters())
    head = [(name, parameter) for name, parameter in named if name.startswith("branches.generation.head.")]
    projector = [(name, parameter) for name, parameter in named if name.startswith("trunk.projector.")]
    others = {name for name, _ in head + projector}
    body = [(name, parameter) for name, parameter in named if name not in others]
    text = [(name, parameter) for name, parameter in body if not name.startswith("branches.generation.")]
    assert (millions(text), millions(body)) == (text_millions, body_millions)
    if values is QWEN25_05B:
        assert config == ModelConfig() and (millions(head), millions(projector)) == (401.9, 1.7)
