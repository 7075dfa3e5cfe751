"""Fixtures of the whole test suite: real data beside the project, and a tiny laboratory to run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

# What takes seconds to import is imported by the fixtures that need it: the process that hands out tests never does.

_ON_RAY = "jobs"  # the folder
# They start clusters of their own: before the one that the other tests share (tests/jobs/conftest.py).
_OWN_CLUSTER = {"test_pool.py", "test_node_loss.py", "test_notebook.py", "test_doctor.py"}
# Files most of whose tests draw, fit or start processes for seconds.
_LONG = {
    "test_laws.py",
    "test_figures.py",
    "test_page.py",
    "test_coverage.py",
    "test_object_storage.py",
    "test_fine_tuning.py",
    "test_domain_differences.py",
    "test_hub_identity.py",
    "test_hub_fault.py",
    "test_watch.py",
    "test_export.py",
    "test_heads.py",
    "test_loop.py",
    "test_branches.py",
    "test_validation.py",
    "test_browser.py",
    "test_docs.py",
    "test_claims.py",
    "test_optima.py",
    "test_curves.py",
    "test_server.py",
    "test_teach.py",
    "test_seismic.py",
    "test_corruption.py",
    "test_domains.py",
    "test_published.py",
}


# Before xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: those that start Ray in one of them, first; others by file."""

    def on_ray(item: pytest.Item) -> bool:
        return item.path.parent.name == _ON_RAY

    # Of the others the long files first: what is left when one process has ended is then short.
    items.sort(
        key=lambda item: (
            not on_ray(item),
            item.path.name not in _OWN_CLUSTER,
            on_ray(item) or item.path.name not in _LONG,
        )
    )
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if on_ray(item) else item.path.name))
        if on_ray(item):
            item.add_marker(pytest.mark.ray)
        if item.path.name in _LONG:
            item.add_marker(pytest.mark.long)


_WORDS = [
    "cell",
    "protein",
    "gene",
    "tumour",
    "virus",
    "mouse",
    "patient",
    "drug",
    "dose",
    "heart",
    "liver",
    "brain",
    "bone",
    "blood",
    "growth",
    "signal",
    "receptor",
    "mutation",
    "therapy",
    "trial",
    "risk",
    "immune",
    "vaccine",
    "insulin",
    "glucose",
    "kinase",
    "factor",
    "membrane",
    "neuron",
    "muscle",
    "lung",
    "kidney",
    "infection",
    "antibody",
    "cancer",
    "stem",
    "tissue",
    "enzyme",
    "pathway",
    "inhibitor",
]


@pytest.fixture(scope="session")
def s3_server():
    """An object storage, `s3://laboratory`: for this process and, started first, the workers of its cluster.

    One a process: file systems are kept by their arguments, and a second server would never be asked.
    """
    import s3fs

    from benchmarks.s3_server import serving

    with serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        # One that was made before has other keys.
        s3fs.S3FileSystem.clear_instance_cache()
        yield server


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: RAYLAB_SHARED_DATA, or ``../shared/data`` beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAYLAB_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set RAYLAB_SHARED_DATA")
    return folder


def _sentence(rng: np.random.Generator, topic: int, words: int) -> str:
    own = _WORDS[topic % len(_WORDS) :: 7]
    return " ".join(rng.choice(own if rng.random() < 0.5 else _WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def collection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 120 passages with titles, 60 training and 20 test queries."""
    folder = tmp_path_factory.mktemp("collection") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    passages = [
        {"_id": f"p{i:03d}", "title": _sentence(rng, i, 4), "text": _sentence(rng, i, 40)}
        for i in range(120)
    ]
    queries = [
        {"_id": f"q{i:03d}", "text": " ".join(passages[i]["text"].split()[3:9])} for i in range(80)
    ]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, own in (("train", range(60)), ("test", range(60, 80))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i:03d}\tp{i:03d}\t1" for i in own)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bidirectional Llama of 2 layers x 32 with its tokenizer, as a local hub folder."""
    import torch
    from transformers import LlamaForCausalLM

    from raylab.training.rungs import Rung, train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = train_tokenizer([" ".join(_WORDS)] * 4, 400)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    LlamaForCausalLM(Rung("tiny", 2, 32, 2, 64).config(len(tokenizer))).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def ladder_file(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A ladder of one tiny size with a recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("ladder") / "tiny.toml"
    path.write_text(
        f'name = "tiny"\nrecipe = "pico"\nbudget_flops = 1e10\n'
        f'[[size]]\nname = "tiny"\nsource = "{model_folder}"\n'
        "[adaptation]\nsteps = 3\nbatch_blocks = 4\nblock_length = 32\n"
        "[fine_tuning]\nbatch_queries = 8\nnegatives = 2\n"
        "[encoding]\npassage_length = 48\n"
    )
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A random BERT cross-encoder with a tokenizer, as a local hub folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("teachers") / "tiny-bert"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_folder))
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def retriever_folders(tmp_path_factory, model_folder: Path) -> dict[str, Path]:
    """Retriever checkpoints of the tiny model by head, as raylab saves them."""
    from raylab.experiment.config import Backbone, Encoding
    from raylab.experiment.heads import HEADS
    from raylab.models.checkpoint import save_retriever
    from raylab.models.hub import load_base, state_to_save

    folders = {}
    backbone, encoding = Backbone("tiny", str(model_folder)), Encoding(passage_length=48)
    for head in ("dense", "sparse"):
        folder = tmp_path_factory.mktemp("retrievers") / head
        model, tokenizer = load_base(backbone, None)
        state = state_to_save(model)
        save_retriever(
            folder, model, state, tokenizer, backbone, HEADS[head], encoding, {"name": head}
        )
        folders[head] = folder
    return folders
