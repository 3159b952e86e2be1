"""Options of a run: every key with its type, range, default and meaning. `loading.py` reads them from YAML."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from dcn import BACKENDS
from dcn.replace import check_stages
from models import DETECTORS, NORMS, DetectorSpec, FpnOptions
from models.options import (
    Affects,
    Channels,
    Choices,
    Deforms,
    Form,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OldName,
    PositiveFloat,
    PositiveInt,
    UsedIf,
)
from models.resnet import RESNETS, ActivationCheckpointing, check_name
from models.tiling import MAX_OVERLAP, MIN_TILE, OVERLAP

from .data_options import ClassName, DataConfig, FilePath
from .sections import Section, options_of, section_of

_IF_STAGES = UsedIf("dcn_v2_stages")
_IF_DEFORMABLE = UsedIf("model.is_deformable", otherwise="no layer is deformable")
_UNLESS_WHOLE = UsedIf("model.weights", (None,), otherwise="model.weights is set", if_given=True)
_IF_STEP = UsedIf("lr_schedule", ("step",), if_given=True)
FpnConfig = section_of(FpnOptions)
# "auto", and the devices that PyTorch can train on; not meta, which has no numbers
CALLBACK = Form(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "module:function, as in my_logger:log")
DEVICE = Form(r"auto|(cpu|mps)(:0)?|cuda(:\d{1,2})?", "auto, cpu, cuda, cuda:N or mps")


def _check_stages(stages: Any) -> Any:
    """Check stages by the function that explains how they are counted; pydantic reports other values."""
    if isinstance(stages, list) and len(stages) < 10 and all(type(s) is int and 0 <= s < 10 for s in stages):
        check_stages(stages, "dcn_v2_stages")
    return stages


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"expected a regular expression, but {error}") from None
    return pattern


_EXPLAINED = BeforeValidator(_check_stages)
Stage = Annotated[int, Field(ge=1, le=4)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Milestone = Annotated[float, Field(gt=0, le=1e9)]
Factor = Annotated[NonNegativeFloat, Field(le=1000)]
TileSide = Annotated[int, Field(ge=MIN_TILE, le=16_384)]
Overlap = Annotated[float, Field(ge=0, le=MAX_OVERLAP)]
WeightDecay = Annotated[NonNegativeFloat, Field(le=1000)]
ClassWeights = Annotated[dict[ClassName, Annotated[PositiveFloat, Field(le=1000)]], Field(max_length=10_000)]
ParameterPattern = Annotated[str, Field(max_length=1000), AfterValidator(_check_pattern)]


class BackboneConfig(Section):
    """ResNet and its deformable stages."""

    name: Annotated[str, Choices(RESNETS), Affects.NETWORK] = "resnet50"
    """A torchvision ResNet: resnet18/34/50/101/152, resnext..., wide_resnet.... The suffix _vd, as in resnet50_vd,
    selects its ResNet-D variant (deep stem, average-pooled shortcuts)."""
    dcn_v2_stages: Annotated[list[Stage], Field(max_length=4), _EXPLAINED, Affects.NETWORK, Deforms.LAYERS] = Field([])
    """Stages whose 3x3 convolutions are deformable, counted as torchvision's layers: [2, 3, 4] = layer2..4 = C3..C5."""
    dcn_every: Annotated[PositiveInt, Field(le=100), Affects.NETWORK, _IF_STAGES] = 1
    """Make every n-th block of a deformable stage deformable, counted back from the last block."""
    modulation: Annotated[bool, Affects.NETWORK, _IF_DEFORMABLE] = True
    """Type of deformable convolution: true is DCNv2, with a learned mask; false is DCNv1, without a mask."""
    offset_groups: Annotated[Channels, Affects.NETWORK, _IF_DEFORMABLE] = 1
    """Number of channel groups with separate offsets."""
    mask_scale: Annotated[
        PositiveFloat,
        Field(le=1000),
        Affects.MEANING,
        _IF_DEFORMABLE,
        UsedIf("modulation", otherwise="DCNv1 has no mask"),
    ] = 2.0
    """mask = mask_scale * sigmoid. With 2 the network starts as the plain network; 1 is the formula of the paper and of
    checkpoints from other frameworks."""
    stride_in_1x1: Annotated[bool, Affects.MEANING] = False
    """Whether bottlenecks have their stride in the first 1x1 convolution instead of the 3x3: for weights of Caffe and
    MSRA."""
    frozen_stages: Annotated[int, Field(ge=-1, le=4), Affects.NETWORK] = -1
    """-1 trains all stages, 0 freezes the stem, s freezes the stem and stages 1..s."""
    norm: Annotated[str, Choices(NORMS), Affects.NETWORK] = "frozen_bn"
    """frozen_bn (with pretrained weights), bn (batch norm per process), sync_bn (batch norm over all processes, on
    GPUs), or gn (group norm with 32 groups, for training from scratch)."""
    activation_checkpointing: Annotated[ActivationCheckpointing, Affects.RESULT, _IF_STAGES] = False
    """Whether the backward pass recomputes the deformable stages: less memory, more time, the same gradients."""
    weights: Annotated[FilePath | None, Affects.RESULT, _UNLESS_WHOLE] = None
    """Initial weights of the backbone: torchvision's name (IMAGENET1K_V1, DEFAULT), a local state-dict file (./x.pth),
    or null for random weights."""


class _ModelConfig(Section):
    """Detector, backbone and pyramid."""

    detector: Annotated[str, Choices(DETECTORS), Affects.NETWORK] = "faster_rcnn"
    """Name of the detector; the section of the same name has its options, and other detectors' sections are unused."""
    weights: Annotated[FilePath | None, Affects.RESULT] = None
    """Initial weights of the whole detector: a checkpoint (runs/r50/best.pt) or a file of tools/convert.py --config.
    Classes are matched by name, and `backbone.weights` is not used. null: only the backbone has initial weights."""
    dcn_backend: Annotated[str, Choices(("auto", *BACKENDS)), Affects.RESULT, _IF_DEFORMABLE] = "auto"
    """Implementation of deformable convolutions: a name in dcn.BACKENDS, or auto."""
    backbone: BackboneConfig = BackboneConfig()
    """Backbone: a ResNet and its deformable stages."""
    fpn: FpnConfig = FpnConfig()
    """Feature pyramid, for detectors that have one."""

    @property
    def spec(self) -> DetectorSpec:
        """The record of the detector.

        Raises:
            ValueError: if no detector has that name.
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


def _describe_section(name: str, spec: DetectorSpec) -> str:
    title, rest = re.fullmatch(r"([^.;:]*)(.*)", spec.options.__doc__, re.DOTALL).groups()
    more = f" {rest[2].upper()}{rest[3:]}" if rest.startswith(";") else ""
    return f"Options of {title}; used if `detector: {name}`.{more}"


ModelConfig = create_model(
    "ModelConfig",
    __base__=_ModelConfig,
    __doc__=_ModelConfig.__doc__,
    **{
        name: (section_of(spec.options), Field(section_of(spec.options)(), description=_describe_section(name, spec)))
        for name, spec in DETECTORS.items()
    },
)


class TrainConfig(Section):
    """Optimization, logging, checkpoints and evaluation."""

    epochs: Annotated[PositiveInt, Affects.RESULT] = 12
    """Number of epochs."""
    max_steps: Annotated[Steps | None, Affects.RESULT] = None
    """Maximum number of steps; null: `epochs` alone decides."""
    early_stopping_patience: Annotated[PositiveInt | None, Affects.RESULT, OldName("early_stop")] = None
    """Number of evaluations without a better AP after which training stops; null: off."""

    batch_size: Annotated[Annotated[PositiveInt, Field(le=10_000)] | Literal["auto"], Affects.RESULT] = 16
    """Images per forward pass and process. A step has batch_size x grad_accum_steps x processes images. auto: the
    largest number that fits into memory, measured at the start, up to 64 (16 on a CPU); a resumed run keeps it."""
    grad_accum_steps: Annotated[PositiveInt, Field(le=10_000), Affects.RESULT, OldName("accumulate")] = 1
    """Number of forward and backward passes of each process per step (gradient accumulation)."""
    base_batch_size: Annotated[PositiveInt | None, Affects.RESULT, OldName("reference_batch")] = 16
    """Images per step that `lr` is meant for; `lr` is multiplied by images per step / base_batch_size. null: no
    scaling."""

    class_weights: Annotated[Literal["balanced"] | ClassWeights | None, Affects.RESULT] = None
    """Weights of classes in the classification loss. A mapping of class names to weights, with 1 for all others. Or
    balanced: by the effective number of boxes, https://arxiv.org/abs/1901.05555, with a mean of 1. null: 1 for all."""

    optimizer: Annotated[str, Choices(("sgd", "adamw")), Affects.RESULT] = "sgd"
    """Optimizer."""
    lr: Annotated[PositiveFloat, Field(le=1000), Affects.RESULT] = 0.02
    """Learning rate."""
    backbone_lr_factor: Annotated[Factor, Affects.RESULT] = 1.0
    """Learning rate of the ResNet as a factor of `lr`; its offset layers use `offset_lr_factor`."""
    offset_lr_factor: Annotated[Factor, Affects.RESULT, _IF_DEFORMABLE] = 0.1
    """Learning rate of the layers that predict offsets and masks, as a factor of `lr`."""
    lr_factors: Annotated[dict[ParameterPattern, Factor], Field(max_length=1000), Affects.RESULT] = Field({})
    """Learning rates of parameters by name as factors of `lr`, instead of the two factors above. Keys are regular
    expressions, searched in the names; the first match counts, and the detector's factors come last. A key without a
    match is an error."""
    momentum: Annotated[float, Field(ge=0, lt=1), Affects.RESULT] = 0.9
    """Momentum of SGD; first beta of AdamW."""
    weight_decay: Annotated[WeightDecay, Affects.RESULT] = 1e-4
    """Weight decay."""
    norm_weight_decay: Annotated[WeightDecay | None, Affects.RESULT] = None
    """Weight decay of the weights and biases of norms; null: `weight_decay`."""
    bias_weight_decay: Annotated[WeightDecay | None, Affects.RESULT] = None
    """Weight decay of all other biases; null: `weight_decay`."""
    weight_decay_factors: Annotated[dict[ParameterPattern, Factor], Field(max_length=1000), Affects.RESULT] = Field({})
    """Weight decay of parameters by name as factors of `weight_decay`, instead of the two keys above; see
    `lr_factors`."""
    clip_grad_norm: Annotated[PositiveFloat | None, Affects.RESULT, OldName("clip_norm")] = 35.0
    """Maximum norm of the gradient over all parameters; null: no clipping."""

    lr_schedule: Annotated[str, Choices(("step", "cosine")), Affects.RESULT, OldName("schedule")] = "step"
    """Learning-rate schedule: step (times `gamma` at each of `milestones`) or cosine (decays to `min_lr_factor`)."""
    lr_schedule_unit: Annotated[Literal["epoch", "step"], Affects.RESULT, OldName("schedule_unit")] = "epoch"
    """Unit of `milestones`, and the interval at which the cosine decays."""
    warmup_steps: Annotated[NonNegativeInt, Affects.RESULT] = 500
    """Number of steps of the linear warm-up."""
    warmup_factor: Annotated[float, Field(gt=0, le=1), Affects.RESULT, UsedIf("warmup_steps", if_given=True)] = 0.001
    """Initial learning rate of the warm-up, as a factor of `lr`."""
    milestones: Annotated[list[Milestone], Field(max_length=1000), Affects.RESULT, _IF_STEP] = Field([8.0, 11.0])
    """Times at which the step schedule multiplies the learning rate by `gamma`, in `lr_schedule_unit`."""
    gamma: Annotated[PositiveFloat, Field(le=1000), Affects.RESULT, _IF_STEP] = 0.1
    """Factor of the learning rate at each milestone."""
    min_lr_factor: Annotated[Fraction, Affects.RESULT, UsedIf("lr_schedule", ("cosine",), if_given=True)] = 0.0
    """Final learning rate of the cosine schedule, as a factor of `lr`."""

    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Affects.RESULT] = None
    """Decay of an exponential moving average (EMA) of the weights, as in 0.9998; null: off. Training evaluates and
    saves both raw and EMA weights; the AP of the EMA weights is the AP of the run."""

    amp: Annotated[Literal["off", "bf16", "fp16"], Affects.RESULT] = "off"
    """Mixed precision: autocast to this type. fp16 uses loss scaling."""
    tf32: Annotated[bool, Affects.RESULT] = True
    """Whether NVIDIA GPUs may multiply float32 numbers in TF32: several times faster, with a mantissa of 10 bits."""
    channels_last: Annotated[bool, Affects.RESULT] = False
    """Whether images and weights use the channels_last memory format: faster on GPUs with amp."""
    compile: Annotated[bool, Affects.RESULT] = False
    """Whether to use torch.compile for the backbone and the pyramid; compiling takes minutes at the start."""

    log_every_steps: Annotated[Steps, Affects.NOTHING, OldName("log_every")] = 50
    """Steps between records in metrics.jsonl and TensorBoard; a record has the means since the last record."""
    checkpoint_every_steps: Annotated[Steps, Affects.NOTHING, OldName("checkpoint_every")] = 1000
    """Steps between checkpoints (last.pt); training also writes one after every epoch."""
    keep_last: Annotated[PositiveInt, Affects.NOTHING] = 2
    """Number of newest checkpoints to keep: last.pt and those before it. best.pt is kept in addition."""
    eval_every_epochs: Annotated[PositiveInt, Affects.RESULT, OldName("eval_every")] = 1
    """Epochs between evaluations; training always evaluates after the last epoch."""
    val_loss: Annotated[bool, Affects.NOTHING] = True
    """Whether each evaluation computes the losses on up to 1,000 validation images, without augmentation. A validation
    loss that rises while the training loss falls is a sign of overfitting."""
    images_every_steps: Annotated[Steps, Affects.NOTHING, OldName("picture_every")] = 1000
    """Steps between validation images in TensorBoard, and with DCN between histograms of offsets and masks; training
    also writes them at the end."""
    callback: Annotated[Annotated[str, Field(max_length=1000), CALLBACK] | None, Affects.NOTHING] = None
    """Function that receives each record of the run as a dict, for loggers such as Weights & Biases: module:function.
    Modules in the working directory are found. An exception in the function does not stop training. null: none."""


class EvalConfig(Section):
    """Evaluation with COCO metrics, in training, tools/eval.py and tools/compare.py."""

    max_detections: Annotated[int, Field(ge=100, le=100_000), Affects.RESULT] = 100
    """Number of detections of a class that AP and AR count in an image: those with the highest scores. COCO counts 100;
    images with more objects of a class need a higher value, and a higher `detections_per_image` of the detector."""
    backend: Annotated[Literal["auto", "pycocotools", "faster_coco_eval"], Affects.NOTHING] = "auto"
    """Library that computes AP and AR: pycocotools, faster_coco_eval (many times faster, the same figures to 1e-12), or
    auto: faster-coco-eval if it is installed."""


class TtaConfig(Section):
    """Test-time augmentation in tools/eval.py and tools/predict.py; evaluation during training has none."""

    flip: Annotated[bool, Affects.NOTHING] = False
    """Horizontal flip: detect in the image and the flipped image, and merge the detections; takes twice the time."""


class TileConfig(Section):
    """Tiles of large images with small objects in tools/eval.py and tools/predict.py; training has whole images."""

    size: Annotated[TileSide | None, Affects.NOTHING] = None
    """Side of a tile in pixels of the image; the detector resizes a tile as it resizes an image of this size. null:
    whole images."""
    overlap: Annotated[Overlap, Affects.NOTHING, UsedIf("size", if_given=True)] = OVERLAP
    """Fraction of a tile that neighbours share at least. Objects that are larger than the overlap are put together from
    their parts."""


class RunConfig(Section):
    """All options of a run."""

    data: DataConfig
    """Data set, image sizes, augmentation and loading."""
    model: ModelConfig = ModelConfig()
    """Detector, backbone and pyramid."""
    train: TrainConfig = TrainConfig()
    """Optimization, logging, checkpoints and evaluation."""
    eval: EvalConfig = EvalConfig()
    """COCO metrics."""
    tta: Annotated[TtaConfig, OldName("test")] = TtaConfig()
    """Test-time augmentation in tools/eval.py and tools/predict.py."""
    tile: TileConfig = TileConfig()
    """Detection in overlapping tiles in tools/eval.py and tools/predict.py."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Affects.NOTHING] = 0
    """Random seed; below 2**32."""
    device: Annotated[str, DEVICE, Affects.NOTHING] = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps."""


def keys_that_affect(*kinds: Affects) -> set[str]:
    """Return the dotted keys of the options whose mark is one of these kinds."""
    return {key for key, field in options_of(RunConfig).items() if any(mark in kinds for mark in field.metadata)}


def options_that_deform() -> dict[str, Any]:
    """Return the options that make layers deformable by dotted key, with their values for a plain network."""
    return {key: field.default for key, field in options_of(RunConfig).items() if Deforms.LAYERS in field.metadata}
