"""Weight edits: small changes of a pretrained model's weights that save, scale, add and revert.

    place         where a change writes, and the bits that stood there
    change        what happens to one tensor: the base of all kinds
    dense         a difference for every entry; new values
    sparse        single entries
    block         whole rows or columns
    low_rank      B A - B0 A0
    masked        entries set to zero
    edit          changes by parameter name; compose, merge
    registry      what is applied to a model, and how it is taken back
    fingerprint   which base an edit belongs to
    files         one safetensors file per edit
"""

from passband.parts.edits.block import Block
from passband.parts.edits.change import Change, change_of
from passband.parts.edits.composable_sft import from_composable_sft
from passband.parts.edits.dense import Dense, Replace
from passband.parts.edits.edit import Edit, compose, composed, merge
from passband.parts.edits.fingerprint import Fingerprint, fingerprint
from passband.parts.edits.low_rank import LowRank
from passband.parts.edits.masked import Masked
from passband.parts.edits.place import Saved
from passband.parts.edits.registry import Applied, edited, settle
from passband.parts.edits.sparse import Sparse

__all__ = [
    "Applied", "Block", "Change", "Dense", "Edit", "Fingerprint", "LowRank", "Masked", "Replace",
    "Saved", "Sparse", "change_of", "compose", "composed", "edited", "fingerprint",
    "from_composable_sft", "merge", "settle",
]
