"""M-Mixer against its equations, written a second time: one sample, one stream, one step at a time, in float64."""

import pytest
import torch
from fusion_heads import CLASSES, features_of, small_head
from torch import nn

from actionfuse.fusion import create_head
from actionfuse.fusion.mmixer import MCU, Recurrence

PAIR, TRIPLE = ("rgb", "flow"), ("rgb", "flow", "objects")
EPS = 1e-5


def double_head(streams=PAIR, **options):
    """Norms with random gains and shifts: as they begin, one could be forgotten without a difference."""
    head = small_head("mmixer", streams, **options).double()
    for key, parameter in head.named_parameters():
        if "norm" in key or ".1." in key:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return head


def sequences_of(head, **options):
    return {stream: x.double() for stream, x in features_of(head, maps=False, **options).items()}


def norm_of(vector, gain, shift):
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    return gain * (vector - mean) / (variance + EPS).sqrt() + shift


class NaiveUnit:
    """MCU^i with its matrices one by one; norms are left out where the head has none."""

    def __init__(self, mcu, number, mixes=True):
        mix, recurrence = mcu.mix, mcu.recurrence
        self.mixes = mixes
        width = recurrence.candidate.shape[1]
        self.w_s, self.w_h = mix.joint[number].T, recurrence.candidate[number].T
        self.w_r, self.w_z = recurrence.gates[number].T.split(width)
        self.norms = {}
        if recurrence.gates_norm is None:
            self.w_f, self.w_g = mix.embed[number].weight, mix.embed_content[number].weight
            return
        (linear, norm), (content, content_norm) = mix.embed[number], mix.embed_content[number]
        self.w_f, self.w_g = linear.weight, content.weight
        gates = recurrence.gates_norm
        self.norms = {
            "f": (norm.weight, norm.bias),
            "g": (content_norm.weight, content_norm.bias),
            "s": (mix.joint_norm.gain[number, 0], mix.joint_norm.shift[number, 0]),
            "r": (gates.gain[number, 0, 0], gates.shift[number, 0, 0]),
            "z": (gates.gain[number, 0, 1], gates.shift[number, 0, 1]),
            "h": (recurrence.candidate_norm.gain[number, 0], recurrence.candidate_norm.shift[number, 0]),
        }

    def norm(self, name, vector):
        return norm_of(vector, *self.norms[name]) if self.norms else vector

    def step(self, f, g, h):
        f = torch.tanh(self.norm("f", self.w_f @ f))  # 7
        g = torch.tanh(self.norm("g", self.w_g @ g))  # 8
        joint = self.norm("s", self.w_s @ torch.cat([f, g]))
        if self.mixes:
            s = torch.sigmoid(joint)  # 9
            mixed = s * f + (1 - s) * g  # 10
        else:
            mixed = joint
        r = torch.sigmoid(self.norm("r", self.w_r @ (mixed + h)))  # 11
        z = torch.sigmoid(self.norm("z", self.w_z @ (mixed + h)))  # 12
        new = torch.tanh(self.norm("h", self.w_h @ (r * h + mixed)))  # 14
        return z * new + (1 - z) * h  # 13


def naive_recurrent(unit, steps):
    """The last hidden state of nn.LSTM or nn.GRU over one sample's steps, gate by gate."""
    w_x, w_h, b_x, b_h = unit.weight_ih_l0, unit.weight_hh_l0, unit.bias_ih_l0, unit.bias_hh_l0
    h = c = torch.zeros(unit.hidden_size, dtype=torch.float64)
    for x in steps:
        if isinstance(unit, nn.LSTM):
            i, f, g, o = (w_x @ x + b_x + w_h @ h + b_h).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (xr, xz, xn), (hr, hz, hn) = (w_x @ x + b_x).chunk(3), (w_h @ h + b_h).chunk(3)
            new = (xn + (xr + hr).sigmoid() * hn).tanh()
            z = (xz + hz).sigmoid()
            h = (1 - z) * new + z * h
    return h


def naive(head, features, sample, real=None, **options):
    """Logits of one sample, and its streams' last hidden states. real: stream -> numbers of its real steps."""
    options = {"aso": "avg", "unit": "mcu", "content": "cross", "mix": True, **options}
    steps = {
        stream: [x[sample, t] for t in (real or {}).get(stream, range(x.shape[1]))] for stream, x in features.items()
    }
    contents, last = {}, {}
    for i, stream in enumerate(head.streams):
        if not steps[stream]:
            contents[stream] = torch.zeros(
                head.width if options["aso"] == "gru" else head.streams[stream], dtype=torch.float64
            )
        elif options["aso"] == "gru":
            contents[stream] = naive_recurrent(head.summaries[i], steps[stream])
        elif options["aso"] == "max":
            contents[stream] = torch.stack(steps[stream]).max(0).values
        else:
            contents[stream] = sum(steps[stream]) / len(steps[stream])
    for i, stream in enumerate(head.streams):
        if options["unit"] != "mcu":
            last[stream] = naive_recurrent(head.plain_units[i], steps[stream])
            continue
        others = [stream] if options["content"] == "self" else [name for name in head.streams if name != stream]
        g = torch.cat([contents[name] for name in others])
        h = torch.zeros(head.width, dtype=torch.float64)
        unit = NaiveUnit(head.units, i, mixes=options["mix"])
        for f in steps[stream]:
            h = unit.step(f, g, h)
        last[stream] = h
    joint = torch.cat(list(last.values()))
    return {task: layer.weight @ joint + layer.bias for task, layer in head.classifiers.items()}, last


ABLATIONS = {
    "the method": {},
    "Table 1, max": {"aso": "max"},
    "Table 1, GRU": {"aso": "gru"},
    "Table 2, LSTM": {"unit": "lstm"},
    "Table 2, GRU": {"unit": "gru"},
    "Table 3, I": {"content": "self", "layer_norm": False},
    "Table 3, II": {"mix": False, "layer_norm": False},
    "Table 3, III": {"layer_norm": False},
    "Table 4, MCU-self": {"content": "self"},
    "concatenation with norms": {"mix": False},
    "GRU of itself": {"aso": "gru", "content": "self"},
}


@pytest.mark.parametrize("streams", [PAIR, TRIPLE], ids=len)
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_equations_one_step_at_a_time(streams, options):
    head = double_head(streams, **options)
    features = sequences_of(head, batch=2, steps=5)
    output = head(features)
    for sample in range(2):
        logits, last = naive(head, features, sample, **{k: v for k, v in options.items() if k != "layer_norm"})
        for task, wanted in logits.items():
            torch.testing.assert_close(output.logits[task][sample], wanted, rtol=1e-9, atol=1e-9)
        for stream, state in last.items():
            for task, layer in head.unimodal[stream].items():  # 15
                torch.testing.assert_close(output.auxiliary[f"unimodal/{stream}"][task][sample], layer.weight @ state)


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_steps_that_are_missing_anywhere_are_skipped(options):
    head = double_head(TRIPLE, **options)
    features = sequences_of(head, batch=2, steps=5)
    features["flow"] = features["flow"][:, :3]
    real = {"rgb": [1, 2, 4], "flow": [0, 2], "objects": []}
    masks = {stream: torch.zeros(2, x.shape[1], dtype=torch.bool) for stream, x in features.items()}
    for stream, steps in real.items():
        masks[stream][0] = True
        masks[stream][1, steps] = True
    damaged = {stream: x.where(masks[stream][..., None], torch.nan) for stream, x in features.items()}
    logits = head(damaged, masks=masks).logits
    options = {k: v for k, v in options.items() if k != "layer_norm"}
    for sample, steps in enumerate((None, real)):
        for task, wanted in naive(head, features, sample, steps, **options)[0].items():
            torch.testing.assert_close(logits[task][sample], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"mix": False}, {"layer_norm": False}], ids=str)
def test_gradients(options):
    torch.manual_seed(0)
    mcu = MCU([3, 2], [2, 3], 4, **options).double()
    f, g = torch.randn(2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    inputs = (f.requires_grad_(), g.requires_grad_(), *mcu.parameters())

    def run(f, g, *_):
        return mcu([f, g], [g.mean(1), f.mean(1)])[0][-1]

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("rows", [1, 4, 256])
def test_the_written_gradient_is_the_automatic_one(rows, monkeypatch):
    """Of the hidden states of all steps, in pieces of one step, of two (the last is shorter), and of all five."""
    monkeypatch.setattr("actionfuse.fusion.mmixer_scan.ROWS", rows)
    torch.manual_seed(0)
    recurrence = Recurrence(3, 4).double()
    for parameter in recurrence.parameters():
        nn.init.normal_(parameter)
    mixed = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    wanted_by = torch.randn(6, 3, 2, 4, dtype=torch.float64)
    inputs = (mixed, *recurrence.parameters())
    for used in (slice(None), slice(-1, None), slice(1, 4, 2)):
        found = []
        for recurrence.scan in (True, False):
            hidden = recurrence(mixed)
            assert (hidden[-1].grad_fn.name() == "ScanBackward") == recurrence.scan
            total = sum((h * w).sum() for h, w in zip(hidden[used], wanted_by[used], strict=True))
            found.append([*hidden, *torch.autograd.grad(total, inputs)])
        for written, automatic in zip(*found, strict=True):
            torch.testing.assert_close(written, automatic, rtol=1e-10, atol=1e-10)
    recurrence.scan = True
    assert torch.autograd.gradcheck(lambda x, *_: recurrence(x)[-1], inputs)


def test_classifiers_of_single_streams_leave_the_network_alone():
    head = double_head()
    output = head(sequences_of(head))
    sum(x.sum() for logits in output.auxiliary.values() for x in logits.values()).backward()
    touched = {key for key, p in head.named_parameters() if p.grad is not None}
    assert touched == {f"unimodal.{stream}.{task}.weight" for stream in PAIR for task in CLASSES}
    without = double_head(unimodal=False)
    assert without(sequences_of(without)).auxiliary == {}


def test_one_stream_needs_its_own_content():
    with pytest.raises(ValueError, match="two streams or more.*'self' works with one"):
        small_head("mmixer", ("rgb",))
    for options in ({"content": "self"}, {"unit": "gru"}):
        head = double_head(("rgb",), **options)
        features = sequences_of(head, batch=1)
        assert torch.allclose(head(features).logits["verb"][0], naive(head, features, 0, **options)[0]["verb"])


@pytest.mark.parametrize("option", ["aso", "unit", "content"])
def test_a_wrong_choice_names_the_right_ones(option):
    with pytest.raises(ValueError, match=rf"{option} is 'mean'; it is one of '"):
        create_head("mmixer", streams={"rgb": 4, "flow": 4}, classes={"verb": 2}, **{option: "mean"})


def test_integration_scores_are_means_over_channels():
    head = double_head(TRIPLE)
    features = sequences_of(head, batch=2)
    masks = {"flow": torch.tensor([[True, False, True, False], [False] * 4])}
    extras = head(features, masks=masks, extras=True).extras["integration_score"]
    assert extras.shape == (2, 3, 4)
    assert extras.isnan().tolist() == [[[False] * 4, [False, False, True, True], [False] * 4]] + [
        [[False] * 4, [True] * 4, [False] * 4]
    ]
    real = extras[~extras.isnan()]
    assert (real > 0).all() and (real < 1).all() and real.std() > 0.01
    packed, counts = head._packed(features, masks)
    _, share = head.units(packed, head._contents(packed, counts))
    torch.testing.assert_close(extras[0, 0], share[0, 0].mean(-1).detach())


def test_the_recurrence_compiles_as_one_graph():
    torch.manual_seed(0)
    plain = Recurrence(2, 4)
    mixed = torch.randn(2, 3, 5, 4)
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(mixed)[-1], plain(mixed)[-1])


@pytest.mark.parametrize("unit", ["lstm", "gru"])
@pytest.mark.parametrize("chunks", [[6], [1] * 6, [2, 1, 3]])
def test_steps_one_after_the_other_say_what_the_whole_says(unit, chunks):
    head = double_head(unit=unit)
    features = sequences_of(head, steps=6)
    masks = {"flow": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()}
    features["flow"][~masks["flow"]] = torch.nan
    assert head.recurrent
    for seen in ({}, masks):
        given = features if seen else {**features, "flow": features["flow"].nan_to_num()}
        state, first = None, 0
        for length in chunks:
            part = slice(first, first := first + length)
            new, state = head.step(
                {name: x[:, part] for name, x in given.items()}, state, {n: mask[:, part] for n, mask in seen.items()}
            )
            whole = head({n: x[:, :first] for n, x in given.items()}, masks={n: m[:, :first] for n, m in seen.items()})
            torch.testing.assert_close(new.logits, whole.logits, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(new.auxiliary, whole.auxiliary, rtol=1e-9, atol=1e-9)
        assert [tuple(x.shape) for x in state[0]] == [(1, 3, 32)] * (2 if unit == "lstm" else 1)


def test_an_mcu_looks_at_the_whole_sequence():
    head = small_head("mmixer")
    assert not head.recurrent
    with pytest.raises(ValueError, match="looks at whole sequences"):
        head.step(features_of(head))
