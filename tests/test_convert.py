"""PyTorch weights in and out: the same numbers, the same predictions, every array reported."""

import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from emjax import micrographs
from emjax.cli import message
from emjax.convert import main
from emjax.errors import InputError, UsageError
from emjax.inference.predictor import Predictor
from emjax.interchange import pytorch, pytorch_names, unpickle
from emjax.main import main as emjax_main
from emjax.main import parse
from emjax.models import saved, transfer
from emjax.models.build import assemble, build_abstract, create
from emjax.models.network import Network, flat_arrays
from emjax.training.initialise import load_old_weights
from tests.conftest import command

REAL = os.environ.get("EMJAX_REAL_DATA")
needs_real_weights = pytest.mark.skipif(not REAL, reason="released weights: $EMJAX_REAL_DATA")
RELEASED = {
    "UNet_b2_Au_m22_run1_model.h5": ("unit", [2, 2], "downs.{}", "ups.{}"),
    "20210922_UNet_b2_m44_run5_model.h5": ("unit", [4, 4], "down{}", "up{}"),
    "UNet_5nmAu330kX423eUTC_fold0_seed962_model.h5": (
        "standardised",
        [2] * 4,
        "downs.{}",
        "ups.{}",
    ),
}
UNET = dict(name="unet", blocks=2, receptive_field=44)
SMALL = dict(name="hrnet", variant="w18_small_v1")


def as_file(folder, model, *, drop=(), change=None, name="net.safetensors"):
    """A PyTorch-named safetensors file of random values for `model`; nothing of emjax in it."""
    rng = np.random.default_rng(0)
    parts = flat_arrays(build_abstract(model))
    like = {path: leaf for part in parts for path, leaf in part.items()}
    tensors = {}
    for path, theirs in pytorch_names.names_of(model, "lists", like).items():
        value = rng.normal(size=like[path].shape).astype(np.float32)
        value = np.abs(value) + 0.5 if path.endswith("var") else value
        tensors[theirs] = value.transpose(3, 2, 0, 1).copy() if value.ndim == 4 else value
    tensors = {n: v for n, v in tensors.items() if not any(re.match(p, n) for p in drop)}
    tensors.update(change(tensors) if change else {})
    save_file(tensors, folder / name)
    return folder / name, tensors


def converted(file, folder, *options):
    assert main([f"--from={file}", f"--to={folder}", *options]) == 0
    return saved.read(folder)


@pytest.mark.parametrize("model", [UNET, SMALL], ids=["unet", "hrnet"])
def test_there_and_back_is_exact(model, tmp_path):
    file, tensors = as_file(tmp_path, model)
    options = ["--input=symmetric"] if model is UNET else []
    params, stats, config = converted(file, tmp_path / "in", *options)
    assert config["model"]["name"] == model["name"]
    assert main([f"--from={tmp_path / 'in'}", f"--to={tmp_path / 'out.safetensors'}"]) == 0
    out = load_file(tmp_path / "out.safetensors")
    assert out.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(out[name], value)
    again = converted(tmp_path / "out.safetensors", tmp_path / "again")
    assert again[2] == config
    for first, second in zip((params, stats), again[:2], strict=True):
        assert first.keys() == second.keys()
        assert all((first[path] == second[path]).all() for path in first)


def test_a_run_is_exported_under_the_original_names(tmp_path):
    network = create(UNET, optax.sgd(1.0), key=jax.random.key(0))
    facts = dict(model=UNET, task=None, range_rule="fixed")
    saved.write(tmp_path / "run" / "model", network, facts)
    assert main([f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'a.safetensors'}"]) == 0
    out = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(
        out["downs.0.conv1.weight"], network.params["down/0/conv1/kernel"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(out["ups.0.bn2.running_var"], network.stats["up/1/norm2/var"])


def test_colour_stems_are_folded_for_grey_images(tmp_path):
    """The first two normalised convolutions agree away from the border, to rounding."""
    colour = {**SMALL, "in_channels": 3}
    file, tensors = as_file(tmp_path, colour, drop=["last_layer"])
    _, _, config = converted(file, tmp_path / "in")
    module, _ = saved.load(tmp_path / "in")
    assert config["model"]["upsampling"] == "nearest" and "in_channels" not in config["model"]

    like = flat_arrays(build_abstract(colour))
    names = pytorch_names.names_of(colour, "hrnet", [path for part in like for path in part])
    params, stats = ({path: jnp.zeros(leaf.shape) for path, leaf in part.items()} for part in like)
    for part in (params, stats):
        for path in part:
            if path.startswith("stem/"):
                value = tensors[names[path]]
                part[path] = jnp.array(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    theirs = assemble(colour, params, stats)

    grey = np.random.default_rng(1).uniform(0, 1, (1, 64, 64, 1)).astype(np.float32)
    rgb = (grey - np.float32(pytorch.IMAGENET_MEAN)) / np.float32(pytorch.IMAGENET_DEVIATION)
    for depth in (1, 2):
        ours_out, theirs_out = 2 * grey - 1, rgb
        for layer in range(depth):
            ours_out = module.stem[layer](ours_out, train=False)
            theirs_out = theirs.stem[layer](theirs_out, train=False)
        inside = np.s_[:, 2:-2, 2:-2]
        largest = np.abs(theirs_out).max()
        assert np.abs(ours_out - theirs_out)[inside].max() < 1e-5 * largest
        assert np.abs(ours_out - theirs_out)[:, 0].max() > 1e-3 * largest  # the border is not


def test_every_array_is_reported(tmp_path):
    def more(tensors):
        return {
            "bn1.num_batches_tracked": np.array(7),
            "incre_modules.0.0.conv1.weight": np.zeros((2, 2, 1, 1), np.float32),
            "classifier.bias": np.zeros(1000, np.float32),
        }

    file, tensors = as_file(tmp_path, {**SMALL, "in_channels": 3}, drop=["last_layer"], change=more)
    _, _, config = converted(file, tmp_path / "in")
    report = json.loads((tmp_path / "in" / "conversion.json").read_text())
    assert tensors.keys() <= report.keys()
    assert report["conv1.weight"].startswith("folded: three channels into one")
    assert report["bn1.running_mean"].startswith("folded")
    assert report["conv2.weight"] == "used, as stem/1/conv/kernel"
    assert report["bn1.num_batches_tracked"].startswith("left out: a counter")
    assert "classification head" in report["classifier.bias"]
    assert report["last_layer.3.weight"].startswith("not in the file: head/kernel is at its")
    assert config["conversion"] == dict(naming="hrnet", counter=7)
    with pytest.raises(UsageError, match="its last layers were not in the file; finetune it first"):
        Predictor(tmp_path / "in")


WRAPPED = [
    "module.{}",
    "_orig_mod.{}",
    "module._orig_mod.{}",
    "_orig_mod.module.{}",
    "model._orig_mod.{}",
    "module.model.{}",
    "net.{}",
    "any.name.unet.{}",
]


@pytest.mark.parametrize("model", [UNET, SMALL], ids=["unet", "hrnet"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_prefixes_of_wrappers_are_removed(tmp_path, wrapped, model):
    names = [*as_file(tmp_path, model)[1]]
    arrays = {wrapped.format(name): np.zeros(1) for name in names}
    file = unpickle.File("", arrays, {}, {})
    found, outside = pytorch.without_prefix(tmp_path, file, None)
    assert [*found.tensors] == names and not outside


def test_wrappers_of_single_layers_are_removed(tmp_path):
    names = ["downs.0._orig_mod.conv1.weight", "ups.0.module.conv1.weight", "final_conv.weight"]
    modules = {"": {}, "downs.0._orig_mod": {}, "downs.0._orig_mod.conv1": {"dilation": (2, 2)}}
    file = unpickle.File("", dict.fromkeys(names, np.zeros(1)), modules, {})
    found, outside = pytorch.without_prefix(tmp_path, file, None)
    expected = ["downs.0.conv1.weight", "ups.0.conv1.weight", "final_conv.weight"]
    assert [*found.tensors] == expected and not outside
    assert [*found.modules] == ["", "downs.0", "downs.0.conv1"]
    twice = file._replace(tensors=dict.fromkeys(["a.module.b", "a.b"], np.zeros(1)))
    with pytest.raises(InputError, match="names that differ only in module"):
        pytorch.without_prefix(tmp_path, twice, None)


def test_arrays_next_to_the_network_are_named(tmp_path, capsys):
    file, tensors = as_file(tmp_path, UNET)
    arrays = {f"model.{name}": value for name, value in tensors.items()}
    save_file({**arrays, "criterion.weight": np.ones(1, "f4")}, file)
    params, _, _ = converted(file, tmp_path / "in", "--input=unit")
    np.testing.assert_array_equal(params["head/bias"], tensors["final_conv.bias"])
    assert "1 arrays are not of the network: criterion.weight" in capsys.readouterr().err
    report = json.loads((tmp_path / "in" / "conversion.json").read_text())
    assert report["criterion.weight"] == "left out: it is outside of the network"


def test_one_of_several_networks_is_chosen_by_its_prefix(tmp_path, capsys):
    file, tensors = as_file(tmp_path, UNET)
    other = {f"ema.{name}": value + 1 for name, value in tensors.items()}
    save_file({**{f"online.{n}": v for n, v in tensors.items()}, **other}, file)
    with pytest.raises(InputError) as error:
        main([f"--from={file}", f"--to={tmp_path / 'in'}"])
    assert "it holds 2 networks, with 'ema.', 'online.' before" in message(error.value)
    assert message(error.value).endswith("choose one, such as --prefix=online.")
    for prefix in ("ema", "ema."):
        params, _, _ = converted(file, tmp_path / "in", "--input=unit", f"--prefix={prefix}")
        np.testing.assert_array_equal(params["head/bias"], tensors["final_conv.bias"] + 1)
    with pytest.raises(InputError, match="no name begins with 'x.'; prefixes in it: 'ema.', 'on"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}", "--prefix=x"])
    with pytest.raises(InputError, match="a safetensors file has no entries, so no 'ema'"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}", "--entry=ema"])


@pytest.mark.parametrize(
    "model, drop, change, message",
    [
        (UNET, ["bottleneck.conv2.bias"], None, "no bottleneck.conv2.bias; a unet with"),
        (UNET, ["final_conv.weight"], None, "no known network; expected .*, got bottleneck"),
        (SMALL, ["layer1"], None, "an HRNet with .*stage1=0"),
        (UNET, [], lambda t: {"gate.weight": t["final_conv.bias"]}, "gate.weight is not known"),
        (UNET, [], lambda t: {"final_conv.bias": np.zeros(3, "f4")}, r"has shape \(3,\)"),
        (UNET, [], lambda t: {"final_conv.bias": np.full(1, np.nan, "f4")}, "NaN or infinite"),
    ],
)
def test_another_architecture_is_one_error(model, drop, change, message, tmp_path):
    file, _ = as_file(tmp_path, model, drop=drop, change=change)
    with pytest.raises(InputError, match=f"net.safetensors: .*{message}"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}"])
    assert not (tmp_path / "in").exists()


def test_an_hrnet_of_two_channels_segments(tmp_path):
    file, _ = as_file(tmp_path, {**SMALL, "out_channels": 2})
    _, _, config = converted(file, tmp_path / "in")
    assert config["task"] == "segmentation" and config["head"].startswith("softmax")


def test_options_that_do_not_apply_are_refused(tmp_path):
    file, _ = as_file(tmp_path, SMALL)
    with pytest.raises(UsageError, match=r"pools=\[4, 4\] does not apply to .*; leave pools out"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}", "--pools=4,4"])
    unet, _ = as_file(tmp_path, UNET, name="unet.safetensors")
    with pytest.raises(UsageError, match="upsampling=nearest does not apply"):
        main([f"--from={unet}", f"--to={tmp_path / 'in'}", "--upsampling=nearest"])
    converted(unet, tmp_path / "first")
    ours = tmp_path / "ours.safetensors"
    main([f"--from={tmp_path / 'first'}", f"--to={ours}"])
    with pytest.raises(UsageError, match="task=segmentation does not apply"):
        main([f"--from={ours}", f"--to={tmp_path / 'again'}", "--task=segmentation"])


def test_the_command_line(tmp_path):
    file, _ = as_file(tmp_path, UNET)
    with pytest.raises(UsageError, match="to=x.pt, expected a name that ends in .safetensors"):
        main([f"--from={tmp_path}", "--to=x.pt"])
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        main([f"--from={file}", f"--to={file}"])
    with pytest.raises(UsageError, match="pools=.2, 2, 2., expected 2 positive"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}", "--pools=2,2,2"])
    with pytest.raises(UsageError, match="--pools"):
        main([f"--from={file}", f"--to={tmp_path / 'in'}", "--pools=two"])
    _, _, config = converted(
        file, tmp_path / "in", "--pools=4,2", "--dilations=1,2,2", "--task=segmentation"
    )
    assert config["model"]["pools"] == [4, 2] and config["model"]["dilations"] == [1, 2, 2]
    assert config["task"] == "segmentation"
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK\3\4")
    ran = command("emjax.convert", f"--from={broken}", f"--to={tmp_path / 'out'}")
    assert ran.returncode == 3 and ran.stderr.count("\n") == 1 and "broken.pt" in ran.stderr


def test_what_is_assumed_of_a_file_is_noted_with_the_options_that_change_it(tmp_path, capsys):
    """The library notes what it assumed; the command names its options, for those alone."""
    file, _ = as_file(tmp_path, UNET)
    converted(file, tmp_path / "in", "--dilations=1,2,2")
    notes = capsys.readouterr().err.splitlines()
    assert notes[0] == f"note: {file}: does not state its pools; [2, 2] is assumed"
    assert re.fullmatch(rf"note: {file}: its input is taken as (unit|standardised): .*", notes[1])
    assert notes[2:] == [
        f"note: {file}: if an assumption is wrong, convert again with --pools, --input"
    ]
    everything = ["--pools=2,2", "--dilations=1,2,2", "--input=unit"]
    converted(file, tmp_path / "in", *everything)
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="no input 'units'; there are: standardised, symmetric"):
        pytorch.import_pytorch(file, pytorch.ImportOptions(input="units"))


def test_old_weights_of_another_wiring_are_refused(tmp_path, tiny_records):
    """The arrays would fit, and mean something else."""
    file, _ = as_file(tmp_path, {**UNET, "out_channels": 2})
    converted(file, tmp_path / "in", "--input=unit")
    start = [
        "--config=configs/segment_au.py:smoke",
        f"--config.data.dir={tiny_records}",
        f"--config.initialise.workdir={tmp_path / 'in'}",
    ]
    with pytest.raises(UsageError, match=r"input_interval \(0.0, 1.0\) -> None"):
        emjax_main([*start, f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UsageError, match=r"pools \(2, 2\) -> \(1, 4\)"):
        emjax_main(
            [
                *start,
                f"--workdir={tmp_path / 'run'}",
                "--config.model.pools=(1,4)",
                "--config.model.receptive_field=60",
                "--config.model.input_interval=(0.0,1.0)",
            ]
        )
    with pytest.raises(UsageError, match="norm batch -> instance; set config.model alike"):
        emjax_main(
            [
                *start,
                f"--workdir={tmp_path / 'run'}",
                "--config.model.norm=instance",
                "--config.model.input_interval=(0.0,1.0)",
            ]
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["segment_au.py", "restore_temimagenet.py"])
def test_finetuning_from_imagenet_loads_the_trunk_alone(recipe, tmp_path):
    """Every array of the trunk is loaded; the merge and the head are the new network's own."""
    file, tensors = as_file(tmp_path, {**SMALL, "in_channels": 3}, drop=["last_layer"])
    converted(file, tmp_path / "in")
    back = tmp_path / "back.safetensors"
    assert main([f"--from={tmp_path / 'in'}", f"--to={back}"]) == 0
    converted(back, tmp_path / "again")

    def filled(variants, workdir, *changes):
        config, _ = parse(
            [
                f"--config=configs/{recipe}:{variants}",
                f"--config.initialise.workdir={workdir}",
                *changes,
            ]
        )
        params, stats, model = load_old_weights(config.initialise)
        module = build_abstract(config.model.to_dict())
        transfer.check_same_wiring(build_abstract(model), module)
        like = flat_arrays(module)
        new = Network(
            *({path: jnp.full(leaf.shape, 7.0) for path, leaf in part.items()} for part in like)
        )
        return transfer.fill(new, params, stats, fresh=config.initialise.fresh)

    for workdir in (tmp_path / "in", tmp_path / "again"):  # also after a way out and in again
        network, account = filled("hrnet_w18_small_v1,imagenet", workdir)
        arrays = {**network.params, **network.stats}
        own = {path for path in arrays if path.startswith(("merge/", "head/"))}
        assert set(account.fresh) == own and len(own) == 8
        assert set(account.loaded) == arrays.keys() - own
        assert all((arrays[path] == 7).all() for path in own)
        assert str(account).startswith(f"{len(arrays) - 8} arrays loaded, 8 fresh: head/bias, ")
        np.testing.assert_array_equal(
            arrays["stem/0/conv/kernel"],
            pytorch.fold_rgb_stem(tensors)["conv1.weight"].transpose(2, 3, 1, 0),
        )
        names = pytorch_names.names_of(SMALL, "hrnet", account.loaded)
        for path in account.loaded[::7]:
            if not path.startswith("stem/0"):
                expected = tensors[names[path]]
                if expected.ndim == 4:
                    expected = expected.transpose(2, 3, 1, 0)
                np.testing.assert_array_equal(arrays[path], expected)

    with pytest.raises(UsageError, match="upsampling nearest -> bilinear; set config.model alike"):
        filled("hrnet_w18_small_v1", tmp_path / "in")
    with pytest.raises(
        UsageError, match=r"only in the new network merge/conv/bias.*List in initialise"
    ):
        filled("hrnet_w18_small_v1", tmp_path / "in", "--config.model.upsampling=nearest")


def test_the_variant_imagenet_is_for_hrnets_only():
    config, _ = parse(["--config=configs/segment_au.py:unet_2_44,imagenet"])
    with pytest.raises(
        UsageError, match="model 'unet' with .*unexpected keyword argument 'upsampling'"
    ):
        build_abstract(config.model.to_dict())


def test_parity_of_a_converted_trunk_of_timm(tmp_path):
    """timm's network on a grey image in ImageNet's colours, and ours after conversion.

    Compared where the first two stages see no border, which folding treats differently.
    """
    torch = pytest.importorskip("torch", reason="parity needs PyTorch: make test TORCH=1")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("parity with timm: make test TORCH=1")
    from tests import timm_trunk, torch_twin

    torch.manual_seed(0)
    theirs = timm_trunk.build("w18_small_v1")
    for name, value in theirs.state_dict().items():
        if value.ndim == 1:  # all that norms have
            value.uniform_(*((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.5, 0.5)))
    torch.save(theirs.state_dict(), tmp_path / "hrnet_w18_small.pth")
    converted(tmp_path / "hrnet_w18_small.pth", tmp_path / "in")
    ours, _ = saved.load(tmp_path / "in")

    grey = np.random.default_rng(2).uniform(0, 1, (1, 96, 96, 1)).astype(np.float32)
    rgb = (grey - np.float32(pytorch.IMAGENET_MEAN)) / np.float32(pytorch.IMAGENET_DEVIATION)
    x = 2 * grey - 1
    for layer in (*ours.stem, *ours.stage1):
        x = layer(x, train=False)
    with torch.no_grad():
        theirs.eval()
        y = theirs.act1(theirs.bn1(theirs.conv1(torch_twin.images(rgb))))
        y = torch_twin.pixels(theirs.layer1(theirs.act2(theirs.bn2(theirs.conv2(y)))))
    difference = np.abs(x - y)[:, 4:-4, 4:-4].max() / np.abs(y).max()
    print(f"\ntimm hrnet_w18_small, stem and stage 1: largest difference {difference:.1e}")
    assert difference < 1e-5


def real_micrograph():
    folder = Path(REAL) / "au" / "np_sintering_bftem" / "images"
    return micrographs.read(folder / "image_1.png").image[:384, :448]


def released(name):
    """(file, the network in it as PyTorch runs it) of Sytwu et al."""
    pytest.importorskip("torch", reason="parity needs PyTorch: make test TORCH=1")
    from tests.torch_twin import ReleasedUNet

    file = Path(REAL) / "weights" / name
    return file, ReleasedUNet(unpickle.read(file).tensors, *RELEASED[name][1:])


@needs_real_weights
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_networks_are_exported_as_they_were(name, tmp_path):
    file = Path(REAL) / "weights" / name
    converted(file, tmp_path / "in")
    assert main([f"--from={tmp_path / 'in'}", f"--to={tmp_path / 'out.safetensors'}"]) == 0
    released, exported = unpickle.read(file).tensors, load_file(tmp_path / "out.safetensors")
    assert released.keys() == exported.keys()
    for name, value in released.items():
        assert exported[name].dtype == value.dtype and exported[name].shape == value.shape
        np.testing.assert_array_equal(exported[name], value)


@needs_real_weights
@pytest.mark.parametrize("name", RELEASED)
def test_parity_of_the_released_networks_predictions(name, tmp_path):
    """The same probabilities as PyTorch fed its own way: mean 0 and deviation 1, or 0...1."""
    file, theirs = released(name)
    _, _, config = converted(file, tmp_path / "in")
    assert config["model"]["pools"] == RELEASED[name][1] and config["task"] == "segmentation"
    image = real_micrograph()
    fed = image / 255 if RELEASED[name][0] == "unit" else (image - image.mean()) / image.std()
    expected = theirs.probability(fed.astype(np.float32))
    difference = np.abs(Predictor(tmp_path / "in")(image) - expected).max()
    print(f"\n{name}: largest difference of probabilities {difference:.1e}")
    assert difference < 1e-5


@needs_real_weights
@pytest.mark.parametrize("name", RELEASED)
def test_parity_of_the_released_networks_gradients(name, float64, tmp_path):
    """Outputs in training, statistics after a step and all gradients, in float64 on both sides.

    In float32 some ReLUs flip by rounding on this image: gradients of the m22 network differ by up
    to 4e-4 of their largest entry, those of the two others by 4e-5.
    """
    file, theirs = released(name)
    params, stats, config = converted(file, tmp_path / "in")
    params, stats = ({p: jnp.asarray(v, float64) for p, v in a.items()} for a in (params, stats))
    definition = nnx.graphdef(build_abstract(config["model"]))
    network = Network(params, stats, definition=definition)
    image = real_micrograph()
    x = micrographs.from_range(image[:192, :224], (0, 255)).astype(float64)

    def loss(params):
        output, stats = network.apply(params, network.stats, x[None, :, :, None], train=True)
        return ((output - 1) ** 2).mean(), (output, stats)

    grads, (output, stats) = jax.jit(jax.grad(loss, has_aux=True))(params)
    low, high = config["model"]["input_interval"]
    trained, tensors = theirs.trained_once((x + 1) * (high - low) / 2 + low)
    names = pytorch_names.names_of(
        config["model"], config["conversion"]["naming"], [*params, *stats]
    )
    largest = max(np.abs(tensors[names[path]]).max() for path in grads)
    shares = {"output": np.abs(output[0] - trained).max() / np.abs(trained).max()}
    for path, ours in {**grads, **stats}.items():
        expected = tensors[names[path]]
        if expected.ndim == 4:
            expected = expected.transpose(2, 3, 1, 0)
        flat = path.endswith(("conv1/bias", "conv2/bias"))  # before a BatchNorm: no gradient
        shares[path] = np.abs(ours - expected).max() / (largest if flat else np.abs(expected).max())
    worst = max(shares, key=shares.get)
    print(f"\n{name}: largest difference {shares[worst]:.1e} of its array, {worst}")
    assert shares[worst] < 1e-8, {path: share for path, share in shares.items() if share >= 1e-8}
