import re

import golden_cases
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import swin_transformer
from torchvision.models import video as tv

from actionfuse.backbones import create_backbone, save_backbone, video_swin
from actionfuse.backbones.convert import install, recognise

# Rounding differs between processors by about 1e-6 of the greatest value; on one machine the difference is 0.
RTOL = 1e-6
TAPS = {"patch_embed": "patch_embed", "layers.0": "features.1", "layers.1": "features.3"}
TAPS |= {"layers.2": "features.5", "layers.3": "features.6"}


def load(case, weights, name, **options):
    network = create_backbone(name, **options)
    layout = recognise(weights, network.layouts, what=case.name)
    install(network, layout.convert(weights), what=case.name)
    return network


@pytest.mark.parametrize("name", golden_cases.available("recognition", "videoswin_t", "videoswin_t_32f"))
def test_matches_video_swin(name):
    case = golden_cases.load_case(name)
    network = load(case, case.weights(), "swin3d_t")
    with torch.inference_mode(), golden_cases.Tapped(network, TAPS) as outputs:
        maps = network(case.input("video"))
    assert set(case.taps) <= set(outputs)
    for tap in case.taps:
        case.check_tap(tap, outputs[tap].permute(0, 4, 1, 2, 3), rtol=RTOL)
    if "features" in case.arrays:
        case.check_output("features", maps, rtol=RTOL)
    case.check_output("pooled", maps.mean((2, 3, 4)), rtol=RTOL)


@pytest.fixture(scope="module")
def omnivore():
    case = golden_cases.load_case("omnivore_swinT")
    return case, case.weights()


@pytest.mark.parametrize("kind, stream", [("video", "rgb"), ("image", "rgb"), ("rgbd", "rgbd")])
def test_matches_omnivore(kind, stream, omnivore):
    case, weights = omnivore
    network = load(case, weights, "omnivore_swin_t", stream=stream, head=kind)
    with torch.inference_mode(), golden_cases.Tapped(network, TAPS) as outputs:
        maps = network(case.input(kind))
        logits = network.classify(maps)
    if kind == "video":
        for tap in case.taps:
            case.check_tap(tap, outputs[tap].permute(0, 4, 1, 2, 3), rtol=RTOL)
    case.check_output(f"{kind}_feat", maps.mean((2, 3, 4)), rtol=RTOL)
    case.check_output(f"{kind}_logits", logits, rtol=RTOL)


@pytest.mark.parametrize("name", golden_cases.available("recognition", "omnivore_swinB_epic_trunk"))
def test_matches_omnivore_epic(name):
    case = golden_cases.load_case(name)
    network = load(case, case.weights(), "omnivore_swin_b_epic")
    (clips,) = case.meta["inputs"]
    with torch.inference_mode():
        maps = network(case.input(clips))
    for output, want in case.arrays.items():
        if not output.startswith("tap:") and output not in case.meta["inputs"]:
            case.check_output(output, maps if want.ndim == 5 else maps.mean((2, 3, 4)), rtol=RTOL)


def test_is_torchvisions_network():
    torch.manual_seed(0)
    theirs = tv.swin3d_t(num_classes=7).eval()
    network = create_backbone("swin3d_t", num_classes=7)
    network.load_state_dict(theirs.state_dict())
    clips = torch.randn(1, 3, 7, 70, 50)
    with torch.inference_mode():
        torch.testing.assert_close(network.classify(network(clips)), theirs(clips), rtol=1e-6, atol=1e-6)


def test_an_rgbd_network_adds_the_tokens_of_depth_and_eats_rgb_alone_too():
    network = create_backbone("omnivore_swin_t", stream="rgbd")
    clips = torch.randn(1, 4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = network.patch_embed(clips[:, :3]) + network.depth_patch_embed(clips[:, 3:])
        want = network.norm(network.features(tokens)).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(network(clips), want)
        assert not torch.equal(network(clips[:, :3]), want)


def test_depth_is_divided_by_75():
    spec = create_backbone("omnivore_swin_t", stream="rgbd").input_spec
    pixel = torch.tensor([255.0, 0.0, 127.5, 37.5]).expand(1, 1, 1, 1, 4)
    want = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.5 - 0.406) / 0.225, 0.5])
    torch.testing.assert_close(spec.normalise(pixel).flatten(), want)


@pytest.mark.parametrize(
    "name, million, gmacs",
    [
        ("swin3d_t", 28.16, 88.1),
        ("swin3d_s", 49.8, None),
        ("swin3d_b", 88.0, None),
        ("swin3d_l", 196.95, None),
        ("omnivore_swin_t", 28.16, None),
        ("omnivore_swin_b", 89.07, None),
        ("omnivore_swin_b_epic", 92.56, 321.0),
    ],
)
def test_parameters_and_operations(name, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=3806 if "epic" in name else 400)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, abs=0.05)
    if gmacs:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(torch.empty(1, 3, 32, 224, 224, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("name, frames", [("swin3d_t", 8), ("omnivore_swin_b", 16), ("omnivore_swin_b_epic", 16)])
def test_window_of_attention(name, frames):
    with torch.device("meta"):
        network = create_backbone(name)
    table = network.features[0][0].attn.relative_position_bias_table
    assert table.shape == ((2 * frames - 1) * 13 * 13, network.feature_dim // 256)
    with torch.device("meta"):
        wider = create_backbone("swin3d_b", window_frames=16)
    assert wider.features[0][0].attn.relative_position_bias_table.shape[0] == 31 * 13 * 13


def test_the_window_is_that_of_the_weights(tmp_path):
    """A trunk cut to its first block: what is missing is told, and the table has the right size."""
    with torch.device("meta"):
        wide = create_backbone("swin3d_b", window_frames=16).state_dict()
    state = {key: torch.zeros(()).expand(x.shape).clone() for key, x in wide.items() if key.startswith("features.0.0.")}
    save_file(state, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match="missing") as caught:
        create_backbone("swin3d_b", weights=tmp_path / "some.safetensors")
    assert "another shape" not in str(caught.value)
    with pytest.raises(ValueError, match="another shape: features.0.0.attn.relative_position_bias_table"):
        create_backbone("swin3d_b", weights=tmp_path / "some.safetensors", window_frames=8)
    small = create_backbone("swin3d_t", window_frames=2)
    save_backbone(small, tmp_path / "small.safetensors")
    again = create_backbone("swin3d_t", weights=tmp_path / "small.safetensors")
    assert again.options == {"window_frames": 2}


def test_output_size_is_the_size_of_the_output():
    with torch.device("meta"):
        network = create_backbone("swin3d_t")
    for size in ((32, 224, 224), (1, 32, 32), (7, 70, 90), (5, 33, 64)):
        maps = network(torch.empty(1, 3, *size, device="meta"))
        assert maps.shape == (1, 768, *network.output_size(*size))


def test_a_wrong_head_says_which_there_are():
    with pytest.raises(ValueError, match="'video', 'image' or 'rgbd'"):
        create_backbone("omnivore_swin_t", head="audio")


def test_an_image_swin_says_of_a_still_video_what_it_says_of_the_picture(tmp_path):
    """Every frame of a still video gets equal attention, so the inflated network says what the image's says."""
    torch.manual_seed(0)
    image = swin_transformer.SwinTransformer([4, 4], 12, [2, 1, 1, 1], [1, 2, 2, 2], [7, 7], num_classes=5).eval()
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rules = [(r"features\.0\.0\.", "patch_embed.proj."), (r"features\.0\.2\.", "patch_embed.norm.")]
    rules += [(rf"features\.{2 * i + 2}\.", f"layers.{i}.downsample.") for i in range(3)]
    rules += [(rf"features\.{2 * i + 1}\.", f"layers.{i}.blocks.") for i in range(4)]
    rules += [(r"mlp\.0", "mlp.fc1"), (r"mlp\.3", "mlp.fc2")]
    state = dict(image.state_dict())
    for pattern, new in rules:
        state = {re.sub(pattern, new, key): tensor for key, tensor in state.items()}
    file = tmp_path / "swin.pth"
    torch.save({"model": state | {"layers.0.blocks.0.attn_mask": torch.zeros(1)}}, file)
    assert video_swin._window_of(file) is None  # that of a video is another question
    size = video_swin.Size(embed_dim=12, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 2), window=(2, 7, 7))
    network = video_swin._build(size, video_swin.VIDEO_SWIN_SPEC, "rgb", 0, file, 4, 224, 0.1).eval()
    assert network.num_classes == 5
    picture = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        still = picture[:, :, None].expand(-1, -1, 4, -1, -1)
        told, wanted = network.classify(network(still)), image(picture)
    torch.testing.assert_close(told, wanted, rtol=1e-4, atol=1e-4)
