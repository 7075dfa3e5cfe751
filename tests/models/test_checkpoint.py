"""A checkpoint folder is raylab's, peft's and sentence-transformers' alike, wherever it is moved to.

What each of them makes of the same texts is compared with the model that was trained, under the formulas
of 2502.15526; sentence-transformers runs in a process of its own, offline, on folders that were moved.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raylab.experiment.config import Backbone, ConfigError, Encoding, Lora, Tokenization
from raylab.experiment.heads import DENSE, SPARSE
from raylab.models.backbone import add_lora
from raylab.models.checkpoint import load_contract, on_a_hub, save_retriever
from raylab.models.hub import load_base, state_to_save
from raylab.models.retriever import Retriever
from raylab.storage.artifacts import DamagedArtifact
from raylab.training.rungs import train_tokenizer

HUB_ID = "acme/tiny-llama"
TEXTS = ["cell gene protein " * 12, "the risk of cancer", "immune", "mouse liver dose trial " * 3]
ENCODING = Encoding(query_length=12, passage_length=24, top_k_query=0, top_k_passage=0)
PROMPTED = Tokenization(special_tokens=True, query_prompt="query: ", passage_prompt="text: ")

# name: (head, LoRA or full, base on a hub, tokenisation)
CASES = {
    "sparse-adapter": (SPARSE, Lora(rank=4, dropout=0.1), True, Tokenization()),
    "dense-adapter": (DENSE, Lora(rank=4, dropout=0.1), True, Tokenization()),
    "sparse-merged": (SPARSE, Lora(rank=4, train_embeddings=True), False, Tokenization()),
    "dense-merged": (DENSE, Lora(rank=4), False, Tokenization()),
    "sparse-full": (SPARSE, None, False, Tokenization()),
    "sparse-prompted": (SPARSE, Lora(rank=4), True, PROMPTED),
    "dense-prompted": (DENSE, Lora(rank=4), False, PROMPTED),
}


@pytest.fixture(scope="module")
def hub_base(model_folder, tmp_path_factory):
    """A base as hubs hold them: causal by its configuration, a tokenizer that adds BOS; and a hub cache."""
    root = tmp_path_factory.mktemp("hub")
    snapshot = root / "models--acme--tiny-llama" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (root / "models--acme--tiny-llama" / "refs").mkdir()
    (root / "models--acme--tiny-llama" / "refs" / "main").write_text("0123abcd")
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    tokenizer.save_pretrained(str(snapshot))
    model = AutoModelForCausalLM.from_pretrained(str(model_folder))
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(str(snapshot))
    config = json.loads((snapshot / "config.json").read_text())
    del config["is_causal"]
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    models = root / "models" / "acme"
    shutil.copytree(snapshot, models / "tiny-llama")
    return root, models.parent


def trained(backbone, lora, models_dir):
    """A model that training has moved away from its start."""
    model, tokenizer = load_base(backbone, str(models_dir))
    model = add_lora(model, lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_" in name or lora is None):
                parameter.add_(torch.randn_like(parameter) * 0.06)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def checkpoints(hub_base, tmp_path_factory):
    """name -> (folder, moved after it was written; dense arrays of the trained model's own)."""
    _, models_dir = hub_base
    written, moved = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("moved")
    made = {}
    for name, (head, lora, hub, tokenization) in CASES.items():
        source = HUB_ID if hub else str(models_dir / HUB_ID)
        backbone = Backbone("tiny", source, tokenization=tokenization)
        model, tokenizer = trained(backbone, lora, models_dir)
        own = Retriever(model, tokenizer, head, ENCODING)
        expected = arrays(own)
        facts = {"name": name, "collection": "toy", "objective": "cl", "seed": 3}
        facts["recipe"], facts["training"] = {"rate": 1e-4}, {"steps": 5, "spent FLOPs": 1.5e9}
        save_retriever(
            written / name,
            model,
            state_to_save(model),
            tokenizer,
            backbone,
            head,
            ENCODING,
            facts,
            str(models_dir),
        )
        shutil.move(written / name, moved / name)
        made[name] = (moved / name, expected)
    return made


def arrays(retriever) -> list[np.ndarray]:
    both = retriever.encode_queries(TEXTS), retriever.encode_passages(TEXTS)
    return [m if isinstance(m, np.ndarray) else m.toarray() for m in both]


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_loads_as_the_model_that_was_trained(checkpoints, hub_base, name):
    folder, expected = checkpoints[name]
    again = Retriever.load(folder, models_dir=str(hub_base[1]))
    assert (again.head, again.encoding) == (CASES[name][0], ENCODING)
    for found, right in zip(arrays(again), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    assert not np.allclose(expected[0], expected[1])  # the limits do cut


@pytest.mark.parametrize("name", ["sparse-adapter", "dense-adapter"])
def test_training_did_move_the_model(checkpoints, hub_base, name):
    """Otherwise a loader that forgets the adapter would pass."""
    backbone = Backbone("tiny", HUB_ID)
    start = Retriever.untrained(backbone, CASES[name][0], ENCODING, str(hub_base[1]))
    assert not np.allclose(arrays(start)[1], checkpoints[name][1][1], atol=1e-2)


_ELSEWHERE = """
import json, sys
import numpy as np
import sentence_transformers as st
folder, texts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for name, path in folder.items():
    kind = st.SparseEncoder if name.startswith("sparse") else st.SentenceTransformer
    model = kind(path, device="cpu", trust_remote_code=False)
    options = {"convert_to_sparse_tensor": False} if name.startswith("sparse") else {}
    found[name + ".0"] = np.asarray(model.encode_query(texts, **options))
    found[name + ".1"] = np.asarray(model.encode_document(texts, **options))
    assert model.similarity_fn_name == "dot"
np.savez(sys.argv[3], **found)
assert "raylab" not in sys.modules
"""


@pytest.fixture(scope="module")
def elsewhere(checkpoints, hub_base, tmp_path_factory):
    """What sentence-transformers makes of the moved folders, in a clean process without a network."""
    pytest.importorskip("sentence_transformers")
    out = tmp_path_factory.mktemp("elsewhere") / "found.npz"
    folders = {name: str(folder) for name, (folder, _) in checkpoints.items()}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub_base[0])}
    arguments = [json.dumps(folders), json.dumps(TEXTS), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=out.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as found:
        return dict(found)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_sentence_transformers_gives_the_same_representations(elsewhere, checkpoints, name):
    for place, right in enumerate(checkpoints[name][1]):
        np.testing.assert_allclose(elsewhere[f"{name}.{place}"], right, atol=1e-5)


@pytest.mark.parametrize("name", ["sparse-adapter", "dense-adapter"])
def test_an_adapter_is_one_for_peft(checkpoints, hub_base, name):
    """peft alone, on a base made bidirectional: the states are the trained model's."""
    folder, expected = checkpoints[name]
    source = str(hub_base[1] / HUB_ID)
    config = AutoConfig.from_pretrained(source)
    config.is_causal = False
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(source, config=config), str(folder)
    ).eval()
    assert model.peft_config["default"].base_model_name_or_path == HUB_ID
    ids = AutoTokenizer.from_pretrained(source)(
        TEXTS[1], add_special_tokens=False, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    if name.startswith("sparse"):
        found = torch.log1p(torch.relu(output.logits[0].amax(0)))
    else:
        found = torch.nn.functional.normalize(output.hidden_states[-1][0], dim=-1).mean(0)
    np.testing.assert_allclose(found.numpy(), expected[1][1], atol=1e-5)


def test_nothing_in_a_checkpoint_names_the_machine_it_came_from(checkpoints, hub_base):
    root = str(hub_base[0].parent).encode()
    for folder, _ in checkpoints.values():
        for path in folder.rglob("*"):
            assert path.is_dir() or root not in path.read_bytes(), path


def test_the_card_tells_recipe_data_budget_and_licence(checkpoints):
    card = ModelCard.load(checkpoints["sparse-adapter"][0] / "README.md")  # the hub's own reader
    about, body = card.data, card.text
    assert (about.license, about.base_model, about.datasets) == ("llama3.2", HUB_ID, ["toy"])
    assert "sparse-encoder" in about.tags
    for told in (
        "| objective | cl |",
        "| seed | 3 |",
        "| spent FLOPs | 1.5e+09 |",
        '"rate": 0.0001',
    ):
        assert told in body


def test_only_a_whole_pretrained_hub_model_is_referred_to(model_folder):
    """Anything else could not be found, or not as it was, by whoever loads the adapter."""
    assert on_a_hub(Backbone("a", HUB_ID))
    assert not on_a_hub(Backbone("a", HUB_ID, layers=1))
    assert not on_a_hub(Backbone("a", HUB_ID, start="random"))
    assert not on_a_hub(Backbone("a", str(model_folder)))
    assert not on_a_hub(Backbone("a", "package:raylab/assets"))


# ------------------------------------------------------------------------------------ contract


def test_the_contract_is_plain_json_with_its_provenance(checkpoints):
    facts = load_contract(checkpoints["sparse-prompted"][0])
    assert facts["head"]["name"] == "sparse"
    assert facts["encoding"]["passage_length"] == 24
    assert facts["tokenizer"]["query_prompt"] == "query: "
    assert facts["tokenizer"]["special_tokens"] is True
    assert (facts["name"], facts["seed"]) == ("sparse-prompted", 3)


def test_another_tokenizer_is_refused(checkpoints, tmp_path):
    """The same weights under other tokens would encode nonsense without any error."""
    folder = shutil.copytree(checkpoints["dense-merged"][0], tmp_path / "copy")
    train_tokenizer(["liver dose mouse"] * 9, 300).save_pretrained(str(folder))
    with pytest.raises(ConfigError, match="not the one the model was trained with"):
        Retriever.load(folder)


def test_a_folder_without_a_contract_is_no_retriever(model_folder):
    with pytest.raises(DamagedArtifact, match=r"retriever\.json is missing"):
        Retriever.load(model_folder)


def test_a_missing_retriever_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="no retriever at"):
        Retriever.load(tmp_path / "nowhere")


def test_a_prompt_that_merges_with_the_text_is_refused(hub_base):
    """Then the tokens in the passage store would not be those of the text behind the prompt."""
    backbone = Backbone("tiny", HUB_ID, tokenization=Tokenization(query_prompt="ce"))
    with pytest.raises(ConfigError, match=r"tokenization\.query_prompt = 'ce'"):
        load_base(backbone, str(hub_base[1]))


def test_a_limit_shorter_than_the_prompt_is_refused(hub_base):
    backbone = Backbone("tiny", HUB_ID, tokenization=PROMPTED)
    retriever = Retriever.untrained(backbone, DENSE, Encoding(query_length=4), str(hub_base[1]))
    with pytest.raises(ConfigError, match="query_length = 4: prompt and special tokens alone are"):
        retriever.encode_queries(["cell"])
