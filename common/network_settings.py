"""The networks that a study can name by `kind`, and what the rest has to know of their shape. Torch-free.

The networks themselves are built in `common.networks`, one builder for each kind.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from common.settings import Settings, by_key

#: A multiple of 4, so that both norms fit.
Channels = Annotated[int, Field(ge=4, le=2048, multiple_of=4)]
#: Encoder level that the projector reads: a quarter of the resolution, one vector per 4 x 4 pixels.
CONTRAST_LEVEL = 2


class NetworkSettings(Settings):
    """What every kind of network declares."""

    kind: str

    @model_validator(mode="after")
    def _deep_enough(self) -> Self:
        if len(self.channels) <= CONTRAST_LEVEL:
            raise ValueError(f"expected {CONTRAST_LEVEL + 1} levels or more, found {len(self.channels)}")
        return self

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the encoder's levels, each of half the resolution of the one before."""
        return ()

    @property
    def began_as(self) -> str:
        """Whose weights it begins with, and under which terms, for a model's card; empty for drawn ones."""
        return ""

    @property
    def stride(self) -> int:
        """Pixels a side behind one value of the deepest level; a tile's side is a multiple of it."""
        return 1 << (len(self.channels) - 1)


class BasicUNet(NetworkSettings):
    """MONAI's BasicUNet, split into encoder and decoder.

    Attributes:
        features: channels of the five levels and of the last block; the default has 0.3 M parameters.
        norm: `group` held up where a tile shows nothing but noise, on which `instance` normalises noise
            into structure. No BatchNorm: its statistics mix patients and leave the site.
    """

    # the only kind there was: studies that do not name it keep their hash
    kind: Literal["basic_unet"] = Field(default="basic_unet", exclude=True)
    features: tuple[Channels, Channels, Channels, Channels, Channels, Channels] = (16, 16, 32, 64, 64, 16)
    norm: Literal["instance", "group"] = "group"

    @property
    def channels(self) -> tuple[int, ...]:
        return self.features[:5]


class ResidualUNet(NetworkSettings):
    """MONAI's SegResNet (Myronenko 2018, arXiv 1810.11654) without its autoencoder: residual blocks, group norm.

    Attributes:
        filters: channels of the first level, doubled at each of three poolings. 32 with the default blocks has 6.3 M
            parameters, the size that papers train on a GPU at 192 or 256 pixels.
        blocks: residual blocks of each level on the way down; one a level on the way up.
    """

    kind: Literal["residual_unet"]
    filters: int = Field(default=32, ge=8, le=256, multiple_of=8)
    blocks: tuple[int, int, int, int] = (1, 2, 2, 4)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.filters << level for level in range(len(self.blocks)))


class EfficientUNet(NetworkSettings):
    """A U-Net whose encoder begins with public weights of ImageNet: EfficientNet-Lite0's first stages.

    1.0 M parameters. It has no settings: its weights fix its shape, see `common.efficient_unet`.
    """

    kind: Literal["efficient_unet"]

    @property
    def channels(self) -> tuple[int, ...]:
        return (16, 16, 24, 40, 112)

    @property
    def began_as(self) -> str:
        return "EfficientNet-Lite0, trained on ImageNet's photographs, published under Apache-2.0"


NETWORKS: dict[str, type[NetworkSettings]] = {
    "basic_unet": BasicUNet,
    "residual_unet": ResidualUNet,
    "efficient_unet": EfficientUNet,
}
#: Any kind of network, read from settings by its key `kind`.
Network = Annotated[SerializeAsAny[NetworkSettings], BeforeValidator(by_key("kind", NETWORKS, default="basic_unet"))]
