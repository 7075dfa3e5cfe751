"""`raylab search --split --out` on SciFact, NFCorpus and MS MARCO's slice, with an actor killed at work.

Ranked again here by other means: files read by a few lines, transformers' own model and no padding, all
in float64; and measured by trec_eval's own code.
"""

import csv
import gzip
import json
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytrec_eval
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.experiment.config import Backbone, Encoding
from raylab.experiment.heads import HEADS
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, state_to_save
from raylab.training.rungs import Rung, train_tokenizer
from tests.jobs.test_crash import processes, start, wait_for, wait_until_gone

ASSETS = Path(__file__).resolve().parents[2] / "raylab" / "assets"
PASSAGE_LENGTH, QUERY_LENGTH = 24, 20
ERROR = {"sparse": 1e-6, "dense": 1e-7}  # of a representation's value in float32
SUM_ERROR = 2e-6  # of a sum of products in float32, as a share of their sizes
TIE = (
    2.0**-23
)  # by how much of itself, at most, a run lowers a score that is tied with the one before


# ------------------------------------------------------------------------------ the collections


@dataclass
class Read:
    """A collection's split, as its files have it."""

    titles: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))


def lines_of(path: Path) -> Iterator[str]:
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n")


def read_beir(folder: Path, split: str) -> Read:
    read = Read()
    for record in map(json.loads, lines_of(folder / "corpus.jsonl")):
        read.titles[record["_id"]] = record["title"].strip()
        read.texts[record["_id"]] = record["text"]
    for row in csv.DictReader(lines_of(folder / "qrels" / f"{split}.tsv"), delimiter="\t"):
        read.qrels[row["query-id"]][row["corpus-id"]] = int(row["score"])
    for record in map(json.loads, lines_of(folder / "queries.jsonl")):
        if record["_id"] in read.qrels:
            read.queries[record["_id"]] = record["text"]
    return read


def read_msmarco(folder: Path, split: str) -> Read:
    read = Read(texts=dict(line.split("\t") for line in lines_of(folder / "collection.tsv")))
    read.titles = dict.fromkeys(read.texts, "")
    for line in lines_of(folder / f"qrels.{split}.tsv"):
        query_id, _, passage_id, grade = line.split()
        read.qrels[query_id][passage_id] = int(grade)
    found = dict(line.split("\t") for line in lines_of(folder / f"queries.{split}.tsv"))
    read.queries = {query_id: found[query_id] for query_id in read.qrels}
    return read


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Retrievers by head of an untrained model in which what a token is outweighs what stands around it:
    texts find texts with the same words, so that the measures say something."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = list(read_beir(ASSETS / "scifact", "test").texts.values())[::4]
    tokenizer = train_tokenizer(texts, 1_500)
    tokenizer.save_pretrained(str(folder / "base"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(Rung("words", 2, 64, 2, 128).config(len(tokenizer)))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5)
    model.save_pretrained(str(folder / "base"))
    backbone, folders = Backbone("words", str(folder / "base")), {}
    for head in HEADS:
        model, own = load_base(backbone, None)
        folders[head] = folder / head
        where = folders[head], model, state_to_save(model), own
        save_retriever(*where, backbone, HEADS[head], Encoding(), {"name": head})
    return folders


# ---------------------------------------------------------------------------- the same, naively


@torch.inference_mode()
def represented(checkpoint: Path, head: str, tokens: list[list[int]]) -> np.ndarray:
    """[N, D or V] in float64: texts of one length at a time, every token seeing every other."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    by_length = defaultdict(list)
    for place, ids in enumerate(tokens):
        by_length[len(ids)].append(place)
    width = model.config.vocab_size if head == "sparse" else model.config.hidden_size
    out = np.zeros((len(tokens), width))
    for length, places in by_length.items():
        for begin in range(0, len(places), 256):
            own = places[begin : begin + 256]
            ids = torch.tensor([tokens[place] for place in own])
            seen = torch.zeros(len(own), 1, length, length, dtype=torch.float64)
            states = model.model(input_ids=ids, attention_mask=seen, use_cache=False)[0]
            if head == "sparse":
                # The checkpoint's final norm holds the factor on the logits.
                reps = model.lm_head(states).amax(1).clamp(min=0).log1p()
            else:
                reps = (states / states.norm(dim=-1, keepdim=True)).mean(1)
            out[own] = reps.numpy()
    return out


def stored(reps: np.ndarray, k: int, precision: str, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Representations as they are stored, pruned to k (0: not), and how far off rounding may be.

    In float32 a value may be `error` off, and so round to its neighbour in `precision`, or change
    places with the one below at the cut.
    """
    low, high = ((reps + e).astype(precision).astype(np.float64) for e in (-error, error))
    if k:
        low, high = low.clip(min=0), high * (reps > 0)
        ranked = -np.sort(-reps, axis=1)
        kept, left = ranked[:, k - 1 : k], ranked[:, k : k + 1]
        low *= reps > left + 2 * error
        high *= reps > kept - 2 * error
    return (low + high) / 2, (high - low) / 2


@dataclass
class Naive:
    """Scores [Q, P] of all passages, and how far off rounding may be."""

    query_ids: list[str]
    passage_ids: list[str]
    scores: np.ndarray
    margins: np.ndarray


def ranked_naively(checkpoint: Path, case: "Case", read: Read) -> Naive:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def ids(texts) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    titles = ids(read.titles.values())
    bodies = ids(
        f" {text}" if read.titles[passage_id] else text for passage_id, text in read.texts.items()
    )
    tokens = [(a + b)[:PASSAGE_LENGTH] for a, b in zip(titles, bodies, strict=True)]
    asked = [own[:QUERY_LENGTH] for own in ids(read.queries.values())]
    how = case.precision, ERROR[case.head]
    q, q_off = stored(represented(checkpoint, case.head, asked), case.top_k[0], *how)
    p, p_off = stored(represented(checkpoint, case.head, tokens), case.top_k[1], *how)
    q_size, p_size = np.abs(q), np.abs(p)
    margins = q_off @ (p_size + p_off).T + q_size @ (p_off + SUM_ERROR * p_size).T
    return Naive(list(read.queries), list(read.texts), q @ p.T, margins)


def assert_run(run: dict[str, list[tuple[str, float]]], naive: Naive, case: "Case") -> None:
    """Scores fall from hit to hit and are the naive ones, and no passage left out is above the last.

    All but for what rounding leaves open; so the order is right, too, wherever it is decided.
    """
    assert set(run) <= set(naive.query_ids)
    row_of = {passage_id: row for row, passage_id in enumerate(naive.passage_ids)}
    open_shares = []
    for query_id, scores, margins in zip(naive.query_ids, naive.scores, naive.margins, strict=True):
        hits = run.get(query_id, [])
        rows = np.array([row_of[passage_id] for passage_id, _ in hits], int)
        given = np.array([score for _, score in hits])
        assert len(set(rows.tolist())) == len(rows) <= case.depth
        assert (np.diff(given) < 0).all()
        lowered = TIE * np.arange(len(rows)) * np.abs(given)
        assert (np.abs(given - scores[rows]) <= margins[rows] + lowered).all()
        left_out = np.ones(len(scores), bool)
        left_out[rows] = False
        if len(rows) < case.depth:  # no shared term, no hit
            assert case.head == "sparse"
            assert (scores - margins)[left_out].max() <= 0
        else:
            assert (scores - margins)[left_out].max() <= given[-1] + lowered[-1]
        assert case.head == "dense" or (given > 0).all()
        open_shares += (margins[rows] / scores[rows]).tolist()
    assert np.median(open_shares) < 1e-4, "rounding leaves open what is to be shown"


# ------------------------------------------------------------------------------------- measures


def read_trec(path: Path) -> dict[str, list[tuple[str, float]]]:
    run = defaultdict(list)
    for line in lines_of(path):
        query_id, _, passage_id, _, score, _ = line.split()
        run[query_id].append((passage_id, float(score)))
    return run


def by_trec_eval(
    run: dict[str, list[tuple[str, float]]],
    qrels: dict[str, dict[str, int]],
    measure: tuple[str, int, int | None],
) -> str:
    """`trec_eval -c [-l level] [-M depth] -m name`: the mean over the judged queries, as it prints it."""
    name, level, depth = measure

    def best(hits):
        ordered = sorted(hits, key=lambda hit: (np.float32(hit[1]), hit[0]), reverse=True)
        return dict(ordered[:depth])

    qrels = {query_id: dict(grades) for query_id, grades in qrels.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {name}, level)
    values = evaluator.evaluate({query_id: best(hits) for query_id, hits in run.items()})
    total = sum(own[name.replace(".", "_")] for own in values.values())
    return f"{total / len(qrels):6.4f}"


# ------------------------------------------------------------------------------------- the test


@dataclass(frozen=True)
class Case:
    """A collection, how it is encoded, and what trec_eval calls its measures (with -l and -M)."""

    place: str
    split: str
    head: str
    shard: int
    depth: int
    measures: dict[str, tuple[str, int, int | None]]
    top_k: tuple[int, int] = (0, 0)
    precision: str = "float16"


BEIR = {
    "nDCG@10": ("ndcg_cut.10", 1, None),
    "RR@10": ("recip_rank", 1, 10),
    "R@100": ("recall.100", 1, None),
}
TREC_DL = {
    "nDCG@10": ("ndcg_cut.10", 1, None),
    "R(rel=2)@1000": ("recall.1000", 2, None),
    "RR(rel=2)@10": ("recip_rank", 2, 10),
}
CASES = {
    "scifact": Case("scifact", "test", "sparse", 600, 100, BEIR, (6, 20)),
    # So few terms that some queries share one with fewer passages than a run may hold.
    "nfcorpus": Case("beir/nfcorpus", "test", "sparse", 400, 100, BEIR, (3, 8), "float32"),
    "slice": Case("msmarco-slice", "dl19", "dense", 4000, 1000, TREC_DL),
}


def embeddings(lab: Path) -> dict[str, Path]:
    """Embedding shards of passages, finished or begun, by the row they start at."""
    homes = (lab / "embedding-part").glob("checkpoint-*")
    named = ((re.search(r"-(\d{9})-", f"{home.name}-"), home) for home in homes)
    return {match[1]: home for match, home in named if match}


def finished(lab: Path) -> dict[str, tuple[str, int]]:
    """Attempt and time of the shards that are committed."""
    found = {}
    for row, home in embeddings(lab).items():
        manifest = home / "manifest.json"
        if manifest.exists():
            found[row] = json.loads(manifest.read_text())["attempt"], manifest.stat().st_mtime_ns
    return found


def stopped_at_work(driver: subprocess.Popen, lab: Path) -> list[psutil.Process] | None:
    """Both encoding actors, stopped with a shard each in hand, once some shard is finished; else None.

    Their titles say that they encode; as many shards are begun and not finished as there are actors.
    """
    if not finished(lab):
        return None
    actors = processes(driver, "ray::WorkActor.work")
    for actor in actors:
        actor.suspend()
    for actor in actors:
        wait_for(lambda actor=actor: actor.status() == psutil.STATUS_STOPPED, driver)
    begun = set(embeddings(lab)) - set(finished(lab))
    busy = processes(driver, "ray::WorkActor.work")
    if len(actors) == len(begun) == 2 and busy == actors:
        return actors
    for actor in actors:
        actor.resume()
    return None


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("name", ["scifact", "slice", "nfcorpus"])
def test_an_actor_dies_and_the_run_is_that_of_a_naive_loop(name, request, tmp_path, checkpoints):
    case, lab = CASES[name], tmp_path / "lab"
    embedded = case.place == "scifact"
    folder = (
        ASSETS / case.place if embedded else request.getfixturevalue("shared_data") / case.place
    )
    checkpoint = checkpoints[case.head]
    arguments = [sys.executable, "-m", "raylab.cli.main", "search", checkpoint]
    arguments += [case.place if embedded else folder, "--split", case.split]
    arguments += ["--out", tmp_path / "run.trec.gz", "--storage", lab, "--encoders", 2]
    arguments += ["--shard-passages", case.shard, "--precision", case.precision]
    arguments += ["--passage-length", PASSAGE_LENGTH, "--query-length", QUERY_LENGTH]
    if case.head == "sparse":
        arguments += ["--top-k-query", case.top_k[0], "--top-k-passage", case.top_k[1]]
    read = (read_msmarco if case.split == "dl19" else read_beir)(folder, case.split)

    driver = start([str(argument) for argument in arguments], tmp_path)
    actors: list[psutil.Process] = []
    try:
        actors = wait_for(lambda: stopped_at_work(driver, lab), driver)
        before, begun = finished(lab), set(embeddings(lab)) - set(finished(lab))
        starts = {f"{row:09d}" for row in range(0, len(read.texts), case.shard)}
        assert 0 < len(before) < len(starts)
        actors[0].send_signal(signal.SIGKILL)
        actors[1].resume()
        said, _ = driver.communicate(timeout=240)
    finally:
        if driver.poll() is None:
            below = psutil.Process(driver.pid).children(recursive=True)
            driver.kill()
            wait_until_gone(below)
    assert driver.returncode == 0, said[-3000:]
    assert "an actor died at work; another does its task" in said

    after = finished(lab)
    assert set(after) == starts
    assert before.items() <= after.items()  # nothing finished was done again
    attempts = {row: list(home.glob("attempt-*")) for row, home in embeddings(lab).items()}
    again = [row for row, own in attempts.items() if len(own) > 1]
    assert len(again) == 1  # what the dead actor had in hand
    assert again[0] in begun
    assert len(attempts[again[0]]) == 2

    run = read_trec(tmp_path / "run.trec.gz")
    assert_run(run, ranked_naively(checkpoint, case, read), case)
    printed = dict(re.findall(r"^ +(\S+)  ([\d.]+)$", said, re.MULTILINE))
    for measure, asked in case.measures.items():
        assert printed.pop(measure) == by_trec_eval(run, read.qrels, asked), measure
        assert float(by_trec_eval(run, read.qrels, asked)) > 0
    assert not printed


@pytest.mark.parametrize(
    "system", ["BM25", "D_BERT_KD_TASB", "SPLADE_P_P_ENSEMBLE_DISTIL", "REP_LLAMA", "BM25_BERTCE"]
)
def test_published_runs_of_the_slice_are_printed_as_trec_eval_prints_them(system, shared_data):
    """Also where most scores of a query are tied (REP_LLAMA)."""
    folder = shared_data / "msmarco-slice"
    path, qrels = folder / f"run.{system}.dl19.trec.gz", folder / "qrels.dl19.tsv"
    arguments = ["evaluate", str(path), str(qrels), "--protocol", "msmarco/dl19"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    run, read = read_trec(path), read_msmarco(folder, "dl19")
    printed = dict(re.findall(r"(\S+@\d+)\s+([\d.]+)\s+\[", done.stdout))
    asked = {name: by_trec_eval(run, read.qrels, own) for name, own in TREC_DL.items()}
    assert printed == asked
