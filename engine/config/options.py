"""The options of a run: every key with its type, range, default and meaning. `loading.py` reads them from YAML."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from dcn import BACKENDS
from models import DETECTORS, KINDS, NORMS, DetectorSpec, FpnOptions
from models.options import (
    Affects,
    Alias,
    Choices,
    Deforms,
    Fraction,
    NonNegativeFloat,
    OldName,
    PositiveFloat,
    PositiveInt,
    UsedIf,
)
from models.resnet import ActivationCheckpointing, check_name

from .sections import Section, options_of, section_of

_IF_STAGES = UsedIf("dcn_v2_stages")
_IF_DEFORMABLE = UsedIf("model.is_deformable", otherwise="nothing is deformable")
_IF_STEP = UsedIf("lr_schedule", ("step",), if_given=True)
FpnConfig = section_of(FpnOptions)


class SplitConfig(Section):
    """Where one split of a COCO-format data set lies."""

    images: Annotated[str, Affects.NOTHING]
    """Folder of the pictures; a relative path is relative to where the command runs."""
    annotations: Annotated[str, Affects.NOTHING]
    """COCO instances JSON file."""


class LargeScaleJitterConfig(Section):
    """Large-scale jitter, https://arxiv.org/abs/2012.07177."""

    size: Annotated[PositiveInt, Affects.RESULT] = 1024
    """Side of the square that training images are cut or padded to, in pixels."""
    scale: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2), Affects.RESULT] = Field([0.1, 2.0])
    """Bounds of the random scale; at 1 the image just fits into the square."""


class DataConfig(Section):
    """Data set and how pictures reach the model."""

    train: SplitConfig
    """The split to learn from."""
    val: SplitConfig
    """The split to judge by."""
    download_hint: Annotated[str | None, Affects.NOTHING, OldName("source")] = None
    """How to get the data set; shown when it is missing."""
    invalid_annotations: Annotated[Literal["raise", "clip", "drop"], Affects.RESULT, OldName("invalid_boxes")] = "raise"
    """What to do with training boxes that have no size or leave their image by more than a pixel. With a detector of
    masks also with annotations of both splits whose mask is missing or cannot be read: clip and drop leave them out."""
    check_images: Annotated[Literal["first_time", "always", "never"], Affects.NOTHING] = "first_time"
    """When to open every image file before a start: at the first start of a run (its later starts and evaluations check
    again only after the annotation file or an image folder has changed), always, or never."""
    keep_images_without_boxes: Annotated[bool, Affects.RESULT, OldName("keep_empty")] = False
    """Whether to train on images without any box too."""
    on_unreadable_image: Annotated[Literal["raise", "skip"], Affects.RESULT, OldName("unreadable")] = "raise"
    """What to do when an image cannot be read during a run: stop, or leave it out; what was left out is counted and
    reported."""
    flip: Annotated[Fraction, Affects.RESULT] = 0.5
    """Probability of a horizontal flip in training."""
    color_jitter: Annotated[Fraction, Affects.RESULT] = 0.0
    """In training, brightness, contrast and saturation vary by up to this share, and the hue by a quarter of it."""
    large_scale_jitter: LargeScaleJitterConfig | None = None
    """Training images are scaled by this, in place of `min_size` and `max_size`; null: not."""
    weak_last_epochs: Annotated[int, Field(ge=0), Affects.RESULT] = 0
    """Epochs at the end of a run without `color_jitter` and `large_scale_jitter`: training images are then as those of
    evaluation, but for `flip`."""
    resize: Annotated[Literal[KINDS] | None, Affects.RESULT] = None
    """How images are resized: shortest (the shorter side gets a size), stretch (to a square), letterbox (to fit a
    square, what is left of it is filled); null: as the detector does by default, shortest for all but those that say
    otherwise."""
    min_size: Annotated[PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)], Affects.RESULT] = 800
    """Shorter side that images are scaled to, or side of the square, in pixels. With a list (multi-scale training), one
    size is drawn for each training image, or for each step if images become squares."""
    eval_size: Annotated[PositiveInt | None, Affects.RESULT] = None
    """The size in evaluation, in pixels; null: the last of `min_size`."""
    max_size: Annotated[PositiveInt, Affects.RESULT, UsedIf("resize", (None, "shortest"))] = 1333
    """Bound on the longer side, in pixels, of resize shortest."""
    num_workers: Annotated[int, Field(ge=0), Affects.NOTHING, Alias("workers")] = 4
    """Processes that load pictures; 0 loads in the training process."""


class BackboneConfig(Section):
    """ResNet and where it is deformable."""

    name: Annotated[str, Affects.NETWORK] = "resnet50"
    """A torchvision ResNet: resnet18/34/50/101/152, resnext..., wide_resnet...; with _vd its ResNet-D (deep stem,
    average-pooled shortcuts), as in resnet50_vd."""
    dcn_v2_stages: Annotated[list[int], Affects.NETWORK, Deforms.LAYERS] = Field([])
    """Stages whose 3x3 convolutions are deformable, counted as torchvision's layers: [2, 3, 4] = layer2..4 = C3..C5."""
    dcn_every: Annotated[PositiveInt, Affects.NETWORK, _IF_STAGES] = 1
    """Which blocks of a deformable stage are: every so many, counted back from the last, which always is."""
    modulation: Annotated[bool, Affects.NETWORK, _IF_DEFORMABLE] = True
    """True: DCNv2, samples are weighted by a learned mask. False: DCNv1."""
    offset_groups: Annotated[PositiveInt, Affects.NETWORK, _IF_DEFORMABLE] = 1
    """Channel groups with offsets of their own."""
    mask_scale: Annotated[
        PositiveFloat, Affects.MEANING, _IF_DEFORMABLE, UsedIf("modulation", otherwise="DCNv1 has no mask")
    ] = 2.0
    """mask = mask_scale * sigmoid; 2 starts as the plain network, 1 is the paper's text and others' checkpoints."""
    stride_in_1x1: Annotated[bool, Affects.MEANING] = False
    """Bottlenecks have their stride in the first 1x1 convolution, not in the 3x3: for weights of Caffe and MSRA."""
    frozen_stages: Annotated[int, Field(ge=-1, le=4), Affects.NETWORK] = -1
    """-1 trains all, 0 freezes the stem, s freezes the stem and stages 1..s."""
    norm: Annotated[str, Choices(NORMS), Affects.NETWORK] = "frozen_bn"
    """frozen_bn (with pretrained weights), bn (each process by itself), sync_bn (bn over all processes, on GPUs), or
    gn (group norm of 32, for a start from scratch)."""
    activation_checkpointing: Annotated[ActivationCheckpointing, Affects.RESULT, _IF_STAGES] = False
    """Activation checkpointing: compute the deformable stages again in the backward pass, to save their memory."""
    weights: Annotated[str | None, Affects.RESULT] = None
    """torchvision's name (IMAGENET1K_V1, DEFAULT), a local state-dict file (./x.pth), or null for a random start."""


class _ModelConfig(Section):
    """Detector."""

    detector: Annotated[str, Choices(DETECTORS), Affects.NETWORK] = "faster_rcnn"
    """Which one; its options stand in the section of its name, and those of the other sections change nothing."""
    weights: Annotated[str | None, Affects.RESULT] = None
    """Whole detector to start from: a checkpoint (runs/r50/best.pt), or what tools/convert.py --config made. Classes
    are taken over by name, and `backbone.weights` is not read. null: only the backbone has weights to start from."""
    dcn_backend: Annotated[str, Choices(("auto", *BACKENDS)), Affects.RESULT, _IF_DEFORMABLE] = "auto"
    """How deformable convolutions are computed: a name in dcn.BACKENDS, or auto."""
    backbone: BackboneConfig = BackboneConfig()
    """ResNet."""
    fpn: FpnConfig = FpnConfig()
    """Pyramid."""

    @property
    def spec(self) -> DetectorSpec:
        """The record of the detector.

        Raises:
            ValueError: if there is no detector of that name.
        """
        check_name("detector", self.detector, DETECTORS)
        return DETECTORS[self.detector]

    @property
    def options(self) -> Section:
        """The section of the detector; raises as `spec`."""
        check_name("detector", self.detector, DETECTORS)
        return getattr(self, self.detector)

    @property
    def is_deformable(self) -> bool:
        """Whether there is any deformable layer."""
        fields = [(part, *field) for part in (self.backbone, self.options) for field in type(part).model_fields.items()]
        return any(Deforms.LAYERS in field.metadata and getattr(part, name) for part, name, field in fields)


ModelConfig = create_model(
    "ModelConfig",
    __base__=_ModelConfig,
    __doc__=_ModelConfig.__doc__,
    **{
        name: (section_of(spec.options), Field(section_of(spec.options)(), description="Heads."))
        for name, spec in DETECTORS.items()
    },
)


class TrainConfig(Section):
    """Optimisation and what is written when."""

    epochs: Annotated[PositiveInt, Affects.RESULT] = 12
    """Passes over the training images."""
    max_steps: Annotated[PositiveInt | None, Affects.RESULT] = None
    """Stop after so many steps, whatever `epochs` says."""
    early_stopping_patience: Annotated[PositiveInt | None, Affects.RESULT, OldName("early_stop")] = None
    """Stop after so many evaluations without a better AP; null: never."""

    batch_size: Annotated[PositiveInt, Affects.RESULT] = 16
    """Images in one forward pass of one process. A step has batch_size x grad_accum_steps x processes."""
    grad_accum_steps: Annotated[PositiveInt, Affects.RESULT, OldName("accumulate")] = 1
    """Forward and backward passes of each process in a step: for large steps in little memory."""
    base_batch_size: Annotated[PositiveInt | None, Affects.RESULT, OldName("reference_batch")] = 16
    """Images in a step that `lr` is meant for; it is scaled by the images in a step over this. null: no scaling."""

    optimizer: Annotated[str, Choices(("sgd", "adamw")), Affects.RESULT] = "sgd"
    """sgd or adamw."""
    lr: Annotated[PositiveFloat, Affects.RESULT] = 0.02
    """Learning rate."""
    backbone_lr_factor: Annotated[NonNegativeFloat, Affects.RESULT] = 1.0
    """Learning rate of the ResNet over `lr`; that of its offset layers is `offset_lr_factor`."""
    offset_lr_factor: Annotated[NonNegativeFloat, Affects.RESULT, _IF_DEFORMABLE] = 0.1
    """Learning rate of the layers that predict offsets and masks, over `lr`."""
    lr_factors: Annotated[dict[str, NonNegativeFloat], Affects.RESULT] = Field({})
    """Learning rate over `lr` of parameters by name, in place of the two factors above: a regular expression, searched
    for in the names, and its factor; the first that is found decides. Those of the detector come after. One that
    matches nothing is refused."""
    momentum: Annotated[float, Field(ge=0, lt=1), Affects.RESULT] = 0.9
    """Of SGD; the first beta of AdamW."""
    weight_decay: Annotated[NonNegativeFloat, Affects.RESULT] = 1e-4
    """Of all parameters but those that the next two keys take out."""
    norm_weight_decay: Annotated[NonNegativeFloat | None, Affects.RESULT] = None
    """Of weights and biases of norms; null: as the rest."""
    bias_weight_decay: Annotated[NonNegativeFloat | None, Affects.RESULT] = None
    """Of all other biases; null: as the rest."""
    weight_decay_factors: Annotated[dict[str, NonNegativeFloat], Affects.RESULT] = Field({})
    """Weight decay over `weight_decay` of parameters by name, as `lr_factors`; in place of the two keys above."""
    clip_grad_norm: Annotated[PositiveFloat | None, Affects.RESULT, OldName("clip_norm")] = 35.0
    """Bound on the norm of the whole gradient; null: none."""

    lr_schedule: Annotated[str, Choices(("step", "cosine")), Affects.RESULT, OldName("schedule")] = "step"
    """step (falls by `gamma` at `milestones`) or cosine (falls to `min_lr_factor` at the end of the run)."""
    lr_schedule_unit: Annotated[Literal["epoch", "step"], Affects.RESULT, OldName("schedule_unit")] = "epoch"
    """What `milestones` count; and whether the cosine falls once an epoch or with every step."""
    warmup_steps: Annotated[int, Field(ge=0), Affects.RESULT] = 500
    """Steps over which the learning rate rises linearly."""
    warmup_factor: Annotated[float, Field(gt=0, le=1), Affects.RESULT, UsedIf("warmup_steps", if_given=True)] = 0.001
    """Where it starts, over the full one."""
    milestones: Annotated[list[PositiveFloat], Affects.RESULT, _IF_STEP] = Field([8.0, 11.0])
    """Of schedule step: when the learning rate is multiplied by `gamma`, counted in `lr_schedule_unit`."""
    gamma: Annotated[PositiveFloat, Affects.RESULT, _IF_STEP] = 0.1
    """See `milestones`."""
    min_lr_factor: Annotated[Fraction, Affects.RESULT, UsedIf("lr_schedule", ("cosine",), if_given=True)] = 0.0
    """Of schedule cosine: the last learning rate over the full one."""

    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Affects.RESULT] = None
    """Keep an exponential moving average of the weights with this decay, as in 0.9998; it is judged and saved beside
    the raw weights, and its AP is the run's. null: none."""

    amp: Annotated[Literal["off", "bf16", "fp16"], Affects.RESULT] = "off"
    """Mixed precision: autocast to this type; fp16 with loss scaling."""
    tf32: Annotated[bool, Affects.RESULT] = True
    """Whether NVIDIA GPUs may multiply float32 numbers in TF32, several times faster at 10 bits of mantissa."""
    channels_last: Annotated[bool, Affects.RESULT] = False
    """Keep images and weights as (batch, height, width, channels) in memory: faster on GPUs with amp."""
    compile: Annotated[bool, Affects.RESULT] = False
    """torch.compile of backbone and pyramid; costs minutes at the start."""

    log_every_steps: Annotated[PositiveInt, Affects.NOTHING, OldName("log_every")] = 50
    """Steps between two records in metrics.jsonl and TensorBoard; each is the mean since the last."""
    checkpoint_every_steps: Annotated[PositiveInt, Affects.NOTHING, OldName("checkpoint_every")] = 1000
    """Steps between two writings of last.pt; it is written after every epoch too."""
    keep_last: Annotated[PositiveInt, Affects.NOTHING] = 2
    """How many of the newest checkpoints are kept: last.pt and those before it. best.pt stays beside them."""
    eval_every_epochs: Annotated[PositiveInt, Affects.RESULT, OldName("eval_every")] = 1
    """Epochs between two evaluations; the last epoch is always followed by one."""
    images_every_steps: Annotated[PositiveInt, Affects.NOTHING, OldName("picture_every")] = 1000
    """Steps between two sets of pictures of validation images in TensorBoard, and with DCN between two histograms of
    offsets and masks; the end adds one."""


class TtaConfig(Section):
    """Test-time augmentation in tools/eval.py and tools/predict.py; evaluation during training has none."""

    flip: Annotated[bool, Affects.NOTHING] = False
    """Horizontal flip: also detect in the flipped image and merge the detections of both; takes twice the time."""


class RunConfig(Section):
    """A whole run."""

    data: DataConfig
    """Data set and how pictures reach the model."""
    model: ModelConfig = ModelConfig()
    """Detector."""
    train: TrainConfig = TrainConfig()
    """Optimisation and what is written when."""
    tta: Annotated[TtaConfig, OldName("test")] = TtaConfig()
    """Test-time augmentation in tools/eval.py and tools/predict.py."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Affects.NOTHING] = 0
    """Of everything random; below 2**32."""
    device: Annotated[str, Affects.NOTHING] = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""


def keys_that_affect(*kinds: Affects) -> set[str]:
    """Return the dotted keys of the options a change of which changes things of these kinds."""
    return {key for key, field in options_of(RunConfig).items() if any(mark in kinds for mark in field.metadata)}


def options_that_deform() -> dict[str, Any]:
    """Return the options that make layers deformable by dotted key, with the values that make none so."""
    return {key: field.default for key, field in options_of(RunConfig).items() if Deforms.LAYERS in field.metadata}
