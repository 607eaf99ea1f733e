"""The tokenizers of a run: text tokenizers trained on its shards, image tokenizers of any kind named by the recipe."""

import pytest
import yaml

from pipelines import cli
from pipelines.check_recipe import nominal_dimensions, nominal_image_tokenizer
from pipelines.recipe import Recipe, read_recipe
from pipelines.tokenizers import FIT_REPORT, make_image_tokenizer, make_text_tokenizer
from tests.golden_files import golden_codec
from tests.tiny import write_codes_source
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import TokenizerError
from ufork.model.config import Dimensions
from ufork.vision.codec import ImageCodec


@pytest.fixture
def given(tmp_path):
    golden_codec().save(tmp_path / "given")
    return tmp_path / "given"


def recipe(tmp_path, folder) -> Recipe:
    run = {"name": "run", "folder": str(tmp_path)}
    return Recipe.from_mapping({"run": run, "vision": {"folder": str(folder)}}, origin="test")


def test_a_given_tokenizer_is_copied_and_replaces_a_fitted_one(tmp_path, given):
    copied = recipe(tmp_path, given)
    folder = copied.run_folder.vision_tokenizer
    folder.mkdir(parents=True)
    (folder / FIT_REPORT).write_text("{}")
    make_image_tokenizer(copied)
    assert ImageCodec.load(folder).digest == golden_codec().digest
    assert not (folder / FIT_REPORT).exists()  # a later fit must not take the copy for its own


def test_a_text_tokenizer_is_trained_on_the_samples_that_can_be_read(tmp_path, caplog):
    training = recipe(tmp_path, "nowhere")
    source = training.run_folder.shards / "talks/train"
    write_codes_source(source, num_samples=4)
    for shard in source.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b'{"id"', b'{"\xff\xff"', 1))
    make_text_tokenizer(training)
    assert TextTokenizer.load(training.run_folder.text_tokenizer).size > 300
    assert caplog.text.count("sample skipped") == 2


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere"):
        make_image_tokenizer(recipe(tmp_path, tmp_path / "nowhere"))


def test_sizes_are_those_of_the_given_tokenizer_and_of_the_recipe_until_it_exists(tmp_path, given):
    sizes = nominal_dimensions(recipe(tmp_path, given))
    assert sizes == Dimensions(vocab_size=sizes.vocab_size, codebook_size=128, code_width=32, codes_per_position=4)
    assert nominal_image_tokenizer(recipe(tmp_path, given)).grid_rows == 4
    later = recipe(tmp_path, tmp_path / "later")
    assert nominal_image_tokenizer(later) is later.vision


def test_the_verb_copies_the_tokenizer(tmp_path, given):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"run": {"name": "run", "folder": str(tmp_path)}}))
    assert cli.main(["tokenizer", "fit", str(file), f"vision.folder={given}"]) == 0
    assert ImageCodec.load(read_recipe(file).run_folder.vision_tokenizer).config.kind == "vila_u"
