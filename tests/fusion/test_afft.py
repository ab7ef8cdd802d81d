"""AFFT's fusers against the public code, and with missing steps and streams against loops over what is there."""

from pathlib import Path

import pytest
import torch
from fusion_heads import CLASSES, features_of, small_head
from golden_cases import FOLDER, load_case
from torch import nn

from actionfuse.fusion import create_head
from actionfuse.fusion.afft import FeatureMapping, load_published, published_weights
from actionfuse.fusion.afft_fusers import CrossAttentionFuser, SelfAttentionFuser, TemporalSelfAttentionFuser

TRIPLE = ("rgb", "flow", "objects")


def goldens(*classes):
    """Names of the AFFT cases of these classes that are there."""
    names = sorted(Path(path).stem for path in (FOLDER / "anticipation").glob("afft_*.json"))
    found = {name: load_case(name, "anticipation").meta["class"].rpartition(":")[2] for name in names}
    return [name for name, class_name in found.items() if class_name in classes]


def fuser_of(class_name, options):
    options = dict(options)
    width, count = options.pop("dim"), len(options.pop("modalities", ()))
    options["heads"] = options.pop("num_heads", 4)
    frame_tokens = options.pop("temporal_sequence_length", None)
    if options.pop("frame_level_token", False):
        options["frame_tokens"] = frame_tokens
    if class_name == "TemporalCMFuser":
        return TemporalSelfAttentionFuser(width, count, **options)
    if class_name == "TemporalCrossAttentFuser":
        return CrossAttentionFuser(width, count, **options)
    return SelfAttentionFuser(width, count, token=class_name == "ModalTokenCMFuser", **options)


@pytest.mark.parametrize("name", goldens("CMFuser", "ModalTokenCMFuser", "TemporalCMFuser", "TemporalCrossAttentFuser"))
@pytest.mark.parametrize("masked", [False, True])
def test_fusers(name, masked):
    """Also with masks under which all is there: they take another way."""
    case = load_case(name, "anticipation")
    fuser = fuser_of(case.meta["class"].rpartition(":")[2], case.meta["constructor_args"]).eval()
    fuser.load_state_dict(case.weights())
    features = [case.input(stream) for stream in case.meta["modality_order"]]
    there = torch.ones(*features[0].shape[:2], len(features), dtype=torch.bool) if masked else None
    fused, none = fuser(features, there)
    case.check_output("fused", fused, rtol=1e-5)
    assert none is None
    fused, attention = fuser(features, there, with_attention=True)
    case.check_output("fused", fused, rtol=1e-5)
    # the public CA-Fuser gives a placeholder
    if case.arrays["attention"].ndim > 1:
        case.check_output("attention", attention, rtol=1e-5)


@pytest.mark.parametrize("name", goldens("Linear", "NonLinear", "GatedLinear"))
def test_mappings(name):
    case = load_case(name, "anticipation")
    options = case.meta["constructor_args"]
    kind = {"Linear": "linear", "NonLinear": "nonlinear", "GatedLinear": "gated"}[case.meta["class"].rpartition(":")[2]]
    mapping = FeatureMapping(
        options["in_features"],
        options["out_features"],
        kind=kind,
        layer_norm=options.get("use_layernorm", kind == "gated"),
        always=not options.get("sparse_mapping", True),
    )
    mapping.load_state_dict(case.weights())
    feats = case.input("feats")
    case.check_output("y", mapping(feats), rtol=1e-5)
    # channels are gated, of sequences as of vectors
    torch.testing.assert_close(mapping(feats[None])[0], mapping(feats))


@pytest.mark.parametrize("name", goldens("CMFPEarly"))
def test_whole_checkpoint_up_to_the_fused_features(name):
    case = load_case(name, "anticipation")
    options = case.meta["constructor_args"]
    fuser, order = options["fuser"], options["modal_feature_order"]
    head = create_head(
        "afft_sa",
        streams={stream: options["modal_dims"][stream] for stream in order},
        classes={"verb_noun": case.arrays["logits"].shape[-1]},
        width=fuser["dim"],
        depth=fuser["depth"],
        heads=fuser["num_heads"],
    ).eval()
    weights = {f"future_predictor.{key}": x for key, x in case.weights().items()}
    weights |= {"backbone.model.weight": torch.zeros(1), "cls_map_verb_action": torch.zeros(1)}
    load_published(head, weights, tasks={"action": "verb_noun"})
    fused, _, _ = head.fused({stream: case.input(stream) for stream in order}, {})
    case.check_output("fused", fused, rtol=1e-5)
    assert torch.equal(head.classifiers["verb_noun"].bias, case.weights()["classifiers.action.all-fused.1.bias"])
    with pytest.raises(ValueError, match="classifiers.action.weight"):
        load_published(head, weights)
    with pytest.raises(ValueError, match="'rolling.weight' is no key of AFFT"):
        published_weights({"rolling.weight": torch.zeros(1)})


# --- what is not there, naively: lists of tokens, one query at a time, in float64


def norm(layer, x):
    return layer.weight * (x - x.mean()) / ((x - x.mean()) ** 2).mean().add(layer.eps).sqrt() + layer.bias


def attention_of(projections, proj, heads, query, keys):
    """One query (D,) to a list of keys (D,); zeros where there are none."""
    if not keys:
        return torch.zeros_like(query)
    w_q, w_k, w_v = projections
    size, mixed = len(query) // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        q = (w_q @ query)[part]
        powers = [torch.exp(q @ (w_k @ key)[part] / size**0.5) for key in keys]
        mixed.append(sum(p * (w_v @ key)[part] for p, key in zip(powers, keys, strict=True)) / sum(powers))
    return proj.weight @ torch.cat(mixed) + proj.bias


def feed_forward(module, x):
    first, _, second, _ = module.mlp
    return second.weight @ nn.functional.gelu(first.weight @ x + first.bias) + second.bias


def block_of(block, tokens, sees):
    """tokens: list of (D,). sees[i]: numbers of the tokens that token i sees."""
    normed = [norm(block.norm1, x) for x in tokens]
    parts = block.attn.qkv.weight.chunk(3)
    new = []
    for x, query, keys in zip(tokens, normed, sees, strict=True):
        x = x + attention_of(parts, block.attn.proj, block.attn.heads, query, [normed[k] for k in keys])
        new.append(x + feed_forward(block.mlp, norm(block.norm2, x)))
    return new


def naive_sa(fuser, steps):
    """steps: list of {number of the stream: mapped feature}; the fused feature of each."""
    fused = []
    for position, step in enumerate(steps):
        tokens = list(step.values())
        rows = list(step)
        if fuser.modal_token is not None:
            tokens = [fuser.modal_token[0, position if fuser.frame_level else 0], *tokens]
            rows = [0, *(row + 1 for row in rows)]
        if fuser.modality_embedding is not None:
            tokens = [x + fuser.modality_embedding[0, row] for x, row in zip(tokens, rows, strict=True)]
        for block in fuser.blocks:
            tokens = block_of(block, tokens, [range(len(tokens))] * len(tokens))
        tokens = [norm(fuser.norm, x) for x in tokens]
        fused.append(tokens[0] if fuser.modal_token is not None else sum(tokens) / len(tokens))
    return fused


def naive_t_sa(fuser, steps):
    tokens, owners = [], []
    for position, step in enumerate(steps):
        rows = dict(step)
        if fuser.modal_token is not None:
            rows = {-1: fuser.modal_token[0, position], **rows}
        for row, x in rows.items():
            x = x + fuser.position_embeddings.weight[position]
            if fuser.modality_embedding is not None:
                x = x + fuser.modality_embedding[row + (fuser.modal_token is not None)]
            tokens.append(x)
            owners.append((position, row))
    sees = [[k for k, (when, _) in enumerate(owners) if when <= now] for now, _ in owners]
    for block in fuser.blocks:
        tokens = block_of(block, tokens, sees)
    fused = []
    for position in range(len(steps)):
        own = {row: norm(fuser.norm, x) for x, (when, row) in zip(tokens, owners, strict=True) if when == position}
        fused.append(own[-1] if fuser.modal_token is not None else sum(own.values()) / len(own))
    return fused


def naive_ca(fuser, steps):
    places = fuser.position_embeddings.weight
    x = [step.get(0, 0) + places[t] for t, step in enumerate(steps)]
    for number, block in enumerate(fuser.blocks, 1):
        memory = {t: norm(block.norm_kv, step[number] + places[t]) for t, step in enumerate(steps) if number in step}
        normed = [norm(block.norm_self, row) for row in x]
        parts, cross = block.attn.qkv.weight.chunk(3), block.cross_attn
        for t in range(len(x)):
            keys = [normed[k] for k in range(t + 1) if 0 in steps[k]]
            x[t] = x[t] + attention_of(parts, block.attn.proj, block.attn.heads, normed[t], keys)
        weights = cross.w_q.weight, cross.w_k.weight, cross.w_v.weight
        for t in range(len(x)):
            keys = [key for k, key in memory.items() if k <= t]
            x[t] = x[t] + attention_of(weights, cross.proj, cross.heads, norm(block.norm_q, x[t]), keys)
            x[t] = x[t] + feed_forward(block.mlp, norm(block.norm_mlp, x[t]))
    return [norm(fuser.norm, row) for row in x]


HEADS = {
    "afft_sa": ("afft_sa", {}, naive_sa),
    "SA, no token": ("afft_sa", {"token": False, "modal_encoding": True}, naive_sa),
    "SA, tokens of frames": ("afft_sa", {"frame_tokens": 6, "modal_encoding": True, "pool": "last"}, naive_sa),
    "afft_t_sa": ("afft_t_sa", {}, naive_t_sa),
    "T-SA, tokens of frames": ("afft_t_sa", {"frame_tokens": 6, "modal_encoding": False, "pool": "mean"}, naive_t_sa),
    "afft_ca": ("afft_ca", {}, naive_ca),
}
# Sample 1: step 2 is in no stream, flow has gaps. Sample 2: no rgb.
REAL = {
    1: {"rgb": [0, 1, 3], "flow": [1, 4], "objects": [0, 1, 3, 4]},
    2: {"rgb": [], "flow": [1, 2, 4], "objects": [0, 1, 2, 3]},
}


@pytest.mark.parametrize(("name", "options", "naive"), HEADS.values(), ids=HEADS)
def test_what_is_not_there_is_not_looked_at(name, options, naive):
    head = small_head(name, TRIPLE, width=8, **options).double()
    for key, parameter in head.fuser.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in key and "weight" in key), std=0.3)
    features = {stream: x.double() for stream, x in features_of(head, maps=False, steps=5).items()}
    masks = {stream: torch.ones(3, 5, dtype=torch.bool) for stream in TRIPLE}
    for sample, real in REAL.items():
        for stream, steps in real.items():
            masks[stream][sample] = False
            masks[stream][sample, steps] = True
    damaged = {stream: x.where(masks[stream][..., None], torch.nan) for stream, x in features.items()}
    output = head(damaged, masks=masks, extras=True)
    plain = head(damaged, masks=masks)
    assert all(x.isfinite().all() for x in output.extras.values())
    for sample in range(3):
        steps = [
            {
                i: head.mapping[stream](features[stream][sample, t])
                for i, stream in enumerate(TRIPLE)
                if masks[stream][sample, t]
            }
            for t in range(5)
        ]
        fused = naive(head.fuser, [step for step in steps if step])
        pooled = fused[-1] if head.pool == "last" else sum(fused) / len(fused)
        for task in CLASSES:
            wanted = head.classifiers[task].weight @ pooled + head.classifiers[task].bias
            for logits in (output.logits, plain.logits):
                torch.testing.assert_close(logits[task][sample], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _ in HEADS.values()], ids=HEADS)
def test_gradients(name, options):
    head = small_head(name, ("rgb", "flow"), width=4, **options).double()
    head.mapping = nn.ModuleDict({"rgb": nn.Identity(), "flow": nn.Identity()})
    masks = {"rgb": torch.tensor([[True, True], [False, False]]), "flow": torch.tensor([[True, False], [True, True]])}
    features = [torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True) for _ in masks]

    def run(rgb, flow):
        return head.fuse({"rgb": rgb, "flow": flow}, None, masks, losses=False, extras=False).logits["verb"]

    assert torch.autograd.gradcheck(run, features)


def test_modality_weights_are_the_tokens_attention():
    head = small_head("afft_sa", TRIPLE)
    features = features_of(head)
    masks = {"flow": torch.tensor([[True] * 4, [False] * 4, [True] * 4])}
    extras = head(features, masks=masks, extras=True).extras
    weights = extras["modality_weights"]
    assert weights.shape == (3, 3) and extras["attention"].shape == (3, 2, 4, 4, 4, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights[1, 1] == 0 and (weights[0] > 0).all()


def test_wrong_calls():
    with pytest.raises(ValueError, match="CA-Fuser needs two streams or more"):
        small_head("afft_ca", ("rgb",))
    with pytest.raises(ValueError, match="width 32 cannot have 5 heads"):
        small_head("afft_sa", heads=5)
    with pytest.raises(ValueError, match="mapping is 'relu'; it is one of 'linear', 'nonlinear', 'gated'"):
        small_head("afft_sa", mapping="relu")
    with pytest.raises(ValueError, match="pool is 'max'"):
        small_head("afft_t_sa", pool="max")
    head = small_head("afft_t_sa", max_steps=3)
    with pytest.raises(ValueError, match="have 4 steps; this fuser has places for 3"):
        head(features_of(head))
