"""Names that transformer libraries give to the matrices of coupled structures.

Roles: q, k, v, o of attention; gate, u (up), d (down) of feed-forward networks. o and d are the
second matrices. Paths are relative to the module that holds them all; the first fit counts.
"""

from __future__ import annotations

# Feed-forward networks: first matrices by role, second matrix.
FEED_FORWARD: tuple[tuple[dict[str, str], str], ...] = (
    ({"gate": "gate_proj", "u": "up_proj"}, "down_proj"),
    ({"gate": "w1", "u": "w3"}, "w2"),
    ({"gate": "wi_0", "u": "wi_1"}, "wo"),
    ({"u": "up_proj"}, "down_proj"),
    ({"u": "fc1"}, "fc2"),
    ({"u": "c_fc"}, "c_proj"),
    ({"u": "fc_in"}, "fc_out"),
    ({"u": "dense_h_to_4h"}, "dense_4h_to_h"),
    ({"u": "lin1"}, "lin2"),
    ({"u": "wi"}, "wo"),
    ({"u": "ffn"}, "ffn_output"),
    ({"u": "intermediate.dense"}, "output.dense"),
)
# Gate and up one after the other in one matrix.
FUSED_FEED_FORWARD: tuple[tuple[str, str], ...] = (("gate_up_proj", "down_proj"),)

# Attention: q, k, v, o.
ATTENTION: tuple[tuple[str, str, str, str], ...] = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("self.query", "self.key", "self.value", "output.dense"),
    ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("query", "key", "value", "dense"),
    ("wq", "wk", "wv", "wo"),
    ("q", "k", "v", "o"),
)
# The three in one matrix. stacked: all q, all k, all v; grouped: for each head of keys and values
# its heads of queries, then k, then v.
FUSED_ATTENTION: tuple[tuple[str, str, str], ...] = (
    ("c_attn", "c_proj", "stacked"),
    ("qkv_proj", "o_proj", "stacked"),
    ("Wqkv", "out_proj", "stacked"),
    ("qkv", "proj", "stacked"),
    ("query_key_value", "dense", "grouped"),
)

# Norms between the matrices of a structure, over all of its hidden units.
BETWEEN = (
    "sub_norm", "attn_sub_norm", "ffn_sub_norm", "inner_attn_ln", "ffn_layernorm", "subln",
    "sub_ln",
)
HEAD_SIZE = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
