"""`raylab data ingest`, as a user runs it: refused or quarantined, the same shards as without Ray, done once."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from raylab.data.faults import CollectionError
from raylab.data.ingest import write_collection
from raylab.data.sources import open_collection
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Backbone
from raylab.jobs.pools import data_pool
from raylab.models.hub import load_tokenizer
from raylab.storage.artifacts import sha256_of
from raylab.storage.store import Store
from tests.jobs.commands import ROOT, run, run_here
from tests.jobs.test_crash import processes, start, wait_for


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "raylab.cli.main", "data", *arguments]


def shards(folder) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in sorted(folder.rglob("*.parquet"))}


@pytest.fixture
def damaged(collection_folder, tmp_path):
    """The tiny collection with one fault of each of three kinds, in two shards."""
    folder = shutil.copytree(collection_folder, tmp_path / "damaged")
    corpus = (folder / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_bytes(b"".join([*corpus[:60], b'{"_id": "x"}\n']))
    (folder / "corpus" / "b.jsonl").write_bytes(b"".join([*corpus[60:], corpus[3], b"\xff\n"]))
    return folder


def test_the_list_needs_no_ray(tmp_path):
    code = "import sys; from raylab.cli.main import app; app(standalone_mode=False); assert 'ray' not in sys.modules"
    said = run([sys.executable, "-c", code, "data", "list"], tmp_path, COLUMNS="200")
    for word in ("webis-touche2020", "msmarco-passage/dev/small", "queries are documents"):
        assert word in said


def test_a_missing_collection_is_one_line(tmp_path):
    output = run(command("ingest", "nowhere", "--storage", str(tmp_path / "lab")), tmp_path, 2)
    assert output.startswith("error: no collection 'nowhere'")
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "lab").exists()


def test_refused_then_quarantined_then_done_already(
    ray_cluster, damaged, collection_folder, tmp_path
):
    lab = tmp_path / "lab"
    ingest = command("ingest", str(damaged), "--storage", str(lab))
    refused = run(ingest, tmp_path, 2)
    # Files are read side by side: the fault that is met first is told, one, in one line.
    corpus = damaged / "corpus"
    assert refused.splitlines() in (
        [f"error: {corpus / 'a.jsonl'}:61: 'text' is None; it must be a string"],
        [f"error: {corpus / 'b.jsonl'}:62: byte 1 is not UTF-8; re-encode the file"],
    )
    assert not lab.exists()  # nothing half-written

    said = run_here([*ingest, "--on-fault", "quarantine"])
    for line in ("120 passages", "1 x duplicate", "1 x not UTF-8"):
        assert line in said
    assert "1 x not a record" in said
    (manifest,) = lab.glob("collection/*/manifest.json")
    meta = json.loads(manifest.read_text())["meta"]
    assert meta["quarantined"] == {"duplicate": 1, "not UTF-8": 1, "not a record": 1}
    folder = manifest.parent / json.loads(manifest.read_text())["attempt"]
    told = [json.loads(line) for line in (folder / "quarantine.jsonl").open()]
    assert {(f["file"], f["line"]) for f in told} == {
        (str(damaged / "corpus" / "a.jsonl"), 61),
        (str(damaged / "corpus" / "b.jsonl"), 61),
        (str(damaged / "corpus" / "b.jsonl"), 62),
    }
    # What is left is the undamaged collection, byte for byte as written without Ray.
    alone = tmp_path / "alone"
    alone.mkdir()
    write_collection(alone, open_collection(str(damaged)), "quarantine")
    assert shards(folder) == shards(alone)
    texts = pq.read_table(folder / "passages", columns=["passage_id", "text"]).to_pylist()
    corpus = [json.loads(w) for w in (collection_folder / "corpus.jsonl").open()]
    assert texts == [{"passage_id": r["_id"], "text": r["text"]} for r in corpus]

    again = run_here([*ingest, "--on-fault", "quarantine"])
    assert again == said
    assert json.loads(manifest.read_text())["attempt"] == folder.name


def test_store_holds_every_passages_tokens(ray_cluster, model_folder, shared_data, tmp_path):
    """Real text through Ray, shards and store, against the tokenizer called passage by passage."""
    from raylab.jobs.ingest import ingest
    from raylab.stages.tokenise import tokenise

    backbone = Backbone("tiny", str(model_folder))
    source = open_collection(str(shared_data / "beir" / "nfcorpus"))
    store = Store(str(tmp_path / "lab"))
    collection = ingest(store, source)
    tokens = tokenise(store, collection, load_tokenizer(backbone, None), data_pool)
    folder = shutil.copytree(shared_data / "beir" / "nfcorpus", tmp_path / "twice")
    corpus = folder / "corpus.jsonl"
    with gzip.open(folder / "corpus.jsonl.gz") as file:
        text = file.read()
    (folder / "corpus.jsonl.gz").unlink()
    corpus.write_bytes(text + text.splitlines(keepends=True)[7])
    with pytest.raises(CollectionError, match=r"corpus\.jsonl:3634: duplicate .* at line 8\)"):
        ingest(store, open_collection(str(folder)))
    alone = tmp_path / "alone"
    alone.mkdir()
    write_collection(alone, source)
    assert shards(store.local(collection)) == shards(alone)
    held = PassageStore(store.local(tokens) / "passages")
    tokenizer = load_tokenizer(backbone, None)
    rows = pq.read_table(alone / "passages").to_pylist()
    assert held.passage_ids(slice(None)) == [r["passage_id"] for r in rows]
    for number in np.random.default_rng(0).choice(len(rows), 200, replace=False).tolist():
        title, text = rows[number]["title"].strip(), rows[number]["text"]
        head = tokenizer.encode([title])[0] if title else np.zeros(0, int)
        body = tokenizer.encode([f" {text}" if title else text])[0]
        whole = [*head, *body][:512]
        assert held.tokens(number, 512).tolist() == whole
        assert held.titles[number] == min(len(head), 512)


KILLED = """
import sys
import time
from raylab.data import shards
shards.SHARD_ROWS = 256
from raylab.storage.store import Store
from raylab.experiment.config import Backbone
from raylab.experiment.execution import Execution
from raylab.data.ingest import collection_address
from raylab.data.sources import open_collection
from raylab.jobs.cluster import connect
from raylab.jobs.ingest import ingest
from raylab.stages import tokenise as module
from raylab.models.hub import load_tokenizer
pool = module.data_pool
def counted(start, tasks, workers):
    print("shards made:", len(tasks))
    pool(start, tasks, workers)
module.data_pool = counted
store, source = Store(sys.argv[1]), open_collection(sys.argv[2])
with connect(Execution()):
    collection = store.find(collection_address(source)) or ingest(store, source)
    module.tokenise(store, collection, load_tokenizer(Backbone("tiny", sys.argv[3]), None), data_pool)
"""


def undisturbed(out, folder, model_folder):
    """The store as one process makes it in one go, without shards of tokens and without Ray."""
    out.mkdir()
    write_collection(out, open_collection(str(folder)))
    tokenizer = load_tokenizer(Backbone("tiny", str(model_folder)), None)
    ids, tokens, titles = [], [], []
    for row in pq.read_table(out / "passages").to_pylist():
        title, text = row["title"].strip(), row["text"]
        head, body = tokenizer.encode([title, f" {text}" if title else text])
        ids.append(row["passage_id"])
        tokens.append(np.concatenate([head, body])[:512])
        titles.append(min(len(head), 512))
    write_store(out / "store", [(ids, tokens, titles)], tokenizer.dtype)
    return out / "store"


@pytest.mark.slow
@pytest.mark.chaos
def test_killed_in_the_middle_it_goes_on_from_finished_shards(model_folder, shared_data, tmp_path):
    """The driver is killed at an arbitrary shard; the second run, a worker of which is killed, makes the
    others, and the same store."""
    folder = shared_data / "beir" / "nfcorpus"  # 3,633 passages: 15 shards of 256

    def arguments(lab):
        return [sys.executable, "-c", KILLED, str(tmp_path / lab), str(folder), str(model_folder)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments("lab"), env=environment, cwd=ROOT) as driver:
        deadline = time.time() + 120
        while len(list((tmp_path / "lab").glob("tokens-shards/*/manifest.json"))) < 3:
            assert driver.poll() is None, "it ended before it was killed"
            assert time.time() < deadline
            time.sleep(0.01)
        driver.kill()
    time.sleep(3)  # Ray's own processes see that their driver is gone
    finished = len(list((tmp_path / "lab").glob("tokens-shards/*/manifest.json")))
    assert 3 <= finished < 15
    assert not list((tmp_path / "lab").glob("tokens/*/manifest.json"))

    driver = start(arguments("lab"), ROOT)
    wait_for(lambda: processes(driver, "ray::MapBatches(_Dat"), driver)[0].kill()
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said[-3000:]
    assert f"shards made: {15 - finished}\n" in said
    assert not list((tmp_path / "lab").glob("tokens-shards/*"))
    (manifest,) = (tmp_path / "lab").glob("tokens/*/manifest.json")
    alone = undisturbed(tmp_path / "alone", folder, model_folder)
    held = json.loads(manifest.read_text())["files"]
    for name in ("tokens.bin", "offsets.npy", "titles.npy", "ids.npy"):
        assert held[f"passages/{name}"]["sha256"] == sha256_of(alone / name), name


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of its own, which a function makes larger or smaller (MiB)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int, *more: str) -> int:
        options = ",".join([f"size={size}M", *more])
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(mount, capture_output=True, check=False).returncode

    if resize(6):
        pytest.skip("this user may not mount a filesystem to fill")
    yield folder, lambda size: resize(size, "remount")
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_full_disk_is_told_in_one_line_and_what_is_finished_is_kept(
    small_disk, shared_data, tmp_path
):
    folder, resize = small_disk
    ingest = command("ingest", str(shared_data / "beir" / "nfcorpus"), "--storage")
    arguments = [*ingest, str(folder / "lab")]
    finished = []
    for size in (1, 5, 7):  # full in the collection, in the shards of tokens, in the store of them
        resize(size)
        said = run(arguments, tmp_path, 1)
        (line,) = said.splitlines()
        assert line.startswith(f"error: {folder / 'lab'}/")
        assert "cannot be written: " in line
        assert "run it again" in line
        committed = {m.parent for m in (folder / "lab").glob("*/*/manifest.json")}
        attempts = list((folder / "lab").glob("*/*/attempt-*"))
        assert {attempt.parent for attempt in attempts} == committed
        assert len(attempts) == len(committed)
        finished.append(sorted({home.parent.name for home in committed}))
    resize(100)
    run(arguments, tmp_path)
    assert finished[0] == []
    assert finished[1] == ["collection"]
    assert finished[2] == ["collection", "tokens-shards"]
    assert (folder / "lab" / "tokens").is_dir()
    assert not list((folder / "lab" / "tokens-shards").iterdir())
