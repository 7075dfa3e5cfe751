"""The paper's table from one command, small: trained on MS MARCO's slice, measured there and on two sets of BEIR."""

import csv
import gzip
import json
import re
from pathlib import Path

import pandas as pd

from tests.jobs.commands import command, run_here

QUERIES, OTHERS = 8, 60  # a split; passages beside the judged ones
ASSETS = Path(__file__).resolve().parents[2] / "raylab" / "assets"


def lines_of(path: Path) -> list[str]:
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().rstrip("\n").split("\n")


def few_judged(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """(query, passage, grade) of the first queries, at most ten a query."""
    kept: dict[str, list] = {}
    for row in rows:
        if row[0] in kept or len(kept) < QUERIES:
            own = kept.setdefault(row[0], [])
            if len(own) < 10:
                own.append(row)
    return [row for own in kept.values() for row in own]


def part_of_beir(source: Path, target: Path) -> Path:
    """The first test queries of a set, their judged passages, and some more."""
    (target / "qrels").mkdir(parents=True)
    table = csv.DictReader(lines_of(source / "qrels" / "test.tsv"), delimiter="\t")
    judged = few_judged([(r["query-id"], r["corpus-id"], r["score"]) for r in table])
    rows = ["query-id\tcorpus-id\tscore", *map("\t".join, judged)]
    (target / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    wanted = {"corpus": {p for _, p, _ in judged}, "queries": {q for q, _, _ in judged}}
    for name, ids in wanted.items():
        lines = lines_of(source / f"{name}.jsonl")
        kept = [line for line in lines if json.loads(line)["_id"] in ids]
        if name == "corpus":
            kept += [line for line in lines[:OTHERS] if line not in kept]
        (target / f"{name}.jsonl").write_text("\n".join(kept) + "\n")
    return target


def part_of_slice(source: Path, target: Path) -> Path:
    """The first queries of every split of the slice, their judged passages, and some more."""
    target.mkdir()
    wanted: set[str] = set()
    for split in ("train", "dev", "dl19"):
        rows = [line.split() for line in lines_of(source / f"qrels.{split}.tsv")]
        judged = few_judged([(query, passage, grade) for query, _, passage, grade in rows])
        text = "".join(f"{query} 0 {passage} {grade}\n" for query, passage, grade in judged)
        (target / f"qrels.{split}.tsv").write_text(text)
        queries = {query for query, _, _ in judged}
        lines = lines_of(source / f"queries.{split}.tsv")
        kept = [line for line in lines if line.split("\t")[0] in queries]
        (target / f"queries.{split}.tsv").write_text("\n".join(kept) + "\n")
        wanted |= {passage for _, passage, _ in judged}
    for name in ("collection", "train_passages"):
        lines = lines_of(source / f"{name}.tsv")
        kept = [line for line in lines if line.split("\t")[0] in wanted]
        kept += [line for line in lines[:OTHERS] if line not in kept]
        (target / f"{name}.tsv").write_text("\n".join(kept) + "\n")
    return target


def test_trained_on_the_slice_and_measured_in_and_out_of_domain(
    ray_cluster, shared_data, tmp_path, ladder_file
):
    """One cell; in one table MS MARCO's dev and DL19, NFCorpus and SciFact, each by its own measure."""
    collection = part_of_slice(shared_data / "msmarco-slice", tmp_path / "msmarco-slice")
    further = [
        part_of_beir(shared_data / "beir" / "nfcorpus", tmp_path / "nfcorpus"),
        part_of_beir(ASSETS / "scifact", tmp_path / "scifact"),
    ]
    lab = tmp_path / "lab"
    options = ("--cells", "dense-*-cl", "--evaluate", ",".join(map(str, further)))
    options += ("--set", "adaptation.steps=0", "--concurrent", "1", "--encoders", "1")
    run_here(command(collection, ladder_file, None, lab, *options))
    table = pd.read_parquet(lab / "results.parquet")
    trained = table[table["kind"] == "trained"]
    assert set(trained["trained_on"]) == {"msmarco-slice"}
    wanted = {
        ("msmarco-slice", "dev", "RR@10"),
        ("msmarco-slice", "dl19", "nDCG@10"),
        ("nfcorpus", "test", "nDCG@10"),
        ("scifact", "test", "nDCG@10"),
    }
    for system in ("dense-tiny-cl", "untrained-dense-tiny", "BM25"):
        own = table[table["system"] == system]
        assert wanted <= set(zip(own["collection"], own["split"], own["measure"], strict=True))
    first = (lab / "report" / "table.md").read_text().split("\n### ")[0]
    (header,) = [line for line in first.splitlines() if line.startswith("| size ")]
    columns = re.split(r" *\| *", header.strip("| "))[2:]
    assert columns == [
        "CL msmarco-slice dl19 nDCG@10, in domain",  # a slice's dev is no published benchmark
        "CL nfcorpus test nDCG@10, out of domain",
        "CL scifact test nDCG@10, out of domain",
    ]
    page = (lab / "report" / "index.html").read_text()
    assert "out of domain" in page
