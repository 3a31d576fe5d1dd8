"""Encoders, whose attention looks both ways."""

from tests.support.zoo.checkpoint import (
    HEAD,
    HIDDEN,
    INNER,
    LAYERS,
    VOCABULARY,
    Config,
    Recipe,
    Shapes,
    at_each,
    below,
    config_of,
)
from tests.support.zoo.dense import with_biases

POSITIONS = 514
"""RoBERTa begins to count behind its padding token."""

LABELS = 3


def labels(count: int) -> Config:
    """As many classes, under some names."""
    return {
        "num_labels": count,
        "id2label": {str(n): f"label {n}" for n in range(count)},
        "label2id": {f"label {n}": n for n in range(count)},
    }


def _bert_body(prefix: str) -> Shapes:
    norm = with_biases({"LayerNorm.weight": (HIDDEN,)}, 0)
    square = {"dense.weight": (HIDDEN, HIDDEN)}
    layer = {
        **below(
            "attention.self",
            with_biases(
                {f"{name}.weight": (HIDDEN, HIDDEN) for name in ("query", "key", "value")}, 0
            ),
        ),
        **below("attention.output", {**with_biases(square, 0), **norm}),
        **below("intermediate", with_biases({"dense.weight": (INNER, HIDDEN)}, 0)),
        **below("output", {**with_biases({"dense.weight": (HIDDEN, INNER)}, 0), **norm}),
    }
    embeddings = {
        "word_embeddings.weight": (VOCABULARY, HIDDEN),
        "position_embeddings.weight": (POSITIONS, HIDDEN),
        "token_type_embeddings.weight": (2, HIDDEN),
        **norm,
    }
    body = {**below("embeddings", embeddings), **at_each("encoder.layer", LAYERS, layer)}
    return below(prefix, body) if prefix else body


def _bert_config(architecture: str, model_type: str, **more: object) -> Config:
    return config_of(
        architecture, model_type, hidden_act="gelu", max_position_embeddings=POSITIONS,
        type_vocab_size=2, layer_norm_eps=1e-5, position_embedding_type="absolute", **more,
    )  # fmt: skip


def bert() -> Recipe:
    """A pooler layer is in the checkpoint, as in most; an embedding model has no use for it."""
    pooler = with_biases({"pooler.dense.weight": (HIDDEN, HIDDEN)}, 0)
    return Recipe(_bert_config("BertModel", "bert"), {**_bert_body(""), **pooler})


def bert_classifier() -> Recipe:
    """A class for the whole text: pooler layer and classifier."""
    head = {"bert.pooler.dense.weight": (HIDDEN, HIDDEN), "classifier.weight": (LABELS, HIDDEN)}
    config = _bert_config("BertForSequenceClassification", "bert", **labels(LABELS))
    return Recipe(config, {**_bert_body("bert"), **with_biases(head, 0)})


def bert_tokens() -> Recipe:
    """A class for every token."""
    head = with_biases({"classifier.weight": (LABELS, HIDDEN)}, 0)
    config = _bert_config("BertForTokenClassification", "bert", **labels(LABELS))
    return Recipe(config, {**_bert_body("bert"), **head})


def roberta_reranker() -> Recipe:
    """A cross-encoder: one number for a pair of texts."""
    head = {
        "classifier.dense.weight": (HIDDEN, HIDDEN),
        "classifier.out_proj.weight": (1, HIDDEN),
    }
    config = _bert_config(
        "XLMRobertaForSequenceClassification", "xlm-roberta", pad_token_id=1, bos_token_id=0,
        **labels(1),
    )  # fmt: skip
    return Recipe(config, {**_bert_body("roberta"), **with_biases(head, 0)})


def modernbert() -> Recipe:
    """The first layer has no norm before its attention."""
    layer = {
        "attn.Wqkv.weight": (3 * HIDDEN, HIDDEN),
        "attn.Wo.weight": (HIDDEN, HIDDEN),
        "mlp_norm.weight": (HIDDEN,),
        "mlp.Wi.weight": (2 * INNER, HIDDEN),
        "mlp.Wo.weight": (HIDDEN, INNER),
    }
    shapes = {
        "embeddings.tok_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.norm.weight": (HIDDEN,),
        **at_each("layers", LAYERS, layer),
        **at_each("layers", range(1, LAYERS), {"attn_norm.weight": (HIDDEN,)}),
        "final_norm.weight": (HIDDEN,),
    }
    config = config_of(
        "ModernBertModel", "modernbert", hidden_activation="gelu", norm_eps=1e-5, norm_bias=False,
        attention_bias=False, mlp_bias=False, global_attn_every_n_layers=2, local_attention=64,
        global_rope_theta=160000.0, local_rope_theta=10000.0, cls_token_id=1, sep_token_id=2,
        head_dim=HEAD,
    )  # fmt: skip
    return Recipe(config, shapes)
