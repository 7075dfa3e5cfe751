"""What a ladder is made of: its tokenizer, the shapes of its rungs, and how their weights start.

Legend: N texts, V vocabulary, T dimensions of the teacher, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD_TOKEN = "<pad>"
INITIAL_SPREAD = 0.02  # standard deviation of random weights, the library's
_OUTPUTS = ("o_proj.weight", "down_proj.weight")


@dataclass(frozen=True)
class Rung:
    """One size of a ladder made from scratch."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int

    def config(self, vocabulary: int) -> LlamaConfig:
        """A tied, bidirectional Llama of this size, without BOS or EOS."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            initializer_range=INITIAL_SPREAD,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            is_causal=False,  # type: ignore[call-arg]
            architectures=["LlamaForCausalLM"],
        )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE with `<pad>` as id 0; `_`, the mask token, is in its alphabet."""
    raw = RawTokenizer(models.BPE())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD_TOKEN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=PAD_TOKEN)


def start(rung: Rung, vocabulary: int, seed: int, residual_scale: float) -> LlamaForCausalLM:
    """A random model whose blocks add `residual_scale` of what they would to the residual stream.

    At 0 a state is its token's embedding: every rung begins as a bag of words, which retrieves, and grows from there.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(rung.config(vocabulary))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(_OUTPUTS):
                weight *= residual_scale
    return model


def token_meanings(ids: Sequence[np.ndarray], taught_NT: np.ndarray, vocabulary: int) -> np.ndarray:
    """float32 [V, T]: what each token adds to the teacher's embedding of a text, its mean over the tokens.

    Ridge regression of the teacher's embeddings on the shares of the tokens in the texts. Tokens that say little
    have short rows.
    """
    rows = np.repeat(np.arange(len(ids)), [len(text) for text in ids])
    shares = np.concatenate([np.full(len(text), 1 / max(len(text), 1), np.float32) for text in ids])
    shares_NV = sp.csr_matrix((shares, (rows, np.concatenate(ids))), (len(ids), vocabulary))
    gram_VV = np.asarray((shares_NV.T @ shares_NV).todense(), np.float64)
    ridge = np.trace(gram_VV) / vocabulary
    gram_VV[np.diag_indices(vocabulary)] += ridge
    right_VT = np.asarray(shares_NV.T @ taught_NT.astype(np.float32), np.float64)
    return np.linalg.solve(gram_VV, right_VT).astype(np.float32)


def principal(rows_NT: np.ndarray, dimensions: int) -> np.ndarray:
    """float32 [T, at most `dimensions`]: the directions that hold most of the rows' squares."""
    moments_TT = rows_NT.astype(np.float64).T @ rows_NT
    _, vectors_TT = np.linalg.eigh(moments_TT)  # ascending
    return vectors_TT[:, ::-1][:, :dimensions].astype(np.float32)


@torch.no_grad()
def give_meaning(
    model: LlamaForCausalLM, meanings_VT: np.ndarray, taught_NT: np.ndarray, share: float
) -> None:
    """Add the tokens' meanings, in the teacher's main directions, to the random embeddings.

    The mean row of meanings gets `share` times the length of a random row, so that a token that says much starts
    with its meaning and one that says little in a direction of its own. Rows keep the random rows' length.
    """
    weight_VD: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    directions_TD = principal(taught_NT, weight_VD.shape[1])
    projected_VD = np.zeros(tuple(weight_VD.shape), np.float32)
    projected_VD[:, : directions_TD.shape[1]] = meanings_VT @ directions_TD
    typical = float(np.sqrt(np.square(projected_VD).sum(1).mean()))
    length = INITIAL_SPREAD * weight_VD.shape[1] ** 0.5
    mixed_VD = weight_VD / length + share / typical * torch.from_numpy(projected_VD)
    weight_VD.copy_(length * torch.nn.functional.normalize(mixed_VD, dim=1))
