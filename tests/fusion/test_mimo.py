"""MIMO against its equations, written a second time: one sample, one head, one row at a time, in float64."""

import math

import pytest
import torch
from fusion_heads import CLASSES, WIDTHS, features_of, small_head
from torch.func import functional_call
from torch.nn import functional as F

from actionfuse.fusion import create_head
from actionfuse.fusion.mimo import allocation_loss, entropy
from actionfuse.fusion.reallocation import tune_reallocation

TRIPLE = ("rgb", "flow", "audio")


def double_head(streams=TRIPLE, **options):
    return small_head("mimo", streams, **{"depth": 1, **options}).double()


def doubles(head, **options):
    return {stream: x.double() for stream, x in features_of(head, **options).items()}


def naive(head, sample, steps=None, weights=None):
    """One sample, stream -> (D, T, H, W): its logits, the last layer's A (n, l, l), and the stream of each token.

    steps: stream -> which of its steps are there. weights: (tasks, streams), w of equation 4 for the last layer's rows
    of the task tokens.
    """
    tasks = len(head.classes)
    x, owner = list(head.task_tokens), [-1] * tasks
    for i, stream in enumerate(head.streams):
        if stream not in sample:
            continue
        _, frames, height, width = sample[stream].shape
        for t in range(frames):
            if steps and stream in steps and not steps[stream][t]:
                continue
            for r in range(height):
                for c in range(width):
                    place = head.time_embedding[t] + head.row_embedding[r] + head.column_embedding[c]
                    feature = head.project[stream].weight @ sample[stream][:, t, r, c]
                    x.append(feature + head.stream_embedding[i] + place)
                    owner.append(i)
    heads = head.layers[0].attention.heads
    for number, layer in enumerate(head.layers):
        attention, last = layer.attention, number == len(head.layers) - 1
        size = len(x[0]) // heads
        seen = [layer.norm(row) for row in x]
        q = [attention.query(row) for row in seen]
        k, v = zip(*(attention.key_value(row).chunk(2) for row in seen), strict=True)
        matrix = torch.zeros(heads, len(x), len(x), dtype=x[0].dtype)
        out = []
        for row in range(len(x)):
            mixed = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                terms = []
                for column in range(len(x)):
                    w = 1.0
                    if last and weights is not None and row < tasks and owner[column] >= 0:
                        w = weights[row][owner[column]]
                    terms.append(w * (q[row][part] @ k[column][part] / math.sqrt(size)).exp())
                total = sum(terms)
                matrix[h, row] = torch.stack(terms) / total
                mixed.append(sum(a / total * v[y][part] for y, a in enumerate(terms)))
            out.append(attention.out(torch.cat(mixed)))
        if layer.mlp is not None:
            out = [before + new for before, new in zip(x, out, strict=True)]
            out = [row + layer.mlp(row) for row in out]
        x = out
    logits = {task: layer(head.norm(x[i])) for i, (task, layer) in enumerate(head.classifiers.items())}
    return logits, matrix, owner


def naive_allocation(matrix, owner, task, u):
    """Equation 1 for one task and sample."""
    count, total = len(u), 0.0
    for k in range(len(matrix)):
        s = [sum(matrix[k, task, y] for y in range(len(owner)) if owner[y] == i) for i in range(count)]
        for i in range(count):
            for j in range(count):
                total += max(0.0, u[j] - u[i]) * max(0.0, s[j] - s[i])
    return total / len(matrix)


def naive_uncertainty(head, sample, stream, task):
    feature = sample[stream].mean((1, 2, 3))
    logits = dict(zip(head.classes, head.unimodal.layers[stream](feature).split([5, 7]), strict=True))
    p = logits[task].softmax(-1)
    return -sum(x * x.log() for x in p)


@pytest.mark.parametrize("options", [{}, {"depth": 2}, {"depth": 2, "block": "encoder"}])
def test_logits_are_those_of_the_whole_sequence(options):
    head = double_head(("rgb", "flow"), **options)
    features = {"rgb": torch.randn(2, 24, 2, 2, 1).double(), "flow": torch.randn(2, 16, 3, 1, 1).double()}
    masks = {"flow": torch.tensor([[True, True, True], [True, False, True]])}
    logits = head(features, masks=masks).logits
    for i in range(2):
        expected, _, _ = naive(head, {s: x[i] for s, x in features.items()}, {"flow": masks["flow"][i].tolist()})
        for task, x in expected.items():
            torch.testing.assert_close(logits[task][i], x, rtol=1e-5, atol=1e-8)


def test_equation_1_2():
    head = double_head(allocation_weight=0.25).train()
    torch.nn.init.normal_(head.task_tokens)  # attention that differs between streams and heads
    features = {stream: x[..., :2, :1] for stream, x in doubles(head, batch=2, steps=2).items()}
    output = head(features, extras=True)
    attention = [naive(head, {stream: x[b] for stream, x in features.items()})[1:] for b in range(2)]
    for number, task in enumerate(head.classes):
        total = 0.0
        for b in range(2):
            sample = {stream: x[b] for stream, x in features.items()}
            matrix, owner = attention[b]
            u = [naive_uncertainty(head, sample, stream, task) for stream in head.streams]
            torch.testing.assert_close(output.extras[f"uncertainty/{task}"][b], torch.stack(u), rtol=1e-6, atol=1e-8)
            for i in range(3):
                share = sum(matrix[:, number, y] for y in range(len(owner)) if owner[y] == i)
                torch.testing.assert_close(output.extras[f"attention/{task}"][b, :, i], share, rtol=1e-6, atol=1e-8)
            total += naive_allocation(matrix, owner, number, u)
        assert total > 1e-4
        torch.testing.assert_close(output.losses[f"allocation/{task}"], 0.25 * total / 2, rtol=1e-6, atol=1e-10)


def test_the_text_exchanges_the_streams_attention():
    shares, u = torch.tensor([[[[0.1, 0.6, 0.3]]]]), torch.tensor([[[2.0, 1.0, 0.5]]])
    # u_0 - u_1 = 1, s_0 - s_1 < 0: nothing; (1, 2): .5 * .3; (0, 2): 1.5, s_0 - s_2 < 0: nothing
    torch.testing.assert_close(allocation_loss(shares, u), torch.tensor([0.5 * 0.3]))
    text = allocation_loss(shares, u, allocate_to="uncertain")
    torch.testing.assert_close(text, torch.tensor([1.0 * 0.5 + 1.5 * 0.2]))
    without = allocation_loss(shares, u, torch.tensor([[True, False, True]]), allocate_to="uncertain")
    torch.testing.assert_close(without, torch.tensor([1.5 * 0.2]))


def test_allocation_moves_attention_the_way_it_says():
    torch.manual_seed(0)
    u = torch.tensor([[[2.0, 0.5]]])
    for allocate_to, gains in (("certain", 1), ("uncertain", 0)):
        scores = torch.tensor([[[[0.3, 0.0]]]]) if gains else torch.tensor([[[[0.0, 0.3]]]])
        scores.requires_grad_()
        allocation_loss(scores.softmax(-1), u, allocate_to=allocate_to).backward()
        assert scores.grad[0, 0, 0, gains] < 0 < scores.grad[0, 0, 0, 1 - gains]


def test_a_lacking_stream_is_in_no_pair():
    head = double_head().train()
    torch.nn.init.normal_(head.task_tokens)
    features = doubles(head, batch=2)
    masks = {"flow": torch.tensor([[True] * 4, [False] * 4])}
    output = head(features, masks=masks, extras=True)
    pair = double_head(("rgb", "audio"))
    own = pair.state_dict()
    mine = {k: v for k, v in head.state_dict().items() if k in own}
    pair.load_state_dict(
        {**mine, **{k: mine[k][..., [0, 2], :] for k in ("stream_embedding",)}, "reallocation": own["reallocation"]}
    )
    first = head({s: x[:1] for s, x in features.items()})
    second = pair.train()({s: x[1:] for s, x in features.items() if s != "flow"})
    for task in CLASSES:
        name = f"allocation/{task}"
        torch.testing.assert_close(output.losses[name], (first.losses[name] + second.losses[name]) / 2)
        assert output.extras[f"uncertainty/{task}"].isnan().tolist() == [[False] * 3, [False, True, False]]
        assert output.extras[f"attention/{task}"][1, :, 1].abs().max() == 0
    # nor does it teach its classifier anything
    sum(x[1].sum() for x in output.auxiliary["unimodal/flow"].values()).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in head.unimodal.layers["flow"].parameters())


def test_a_stream_that_nobody_has_is_shown_as_absent():
    head = double_head()
    features = {s: x for s, x in doubles(head).items() if s != "flow"}
    output = head(features, losses=True, extras=True)
    assert set(output.auxiliary) == {"unimodal/rgb", "unimodal/audio"} and len(output.losses) == 2
    for task in CLASSES:
        u, shares = output.extras[f"uncertainty/{task}"], output.extras[f"attention/{task}"]
        assert u.shape == (3, 3) and u[:, 1].isnan().all() and u[:, [0, 2]].isfinite().all()
        assert shares.shape == (3, 4, 3) and shares[..., 1].eq(0).all() and shares[..., [0, 2]].gt(0).all()


def test_gradients():
    torch.manual_seed(0)
    head = create_head("mimo", streams={"a": 3, "b": 2}, classes={"verb": 2, "noun": 3}, width=4, heads=2).double()
    torch.nn.init.normal_(head.task_tokens)
    features = [torch.randn(2, 3, 2, 1, 2).double(), torch.randn(2, 2, 1, 1, 1).double()]

    def logits(a, b):
        return tuple(head({"a": a, "b": b}).logits.values())

    def losses(tokens, keys):
        changed = {"task_tokens": tokens, "layers.0.attention.key_value.weight": keys}
        return tuple(functional_call(head, changed, (dict(zip("ab", features, strict=True)),)).losses.values())

    assert torch.autograd.gradcheck(logits, [x.requires_grad_() for x in features])
    parameters = dict(head.named_parameters())
    chosen = [parameters["task_tokens"], parameters["layers.0.attention.key_value.weight"]]
    assert all(x > 0 for x in losses(*chosen))
    assert torch.autograd.gradcheck(losses, [p.detach().requires_grad_() for p in chosen])


def test_unimodal_classifiers_learn_and_leave_the_trunk_alone():
    head = double_head().train()
    features = {s: x.requires_grad_() for s, x in doubles(head).items()}
    labels = {task: torch.arange(3) % count for task, count in CLASSES.items()}
    output = head(features)
    own = sum(F.cross_entropy(x, labels[task]) for task, x in output.logits.items()) + sum(output.losses.values())
    aside = sum(F.cross_entropy(x[t], labels[t]) for x in output.auxiliary.values() for t in CLASSES)
    unimodal = list(head.unimodal.parameters())
    rest = [*features.values(), *(p for n, p in head.named_parameters() if not n.startswith("unimodal."))]
    assert all(g is None for g in torch.autograd.grad(aside, rest, retain_graph=True, allow_unused=True))
    # nor does the allocating loss reach them through the uncertainty
    assert all(g is None for g in torch.autograd.grad(own, unimodal, retain_graph=True, allow_unused=True))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(aside, unimodal))


def test_query_is_mimo_without_the_loss():
    mimo = double_head()
    query = small_head("query", TRIPLE, depth=1).double()
    query.load_state_dict({k: v for k, v in mimo.state_dict().items() if not k.startswith("unimodal.")})
    features = doubles(mimo)
    output = query.train()(features, extras=True)
    assert output.losses == {} and output.auxiliary == {} and set(output.extras) == {"attention/verb", "attention/noun"}
    for task, x in mimo.train()(features).logits.items():
        torch.testing.assert_close(x, output.logits[task])


def test_equation_3_4():
    head = double_head(("rgb", "flow"))
    torch.nn.init.normal_(head.task_tokens)
    features = {"rgb": torch.randn(1, 24, 2, 1, 2).double(), "flow": torch.randn(1, 16, 3, 1, 1).double()}
    plain = head(features).logits
    head.set_reallocation({"verb": {"rgb": 1.0, "flow": 1.0}, "noun": {}})
    for task, x in head(features).logits.items():
        assert torch.equal(x, plain[task])
    head.set_reallocation({"verb": {"rgb": 3.0, "flow": 0.2}, "noun": {"flow": 0.0}})
    assert head.get_reallocation()["noun"] == {"rgb": 1.0, "flow": 0.0}
    sample = {s: x[0] for s, x in features.items()}
    expected, matrix, _ = naive(head, sample, weights=[[3.0, 0.2], [1.0, 0.0]])
    changed = head(features, extras=True)
    for task, x in expected.items():
        torch.testing.assert_close(changed.logits[task][0], x, rtol=1e-6, atol=1e-9)
        assert (changed.logits[task] - plain[task]).abs().max() > 1e-3
    torch.testing.assert_close(changed.extras["attention/verb"][0, :, 0], matrix[:, 0, 2:6].sum(-1))
    # one softmax weight of 0 is a stream that is not there
    without = head({"rgb": features["rgb"]}).logits["noun"]
    torch.testing.assert_close(changed.logits["noun"], without)
    # training does not use them, files keep them
    for task, x in head.train()(features).logits.items():
        torch.testing.assert_close(x, plain[task])
    other = double_head(("rgb", "flow"))
    other.load_state_dict(head.state_dict())
    assert other.get_reallocation() == head.get_reallocation()


@pytest.mark.parametrize(
    "weights, said", [({"verb": {"flw": 1}}, "'flw'"), ({"vrb": {"flow": 1}}, "'vrb'"), ({"verb": {"flow": -1}}, "-1")]
)
def test_wrong_weights_are_refused(weights, said):
    head = double_head()
    with pytest.raises(ValueError, match=said):
        head.set_reallocation(weights)
    assert head.get_reallocation()["verb"] == dict.fromkeys(TRIPLE, 1.0)


def accuracy(head, batches, task):
    right = total = 0
    for features, masks, labels in batches:
        best = head(features, masks=masks).logits[task].argmax(-1)
        right += int((best == labels[task]).sum())
        total += int((labels[task] >= 0).sum())
    return right / total


@pytest.mark.parametrize("options", [{}, {"depth": 2, "block": "encoder"}])
def test_tuning_finds_weights_and_reports_what_the_head_then_does(options):
    head = double_head(**options)
    torch.nn.init.normal_(head.task_tokens, std=0.3)
    head.set_reallocation({"verb": {"flow": 4.0}})
    batches = []
    for seed in range(4):
        features = doubles(head, batch=16, steps=2, seed=seed)
        masks = {"rgb": torch.tensor([[True, seed != 1]] * 16)} if seed < 3 else None
        labels = {"verb": head(features, masks=masks).logits["verb"].argmax(-1), "noun": torch.arange(16) % 7 - 1}
        batches.append((features, masks, labels))
    head.set_reallocation({})
    before = {task: accuracy(head, batches, task) for task in CLASSES}
    head.train()
    head.unimodal.eval()
    found = tune_reallocation(head, iter(batches))
    assert head.training and head.layers.training and not head.unimodal.training
    head.eval()
    assert found.accuracy_before == pytest.approx(before)
    assert found.accuracy == pytest.approx({task: accuracy(head, batches, task) for task in CLASSES})
    assert before["verb"] < 1 and found.accuracy["verb"] == 1
    assert found.accuracy["noun"] >= before["noun"]
    assert head.get_reallocation() == {t: pytest.approx(w) for t, w in found.weights.items()}
    assert tune_reallocation(head, batches) == found


def test_tuning_leaves_tasks_without_labels_alone():
    head = double_head()
    features = doubles(head, batch=8)
    found = tune_reallocation(head, [(features, None, {"verb": torch.arange(8) % 5})])
    assert found.weights["noun"] == dict.fromkeys(TRIPLE, 1.0) and set(found.accuracy) == {"verb"}
    with pytest.raises(ValueError, match="not one batch"):
        tune_reallocation(head, [])
    with pytest.raises(ValueError, match="0 or more"):
        tune_reallocation(head, [(features, None, {})], candidates=[-1.0])


def test_places_and_streams_are_told_apart():
    head = double_head()
    features = doubles(head)
    plain = head(features).logits["verb"]
    for dim in (2, 3, 4):
        turned = {**features, "rgb": features["rgb"].flip(dim)}
        assert (head(turned).logits["verb"] - plain).abs().max() > 1e-7


def test_a_larger_map_than_the_tables_is_refused():
    head = double_head(max_steps=3)
    with pytest.raises(ValueError, match="'rgb'.*only 3 positions.*max_steps=4"):
        head(doubles(head))
    with pytest.raises(ValueError, match="max_side=3"):
        double_head(max_side=2)(doubles(head))


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"block": "x"}, {"allocate_to": "x"}, {"allocation_weight": -1.0}, {"heads": 5}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        create_head("mimo", streams=WIDTHS, classes=CLASSES, width=32, **options)


def test_entropy():
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(torch.tensor([100.0, 0.0], dtype=torch.bfloat16)).dtype == torch.float32
