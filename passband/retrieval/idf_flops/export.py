"""The trained model as a folder that sentence-transformers loads, with OpenSearch's idf.json.

    modules.json, router_config.json        queries and documents go different ways
    document_0_MLMTransformer/              the masked language model and its tokenizer
    document_1_SpladePooling/               max, ReLU, log(1 + .) once or twice
    query_0_SparseStaticEmbedding/          the table of the queries' weights
    idf.json                                {token: weight}, as OpenSearch's sparse tokenizers read

    from sentence_transformers import SparseEncoder
    model = SparseEncoder(folder); model.encode_query(texts); model.encode_document(texts)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.system import replace_folder
from passband.parts.transformers_library import quiet, transformers
from passband.retrieval.wordpieces import WordPieces, tokenizers

if TYPE_CHECKING:
    from passband.retrieval.idf_flops.system import IdfFlops

DOCUMENT, POOLING, QUERY = (
    "document_0_MLMTransformer", "document_1_SpladePooling", "query_0_SparseStaticEmbedding"
)
_MODULES = "sentence_transformers.sparse_encoder.models"
LONG = 1_000_000  # queries are never cut


def write(system: IdfFlops, folder: Path) -> Path:
    """Write the folder, all or nothing, in place of what was there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _fill(system, temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _fill(system: IdfFlops, folder: Path) -> None:
    from safetensors.torch import save_file

    network: Any = system.network
    pieces, c = system.pieces, system.config
    for name in (DOCUMENT, POOLING, QUERY):
        (folder / name).mkdir()
    with quiet():
        network.documents.mlm.save_pretrained(folder / DOCUMENT)
        for name, length in ((DOCUMENT, c.max_length), (QUERY, LONG)):
            _tokenizer(pieces, length, network.vocabulary).save_pretrained(folder / name)
    _json(folder / DOCUMENT / "sentence_bert_config.json", {
        "max_seq_length": c.max_length, "do_lower_case": False,
    })
    _json(folder / POOLING / "config.json", {
        "pooling_strategy": "max", "activation_function": "log1p_relu" if c.l0 else "relu",
        "word_embedding_dimension": network.vocabulary,
    })
    save_file({"weight": network.table.detach().clone()}, folder / QUERY / "model.safetensors")
    _json(folder / QUERY / "config.json", {"frozen": not c.train_idf})
    _json(folder / "router_config.json", {
        "types": {
            QUERY: f"{_MODULES}.SparseStaticEmbedding.SparseStaticEmbedding",
            DOCUMENT: f"{_MODULES}.MLMTransformer.MLMTransformer",
            POOLING: f"{_MODULES}.SpladePooling.SpladePooling",
        },
        "structure": {"query": [QUERY], "document": [DOCUMENT, POOLING]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    })
    _json(folder / "modules.json", [{
        "idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router",
    }])
    _json(folder / "config_sentence_transformers.json", {
        "model_type": "SparseEncoder", "prompts": {"query": "", "document": ""},
        "default_prompt_name": None, "similarity_fn_name": "dot",
    })
    weights = network.idf.detach().relu().tolist()
    _json(folder / "idf.json", {
        token: weight for token, weight in zip(pieces.tokens, weights, strict=False) if token
    })


def _tokenizer(pieces: WordPieces, length: int, size: int) -> Any:
    """The word pieces as a tokenizer of transformers, which puts the special tokens around.

    A model may have more entries than its tokenizer has tokens; sentence-transformers wants as many
    as the table of the queries. They are filled up with [unused..], as BERT's are.
    """
    library = tokenizers()
    facts = json.loads(pieces.tokenizer.to_str())
    vocabulary = facts["model"]["vocab"]
    if isinstance(vocabulary, dict):
        taken = set(pieces.tokenizer.get_vocab().values())
        vocabulary |= {f"[unused{i}]": i for i in range(size) if i not in taken}
    copy = library.Tokenizer.from_str(json.dumps(facts))
    first, last = pieces.tokens[pieces.cls], pieces.tokens[pieces.sep]
    copy.post_processor = library.processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, pieces.cls), (last, pieces.sep)],
    )
    names = {
        "cls_token": pieces.cls, "sep_token": pieces.sep, "pad_token": pieces.pad,
        "unk_token": pieces.unk, "mask_token": pieces.mask,
    }
    given = {name: pieces.tokens[i] for name, i in names.items() if i is not None}
    return transformers("retrieval").PreTrainedTokenizerFast(
        tokenizer_object=copy, model_max_length=length, **given
    )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
