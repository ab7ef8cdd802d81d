"""MIF and the strategies of its table II against their equations written a second time: loops, float64, one sample."""

import itertools
import math

import pytest
import torch
from fusion_heads import WIDTHS, features_of, small_head
from torch import nn

from actionfuse.fusion import create_head
from actionfuse.fusion.grouped import GroupedAttention
from actionfuse.fusion.mif import DMF
from actionfuse.fusion.mif_stages import DPES, Design

PAIR, TRIPLE, FOUR = ("rgb", "flow"), ("rgb", "objects", "flow"), tuple(WIDTHS)
TINY = Design(width=4, heads=2, dropout=0.0, mlp_ratio=1.0)


# --- the paper once more. A stream of one sample is {place in time: vector}; what is padded or missing is not in it.


def attend(state, name, group, heads, query, keys, values):
    """Softmax attention, one query, one head, one key at a time; zeros where there is no key."""
    w_q, w_kv, w_out = (state[f"{name}.{part}"][group].T for part in ("query", "key_value", "out"))
    w_k, w_v = w_kv.chunk(2)
    size = len(w_q) // heads
    found = {}
    for t, q in query.items():
        parts = []
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            scores = {s: float((w_q[rows] @ q) @ (w_k[rows] @ keys[s])) / math.sqrt(size) for s in keys}
            total = sum(math.exp(score) for score in scores.values())
            parts.append(sum((math.exp(scores[s]) / total * (w_v[rows] @ values[s]) for s in keys), q.new_zeros(size)))
        found[t] = w_out @ torch.cat(parts)
    return found


def layer_norm(x, weight, bias):
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weight + bias


def norm_of(state, name, group, width):
    rows = slice(group * width, (group + 1) * width)
    return state[f"{name}.weight"][rows], state[f"{name}.bias"][rows]


def place_vector(state, name, group, place, width):
    if f"{name}.table" in state:
        return state[f"{name}.table"][group, place]
    at = [place / 10000 ** (2 * (i // 2) / width) for i in range(width)]
    return torch.tensor([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(at)], dtype=torch.float64)


def dpes(state, group, design, x, origin):
    z = {t: v + place_vector(state, "stage1.first", group, t - origin, design.width) for t, v in x.items()}
    second = {}
    if design.second_position != "none":
        second = {t: place_vector(state, "stage1.second", group, t - origin, design.width) for t in x}
    placed = {t: z[t] + second[t] for t in z} if design.second_position == "query_key" else z
    mixed = attend(state, "stage1.attention", group, design.heads, placed, placed, z)
    norm = norm_of(state, "stage1.norm", group, design.width)
    f = {t: layer_norm(z[t] + mixed[t], *norm) for t in z}
    return {t: f[t] + second[t] for t in f} if design.second_position == "output" else f


def dmf(state, name, group, design, query, keys, values=None):
    mixed = attend(state, f"{name}.attention", group, design.heads, query, keys, keys if values is None else values)
    norm = norm_of(state, f"{name}.norm", group, design.width)
    return {t: layer_norm(mixed[t] + query[t], *norm) for t in query}


def pooled(design, x):
    return x[max(x)] if design.pool == "last" else sum(x.values()) / len(x)


def stage3(state, name, design, classes, x):
    logits = {}
    for task in classes:
        owner = "shared" if design.stage3 == "shared" else task
        w0, b0, w1, b1 = (state[f"{name}.mlp.{owner}.{i}.{kind}"] for i in (0, 3) for kind in ("weight", "bias"))
        inner = w0 @ x + b0
        if design.activation == "relu":
            inner = inner.clamp(min=0)
        else:
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        y = w1 @ inner + b1 + x
        y = layer_norm(y, state[f"{name}.norm.{owner}.weight"], state[f"{name}.norm.{owner}.bias"])
        logits[task] = state[f"{name}.linear.{task}.weight"] @ y + state[f"{name}.linear.{task}.bias"]
    return logits


def projected(state, streams):
    return {
        name: {t: state[f"project.{name}.weight"] @ v + state[f"project.{name}.bias"] for t, v in x.items()}
        for name, x in streams.items()
    }


def naive_stage1(head, state, streams):
    origin = min(min(x) for x in streams.values())
    places = {name: place for place, name in enumerate(head.streams)}
    return {n: dpes(state, places[n], head.design, x, origin) for n, x in projected(state, streams).items()}


def naive_parallel(head, state, streams):
    f = naive_stage1(head, state, streams)
    fused = []
    for group, (asking, *others) in enumerate(head.pairs):
        if asking in f and all(name in f for name in others):
            fused.append(
                pooled(head.design, dmf(state, "fusion", group, head.design, f[asking], *(f[o] for o in others)))
            )
    if not fused:
        for group, (asking, *_) in enumerate(head.pairs):
            if asking in f:
                fused.append(pooled(head.design, dmf(state, "fusion", group, head.design, f[asking], {})))
    return stage3(state, "stage3", head.design, head.classes, sum(fused, torch.zeros(head.design.width).double()))


def naive_progressive(head, state, streams):
    f = naive_stage1(head, state, streams)
    order = head.order
    chain = [*order[1:], *(order[:1] if len(order) == 2 and len(f) == 2 else ())]
    fused = f.get(order[0])
    for step, name in enumerate(chain):
        if fused is None:
            fused = f.get(name)
        elif name in f:
            fused = dmf(state, f"fusion.{step}", 0, head.design, fused, f[name])
    return stage3(state, "stage3", head.design, head.classes, pooled(head.design, fused))


def naive_groups(head, state, streams):
    x = projected(state, streams)
    origin = min(min(each) for each in streams.values())
    scores = []
    for number, (name, group) in enumerate(head.groups.items()):
        steps = sorted({t for member in group if member in x for t in x[member]})
        if steps:
            joined = {t: sum(x[member][t] for member in group if t in x.get(member, {})) for t in steps}
            vector = pooled(head.design, dpes(state, number, head.design, joined, origin))
            scores.append(stage3(state, f"stage3.{name}", head.design, head.classes, vector))
    if head.average == "logits":
        return {task: sum(each[task] for each in scores) / len(scores) for task in head.classes}
    return {task: (sum(each[task].softmax(0) for each in scores) / len(scores)).log() for task in head.classes}


NAIVE = {
    "mif_parallel": naive_parallel,
    "mif_progressive": naive_progressive,
    "early_fusion": naive_groups,
    "late_fusion": naive_groups,
    "hybrid_fusion": naive_groups,
}


def shaken(head):
    """Every parameter random: gains of 1 and biases of 0 would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return head


def check(head, features, masks=None, tolerance=1e-5):
    """Logits of the whole batch, in float32, are those of the equations, each sample by itself."""
    state = {key: value.double() for key, value in head.state_dict().items()}
    with torch.inference_mode():
        logits = head(features, masks=masks).logits
    for i in range(len(next(iter(features.values())))):
        streams = {}
        for name, x in features.items():
            kept = (
                range(x.shape[1]) if masks is None or name not in masks else masks[name][i].nonzero().flatten().tolist()
            )
            if len(kept):
                streams[name] = {t: x[i, t].double() for t in kept}
        for task, expected in NAIVE[head.name](head, state, streams).items():
            torch.testing.assert_close(logits[task][i].double(), expected, rtol=tolerance, atol=tolerance)


def sequences(head, steps=4, batch=2):
    return features_of(head, batch, steps, maps=False)


# --- equations, ablations, options


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("streams", [PAIR, TRIPLE, FOUR])
def test_equations(name, streams):
    head = shaken(small_head(name, streams))
    check(head, sequences(head))


@pytest.mark.parametrize("name", NAIVE)
def test_float64_is_float64_throughout(name):
    head = shaken(small_head(name, TRIPLE)).double()
    masks = {stream: torch.tensor([[True] * 3 + [False], [False] + [True] * 3]) for stream in TRIPLE}
    check(head, {stream: x.double() for stream, x in sequences(head).items()}, masks, tolerance=1e-12)


@pytest.mark.parametrize("name", ["mif_parallel", "mif_progressive", "hybrid_fusion"])
@pytest.mark.parametrize(
    "options",
    [
        {"positions": "learned", "max_steps": 4},
        {"positions": "learned", "second_position": "query_key"},
        {"second_position": "query_key"},
        {"second_position": "none"},
        {"pool": "last"},
        {"stage3": "shared", "activation": "gelu", "mlp_ratio": 0.5},
        {"heads": 1, "width": 30},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_choice_that_has_a_name(name, options):
    head = shaken(small_head(name, TRIPLE, **options))
    check(head, sequences(head))


@pytest.mark.parametrize("query", ["all", *TRIPLE])
@pytest.mark.parametrize("pairing", ["pairs", "diff_all"])
def test_table_5(query, pairing):
    head = shaken(small_head("mif_parallel", TRIPLE, query=query, pairing=pairing))
    expected = [p for p in itertools.permutations(TRIPLE, 3 if pairing == "diff_all" else 2) if query in ("all", p[0])]
    assert head.pairs == expected
    check(head, sequences(head))


def test_diff_all_of_four_streams_takes_all_ordered_triples():
    head = shaken(small_head("mif_parallel", FOUR, pairing="diff_all"))
    assert len(head.pairs) == 24
    check(head, sequences(head, steps=3, batch=1))


@pytest.mark.parametrize("order", list(itertools.permutations(TRIPLE)))
def test_table_6(order):
    head = shaken(small_head("mif_progressive", TRIPLE, order=order))
    assert head.order == order
    check(head, sequences(head))


def test_orders_differ_and_the_default_is_that_of_the_streams():
    features = sequences(small_head("mif_progressive", TRIPLE))
    results = []
    for order in (None, *itertools.permutations(TRIPLE)):
        results.append(small_head("mif_progressive", TRIPLE, order=order)(features).logits["verb"])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    for one, other in itertools.combinations(results[1:], 2):
        assert (one - other).abs().max() > 1e-3


def test_two_streams_progressive_asks_the_first_again():
    head = small_head("mif_progressive", PAIR)
    assert head.sources == ("flow", "rgb") and len(head.fusion) == 2
    backwards = shaken(small_head("mif_progressive", PAIR, order=("flow", "rgb")))
    assert backwards.sources == ("rgb", "flow")
    check(backwards, sequences(backwards))


@pytest.mark.parametrize("pair", [("rgb", "objects"), ("rgb", "flow"), ("flow", "objects")])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_table_2_hybrid(pair, average):
    head = shaken(small_head("hybrid_fusion", TRIPLE, pair=pair, average=average))
    (rest,) = set(TRIPLE) - set(pair)
    assert list(head.groups.values()) == [pair, (rest,)]
    check(head, sequences(head))


def test_early_fusion_is_a_linear_layer_over_concatenated_streams():
    head = shaken(small_head("early_fusion", TRIPLE))
    x = sequences(head)
    stacked, _, _ = head.stack(x, {})
    layer = nn.Linear(sum(head.streams.values()), head.design.width)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([head.project[name].weight for name in TRIPLE], 1))
        layer.bias.copy_(sum(head.project[name].bias for name in TRIPLE))
    torch.testing.assert_close(stacked.sum(0), layer(torch.cat([x[name] for name in TRIPLE], -1)))


def test_streams_may_differ_in_steps():
    for name in ("mif_parallel", "mif_progressive", "late_fusion"):
        head = shaken(small_head(name, TRIPLE))
        steps = {"rgb": 4, "objects": 2, "flow": 5}
        check(head, {stream: x[:, : steps[stream]] for stream, x in sequences(head, steps=5).items()})
    head = small_head("hybrid_fusion", TRIPLE)
    x = sequences(head)
    with pytest.raises(ValueError, match="rgb 4, objects 3"):
        head({**x, "objects": x["objects"][:, :3]})
    head({**x, "flow": x["flow"][:, :3]})


# --- masks


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_gaps_padding_and_missing_streams(name, pool):
    head = shaken(small_head(name, TRIPLE, pool=pool))
    features = sequences(head, batch=6)
    masks = {stream: torch.ones(6, 4, dtype=torch.bool) for stream in TRIPLE}
    masks["flow"][0] = False
    masks["rgb"][1] = False
    masks["rgb"][2] = masks["flow"][2] = False
    for stream in TRIPLE:
        masks[stream][3, :2] = False  # padded in front
    masks["objects"][4] = torch.tensor([False, True, False, True])
    masks["rgb"][5, 3] = False
    for stream, x in features.items():
        x[~masks[stream]] = torch.nan
    check(head, features, masks)


@pytest.mark.parametrize("lacking", PAIR)
def test_one_of_two_streams_is_missing(lacking):
    for name in NAIVE:
        head = shaken(small_head(name, PAIR))
        features = sequences(head)
        masks = {lacking: torch.tensor([[True] * 4, [False] * 4])}
        check(head, features, masks)


def test_diff_all_without_one_of_three_keeps_what_there_is():
    head = shaken(small_head("mif_parallel", TRIPLE, pairing="diff_all"))
    masks = {"flow": torch.tensor([[True] * 4, [False] * 4])}
    check(head, sequences(head), masks)
    assert not head.optional_streams and head.same_steps


def test_a_sample_without_any_stream_is_finite_and_says_nothing():
    for name in NAIVE:
        head = small_head(name, TRIPLE).train()
        features = {stream: x.requires_grad_() for stream, x in sequences(head).items()}
        masks = {stream: torch.tensor([[True] * 4, [False] * 4]) for stream in TRIPLE}
        logits = head(features, masks=masks).logits["verb"]
        logits.sum().backward()
        assert logits.isfinite().all()
        assert all(x.grad[1].abs().max() == 0 and x.grad[0].isfinite().all() for x in features.values())


def test_the_asking_stream_must_be_there():
    head = shaken(small_head("mif_parallel", TRIPLE, query="flow"))
    features = sequences(head)
    with pytest.raises(ValueError, match="'flow' are missing"):
        head({stream: x for stream, x in features.items() if stream != "flow"})
    check(head, {stream: x for stream, x in features.items() if stream != "rgb"})
    check(head, features, {"flow": torch.tensor([[True] * 4, [False] * 4])})


# --- weights


def test_each_group_is_torchs_attention_with_its_slice_of_the_weights():
    torch.manual_seed(0)
    ours = GroupedAttention(3, 8, 2).double()
    query, source = torch.randn(3, 2, 4, 8).double(), torch.randn(3, 2, 5, 8).double()
    keep = torch.rand(3, 2, 5) > 0.4
    keep[..., 0] = True
    mixed, _ = ours(query, source, keep=keep)
    looked, weights = ours(query, source, keep=keep, with_weights=True)
    torch.testing.assert_close(mixed, looked)
    for g in range(3):
        theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([ours.query[g].T, ours.key_value[g].T]))
            theirs.out_proj.weight.copy_(ours.out[g].T)
        expected, shares = theirs(query[g], source[g], source[g], key_padding_mask=~keep[g])
        torch.testing.assert_close(mixed[g], expected)
        torch.testing.assert_close(weights[g], shares)


def test_what_is_shared_and_what_is_not():
    width = 32
    head = small_head("mif_parallel", TRIPLE)
    dmf_size = 4 * width * width + 2 * width
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()}
    assert sizes["stage1"] == 3 * dmf_size and sizes["fusion"] == 6 * dmf_size
    assert sizes["project"] == sum((WIDTHS[s] + 1) * width for s in TRIPLE)
    trunk = 2 * 4 * width * width + 5 * width + 2 * width
    classifiers = (5 + 7) * (width + 1)
    assert sizes["stage3"] == 2 * trunk + classifiers
    shared = small_head("mif_parallel", TRIPLE, stage3="shared").stage3
    assert sum(p.numel() for p in shared.parameters()) == trunk + classifiers
    assert sum(p.numel() for p in small_head("mif_parallel", TRIPLE, query="rgb").fusion.parameters()) == 2 * dmf_size
    assert sum(p.numel() for p in small_head("mif_progressive", TRIPLE).fusion.parameters()) == 2 * dmf_size
    # only the fusion differs between the strategies: stages 1 and 3 once per group
    for name, groups in (("early_fusion", 1), ("hybrid_fusion", 2), ("late_fusion", 3)):
        other = small_head(name, TRIPLE)
        found = {part: sum(p.numel() for p in module.parameters()) for part, module in other.named_children()}
        assert found == {
            "project": sizes["project"],
            "stage1": groups * sizes["stage1"] // 3,
            "stage3": groups * sizes["stage3"],
        }


def test_pairs_have_weights_of_their_own():
    head = small_head("mif_parallel", TRIPLE)
    features = sequences(head)
    place = head.pairs.index(("objects", "flow"))
    head(features).logits["verb"].sum().backward()
    before = head.fusion.attention.query.grad.clone()
    assert all(before[g].abs().max() > 0 for g in range(6))
    with torch.no_grad():
        head.fusion.attention.query[place].zero_()
    extras = head(features, extras=True).extras
    even = [name for name, x in extras.items() if torch.allclose(x, torch.full_like(x, 1 / x.shape[-1]))]
    assert even == ["attention/objects/flow"]


def test_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[[True, True], [True, False]], [[False, False], [True, True]]])
    cross, own = DMF(2, TINY).double(), DPES(2, TINY).double()
    assert torch.autograd.gradcheck(lambda a, b: cross(a, b, keep=keep)[0], (x, y))
    assert torch.autograd.gradcheck(own, (x,))


@pytest.mark.parametrize("name", NAIVE)
def test_gradients_of_whole_heads(name):
    torch.manual_seed(0)
    sizes = {"rgb": 2, "objects": 3, "flow": 2}
    head = create_head(
        name, streams=sizes, classes={"verb": 2, "noun": 2}, width=4, heads=2, dropout=0.0, mlp_ratio=1.0,
        activation="gelu",
    ).double()  # fmt: skip
    masks = {"flow": torch.tensor([[True, True], [False, False]]), "rgb": torch.tensor([[True, False], [True, True]])}
    features = [torch.randn(2, 2, size, dtype=torch.float64, requires_grad=True) for size in sizes.values()]

    def run(*features):
        logits = head(dict(zip(sizes, features, strict=True)), masks=masks).logits
        return logits["verb"], logits["noun"]

    assert torch.autograd.gradcheck(run, features)


# --- what is looked at, wrong calls


def test_attention_is_shown():
    head = small_head("mif_parallel", TRIPLE)
    features = sequences(head)
    features["flow"] = features["flow"][:, :3]
    extras = head(features, extras=True).extras
    assert set(extras) == {f"attention/{i}/{j}" for i, j in itertools.permutations(TRIPLE, 2)}
    assert extras["attention/rgb/flow"].shape == (2, 4, 4)
    assert extras["attention/rgb/flow"][..., 3].abs().max() == 0  # flow has three steps
    torch.testing.assert_close(extras["attention/flow/rgb"].sum(-1), torch.ones(2, 4))
    chain = small_head("mif_progressive", TRIPLE)(features, extras=True).extras
    assert list(chain) == ["attention/rgb/objects", "attention/rgb+objects/flow"]
    two = small_head("mif_progressive", PAIR)
    assert list(two(sequences(two), extras=True).extras) == ["attention/rgb/flow", "attention/rgb+flow/rgb"]


def test_late_fusion_can_train_every_stream_by_itself():
    head = small_head("late_fusion", PAIR, training="separate").train()
    joint = small_head("late_fusion", PAIR)
    output = head(sequences(head), extras=True)
    assert not output.logits["verb"].requires_grad and set(output.auxiliary) == {"group/rgb", "group/flow"}
    torch.testing.assert_close(output.logits["verb"], joint(sequences(joint)).logits["verb"])
    output.auxiliary["group/rgb"]["verb"].sum().backward()
    assert head.project["rgb"].weight.grad.abs().max() > 0
    assert head.project["flow"].weight.grad is None or head.project["flow"].weight.grad.abs().max() == 0
    torch.testing.assert_close(output.extras["logits/flow/noun"], output.auxiliary["group/flow"]["noun"].detach())


@pytest.mark.parametrize("missing", [True, False])
def test_a_sample_without_a_stream_teaches_its_classifier_nothing(missing):
    head = small_head("late_fusion", PAIR, training="separate").train()
    there = torch.tensor([[not missing] * 4, [True] * 4])
    output = head(sequences(head), masks={"flow": there})
    output.auxiliary["group/flow"]["verb"][0].sum().backward()
    learnt = [p.grad.abs().max() > 0 for p in head.stage3["flow"].linear["verb"].parameters()]
    assert learnt == [not missing] * 2


def test_dropout_is_random_in_training_only():
    head = small_head("mif_parallel", PAIR, dropout=0.5)
    x = sequences(head)
    torch.testing.assert_close(head(x).logits["verb"], head(x).logits["verb"], rtol=0, atol=0)
    head.train()
    assert (head(x).logits["verb"] - head(x).logits["verb"]).abs().max() > 0


@pytest.mark.parametrize(
    ("name", "streams", "options", "said"),
    [
        ("mif_parallel", PAIR, {"query": "objects"}, "query is 'objects'; it is 'all' or 'rgb' or 'flow'"),
        ("mif_parallel", PAIR, {"pairing": "diff_all"}, "3 streams or more; it got 'rgb', 'flow'"),
        ("mif_parallel", PAIR, {"pairing": "triples"}, "pairing is 'triples'"),
        ("mif_parallel", PAIR, {"heads": 5}, "width 32 cannot have 5 heads"),
        ("mif_parallel", PAIR, {"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ("mif_progressive", TRIPLE, {"order": ("rgb", "flow")}, "must name each of"),
        ("mif_progressive", TRIPLE, {"order": ("rgb", "flow", "flow")}, "must name each of"),
        ("mif_progressive", PAIR, {"second_position": "both"}, "second_position is 'both'"),
        ("hybrid_fusion", TRIPLE, {"pair": ("rgb", "audio")}, "must name two of"),
        ("hybrid_fusion", TRIPLE, {"pair": ("rgb", "rgb")}, "must name two of"),
        ("hybrid_fusion", ("rgb",), {}, "two streams or more; it got 'rgb'"),
        ("late_fusion", PAIR, {"average": "max"}, "average is 'max'; it is 'logits' or 'probabilities'"),
        ("late_fusion", PAIR, {"training": "apart"}, "training is 'apart'"),
        ("early_fusion", PAIR, {"pool": "max"}, "pool is 'max'"),
    ],
)
def test_wrong_options(name, streams, options, said):
    with pytest.raises(ValueError, match=said):
        small_head(name, streams, **options)


def test_learned_positions_end_somewhere():
    head = small_head("mif_parallel", PAIR, positions="learned", max_steps=3)
    with pytest.raises(ValueError, match="4 steps; max_steps is 3"):
        head(sequences(head))
