import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe import Recipe, _laid_over, read_recipe
from ufork.errors import ConfigError, StorageError

TWO_PHASES = """
run: {name: tiny}
train: {steps: 30, learning_rate: 0.01, wandb: {mode: disabled}}
phases:
  align: {train: {trainable: [projector, rq_head], wandb: {project: other}}}
  all: {train: {steps: 60}}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TWO_PHASES)
    return file


def test_phase_has_its_own_values_over_the_shared_ones(path):
    phases = read_recipe(path).phases
    assert list(phases) == ["align", "all"]
    assert (phases["align"].train.steps, phases["all"].train.steps) == (30, 60)
    assert phases["align"].train.trainable == ("projector", "rq_head")
    assert (phases["align"].train.wandb.mode, phases["align"].train.wandb.project) == ("disabled", "other")
    assert phases["all"].train.learning_rate == 0.01


def test_override_of_a_shared_value_reaches_the_phases_that_do_not_set_it(path):
    phases = read_recipe(path, ["train.steps=7", "phases.all.train.learning_rate=0.5"]).phases
    assert (phases["align"].train.steps, phases["all"].train.steps) == (7, 60)
    assert (phases["align"].train.learning_rate, phases["all"].train.learning_rate) == (0.01, 0.5)


def test_fault_of_a_shared_section_is_reported_once(path):
    with pytest.raises(ConfigError, match=r"(?s)1 value\(s\) refused.*train.stepz: .* 'train.steps'"):
        read_recipe(path, ["train.stepz=7"])


def test_fault_of_a_phase_names_the_phase(path):
    with pytest.raises(ConfigError, match=r"phases.all.train.stepz: .* 'phases.all.train.steps'"):
        read_recipe(path, ["phases.all.train.stepz=7"])


@pytest.mark.parametrize("phases", ["5", "[a, b]", "{a: 5}", "{a: {train: 5}}"])
def test_phases_of_the_wrong_kind_are_refused(path, phases):
    with pytest.raises(ConfigError, match="phases"):
        read_recipe(path, [f"phases={phases}"])


def test_resolved_recipe_reads_back_to_the_same(path, tmp_path):
    recipe = read_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert read_recipe(again) == recipe


def test_record_keeps_the_sections_of_other_verbs(path, tmp_path):
    changed = read_recipe(path, [f"run.folder={tmp_path}", "train.steps=5", "text.vocab_size=600"])
    changed.run_folder.record(changed.model_dump(mode="json"), ("text",))
    later = read_recipe(path, [f"run.folder={tmp_path}"])
    later.run_folder.record(later.model_dump(mode="json"), ("train", "phases"))
    recorded = yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())
    assert list(recorded) == ["run", "text", "train", "phases"]
    assert (recorded["text"]["vocab_size"], recorded["train"]["steps"]) == (600, 30)


def test_folder_that_cannot_be_written_is_named(path, tmp_path):
    (tmp_path / "file").touch()
    recipe = read_recipe(path, [f"run.folder={tmp_path / 'file'}"])
    with pytest.raises(StorageError, match="file/tiny: cannot be written"):
        recipe.run_folder.record(recipe.model_dump(mode="json"), ())


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


@given(trees, trees)
def test_laid_over_keeps_all_of_the_top_and_the_rest_of_the_base(base, top):
    def leaves(tree, path=()):
        if not isinstance(tree, dict) or not tree:
            return {path: tree}
        return {leaf: value for key, inner in tree.items() for leaf, value in leaves(inner, (*path, key)).items()}

    result = leaves(_laid_over(base, top))
    for path, value in leaves(top).items():
        assert result.get(path, value) == value
    for path, value in result.items():
        assert leaves(top).get(path, leaves(base).get(path)) == value


def test_recipe_without_a_run_is_refused():
    with pytest.raises(ConfigError, match="run: Field required"):
        Recipe.from_mapping({}, origin="nowhere")


@pytest.mark.parametrize(
    ("override", "renamed"),
    [
        ("stages={}", "phases"),
        ("train.rows_per_step.generation=8", "train.global_batch_size"),
        ("data.row_tokens=1024", "data.seq_len"),
        ("data.steps_ahead=2", "data.prefetch_steps"),
        ("model.width=128", "model.hidden_size"),
        ("model.mlp_width=128", "model.intermediate_size"),
        ("model.num_heads=4", "model.num_attention_heads"),
        ("model.num_kv_heads=4", "model.num_key_value_heads"),
        ("model.norm_eps=1e-6", "model.rms_norm_eps"),
        ("model.tie_text_head=true", "model.tie_word_embeddings"),
        ("model.rq_head.attention_width=64", "model.rq_head.attention_size"),
        ("text.vocabulary_size=512", "text.vocab_size"),
        ("train.clip_norm=1", "train.max_grad_norm"),
        ("train.warmup_share=0.1", "train.warmup_ratio"),
        ("train.final_learning_rate_share=0.1", "train.min_lr_ratio"),
        ("layout.wire_precision=fp32", "layout.p2p_dtype"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(tmp_path, override, renamed):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run: {name: x}\n")
    with pytest.raises(ConfigError, match=f"this key is now called '{renamed}'"):
        read_recipe(recipe, [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=.inf",
        "train.learning_rate=.nan",
        "train.limit_seconds=.inf",
        "train.timeout_seconds=.inf",
        "train.timeout_seconds=1e300",
        "train.max_grad_norm=.inf",
        "train.weight_decay=.inf",
        "train.loss_weights.generation=.inf",
        "data.worker_timeout_seconds=.inf",
        "data.generation=[{folder: x, weight: .inf}]",
        "data.generation=[{folder: x, weight: 1e300}]",
        "vision.fit.learning_rate=.inf",
        "model.rope_theta=.inf",
        "evaluate.draw.guidance=.inf",
        "train.steps=100000000000000000000",
        "data.num_workers=1000000",
        "data.prefetch_steps=1000000",
        "prepare.num_workers=1000000",
        f"prepare.scenes.canvas_px={2**62}",
        "vision.image_px=1000000",
        f"text.vocab_size={2**62}",
        f"model.trunk_layers={2**62}",
        f"model.hidden_size={2**62}",
        "train.global_batch_size.generation=1000000000",
        f"vision.fit.batch_images={2**62}",
        f"vision.fit.start_batches={2**62}",
        f"evaluate.scenes.detector.batch_images={2**62}",
        f"evaluate.scenes.detector.width={2**62}",
        f"train.gradient_conflict.sequences_per_task={2**62}",
        "train.deepspeed={gradient_predivide_factor: .inf}",
        "train.steps=0100",
        "train.limit_seconds=1:30",
        "phases={" + ", ".join(f"p{number}: {{}}" for number in range(101)) + "}",
        "run.seed=100000000000000000000",
        f"run.seed={2**63 - 1}",  # of the second phase it is one more
        "train.learning_rate=1e30",
        "train.weight_decay=1e30",
        "vision.fit.weight_decay=1e30",
        "evaluate.scenes.detector.learning_rate=1e30",
        "model.initializer_range=1e39",
        "model.hidden_size=1" + "0" * 400,
        "model.rope_theta=1" + "0" * 400,
        "train.steps=true",
        "train.learning_rate=true",
        "train.steps='5'",
        "train.learning_rate='5'",
        "train.steps=5.0",
        "layout.in_flight='5'",
        "layout.in_flight=true",
        "train.loss_weights.generation=true",
        "train.global_batch_size={understanding: 0, generation: 0}",
    ],
)
def test_numbers_are_finite_numbers_of_a_sensible_size(path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0].split(".")[0]) as refused:
        read_recipe(path, [override])
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("folder", ["x" * 256, "x/" * 1500, "\U00010400" * 64])
def test_a_folder_longer_than_any_path_is_refused(path, folder):
    with pytest.raises(ConfigError, match=r"run\.folder: .* has at most"):
        read_recipe(path, [f"run.folder={folder}"])


@pytest.mark.parametrize("override", ["train.learning_rate=1", "train.learning_rate=1e-4", "train.limit_seconds=5"])
def test_integers_and_exponents_pass_for_floats(path, override):
    assert read_recipe(path, [override])


NAMES_REFUSED = ["../up", "/absolute", "a/b", "", ".", ".hidden", "a b", "a\nb", "a\0b", "x" * 101, "\U00010400" * 99]


@pytest.mark.parametrize("name", NAMES_REFUSED)
@pytest.mark.parametrize("key", ["run", "phases"])
def test_names_that_are_folders_have_one_pattern(path, key, name):
    mapping = yaml.safe_load(path.read_text())
    mapping[key] = {"name": name} if key == "run" else {name: {}}
    with pytest.raises(ConfigError, match=key):
        Recipe.from_mapping(mapping, origin="recipe.yaml")
