"""The networks of the examples: sizes, norms, precision, the same in Linen and NNX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from gallery import close, example

pytestmark = pytest.mark.usefixtures("standard_promotion")
KEY = jax.eval_shape(lambda: jax.random.key(0))
IMAGES = np.random.default_rng(0).normal(size=(8, 6, 6, 1)).astype(np.float32)


def small(**options):
    """A network with a block that keeps the size and one that halves it."""
    module = example("models.resnet")
    return module.ResNet(stage_sizes=(1, 1), block=module.BasicBlock, classes=3, features=2, **options)


def sizes(tree):
    return sorted(math.prod(v.shape) for v in jax.tree.leaves(tree))


class TestResNet:
    @pytest.mark.parametrize(
        ("name", "options", "size", "count"),
        [
            # Those of the paper's networks with a bias in the last layer alone.
            ("resnet18", {"classes": 1000, "small_images": False}, 224, 11_689_512),
            ("resnet50", {"classes": 1000, "small_images": False}, 224, 25_557_032),
            ("resnet18", {"classes": 10}, 32, 11_173_962),
        ],
    )
    def test_number_of_parameters(self, name, options, size, count):
        model = getattr(example("models.resnet"), name)(**options)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        init = functools.partial(model.init, train=False)
        assert sum(sizes(jax.eval_shape(init, KEY, images)["params"])) == count

    @pytest.mark.parametrize(("block", "features"), [("BasicBlock", 4), ("Bottleneck", 1)])
    def test_block_begins_as_its_shortcut(self, block, features):
        layer = getattr(example("models.resnet"), block)(features)
        x = IMAGES.reshape(8, 3, 3, 4)
        y, _ = layer.init_with_output(jax.random.key(0), x, False)
        np.testing.assert_array_equal(y, np.maximum(x, 0))

    def test_recomputed_blocks(self):
        model = small(remat_policy=jax.checkpoint_policies.nothing_saveable)

        def loss(key):
            return jnp.sum(model.init_with_output(key, IMAGES, train=False)[0])

        assert str(jax.make_jaxpr(loss)(jax.random.key(0))).count("policy=") >= 2

    def test_half_precision(self):
        norm = functools.partial(jbn.linen.BatchNorm, dtype=jnp.bfloat16)
        model = small(norm=norm, dtype=jnp.bfloat16)
        logits, variables = jax.eval_shape(
            lambda: model.init_with_output(
                jax.random.key(0), IMAGES, train=False, capture_intermediates=True
            )
        )
        assert logits.dtype == jnp.float32
        assert {v.dtype for v in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
        layers = variables["intermediates"]["stage2_block1"]
        assert {v.dtype for v in jax.tree.leaves(layers)} == {jnp.dtype("bfloat16")}


class TestTorchvisionWeights:
    def variables(self, model, size):
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return jax.eval_shape(functools.partial(model.init, train=False), KEY, images)

    def filled(self, shapes):
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda v: rng.random(v.shape, np.float32), shapes)

    def test_names_and_shapes_of_resnet50(self):
        model = example("models.resnet").resnet50(classes=1000, small_images=False)
        shapes = self.variables(model, 64)
        zeros = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes)
        entries = example("models.torchvision_weights").to_torchvision(zeros)
        assert len(entries) == 320
        for name, shape in {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.running_var": (64,),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer2.3.conv2.weight": (128, 128, 3, 3),
            "layer4.2.bn3.num_batches_tracked": (),
            "fc.weight": (1000, 2048),
            "fc.bias": (1000,),
        }.items():
            assert entries[name].shape == shape, name

    @pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
    def test_there_and_back_by_a_file(self, block, tmp_path):
        from safetensors.numpy import load_file, save_file

        models, weights = example("models.resnet"), example("models.torchvision_weights")
        model = models.ResNet((2, 1), getattr(models, block), features=2, small_images=False)
        shapes = self.variables(model, 32)
        variables = self.filled(shapes)
        save_file(weights.to_torchvision(variables), tmp_path / "weights.safetensors")
        back = weights.from_torchvision(load_file(tmp_path / "weights.safetensors"), shapes)
        jax.tree.map(np.testing.assert_array_equal, back, variables)

    def test_other_networks_are_refused(self):
        weights = example("models.torchvision_weights")
        model = small(small_images=False)
        entries = weights.to_torchvision(self.filled(self.variables(model, 32)))
        shapes = self.variables(model, 32)

        def refused(message, entries, shapes=shapes):
            with pytest.raises(ValueError, match=message):
                weights.from_torchvision(entries, shapes)

        wide = self.variables(model.clone(classes=4), 32)
        refused(r"with fc.bias of shape \(4,\), got \(3,\)", entries, wide)
        refused(r"with conv1.bias of shape None, got \(2,\)", {**entries, "conv1.bias": np.ones(2)})
        without = {name: v for name, v in entries.items() if name != "layer1.0.bn1.running_var"}
        refused(r"with layer1.0.bn1.running_var of shape \(2,\), got None", without)
        old = {name: v for name, v in entries.items() if not name.endswith("tracked")}
        assert weights.from_torchvision(old, shapes).keys() == {"params", "batch_stats"}


class TestNNX:
    @pytest.mark.parametrize("norm", ["batch norm", "no batch norm"])
    def test_resnet18_is_linen_s(self, norm):
        linen, in_nnx = (example("resnet").networks(model, 16)[norm] for model in ("linen", "nnx"))
        images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
        for ours, theirs in zip(
            jax.eval_shape(linen.init, KEY, images),
            jax.eval_shape(in_nnx.init, KEY, images),
            strict=True,
        ):
            assert sizes(ours) == sizes(theirs)

    def test_statistics_are_updated_in_training_alone(self):
        training, module = example("shared.training"), example("models.resnet_nnx")
        make = functools.partial(module.ResNet, 1, 2, stage_sizes=(1,), classes=3)
        network = training.NNX(lambda rngs: make(rngs=rngs))
        params, batch_stats = network.init(jax.random.key(0), None)
        apply = jax.jit(network.apply, static_argnames="train")
        _, trained = apply(params, batch_stats, IMAGES, train=True)
        logits, evaluated = apply(params, trained, IMAGES, train=False)
        close(evaluated, trained, rtol=0, atol=0)
        pairs = zip(jax.tree.leaves(trained), jax.tree.leaves(batch_stats), strict=True)
        assert all((a != b).any() for a, b in pairs)
        # An image's logits do not depend on the others.
        others = np.concatenate([IMAGES[:1], 1 - IMAGES[1:]])
        close(apply(params, trained, others, train=False)[0][:1], logits[:1])


def test_mlp_is_its_equations():
    mlp = example("models.mlp")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    layers, batch_stats = mlp.init(jax.random.key(0), (4, 6, 5, 3))
    expected = x.astype(np.float64)
    for layer in layers[:-1]:
        expected = expected @ np.float64(layer["kernel"])
        expected = (expected - expected.mean(0)) / np.sqrt(expected.var(0) + 1e-5)
        expected = np.maximum(expected, 0)
    expected = expected @ np.float64(layers[-1]["kernel"])
    actual, updated = mlp.apply(layers, batch_stats, x, train=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert len(updated) == len(batch_stats) == 2
    assert all((new["mean"] != 0).all() for new in updated)
