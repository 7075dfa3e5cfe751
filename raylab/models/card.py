"""The model card of a checkpoint, in the hub's format: recipe, data, budget, measures, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load

from raylab.experiment.config import LONGEST_TEXT
from raylab.experiment.heads import DENSE, SPARSE

_USE = {
    SPARSE.pooling: ("SparseEncoder", "vocabulary terms with their impacts"),
    DENSE.pooling: ("SentenceTransformer", "the mean of the L2-normalised token states"),
}


def licence_of(source: str) -> str | None:
    """The licence that a local model folder's own card names; None where it names none."""
    card = Path(source, "README.md")
    if not card.is_file():
        return None
    try:
        return (metadata_load(card) or {}).get("license")
    except (ValueError, yaml.YAMLError):
        return None


def write_card(
    folder: Path, contract: Mapping[str, Any], measures: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write `README.md` beside a checkpoint's weights.

    Args:
        contract: what `retriever.json` holds.
        measures: rows of the results table that belong to this checkpoint.
    """
    head, backbone, encoding = contract["head"], contract["backbone"], contract["encoding"]
    name, sparse = head["name"], head["representation"] == "sparse"
    library, meaning = _USE.get(head["pooling"], (None, f"`{head['pooling']}`"))
    title = contract.get("name", backbone["name"])
    tags = ["raylab", "retrieval", f"{name}-retrieval", "bidirectional"]
    if library is not None:
        tags.append("sparse-encoder" if sparse else "sentence-transformers")
    adapter = contract["weights"] == "adapter"
    front = ModelCardData(
        license=contract.get("license") or "other",
        pipeline_tag="feature-extraction",
        tags=tags,
        library_name=library and "sentence-transformers",
        base_model=backbone["source"] if adapter else None,
        datasets=[contract["collection"]] if contract.get("collection") else None,
        model_name=title if measures else None,
        eval_results=list(map(_result, measures)) or None,
    )
    tokenizer = contract["tokenizer"]
    rows = [
        ("head", f"{name}: {meaning}; score = dot product"),
        ("backbone", f"{backbone['name']} (`{backbone['source']}`), attention both ways"),
        ("weights", "LoRA adapter" if adapter else "whole model"),
        ("trained on", contract.get("collection", "not told")),
        ("objective", contract.get("objective", "not told")),
        ("seed", contract.get("seed", "not told")),
        ("query tokens", _at_most(encoding["query_length"])),
        ("passage tokens", _at_most(encoding["passage_length"])),
        ("special tokens", "the tokenizer's own" if tokenizer["special_tokens"] else "none"),
        ("licence of the base", contract.get("license") or "see the base model"),
    ]
    if sparse:
        kept = f"{encoding['top_k_query'] or 'all'} a query, {encoding['top_k_passage'] or 'all'} a passage"
        rows.append(("terms kept at inference", kept))
    rows += [(name, f"{value:.6g}") for name, value in (contract.get("training") or {}).items()]
    lines = [f"| {name} | {value} |" for name, value in rows]
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {title}",
        "| | |\n|---|---|\n" + "\n".join(lines),
    ]
    if measures:
        parts += ["## Measures", _measure_table(measures)]
    parts += ["## Use", _usage(sparse, library, encoding)]
    if contract.get("recipe"):
        recipe = json.dumps(contract["recipe"], indent=1, sort_keys=True)
        parts += ["## Recipe", f"```json\n{recipe}\n```"]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _at_most(length: int | None) -> str:
    if length is None:
        return f"{LONGEST_TEXT} at most, or as many as is usual for the collection"
    return f"{length} at most"


def _usage(sparse: bool, library: str | None, encoding: Mapping[str, Any]) -> str:
    raylab = (
        "```python\n"
        "from raylab import Retriever\n\n"
        'retriever = Retriever.load("FOLDER")\n'
        "queries, passages = retriever.encode_queries(QUERIES), retriever.encode_passages(PASSAGES)\n"
        "```"
    )
    if library is None:
        return raylab
    limits = [f", max_active_dims={encoding[k]}" if sparse and encoding[k] else "" for k in _TOP_K]
    return (
        f"{raylab}\n\nor\n\n```python\n"
        f"from sentence_transformers import {library}\n\n"
        f'model = {library}("FOLDER")\n'
        f"queries = model.encode_query(QUERIES{limits[0]})\n"
        f"passages = model.encode_document(PASSAGES{limits[1]})\n"
        "```"
    )


_TOP_K = ("top_k_query", "top_k_passage")


def _measure_table(measures: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"| {m['collection']} | {m['split']} | {m['measure']} | {m['value']:.4f} | "
        f"{m['ci_low']:.4f} to {m['ci_high']:.4f} |"
        for m in measures
    ]
    header = "| collection | split | measure | value | 95 % interval |\n|---|---|---|---|---|\n"
    return header + "\n".join(lines)


def _result(row: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="retrieval",
        dataset_type=row["collection"],
        dataset_name=f"{row['collection']} {row['split']}",
        dataset_split=row["split"],
        metric_type=row["measure"],
        metric_value=round(float(row["value"]), 5),
    )
