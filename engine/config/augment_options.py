"""Options of augmentation: the presets, and the keys that they set."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from data.paths import expanded
from models.options import Affects, Fraction, OldName

from .sections import Section


def _expanded(path: str) -> str:
    if "\0" in path:
        raise ValueError("expected a path without the character NUL")
    return str(expanded(path)) if path.startswith("~") else path


FilePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_expanded)]
ImageSide = Annotated[int, Field(ge=16, le=16_384)]
Scale = Annotated[float, Field(ge=0.001, le=1000)]
# Keys of `AugmentConfig`; all others are off. A preset keeps its values in later releases: runs can be repeated.
PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "flip": {"horizontal_flip": 0.5},
    "light": {"horizontal_flip": 0.5, "color_jitter": 0.2, "scale": 0.25, "min_visibility": 0.2},
    "medium": {
        "horizontal_flip": 0.5,
        "color_jitter": 0.3,
        "scale": 0.4,
        "iou_crop": 0.3,
        "zoom_out": 0.2,
        "rotate": 5.0,
        "blur": 0.05,
        "noise": 0.05,
        "min_visibility": 0.2,
    },
    "strong": {
        "horizontal_flip": 0.5,
        "color_jitter": 0.4,
        "scale": 0.5,
        "iou_crop": 0.5,
        "zoom_out": 0.3,
        "rotate": 10.0,
        "grayscale": 0.1,
        "blur": 0.1,
        "noise": 0.1,
        "jpeg": 0.1,
        "min_visibility": 0.2,
    },
    "aerial": {
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "rotate_90": 0.75,
        "color_jitter": 0.2,
        "scale": 0.4,
        "crop": 0.3,
        "min_visibility": 0.2,
    },
}
Preset = Literal["none", "flip", "light", "medium", "strong", "aerial"]


class LargeScaleJitterConfig(Section):
    """Large-scale jitter, https://arxiv.org/abs/2012.07177."""

    size: Annotated[ImageSide, Affects.RESULT] = 1024
    """Side of the square that training images are cropped or padded to, in pixels."""
    scale: Annotated[list[Scale], Field(min_length=2, max_length=2), Affects.RESULT] = Field([0.1, 2.0])
    """Range of the random scale; at 1 the longer side of the image equals the side of the square."""


class AugmentConfig(Section):
    """Random changes of training images. A word is a preset, as in `augment: light`; keys override the preset.

    A key that is null has the value of the preset, or is off. The `config.yaml` of a run contains all values. The
    [guide](../guides/augmentation.md) shows each preset.
    """

    preset: Annotated[Preset, Affects.RESULT] = "flip"
    """Values of all keys that are null. flip: only `horizontal_flip` 0.5. light, medium and strong: for photographs.
    aerial: for images from above, in which no side is up."""
    horizontal_flip: Annotated[Fraction | None, Affects.RESULT, OldName("data.flip")] = None
    """Probability of a horizontal flip."""
    vertical_flip: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a vertical flip."""
    rotate_90: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a rotation by 90, 180 or 270 degrees."""
    rotate: Annotated[Annotated[float, Field(ge=0, le=180)] | None, Affects.RESULT] = None
    """Maximum angle of a random rotation, in degrees. The box of a rotated object is the one around its rotated mask,
    or around its rotated box if the detector has no masks. The latter is larger than the object."""
    iou_crop: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a crop by the IoU of boxes and crop, as in SSD."""
    crop: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a crop to a random rectangle with 50 to 100 % of each side."""
    zoom_out: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a margin that makes each side up to twice as long."""
    scale: Annotated[Annotated[float, Field(ge=0, le=9)] | None, Affects.RESULT] = None
    """Maximum relative change of the size of objects, by a crop or a margin: a factor from 1 / (1 + scale) to
    1 + scale."""
    large_scale_jitter: Annotated[LargeScaleJitterConfig | None, OldName("data.large_scale_jitter")] = None
    """Large-scale jitter of training images instead of `min_size` and `max_size`; no preset has it."""
    mosaic: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a mosaic of four images, each at 50 to 100 % of its size. It takes the time of four images."""
    copy_paste: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability that about half of the objects of another image are pasted over the image. Only for detectors with
    masks."""
    mixup: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a weighted mean with another image, with the objects of both."""
    min_visibility: Annotated[Fraction | None, Affects.RESULT] = None
    """Minimum visible fraction of an object that a crop or a rotation cuts, or that pasted objects cover. Other objects
    are removed from the image's ground truth."""
    color_jitter: Annotated[Fraction | None, Affects.RESULT, OldName("data.color_jitter")] = None
    """Maximum relative change of brightness, contrast and saturation; the hue changes by up to a quarter of it."""
    grayscale: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a grey image."""
    blur: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels."""
    noise: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of Gaussian noise with a standard deviation of up to 6 % of white."""
    jpeg: Annotated[Fraction | None, Affects.RESULT] = None
    """Probability of a JPEG compression with a quality of 40 to 95."""
    albumentations: Annotated[FilePath | None, Affects.RESULT] = None
    """YAML or JSON file of a pipeline that `albumentations.save()` wrote, applied before all other augmentations. It
    needs Albumentations 2.0. The [guide](../guides/augmentation.md#a-pipeline-of-albumentations) has an example."""

    @property
    def description(self) -> str:
        """The preset and the values of all keys that are on, in one line."""
        values = self.model_dump(exclude={"preset", *([] if self.keys_that_cut else ["min_visibility"])})
        keys = ", ".join(f"{key} {value:g}" for key, value in values.items() if isinstance(value, float) and value)
        jitter = self.large_scale_jitter
        words = [
            self.preset,
            keys,
            jitter and f"large_scale_jitter to {jitter.size} pixels by {jitter.scale}",
            self.albumentations and f"albumentations {self.albumentations}",
        ]
        return ": ".join(word for word in words if word)

    @property
    def strong_keys(self) -> list[str]:
        """The keys that are on and have no effect in the last `weak_last_epochs`."""
        return [key for key in self._are_on if key not in _WEAK]

    @property
    def keys_that_cut(self) -> list[str]:
        """The keys that are on and may cut boxes."""
        return [key for key in self._are_on if key in _CUTTING]

    @property
    def _are_on(self) -> list[str]:
        return [key for key in type(self).model_fields if key not in _SETTINGS and getattr(self, key)]

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Replace null by the values of the preset."""
        if not isinstance(values, dict | cls):
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or a mapping of keys")
        if isinstance(values, cls):
            return values
        preset = values.get("preset", cls.model_fields["preset"].default)
        known = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {
            **_OFF,
            **known,
            **{key: value for key, value in values.items() if value is not None or key == "preset"},
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the word of a preset to the JSON schema."""
        section = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string", "enum": [*PRESETS]}, section], "description": section["description"]}


_SETTINGS = ("preset", "min_visibility")
_WEAK = ("horizontal_flip", "vertical_flip", "rotate_90")
_CUTTING = (
    "rotate",
    "iou_crop",
    "crop",
    "scale",
    "large_scale_jitter",
    "mosaic",
    "copy_paste",
    "mixup",
    "albumentations",
)
_OFF = dict.fromkeys(AugmentConfig.model_fields.keys() - {"preset", "large_scale_jitter", "albumentations"}, 0.0)
