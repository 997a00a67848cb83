"""Which layers are found, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from passband.errors import ConfigError, DataError
from passband.parts.targets import blocks, find_targets, is_transposed, sharing, weight_of

transformers = pytest.importorskip("transformers")


def llama(**options):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, **options,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2
    )
    return transformers.GPT2LMHeadModel(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


def bert():
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.BertModel(config)


def test_endings_are_whole_components():
    model = nn.ModuleDict({
        "q_proj": nn.Linear(4, 4), "seq_proj": nn.Linear(4, 4),
        "self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)}),
        "my_self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)}),
    })
    assert list(find_targets(model, "q_proj")) == [
        "q_proj", "self_attn.q_proj", "my_self_attn.q_proj"
    ]
    assert list(find_targets(model, "self_attn.q_proj")) == ["self_attn.q_proj"]
    both = find_targets(model, ("self_attn.k_proj", "seq_proj"))
    assert list(both) == ["seq_proj", "self_attn.k_proj"]  # in the model's own order
    assert both["seq_proj"] is model["seq_proj"]


def test_every_linear_layer_of_transformers_but_the_head():
    model = llama()
    found = find_targets(model, "all-linear")
    assert len(found) == 3 * 7 and "lm_head" not in found
    assert list(find_targets(model, ["all-linear", "lm_head"]))[-1] == "lm_head"
    assert len(find_targets(bert(), "all-linear")) == 2 * 6 + 1  # and the pooler
    assert len(find_targets(vit(), "all-linear")) == 2 * 6  # neither classifier nor patches
    assert "classifier" in find_targets(vit(), "classifier")
    found = find_targets(gpt2(), "all-linear")
    assert len(found) == 2 * 4 and all(is_transposed(m) for m in found.values())


def test_fresh_heads_are_no_targets():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    assert list(find_targets(model, "all-linear", head=("head",))) == ["body"]
    with pytest.raises(DataError, match="'head'"):
        find_targets(model, "head", head=("head",))


def test_convolutions_are_targets_by_name_only():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "out": nn.Linear(4, 4)})
    assert list(find_targets(model, "conv")) == ["conv"]
    assert list(find_targets(model, "all-linear")) == ["out"]


def test_shared_weights_once():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    model = nn.ModuleDict({"a": one, "b": two, "c": one, "d": nn.Linear(4, 4)})
    assert list(find_targets(model, "all-linear")) == ["a", "d"]
    assert list(sharing(model, two)) == ["a", "b"]
    tied = llama(tie_word_embeddings=True)
    assert list(sharing(tied, tied.lm_head)) == ["model.embed_tokens", "lm_head"]


def test_a_typing_error_is_answered_with_what_there_is():
    with pytest.raises(DataError, match="q_prj") as error:
        find_targets(llama(), ["v_proj", "q_prj"])
    assert "down_proj" in str(error.value) and "did you mean 'q_proj'" in str(error.value)
    with pytest.raises(DataError, match="the model has none"):
        find_targets(nn.Sequential(nn.ReLU()), "all-linear")
    with pytest.raises(ConfigError, match="no endings"):
        find_targets(llama(), [])


def test_weights_that_no_method_can_use():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[2, 3] = torch.inf
    assert len(find_targets(model, "q_proj")) == 3
    with pytest.raises(DataError, match=r"layers\.1\.self_attn\.v_proj.*NaN or infinite"):
        find_targets(model, "v_proj")
    integer = nn.Sequential(nn.Linear(4, 4))
    integer[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DataError, match="quantised weights: 0"):
        find_targets(integer, "0")


@pytest.mark.filterwarnings("ignore")
def test_layers_quantised_by_torch():
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(DataError, match="quantised"):
        find_targets(packed, "all-linear")


def test_ranks_that_do_not_fit():
    assert len(find_targets(llama(), "all-linear", rank=16)) == 21
    with pytest.raises(ConfigError, match=r"rank = 17 for model\.layers\.0\.self_attn\.q_proj"):
        find_targets(llama(), "all-linear", rank=17)
    with pytest.raises(ConfigError, match="rank = 0"):
        find_targets(llama(), "q_proj", rank=0)


def test_models_on_the_meta_device_have_targets():
    with torch.device("meta"):
        model = llama()
    assert len(find_targets(model, "all-linear", rank=4)) == 21


def test_a_wrapped_model_is_refused():
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    for model in (wrapped, wrapped.base_model.model):
        with pytest.raises(DataError, match="peft"):
            find_targets(model, "q_proj")


@pytest.mark.parametrize("make, count, kind", [
    (llama, 3, "LlamaDecoderLayer"), (gpt2, 2, "GPT2Block"), (vit, 2, "ViTLayer"),
    (bert, 2, "BertLayer"),
])
def test_blocks_of_transformers(make, count, kind):
    model = make()
    found = blocks(model)
    assert [type(block).__name__ for block in found] == [kind] * count
    order = []
    for i, block in enumerate(found):
        block.register_forward_pre_hook(lambda *_, i=i: order.append(i))
    if make is vit:
        model(torch.zeros(1, 1, 8, 8))
    else:
        model(torch.zeros(1, 4, dtype=torch.long))
    assert order == list(range(count))


def test_experts_are_no_blocks():
    experts = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2) for _ in range(8)])})
    model = nn.ModuleDict({
        "layers": nn.ModuleList([copy.deepcopy(experts) for _ in range(3)]),
        "heads": nn.ModuleList([nn.Linear(2, 2)]),
        "mixed": nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU()]),
    })
    found = blocks(model)
    assert len(found) == 3 and found[0] is model["layers"][0]
    assert blocks(nn.Linear(2, 2)) == []


def test_the_matrix_of_a_layer():
    linear = nn.Linear(5, 3)
    assert weight_of(linear)[0].data_ptr() == linear.weight.data_ptr()
    assert not weight_of(linear)[1]
    layer = gpt2().transformer.h[0].mlp.c_fc
    matrix, transposed = weight_of(layer)
    assert transposed and matrix.shape == (64, 16) and matrix.equal(layer.weight.T)
    x = torch.randn(2, 16)
    assert torch.allclose(layer(x), x @ matrix.T + layer.bias, atol=1e-6)
    assert weight_of(nn.Conv2d(4, 6, 3))[0].shape == (6, 36)
