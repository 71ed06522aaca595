"""The ResNets: their sizes, norms and devices, how the digits are drawn, and the example's runs."""

import functools
import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jbn
from gallery import example, quick_compilation, run  # noqa: F401

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def small():
    """The factory of a network with a block that keeps the size and one that halves it."""
    module = example("resnet_model")
    return functools.partial(
        module.ResNet, stage_sizes=(1, 1), block=module.BasicBlock, classes=3, features=2
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 6, 6, 1)).astype(np.float32)


def initial(model, images):
    """Variables with every scale and bias moved, so that no gradient is zero."""
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images[:1])
    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda v: v + rng.uniform(0.2, 0.4, size=v.shape).astype(v.dtype) * (v.ndim == 1),
        variables["params"],
    )
    return {**variables, "params": moved}


def gradients(model, variables, images):
    """The loss, the gradients and the new statistics, as a jaxpr's function of the parameters."""

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (logits**2).mean(), updated.get("batch_stats", {})

    return jax.value_and_grad(loss, has_aux=True)


@pytest.fixture(scope="module")
def ours(small, images):
    """Variables of the network with batch norm, and what a training step of it computes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = initial(small(), images)
        return variables, jax.jit(gradients(small(), variables, images))(variables["params"])


def close(actual, expected, rtol=1e-4):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-5), actual, expected)


class TestModel:
    @pytest.mark.parametrize(
        ("name", "flags", "size", "count"),
        [
            # Those of the paper's networks with a bias in the last layer alone.
            ("resnet18", {"classes": 1000, "small_images": False}, 224, 11_689_512),
            ("resnet50", {"classes": 1000, "small_images": False}, 224, 25_557_032),
            ("resnet18", {"classes": 10}, 32, 11_173_962),
        ],
    )
    def test_number_of_parameters(self, name, flags, size, count):
        model = getattr(example("resnet_model"), name)(**flags)
        init = functools.partial(model.init, train=False)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        assert sum(math.prod(v.shape) for v in jax.tree.leaves(variables["params"])) == count

    @pytest.mark.parametrize(("block", "features"), [("BasicBlock", 4), ("Bottleneck", 1)])
    def test_block_begins_as_its_shortcut(self, images, block, features):
        layer = getattr(example("resnet_model"), block)(features)
        x = images.reshape(8, 3, 3, 4)
        y, _ = layer.init_with_output(jax.random.key(0), x, False)
        np.testing.assert_array_equal(y, np.maximum(x, 0))

    def test_flax_batch_norm_fits(self, small, images, ours):
        theirs = small(norm=functools.partial(flax.linen.BatchNorm, momentum=0.9))
        variables, actual = ours
        close(actual, jax.jit(gradients(theirs, variables, images))(variables["params"]))

    def test_no_norm_has_the_parameters_of_batch_norm(self, small, images, ours):
        without = small(norm=example("resnet_model").no_norm)
        variables = initial(without, images)
        assert "batch_stats" not in variables
        assert jax.tree.structure(variables["params"]) == jax.tree.structure(ours[0]["params"])
        # No image's logits depend on another's, in training neither.
        logits = jax.jit(functools.partial(without.apply, train=True))
        others = np.concatenate([images[:1], 1 - images[1:]])
        close(logits(variables, others)[:1], logits(variables, images)[:1])

    def test_recomputed_blocks_have_the_same_gradients(self, small, images, ours):
        model = small(remat_policy=jax.checkpoint_policies.nothing_saveable)
        variables, wanted = ours
        recomputing = gradients(model, variables, images)
        assert str(jax.make_jaxpr(recomputing)(variables["params"])).count("policy=") >= 2
        close(jax.jit(recomputing)(variables["params"]), wanted)

    def test_half_precision(self, small, images):
        norm = functools.partial(jbn.linen.BatchNorm, dtype=jnp.bfloat16)
        model = small(norm=norm, dtype=jnp.bfloat16)
        traced = jax.eval_shape(
            lambda: model.init_with_output(
                jax.random.key(0), images, train=False, capture_intermediates=True
            )
        )
        logits, variables = traced
        assert logits.dtype == jnp.float32
        assert {v.dtype for v in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
        layers = variables["intermediates"]["stage2_block1"]
        assert {v.dtype for v in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_step_on_eight_devices_is_that_on_one(small, images, ours, monkeypatch):
    training, augmentation = example("resnet_training"), example("augmentation")
    # Each device moves its images by its own random numbers: here, none moves them.
    monkeypatch.setattr(augmentation, "random_views", lambda key, *args: augmentation.upright(*args))
    labels = np.arange(8) % 3
    norm = functools.partial(jbn.linen.BatchNorm, momentum=0.9, axis_name="batch")
    synchronized = training.linen_network(small(norm=norm), size=6)
    alone = training.linen_network(small(), size=6)
    state = training.create_state(0, network=alone)
    state = state._replace(params=ours[0]["params"])
    step = functools.partial(training.train_step, learning_rate=1e-3)
    on_each = functools.partial(step, network=synchronized, axis_name="batch")
    specs = (P(), P("batch"), P("batch"))
    mesh = Mesh(np.array(jax.devices()[:8]), "batch")
    on_all = jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=specs, out_specs=P()))
    expected, loss = step(state, images, labels, network=alone)
    actual, shared_loss = jax.block_until_ready(on_all(state, images, labels))
    np.testing.assert_allclose(shared_loss, loss, rtol=1e-5)
    close(actual.batch_stats, expected.batch_stats)
    # Adam's averages of the gradients and their squares.
    close(actual.opt_state, expected.opt_state, rtol=1e-3)


class TestAugmentation:
    def test_upright_at_the_same_size_changes_nothing(self, images):
        np.testing.assert_allclose(example("augmentation").upright(images, 6), images, atol=1e-6)

    def test_larger_image_is_interpolated(self):
        ramp = np.tile(np.arange(4, dtype=np.float32), (1, 4, 1))[..., None]
        large = np.asarray(example("augmentation").upright(ramp, 8))[0, ..., 0]
        # The first and the last place are half way to the background.
        np.testing.assert_allclose(large[4, 1:-1], [0.25, 0.75, 1.25, 1.75, 2.25, 2.75], atol=1e-6)

    def test_shift_by_a_pixel(self, images):
        image = images[0]
        moved = example("augmentation")._view(image, 0.0, 1.0, jnp.array([1 / 6, 0.0]), 6)
        np.testing.assert_allclose(moved[:-1], image[1:], atol=1e-5)
        np.testing.assert_allclose(moved[-1], 0, atol=1e-5)

    def test_quarter_turn(self, images):
        image = images[0]
        turned = example("augmentation")._view(image, np.pi / 2, 1.0, jnp.zeros(2), 6)
        inner = np.s_[1:-1, 1:-1]
        np.testing.assert_allclose(turned[inner], np.rot90(image, -1)[inner], atol=1e-5)

    def test_views_are_the_key_s_and_the_image_s_own(self, images):
        same = np.stack([images[0]] * 3)
        views = functools.partial(example("augmentation").random_views, images=same, size=6)
        first, again, other = (np.asarray(views(jax.random.key(k))) for k in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any() and (first[0] != first[1]).any()


class TestRuns:
    @pytest.fixture
    def shallow(self, monkeypatch):
        """The example with few images and a block per network; both networks of ResNet-18 alone."""
        module, data = example("resnet_model"), example("data")
        few = data.Digits(*(part[:128] for part in data.load()))
        monkeypatch.setattr(data, "load", lambda _: few)

        def first(networks, width):
            return dict(list(networks(width).items())[:1])

        for name in ("resnet18", "resnet50"):
            monkeypatch.setattr(
                module, name, functools.partial(getattr(module, name), stage_sizes=(1,))
            )
        resnet = example("resnet")
        for name in ("nnx", "resnet50"):
            networks, *defaults = resnet.MODELS[name]
            monkeypatch.setitem(resnet.MODELS, name, (functools.partial(first, networks), *defaults))
        return resnet

    @pytest.mark.parametrize(
        ("model", "picture", "names"),
        [
            ("resnet18", "resnet", ["batch norm", "no batch norm"]),
            ("nnx", "resnet_nnx", ["batch norm"]),
        ],
    )
    @pytest.mark.usefixtures("shallow")
    def test_training(self, model, picture, names, tmp_path, capsys):
        flags = ["--model", model, "--width", "2", "--epochs", "2", "--seeds", "1"]
        runs = run("resnet", tmp_path, *flags, "--batch-size", "64", picture=picture)
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        wanted = [(name, rate) for rate in (1e-3, 1e-2) for name in names]
        assert [one[:2] for one in runs] == wanted
        for one, line in zip(runs, lines[1:], strict=False):
            assert np.isfinite(one.train_loss).all() and one.train_loss[1] != one.train_loss[0]
            assert line.startswith(f"{one.name}, learning rate {one.learning_rate:g} ")
            assert f" {one.test_accuracy[-1]:.1%} " in line
        assert f"{2 * len(runs)}/{2 * len(runs)}" in printed.err

    @pytest.mark.usefixtures("shallow")
    def test_steps_of_resnet50(self, tmp_path, capsys):
        flags = ["--model", "resnet50", "--width", "2", "--steps", "3", "--batch-size", "2"]
        costs = run("resnet", tmp_path, *flags, picture="resnet50")
        lines = capsys.readouterr().out.splitlines()
        for (name, cost), line in zip(costs.items(), lines[1:], strict=False):
            assert len(cost.losses) == 3 and np.isfinite(cost.losses).all()
            assert cost.images_per_second > 0
            # The images alone: two of 8x8 pixels; and the stem's activations, 112x112 with 2 channels.
            assert cost.arguments > 2 * 64 * 4 / 1e6
            assert cost.temporaries > 2 * 112 * 112 * 2 * 4 / 1e6
            assert line.startswith(f"{name} ") and f" {cost.images_per_second:.2f} " in line

    def test_default_batch_of_resnet50_is_small(self, shallow, tmp_path, monkeypatch):
        seen = {}
        monkeypatch.setattr(shallow, "measure_steps", lambda *args: seen.update(vars(args[-1])))
        shallow.main(["--model", "resnet50", "--out", str(tmp_path)])
        assert (seen["batch_size"], seen["width"]) == (8, 64)
        monkeypatch.setattr(shallow, "train", lambda *args: seen.update(vars(args[-1])))
        shallow.main(["--out", str(tmp_path)])
        assert (seen["batch_size"], seen["width"]) == (32, 16)

    def test_nnx_statistics_are_updated_in_training_alone(self, images):
        training, module = example("resnet_training"), example("resnet_nnx_model")
        network = training.nnx_network(
            lambda rngs: module.SmallResNet(1, 2, classes=3, rngs=rngs), size=6
        )
        state = training.create_state(0, network=network)
        apply = jax.jit(network.apply, static_argnums=3)
        _, trained = apply(state.params, state.batch_stats, images, True)
        logits, evaluated = apply(state.params, trained, images, False)
        jax.tree.map(np.testing.assert_array_equal, evaluated, trained)
        pairs = zip(jax.tree.leaves(trained), jax.tree.leaves(state.batch_stats), strict=True)
        assert all((a != b).any() for a, b in pairs)
        # An image's logits do not depend on the others.
        others = np.concatenate([images[:1], 1 - images[1:]])
        close(apply(state.params, trained, others, False)[0][:1], logits[:1])
