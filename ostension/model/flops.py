"""What a model costs to run: the multiply-adds of every matrix product and convolution, exactly, from its configuration.

**Convention.** 1 MAC is one multiplication with its addition, 1 MAC = 2 FLOP; GMAC is 1e9 MAC, GFLOP 1e9 FLOP. Only products
of matrices and convolutions count; norms, activations, softmax, pooling, biases and additions do not, which are a few per
mille. A causal attention counts as a full one, since kernels differ in what they skip.

**Whole or as run.** `whole` counts every position of every block and of the ResNet's attention pool, with texts of the full
context length: the convention of the published tables (open_clip's profile table, to its last figure, and the GMAC of Cherti
et al. 2022, which are 0.06 to 0.15 % higher). Ostension computes less with the same result: in the last block and in the
pool only the token that is read, of a text only the positions up to its end token.

**Backward.** A product's gradients are two products of the same size, one for each factor, so training costs three times the
forward pass, except that nobody needs the gradient of the pixels. Kernels that compute attention anew on the way back are
not charged for it.

Letters: P patches (with the class token where there is one), T tokens, W width, M hidden width of the MLP, E embedding.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator

from ostension.errors import ConfigError
from ostension.model.config import ModelConfig, ResNetConfig, TextConfig, VitConfig


@dataclasses.dataclass(frozen=True)
class Products:
    """The products of one part of a tower, for one image or one text.

    Attributes:
        name: of the part, such as `transformer.resblocks.3.attn`.
        macs: multiply-adds of its forward pass.
        again: whether gradient checkpointing computes it again on the way back.
        pixels: whether its input is the picture, whose gradient is not needed.
    """

    name: str
    macs: int
    again: bool = False
    pixels: bool = False


def image_products(config: VitConfig | ResNetConfig, embed_dim: int, *, whole: bool = True) -> list[Products]:
    """The parts of an image tower.

    Raises:
        ConfigError: for a tower of another kind.
    """
    if isinstance(config, VitConfig):
        return list(_vit(config, embed_dim, whole))
    if isinstance(config, ResNetConfig):
        return list(_resnet(config, embed_dim, whole))
    raise ConfigError(f"the products of an image tower of the kind {config.kind!r} are not known", expected="'vit' or 'resnet'")


def text_products(config: TextConfig, embed_dim: int, *, whole: bool = True, num_tokens: int | None = None) -> list[Products]:
    """The parts of a text tower.

    Args:
        num_tokens: of a text with its start and end, not with `whole`; None is the context length. A tower without a causal
            mask computes its whole context.

    Raises:
        ConfigError: for a tower of another kind.
    """
    if not isinstance(config, TextConfig):
        raise ConfigError(f"the products of a text tower of the kind {config.kind!r} are not known", expected="a transformer")
    tokens = config.context_length if num_tokens is None or whole or not config.causal else num_tokens
    single = not whole and (config.causal or config.pool == "last")
    return [
        *_transformer("transformer", tokens, config.width, config.mlp_width, config.layers, single),
        Products("text_projection", config.width * embed_dim),
    ]


def forward_gflops(config: ModelConfig) -> tuple[float, float]:
    """GFLOP for one image and for one text of full length, as the published tables count."""
    parts = image_products(config.vision, config.embed_dim), text_products(config.text, config.embed_dim)
    image, text = (2e-9 * total(part) for part in parts)
    return image, text


def total(products: list[Products]) -> int:
    """Multiply-adds of a forward pass."""
    return sum(part.macs for part in products)


def training(
    products: list[Products], *, checkpointing: bool = False, forwards: int = 1, trained: Collection[str] | None = None
) -> int:
    """Multiply-adds of training on one image or text.

    Args:
        checkpointing: the blocks run forward once more.
        forwards: how often all of it runs forward; two where embeddings are cached before the loss is known.
        trained: names of the tower's weights that are; None is all of them. A frozen part costs no gradient of its weights,
            and none of its input where nothing before it is trained. Exact for towers that are trained or frozen as a whole;
            a part that is trained in part counts as a whole one.
    """
    others = [] if trained is None else [name for name in trained if not name.startswith(tuple(part.name for part in products))]
    gains = {found[0] for name in others if (found := _BLOCK.match(name))}  # blocks that train a norm
    below = trained is None or any(not name.startswith(_AFTER) and not _BLOCK.match(name) for name in others)
    cost = forwards * total(products)
    for part in products:
        own = trained is None or any(name.startswith(part.name) for name in trained)
        below = below or part.name.startswith(tuple(gains))
        gradients = own + (below and not part.pixels)
        cost += part.macs * (gradients + (checkpointing and part.again and gradients > 0))
        below = below or own
    return cost


_BLOCK = re.compile(r".*resblocks\.\d+\.")
_AFTER = ("ln_post", "ln_final", "attn_pool")  # what has no product of its own and stands behind all blocks


def _vit(config: VitConfig, embed_dim: int, whole: bool) -> Iterator[Products]:
    width, patches = config.width, config.grid**2
    tokens = patches + config.class_token
    yield Products("conv1", patches * 3 * config.patch_size**2 * width, pixels=True)
    single = not whole and config.pool == "class"
    yield from _transformer("transformer", tokens, width, config.mlp_width, config.layers, single)
    if config.pool == "map":
        yield Products("attn_pool.attn", _attention(tokens, width, single=True))
        yield Products("attn_pool.mlp", 2 * width * config.mlp_width)
    if config.projection:
        yield Products("proj", width * embed_dim)


def _transformer(name: str, tokens: int, width: int, mlp_width: int, layers: int, single: bool) -> Iterator[Products]:
    """All blocks; the last one computes one token if `single`."""
    for index in range(layers):
        alone = single and index == layers - 1
        block = f"{name}.resblocks.{index}"
        yield Products(f"{block}.attn", _attention(tokens, width, single=alone), again=True)
        half = (1 if alone else tokens) * width * mlp_width
        yield Products(f"{block}.mlp.c_fc", half, again=True)
        # Nothing after it has to be kept, so a checkpoint stops before it.
        yield Products(f"{block}.mlp.c_proj", half)


def _attention(tokens: int, width: int, *, single: bool) -> int:
    """Four projections, scores and what is read, for all queries or for one."""
    queries = 1 if single else tokens
    return 2 * queries * width**2 + 2 * tokens * width**2 + 2 * queries * tokens * width


def _resnet(config: ResNetConfig, embed_dim: int, whole: bool) -> Iterator[Products]:
    width, side = config.width, config.image_size // 2
    yield Products("conv1", side**2 * 9 * 3 * (width // 2), pixels=True)
    yield Products("conv2", side**2 * 9 * (width // 2) ** 2)
    yield Products("conv3", side**2 * 9 * (width // 2) * width)
    side //= 1 + config.stem_pool
    channels = width
    for stage, depth in enumerate(config.layers):
        planes = width * 2**stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            inner = side**2 * (channels * planes + 9 * planes**2)  # the stride is a pool after them
            side //= stride
            outer = side**2 * 4 * planes * (planes + (0 if index else channels))  # with the first block's shortcut
            yield Products(f"layer{stage + 1}.{index}", inner + outer, again=True)
            channels = 4 * planes
    places = config.grid**2
    if config.pool == "flatten":
        yield Products("proj", places * channels * embed_dim)
        return
    tokens = places + 1  # the mean of the map, which is the query that is read
    queries = tokens if whole else 1
    macs = queries * channels**2 + 2 * tokens * channels**2 + 2 * queries * tokens * channels
    yield Products("attnpool", macs + queries * channels * embed_dim)
