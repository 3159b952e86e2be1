"""From a config to objects: each option arrives where it belongs."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DatasetError, ImageError
from dcn import DeformConv2d, triton_backend
from engine.building.data import (
    build_eval_loader,
    build_train_loader,
    describe_skipped_check,
    max_aspect_ratio,
    read_split,
    warn_of_annotations,
    write_checked_images,
)
from engine.building.model import build_model, check_dcn_backend
from engine.building.training import build_trainer
from engine.config.loading import check_config, load_config
from engine.config.names import with_current_names
from engine.display.drawing import LINE
from engine.display.progress import Progress
from engine.distributed.preemption import StopRequest
from engine.distributed.processes import DistributedContext
from engine.insight.figures import dcn_figures
from engine.training.metrics_logger import NullLogger
from models import DETECTORS, resnet
from models.anchors import ExactAnchors


def model_of(tiny_config, *overrides, pretrained=True):
    config = load_config(tiny_config, overrides)
    return build_model(config.model, config.data, 5, pretrained=pretrained)


def test_every_variant_of_the_backbone_arrives(tiny_config):
    variant = "{name: resnet50_vd, norm: bn, dcn_v2_stages: [2], dcn_every: 3, stride_in_1x1: true}"
    body = model_of(tiny_config, f"model.backbone={variant}")[0].backbone.body
    assert [isinstance(block.conv2, DeformConv2d) for block in body.layer2] == [True, False, False, True]
    assert body.layer2[0].conv1.stride == (2, 2)
    assert len(body.conv1) == 7


def test_every_option_of_the_model_arrives(tiny_config):
    model, report = model_of(
        tiny_config,
        "data.min_size=[48, 64]",
        "data.max_size=80",
        "model.dcn_backend=reference",
        "model.backbone={dcn_v2_stages: [2], modulation: false, offset_groups: 4, mask_scale: 1.0, frozen_stages: 0}",
        "model.fpn.out_channels=16",
        """model.faster_rcnn={anchor_sizes: [8, 16, 24], aspect_ratios: [1, 3], roi_canonical_size: 50,
           box_head_channels: 24, rpn_pre_nms_top_n_train: 31, rpn_post_nms_top_n_train: 29,
           rpn_pre_nms_top_n_test: 17, rpn_post_nms_top_n_test: 13, rpn_batch_size_per_image: 19,
           box_batch_size_per_image: 23, score_threshold: 0.25, nms_threshold: 0.375, detections_per_image: 11}""",
    )
    assert report is None
    assert model.training
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    options = [(layer.modulation, layer.offset_groups, layer.mask_scale, layer.backend) for layer in layers]
    assert options == [(False, 4, 1.0, "reference")] * 2
    assert not model.backbone.body.conv1.weight.requires_grad
    assert model.backbone.body.layer1[0].conv1.weight.requires_grad
    assert model.backbone.out_channels == 16
    assert (list(model.transform.min_size), model.transform.max_size) == ([64], 80)  # that of evaluation
    assert model.rpn.anchor_generator.sizes == ((8,), (16,), (24,))
    assert model.rpn.anchor_generator.aspect_ratios == ((1.0, 3.0),) * 3
    assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (31, 29)
    assert model.rpn.sampler.batch_size_per_image == 19
    assert model.roi_heads.sampler.batch_size_per_image == 23
    assert model.roi_heads.box_roi_pool.canonical_size == 50
    assert model.roi_heads.box_head.fc7.out_features == 24
    assert model.roi_heads.box_predictor.cls_score.out_features == 6
    assert (model.roi_heads.score_thresh, model.roi_heads.nms_thresh) == (0.25, 0.375)
    assert model.roi_heads.detections_per_img == 11
    model.eval()
    assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (17, 13)


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
def test_every_option_of_two_stage_detectors_arrives(tiny_config, detector):
    own = {"mask": "mask_head_channels: 12", "cascade": "stage_loss_weights: [3, 2, 1]"}
    options = [
        "anchor_sizes: [8, 16, 24]",
        "anchors: exact",
        "roi_aligned: true",
        "roi_sampling_ratio: 3",
        "rpn_smooth_l1_beta: 0",
        "box_smooth_l1_beta: 0.5",
        "box_batch_size_per_image: 23",
        "detections_per_image: 11",
    ]
    options += [option for part, option in own.items() if part in detector]
    overrides = [f"model.detector={detector}", f"model.{detector}={{{', '.join(options)}}}"]
    model, _ = model_of(tiny_config, *overrides)
    heads, anchors = model.roi_heads, model.rpn.anchor_generator
    assert (type(anchors), anchors.strides) == (ExactAnchors, [4, 8, 16])
    pools = [heads.box_roi_pool, *([heads.mask_roi_pool] if "mask" in detector else [])]
    assert [(pool.aligned, pool.sampling_ratio) for pool in pools] == [(True, 3)] * len(pools)
    assert (model.rpn.smooth_l1_beta, heads.smooth_l1_beta) == (0, 0.5)
    assert (heads.sampler.batch_size_per_image, heads.detections_per_img) == (23, 11)
    assert heads.has_mask() == ("mask" in detector)
    assert not heads.has_mask() or heads.mask_predictor.mask_fcn_logits.in_channels == 12
    assert getattr(heads, "loss_weights", None) == ([3, 2, 1] if "cascade" in detector else None)


def test_every_option_of_retinanet_arrives(tiny_config):
    model, _ = model_of(
        tiny_config,
        "model.detector=retinanet",
        "model.fpn={levels: [4, 5], out_channels: 16, extra_levels: p6p7_from_c5}",
        """model.retinanet={anchor_sizes: [8, 16, 24, 40], scales_per_octave: 2, aspect_ratios: [1, 3],
           positive_iou: 0.75, negative_iou: 0.25, score_threshold: 0.125, nms_threshold: 0.375, topk_candidates: 77,
           detections_per_image: 11, anchors: exact, clip_boxes: after_nms, smooth_l1_beta: 0.25}""",
    )
    assert (model.backbone.out_channels, model.backbone.fpn.extra_blocks.p6.in_channels) == (16, 512)
    assert [size for level in model.anchor_generator.sizes for size in level] == pytest.approx(
        [8, 8 * 2**0.5, 16, 16 * 2**0.5, 24, 24 * 2**0.5, 40, 40 * 2**0.5]
    )
    assert model.anchor_generator.strides == [16, 32, 64, 128]
    assert (model.clip_boxes, model.head.smooth_l1_beta) == ("after_nms", 0.25)
    assert model.anchor_generator.aspect_ratios == ((1.0, 3.0),) * 4
    assert (model.proposal_matcher.high_threshold, model.proposal_matcher.low_threshold) == (0.75, 0.25)
    assert (model.score_thresh, model.nms_thresh) == (0.125, 0.375)
    assert (model.topk_candidates, model.detections_per_img) == (77, 11)
    assert (list(model.transform.min_size), model.transform.max_size) == ([64], 96)


def test_every_option_of_fcos_arrives(tiny_config):
    """The deformable layers of its head are as those of the backbone."""
    model, _ = model_of(
        tiny_config,
        "model.detector=fcos",
        "model.dcn_backend=reference",
        "model.backbone={dcn_v2_stages: [2], modulation: false, offset_groups: 4, mask_scale: 1.5}",
        "model.fpn.out_channels=96",
        """model.fcos={num_dcn_convs: 3, center_sampling_radius: 2.5, score_threshold: 0.125, nms_threshold: 0.375,
           topk_candidates: 77, detections_per_image: 11}""",
    )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DeformConv2d)}
    assert sum(name.startswith("head.") for name in layers) == 6
    options = [(layer.modulation, layer.offset_groups, layer.mask_scale, layer.backend) for layer in layers.values()]
    assert options == [(False, 4, 1.5, "reference")] * 8
    assert model.center_sampling_radius == 2.5
    assert (model.score_thresh, model.nms_thresh) == (0.125, 0.375)
    assert (model.topk_candidates, model.detections_per_img) == (77, 11)


def test_weights_are_loaded_unless_a_checkpoint_follows(tiny_config, tmp_path):
    torch.save(resnet("resnet18", norm="gn").state_dict(), tmp_path / "weights.pth")
    weights = f"model.backbone.weights={tmp_path}/weights.pth"
    model, report = model_of(tiny_config, weights)
    assert report.loaded > 50
    saved = torch.load(tmp_path / "weights.pth")
    assert torch.equal(model.backbone.body.conv1.weight, saved["conv1.weight"])
    model, report = model_of(tiny_config, weights, pretrained=False)
    assert report is None
    assert not torch.equal(model.backbone.body.conv1.weight, saved["conv1.weight"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.detector=faster-rcnn", "model.detector: expected one of faster_rcnn, .*, got 'faster-rcnn'"),
        ("model.backbone.name=resnet19", "model.backbone.name: expected one of resnet18, .*, got 'resnet19'"),
        ("model.backbone.norm=batch", "model.backbone.norm: expected one of frozen_bn, .*, got 'batch'"),
        ("model.dcn_backend=cuda", "cuda"),
        ("model.backbone.dcn_v2_stages=[5]", r"1, 2, 3 or 4, got \[5\]"),
        ("model.backbone.dcn_v2_stages=[3]", "`levels` must include 4, because `dcn_v2_stages` contains stage 3"),
        ("model.faster_rcnn.anchor_sizes=[8, 16]", "3 levels p2, p3, pool, got 2"),
        ("model.fpn.extra_levels=p6p7", r"must end with 5 .*, got \[2, 3\]"),
        ("model.fpn.extra_levels=p6", "expected one of pool, p6p7, p6p7_from_c5, got 'p6'"),
        ("model.detector=retinanet", "3 levels p2, p3, pool, got 5"),
        ("model.detector=fcos", "a multiple of 32 and at least 64, .*, got 32"),
        ("model.backbone.weights=./none.pth", "none.pth does not exist"),
    ],
)
def test_parts_that_do_not_fit(tiny_config, override, said):
    if "dcn_backend" in override:
        override = "model={dcn_backend: cuda, backbone: {dcn_v2_stages: [2]}}"
    with pytest.raises(ValueError, match=said):
        model_of(tiny_config, override)


def test_a_backend_that_cannot_run_is_found_before_the_model_is_built(tiny_config, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(triton_backend, "HAS_TRITON", True)
    asked = ["model.dcn_backend=triton"]
    check_dcn_backend(load_config(tiny_config, asked).model, torch.device("cpu"))  # has no deformable layer
    check_dcn_backend(load_config(tiny_config, [*asked, "model.fcos.num_dcn_convs=1"]).model, torch.device("cpu"))
    head = ["model.detector=fcos", "model.fcos.num_dcn_convs=1"]
    for deformable in (["model.backbone.dcn_v2_stages=[2]"], head):
        with pytest.raises(ValueError, match="DCN backend 'triton' cannot run here: it runs on GPUs only"):
            check_dcn_backend(load_config(tiny_config, [*asked, *deformable]).model, torch.device("cpu"))


def test_splits_and_loaders(tiny_config):
    config = load_config(tiny_config, ["train.batch_size=4", "train.grad_accum_steps=2", "data.num_workers=2"])
    seen = []
    splits = {
        name: read_split(config.data, name, lambda items: seen.append(len(items)) or items) for name in ("train", "val")
    }
    assert seen == [12, 6]
    assert len(splits["train"].arrays) == 12
    train = build_train_loader(config, splits["train"], pin_memory=False)
    assert (train.num_workers, train.batch_sampler.batch_size, train.batch_sampler.steps) == (2, 4, 2)
    val = build_eval_loader(config, splits["val"], pin_memory=False)
    assert (len(val), val.num_workers, len(val.dataset)) == (2, 2, 6)
    distributed = DistributedContext(rank=1, size=2)
    train = build_train_loader(config, splits["train"], pin_memory=False, distributed=distributed)
    assert (train.batch_sampler.steps, train.batch_sampler.rank) == (1, 1)
    val = build_eval_loader(config, splits["val"], pin_memory=False, distributed=distributed)
    assert [target["image_id"] for batch in val for target in batch.targets] == [2, 4, 6]


@pytest.mark.parametrize(("policy", "outcome"), [("raise", pytest.raises(ImageError)), ("skip", nullcontext())])
def test_what_becomes_of_unreadable_images(tiny_config, shapes, tmp_path, policy, outcome):
    for split in ("train", "val"):
        shutil.copytree(shapes / split, tmp_path / split)
    places = [f"data.{split}.images={tmp_path}/{split}" for split in ("train", "val")]
    config = load_config(tiny_config, [*places, f"data.on_unreadable_image={policy}", "train.batch_size=12"])
    for name, build in (("train", build_train_loader), ("val", build_eval_loader)):
        split = read_split(config.data, name)
        (tmp_path / name / split.arrays.file_name(2)).unlink()
        with outcome:
            (batch,) = build(config, split, pin_memory=False)
            assert len(batch.unreadable) == 1


NARROW = [
    ("faster_rcnn", [], {"train": 96, "val": 96}),
    ("faster_rcnn", ["data.augment.large_scale_jitter={size: 64, scale: [0.5, 2]}"], {"train": 32, "val": 96}),
    ("faster_rcnn", ["data.augment.large_scale_jitter={size: 640, scale: [0.5, 2]}"], {"train": 96, "val": 96}),
    ("faster_rcnn", ["data.resize=letterbox"], {"train": None, "val": None}),
    ("retinanet", ["data.resize=stretch"], {"train": None, "val": None}),
]


@pytest.mark.parametrize(("detector", "overrides", "limits"), NARROW)
def test_narrow_images_are_errors_by_the_resizing(tiny_config, shapes, tmp_path, detector, overrides, limits):
    """An image at the limit can be resized, and a longer one is named before the training."""
    shutil.copytree(shapes / "train", tmp_path / "train")
    raw = json.loads((shapes / "annotations/train.json").read_text())
    name = raw["images"][0]["file_name"]
    places = [f"data.{s}={{images: {tmp_path}/train, annotations: {tmp_path}/a.json}}" for s in ("train", "val")]
    config = load_config(
        tiny_config, [*places, *overrides, f"model.detector={detector}", "data.on_unreadable_image=skip"]
    )
    for split, limit in limits.items():
        assert max_aspect_ratio(config, split) == limit
        for long in (limit or 5000, (limit or 5000) + 1):
            Image.new("RGB", (long, 1)).save(tmp_path / "train" / name)
            raw["images"] = [raw["images"][0] | {"width": long, "height": 1}]
            box = {"id": 1, "image_id": raw["images"][0]["id"], "category_id": 1, "bbox": [0, 0, long, 1]}
            (tmp_path / "a.json").write_text(json.dumps(raw | {"annotations": [box]}))
            options = {"max_aspect_ratio": max_aspect_ratio(config, split)}
            if limit and long > limit:
                with pytest.raises(DatasetError, match=rf"{name} must have a longer side of at most {limit} times"):
                    read_split(config.data, split, **options)
            annotations = read_split(config.data, split, check_images=False, **options)
            build = {"train": build_train_loader, "val": build_eval_loader}[split]
            (batch,) = build(config, annotations, pin_memory=False)
            assert len(batch.unreadable) == bool(limit and long > limit)


def test_the_range_of_pixels_follows_the_config(tiny_config, shapes, tmp_path):
    config = load_config(tiny_config, ["data.pixel_range=[0, 4095]"])
    assert read_split(config.data, "val", check_images=False).read_options.pixel_range == (0, 4095)
    with pytest.raises(ValueError, match=r"data\.pixel_range must be two finite numbers"):
        read_split(load_config(tiny_config, ["data.pixel_range=[9, 0]"]).data, "val")


def test_training_images_follow_the_config(tiny_config):
    split = read_split(load_config(tiny_config).data, "train")

    def images(*overrides):
        config = load_config(tiny_config, ["data.min_size=40", "data.augment.horizontal_flip=0", *overrides])
        return [image for batch in build_train_loader(config, split, pin_memory=False) for image in batch.images]

    plain = images()
    assert {tuple(image.shape) for image in plain} == {(3, 40, 48)}  # of 96 x 80 pixels
    for change in ("data.augment.color_jitter=0.5", "data.augment.horizontal_flip=1"):
        changed = images(change)
        assert [image.shape for image in changed] == [image.shape for image in plain]
        assert not any(torch.equal(*pair) for pair in zip(changed, plain, strict=True))
    several = images("data.min_size=[40, 56]", "data.max_size=60")
    assert {tuple(image.shape) for image in several} == {(3, 40, 48), (3, 50, 60)}
    squares = images("data.augment.large_scale_jitter={size: 72, scale: [0.5, 1.5]}")
    assert {tuple(image.shape) for image in squares} == {(3, 72, 72)}


def test_crowd_regions_are_ignored_or_background(tiny_config, shapes, tmp_path):
    """In runs of earlier versions, whose config lacks the key, they are background."""
    raw = json.loads((shapes / "annotations/train.json").read_text())
    for annotation in raw["annotations"][::2]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(raw))
    place = f"data.train.annotations={tmp_path}/crowds.json"
    written = load_config(tiny_config, [place]).model_dump(mode="json")
    del written["data"]["crowd_regions"]
    configs = {
        "default": load_config(tiny_config, [place]),
        "background": load_config(tiny_config, [place, "data.crowd_regions=background"]),
        "earlier": check_config(with_current_names(written, "a run", is_written=True), "a run"),
        "recipe": load_config("retinanet_r50.yaml"),
        "own": load_config("custom.yaml"),
    }
    policies = {name: config.data.crowd_regions for name, config in configs.items()}
    assert policies == {
        "default": "ignore",
        "background": "background",
        "earlier": "background",
        "recipe": "background",
        "own": "ignore",
    }
    for name, ignored in (("default", True), ("background", False)):
        batches = build_train_loader(configs[name], read_split(configs[name].data, "train"), pin_memory=False)
        assert any("ignored" in target for batch in batches for target in batch.targets) == ignored


def test_a_detector_brings_factors_of_its_own(tiny_config, tmp_path, assembler, monkeypatch):
    spec = replace(DETECTORS["faster_rcnn"], lr_factors={"rpn": 0.5}, weight_decay_factors={"rpn": 0.0})
    monkeypatch.setitem(DETECTORS, "faster_rcnn", spec)
    for overrides, factor in (([], 0.5), (["train.lr_factors={rpn: 3}"], 3)):
        trainer = assembler(tiny_config, tmp_path, ["train.warmup_steps=0", *overrides], metrics_logger=None)
        groups = {group["name"]: group for group in trainer.updater.optimizer.param_groups}
        rpn = groups[f"rpn_x{factor:g}"]
        assert (rpn["lr"], rpn["weight_decay"]) == (pytest.approx(0.005 * factor), 0)
        assert groups["head"]["weight_decay"] == 1e-4


@pytest.mark.parametrize("kind", ["stretch", "letterbox"])
def test_squares_have_one_size_in_a_step(tiny_config, kind):
    overrides = [f"data.resize={kind}", "data.min_size=[40, 56]", "model.detector=fcos", "model.fpn.out_channels=64"]
    config = load_config(tiny_config, [*overrides, "train.epochs=3"])
    loader = build_train_loader(config, read_split(config.data, "train"), pin_memory=False)
    steps = [{tuple(image.shape) for image in batch.images} for batch in loader]
    assert all(len(step) == 1 for step in steps)
    assert set().union(*steps) == {(3, 40, 40), (3, 56, 56)}
    model, _ = build_model(config.model, config.data, 5)
    assert model.eval().transform([torch.rand(3, 96, 80)])[0].image_sizes == [(56, 56)]
    image = next(iter(loader)).images[0]
    is_filled = (image == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all(0)
    # of 96 x 80 pixels: a sixth of the square
    assert is_filled.float().mean().item() == pytest.approx(1 / 6 if kind == "letterbox" else 0, abs=0.03)


def test_strong_augmentations_end_before_the_run_does(tiny_config):
    overrides = ["data.augment.large_scale_jitter={size: 72}", "data.weak_last_epochs=2", "train.epochs=3"]
    config = load_config(tiny_config, ["data.min_size=40", *overrides])
    loader = build_train_loader(config, read_split(config.data, "train"), pin_memory=False)
    for epoch, shape in enumerate([(3, 72, 72), (3, 40, 48), (3, 40, 48)]):
        loader.batch_sampler.set_position(epoch)
        assert {tuple(image.shape) for batch in loader for image in batch.images} == {shape}


def test_every_option_of_the_optimisation_arrives(tiny_config, tmp_path, assembler):
    trainer = assembler(
        tiny_config,
        tmp_path,
        [
            "model.backbone={name: resnet18, norm: bn, dcn_v2_stages: [2], activation_checkpointing: true}",
            "train={optimizer: adamw, lr: 0.01, batch_size: 3, grad_accum_steps: 2, base_batch_size: 12, momentum: 0.8,"
            " weight_decay: 0.05, norm_weight_decay: 0.01, bias_weight_decay: 0.02, backbone_lr_factor: 0.5,"
            " offset_lr_factor: 0.2, lr_schedule: cosine, lr_schedule_unit: step, warmup_steps: 0,"
            " min_lr_factor: 0.25, epochs: 4, max_steps: 5,"
            " clip_grad_norm: 3, ema_decay: 0.75, early_stopping_patience: 7, amp: bf16, channels_last: true,"
            " log_every_steps: 2}",
            "data.on_unreadable_image=skip",
            "seed=9",
        ],
        metrics_logger=None,
    )
    updater = trainer.updater
    groups = updater.optimizer.param_groups
    assert isinstance(updater.optimizer, torch.optim.AdamW)
    # 6 images a step where the rate is meant for 12
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {"backbone": 0.0025, "head": 0.005, "conv_offset": 0.001}
    )
    assert {group["weight_decay"] for group in groups} == {0.05, 0.01, 0.02}
    assert {group["betas"] for group in groups} == {(0.8, 0.999)}
    assert trainer.total_steps == 5
    assert updater.schedule(5) == pytest.approx(0.25)
    assert (updater.clip_grad_norm, updater.ema.decay, updater.amp, updater.seed) == (3, 0.75, "bf16", 9)
    assert (trainer.early_stopping_patience, trainer.intervals.log_every_steps) == (7, 2)
    body = updater.model.backbone.body
    assert type(body.layer2) is not type(body.layer1)  # whose blocks are computed again
    weight = body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.fixture
def with_a_wrong_box(tiny_config, tmp_path):
    """Overrides that put a box outside its image into both splits, and leave one image without any."""
    config = load_config(tiny_config)
    overrides = []
    for name in ("train", "val"):
        raw = json.loads(Path(getattr(config.data, name).annotations).read_text())
        raw["annotations"][0]["bbox"] = [500, 500, 10, 10]
        empty = raw["images"][-1]["id"]
        raw["annotations"] = [entry for entry in raw["annotations"] if entry["image_id"] != empty]
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        overrides.append(f"data.{name}.annotations={tmp_path}/{name}.json")
    return overrides


@pytest.mark.parametrize("name", ["train", "val"])
def test_wrong_boxes_matter_in_both_splits(tiny_config, with_a_wrong_box, name, caplog):
    with pytest.raises(DatasetError, match=r"invalid boxes .*: 1"):
        read_split(load_config(tiny_config, with_a_wrong_box).data, name)
    split = read_split(load_config(tiny_config, [*with_a_wrong_box, "data.invalid_annotations=drop"]).data, name)
    assert split.fixed_boxes == 1
    warn_of_annotations(split)
    message = f"annotation file {split.path}: invalid boxes (x, y, width, height): 1; data.invalid_annotations drops"
    assert any(said.startswith(message) for said in caplog.messages)


def test_images_without_boxes(tiny_config, with_a_wrong_box):
    sizes = []
    for keep in ("true", "false"):
        config = load_config(
            tiny_config, [*with_a_wrong_box, "data.invalid_annotations=drop", f"data.keep_images_without_boxes={keep}"]
        )
        split = read_split(config.data, "train")
        sizes.append(len(build_train_loader(config, split, pin_memory=False).dataset))
    assert sizes[0] == 12
    assert sizes[1] < 12


def test_nothing_to_learn_from(tiny_config, tmp_path):
    config = load_config(tiny_config)
    raw = json.loads(Path(config.data.train.annotations).read_text())
    (tmp_path / "empty.json").write_text(json.dumps(raw | {"annotations": []}))
    overrides = [f"data.{split}.annotations={tmp_path / 'empty.json'}" for split in ("train", "val")]
    overrides += [f"data.val.images={config.data.train.images}", "data.keep_images_without_boxes=true"]
    config = load_config(tiny_config, overrides)
    with pytest.raises(ValueError, match=r"empty\.json has no image with a box to train on"):
        read_split(config.data, "train")
    assert len(read_split(config.data, "val").arrays) > 0  # the same file is valid for evaluation


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_error_about_a_missing_data_set_has_the_download_hint(tiny_config, split):
    config = load_config(tiny_config, [f"data.{split}.images=nowhere"])
    with pytest.raises(
        DatasetError, match=r"nowhere does not exist \(resolved: /.*to get it: python tools/make_shapes.py"
    ):
        read_split(config.data, split)


@pytest.fixture
def damaged(tiny_config, tmp_path):
    """Overrides that spoil one mask of both splits."""
    config, overrides = load_config(tiny_config), []
    for name in ("train", "val"):
        raw = json.loads(Path(getattr(config.data, name).annotations).read_text())
        del raw["annotations"][0]["segmentation"]
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        overrides.append(f"data.{name}.annotations={tmp_path}/{name}.json")
    return overrides


@pytest.mark.parametrize("name", ["train", "val"])
def test_masks_are_checked_where_they_are_needed(tiny_config, damaged, name):
    data = load_config(tiny_config, damaged).data
    whole = read_split(data, name)
    with pytest.raises(
        DatasetError, match=rf"{name}\.json: annotations without a valid mask: 1; .*annotation 1 in image 1 "
    ):
        read_split(data, name, masks=True)
    for policy in ("clip", "drop"):
        split = read_split(
            load_config(tiny_config, [*damaged, f"data.invalid_annotations={policy}"]).data, name, masks=True
        )
        assert (split.dropped_masks, split.arrays.counts[0]) == (1, whole.arrays.counts[0] - 1)


@pytest.mark.parametrize(("name", "purpose"), [("train", "train on"), ("val", "evaluate on")])
def test_a_data_set_without_masks_is_not_called_empty(tiny_config, tmp_path, name, purpose):
    place = getattr(load_config(tiny_config).data, name)
    raw = json.loads(Path(place.annotations).read_text())
    for annotation in raw["annotations"]:
        annotation["segmentation"] = []
    (tmp_path / "boxes.json").write_text(json.dumps(raw))
    overrides = [f"data.{name}.annotations={tmp_path}/boxes.json", "data.invalid_annotations=clip"]
    data, count = load_config(tiny_config, overrides).data, len(raw["annotations"])
    message = rf"has no image with a box to {purpose}: its annotations are {count} annotations without a readable `seg"
    with pytest.raises(ValueError, match=message):
        read_split(data, name, masks=True)
    assert read_split(data, name).dropped_masks == 0


def test_masks_are_read_for_the_detectors_that_need_them(tiny_config, monkeypatch):
    config = load_config(tiny_config)
    splits = {name: read_split(config.data, name, masks=True) for name in ("train", "val")}
    for has_masks in (False, True):
        monkeypatch.setitem(DETECTORS, "faster_rcnn", replace(DETECTORS["faster_rcnn"], has_masks=has_masks))
        for batch in build_train_loader(config, splits["train"], pin_memory=False):
            assert [("masks" in target) for target in batch.targets] == [has_masks] * len(batch.targets)
        assert all(
            "masks" not in batch.targets[0] for batch in build_eval_loader(config, splits["val"], pin_memory=False)
        )
        asked, drawn = [], []
        monkeypatch.setattr(
            "engine.building.training.evaluate", lambda *_, masks, asked=asked, **__: asked.append(masks)
        )
        monkeypatch.setattr(
            "engine.building.training.draw_predictions",
            lambda model, samples, *_, drawn=drawn, **__: drawn.extend(samples) or torch.zeros(3, 1, 1),
        )
        model, _ = build_model(config.model, config.data, len(splits["val"].class_names))
        parts = {"save": None, "metrics_logger": NullLogger(), "progress": Progress(silent=True), "stop": StopRequest()}
        trainer = build_trainer(config, model, *splits.values(), device=torch.device("cpu"), **parts)
        trainer.evaluate(model)
        trainer.draw(model)
        assert asked == [has_masks]
        assert [("masks" in target) for _, target in drawn] == [has_masks] * 4


def test_figures_show_readable_images(tiny_config, shapes, tmp_path):
    folder = shutil.copytree(shapes / "val", tmp_path / "val")
    config = load_config(tiny_config, [f"data.val.images={folder}", "data.on_unreadable_image=skip"])
    train, val = (read_split(config.data, split) for split in ("train", "val"))
    model, _ = build_model(config.model, config.data, len(val.class_names))
    parts = {"save": None, "metrics_logger": NullLogger(), "progress": Progress(silent=True), "stop": StopRequest()}
    trainer = build_trainer(config, model, train, val, device=torch.device("cpu"), **parts)
    heights = []
    for gone in ([], [1], [2, 3, 4], [5, 6]):  # of 6 images, the first 4 of which are drawn
        for number in gone:
            (folder / f"{number:06d}.png").unlink()
        pictures = trainer.draw(model)
        assert pictures.keys() == {"val/detections", "val/receptive_field"}
        heights.append(pictures["val/detections"].shape[1])
    # a row is 80 pixels, 4 times as large, and a gap, with two lines of legend; without any image a blank one is drawn
    assert [height - heights[0] for height in heights] == [0, -326, -2 * 326, -3 * 326]
    assert heights[0] == 4 * 326 + 2 * LINE
    strict = load_config(tiny_config, [f"data.val.images={folder}"])
    trainer = build_trainer(strict, model, train, val, device=torch.device("cpu"), **parts)
    with pytest.raises(ImageError):
        trainer.draw(model)


def test_a_dcn_network_has_additional_figures(tiny_config, monkeypatch, tmp_path):
    raw = json.loads(Path(load_config(tiny_config).data.val.annotations).read_text())
    empty = raw["images"][0]["id"]
    raw["annotations"] = [entry for entry in raw["annotations"] if entry["image_id"] != empty]
    (tmp_path / "val.json").write_text(json.dumps(raw))
    overrides = ["model.backbone.dcn_v2_stages=[2]", "train.ema_decay=0.9"]
    config = load_config(tiny_config, [*overrides, f"data.val.annotations={tmp_path / 'val.json'}"])
    train, val = (read_split(config.data, split) for split in ("train", "val"))
    asked = []

    def record(model, image, pixels, *, device):
        asked.append((image, pixels))
        return dcn_figures(model, image, pixels, device=device)

    monkeypatch.setattr("engine.building.training.dcn_figures", record)
    model, _ = build_model(config.model, config.data, len(val.class_names))
    parts = {"save": None, "metrics_logger": NullLogger(), "progress": Progress(silent=True), "stop": StopRequest()}
    trainer = build_trainer(config, model, train, val, device=torch.device("cpu"), **parts)
    state = torch.get_rng_state()
    pictures = trainer.draw(trainer.eval_model)
    assert torch.equal(torch.get_rng_state(), state)
    assert pictures.keys() == {
        "val/detections",
        "val/receptive_field",
        "dcn/sampling_points",
        "dcn/masks",
        "dcn/offsets",
    }
    # of the first image with boxes, the middles of the first two
    ((image, pixels),) = asked
    entry = val.raw["images"][1]
    boxes = [truth["bbox"] for truth in val.raw["annotations"] if truth["image_id"] == entry["id"]]
    assert image.shape == (3, entry["height"], entry["width"])
    expected = [(x + w / 2 - 0.5, y + h / 2 - 0.5) for x, y, w, h in boxes[:2]]
    assert [tuple(pixel) for pixel in pixels] == [pytest.approx(place, abs=1e-4) for place in expected]


def test_a_run_checks_its_images_once(tiny_config, shapes, tmp_path):
    places = {name: shutil.copytree(shapes / name, tmp_path / name) for name in ("train", "val")}
    overrides = [f"data.{name}.images={place}" for name, place in places.items()]
    config = load_config(tiny_config, overrides)
    opened = []

    def read(*more, run=tmp_path / "run", **options):
        opened.clear()
        data = load_config(tiny_config, [*overrides, *more]).data
        splits = {n: read_split(data, n, lambda i: opened.append(len(i)) or i, run=run, **options) for n in places}
        return splits, describe_skipped_check(data, splits)

    first, skipped = read()
    assert (opened, skipped) == ([12, 6], None)
    write_checked_images(tmp_path / "run", first.values())
    _, skipped = read()
    assert opened == []
    assert skipped.startswith("images of train and val are not checked again: ")
    assert read("data.check_images=always")[1] is None
    assert opened == [12, 6]
    _, skipped = read("data.check_images=never")
    assert (opened, skipped) == ([], "images of train and val are not checked (data.check_images: never)")
    assert read(run=None)[1] is None
    assert opened == [12, 6], "of another run nothing is known"
    (places["val"] / "new.png").touch()
    unseen, skipped = read(check_images=False)
    assert (opened, skipped) == ([], None), "another process checks"
    write_checked_images(tmp_path / "run", unseen.values())
    splits, skipped = read()
    assert opened == [6]
    assert skipped.startswith("images of train are not checked again: ")
    write_checked_images(tmp_path / "run", splits.values())
    assert read()[1].startswith("images of train and val ")
    for content in ("[", "{}", "3", '[null, "a"]'):
        (tmp_path / "run/checked_images.json").write_text(content)
        assert read()[1] is None
        assert opened == [12, 6]
    assert splits["train"].raw is None, "only evaluation needs it"
    assert len(splits["val"].raw["images"]) == 6
    assert config.data.check_images == "first_time"
