"""Detect objects in images and videos with a trained detector: draw them, and write them as COCO JSON."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import _clone

# isort: split
from _arguments import (
    TILE_OPTIONS,
    add_batch_size,
    add_device,
    add_json,
    add_out,
    add_run,
    add_score_thresholds,
    add_tiles,
    add_weights,
    config_values,
    current_spellings,
    is_read,
    make_parser,
    positive,
    refuse_unused,
    split_overrides,
)
from _outputs import check_outputs, run_files
from _predict_files import (
    SOFTWARE,
    Findings,
    check_json,
    in_words,
    plan_files,
    write_image,
)
from torch import Tensor

from data import ImageError, ReadOptions, declared_size, load_image_list
from data.band_files import RGB
from data.files import write_json
from data.image_check import doubtful_pixels
from data.images import ImageFacts, read_with_facts
from data.media_files import MediaFile, describe_passed_over, find_media_files
from data.read_ahead import read_ahead
from data.video import VideoError, load_av, open_video, video_writer
from engine.building import read_options
from engine.config import describe_unused, unused_overrides
from engine.display import Progress, as_rgb, counted, draw_detections, format_table, log, only_shown, start_logging
from engine.evaluation import coco_dataset, match_files
from engine.inference import describe_mode, predictor_of, read_thresholds
from engine.weights import Trained, check_categories, load_trained
from models.checkpoint import choose_weights
from models.predictor import Predictor

EPILOG = """examples:
  python tools/predict.py runs/r50_dcn street.jpg                        # draws into runs/r50_dcn/predictions
  python tools/predict.py runs/r50_dcn photos -o found --score-threshold 0.7
  python tools/predict.py runs/r50_dcn photos --score-threshold best     # the best score of each class
  python tools/predict.py runs/r50_dcn "photos/**/a*.jpg" --device cpu
  python tools/predict.py runs/r50_dcn/best.pt clip.mp4 --batch-size 8 --frame-stride 5
  python tools/predict.py runs/r50_dcn aerial.tif --tile 640 --overlap 0.2      # large image with small objects
  python tools/predict.py runs/infrared fields --bands 4,3,2                     # images of four channels
  python tools/predict.py runs/r50_dcn photos --no-images --json found.json
  python tools/predict.py runs/r50_dcn val2017 --no-images --score-threshold 0 \\
      --annotations instances_val2017.json --json results.json           # for tools/eval.py --results

Outputs keep the size of the input. Below --out they keep the path relative to the common folder of all inputs. The tool
overwrites earlier results, and never other files or inputs. It reports and skips files that it cannot read.
--json writes a COCO file with images, categories and annotations, each with a score. With --annotations it writes a
list of COCO results with the image ids of that file.
Exit codes: 0 done, 1 a file was not readable, 2 error in the arguments."""
# Frames of a video between two log lines, without a progress bar.
LINE_EVERY = 100


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    add_run(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help='image, video, folder, or pattern in quotes such as "photos/*.jpg"; key=value sets a config value, for '
        "example tta.flip=true",
    )
    add_device(parser)
    add_batch_size(parser, 1)
    add_score_thresholds(parser, 0.5)
    add_tiles(parser, "detect in overlapping", "tile.overlap of the config")
    add_weights(parser)
    add_out(parser, "<run>/predictions")
    parser.add_argument(
        "--bands",
        type=read_bands,
        metavar="R,G,B",
        help="channels to draw as red, green and blue, from 1, or one as grey (default: the first three, or the first)",
    )
    add_json(parser, "the detections in COCO format")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO file with the image ids that --json uses"
    )
    parser.add_argument("--no-images", action="store_true", help="do not draw images and videos")
    parser.add_argument(
        "--frame-stride", type=positive, default=1, metavar="N", help="process every N-th frame of a video (default: 1)"
    )
    args = parser.parse_intermixed_args(current_spellings("predict"))
    args.inputs, args.overrides = split_overrides(args.inputs)
    args.overrides = config_values(args, TILE_OPTIONS)
    args.out = args.out or (args.run if args.run.is_dir() else args.run.parent) / "predictions"
    if not args.inputs:
        parser.error("give at least one INPUT; a file whose name has the form key=value needs a path, as ./a=b.jpg")
    if not args.json:
        refuse_unused(args, "it needs --json", "--annotations")
    return args


def main() -> None:
    """Detect, draw and write."""
    args = parse_arguments()
    start_logging()
    trained = load_trained(args.run, args.overrides)
    channels = trained.config.data.channels
    sources, passed_over = find_media_files(args.inputs, exclude=args.out, arrays=channels != RGB)
    if passed_over:
        log.warning("passed over: %s", describe_passed_over(passed_over))
    videos = [source for source in sources if source.is_video]
    check_videos(videos, args, channels)
    check_bands(args, channels)
    asked = args.score_threshold
    asked = read_thresholds(asked) if isinstance(asked, Path) else asked
    if trained.config.tile.size is None:
        refuse_unused(args, "it needs --tile", "--overlap")
    if unused := unused_overrides(trained.config, args.overrides, partial(is_read, "predict")):
        log.warning("%s", describe_unused(unused))
    known = read_annotations(args.annotations, sources, trained) if args.annotations else None
    if args.json:
        check_json(args.json)
    files = {} if args.no_images else plan_files(sources, args.out)
    drawn = {f"the result of {source.name}": file for source, file in files.items()}
    inputs = {f"the input {source.name}": source.path for source in sources} | {"--annotations": args.annotations}
    inputs["--score-threshold"] = args.score_threshold if isinstance(args.score_threshold, Path) else None
    check_outputs({"--json": args.json} | drawn, run_files(args.run) | inputs)
    predictor = predictor_of(trained, score_threshold=asked, weights=args.weights)
    findings = Findings(predictor.class_names, trained.state["category_ids"])
    began = time.perf_counter()
    images = [source for source in sources if not source.is_video]
    detect_in_images(predictor, images, files, findings, known, args, options=read_options(trained.config, "val"))
    for source in videos:
        detect_in_video(predictor, source, files.get(source), findings, args)
    seconds = time.perf_counter() - began
    if args.json:
        write_json(args.json, findings.results if known else as_dataset(findings))
    print(describe(trained, predictor, args, findings, seconds))
    if findings.unreadable:
        raise SystemExit(1)


def read_bands(text: str) -> list[int]:
    """Read "R,G,B" or one channel."""
    parts = text.split(",")
    if len(parts) not in (1, RGB) or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be three channels as in 4,3,2, or one, counted from 1, got {text!r}")
    return [int(part) for part in parts]


def check_bands(args: argparse.Namespace, channels: int) -> None:
    """Raise `ValueError` if images do not have the channels to draw."""
    if args.no_images:
        refuse_unused(args, "--no-images draws none", "--bands")
    if args.bands and max(args.bands) > channels:
        raise ValueError(f"--bands must be channels from 1 to {channels} (data.channels), got {max(args.bands)}")


def check_videos(videos: Sequence[MediaFile], args: argparse.Namespace, channels: int) -> None:
    """Raise `ValueError` for detectors and options that videos do not support, or options that need videos."""
    if videos and channels != RGB:
        raise ValueError(f"a video has 3 channels, and the detector needs {channels} (data.channels): {videos[0].path}")
    if videos:
        load_av()
    if videos and args.annotations:
        raise ValueError(f"--annotations supports images only, got the video {videos[0].path}")
    if not videos:
        refuse_unused(args, "it needs a video, and the inputs are images", "--frame-stride")


def read_annotations(file: Path, sources: Sequence[MediaFile], trained: Trained) -> dict[Path, dict[str, Any]]:
    """Return the entry of the annotation file for each image; its categories, if any, must be those of the run."""
    classes = trained.config.data.classes
    found = load_image_list(file.parent, file, classes=classes and classes.changes)
    if found.category_ids is not None:
        check_categories(trained.state, found.class_names, found.category_ids, trained.path, file)
    files = [source.path for source in sources]
    return dict(zip(files, match_files(files, found.images, file), strict=True))


def detect_in_images(
    predictor: Predictor,
    images: Sequence[MediaFile],
    files: dict[MediaFile, Path],
    findings: Findings,
    known: dict[Path, dict[str, Any]] | None,
    args: argparse.Namespace,
    *,
    options: ReadOptions,
) -> None:
    """Detect objects in images, draw them, and collect them."""
    facts: dict[str, ImageFacts] = {}

    def read(source: MediaFile) -> tuple[MediaFile, Tensor | ImageError]:
        try:
            size = declared_size(known[source.path]) if known else None
            image, facts[source.name] = read_with_facts(source.path, size, options)
            return source, image
        except ImageError as error:
            return source, error

    def readable() -> Iterator[tuple[MediaFile, Tensor]]:
        stream = read_ahead(read, images)
        for source, image in Progress().track(stream, "predict", len(images), unit=" images"):
            if isinstance(image, ImageError):
                findings.skip(source.path, image)
            else:
                yield source, image

    for batch in in_batches(readable(), images_at_once(predictor, args)):
        found = predictor([image for _, image in batch], batch_size=args.batch_size, paste_masks=False)
        for (source, image), detections in zip(batch, found, strict=True):
            findings.add(detections, image, known[source.path] if known else {"file_name": source.name})
            if source in files:
                with only_shown(f"the detections in {source.name}"):
                    write_image(files[source], draw(image, detections, predictor, args.bands))
            line = (len(findings.images) + len(findings.unreadable), len(images), source.name, in_words(detections))
            log.info("%d/%d %s: %s", *line, extra={"on_bar": True})
    for problem in doubtful_pixels(facts, options):
        log.warning("%s", problem)


def detect_in_video(
    predictor: Predictor, source: MediaFile, file: Path | None, findings: Findings, args: argparse.Namespace
) -> None:
    """Detect objects in the frames of a video, draw them into a video, and collect them."""

    def readable(frames: Iterable[tuple[Tensor, Fraction]]) -> Iterator[tuple[int, Tensor, Fraction]]:
        try:
            yield from ((index, *frame) for index, frame in enumerate(frames) if index % args.frame_stride == 0)
        except VideoError as error:
            findings.skip(source.path, error)  # earlier frames are kept

    try:
        with open_video(source.path) as video:
            drawn = video_writer(file, video.rate / args.frame_stride, SOFTWARE) if file else nullcontext()
            frames = Progress().track(video.images, source.name, video.frames, unit=" frames")
            with drawn as write:
                for batch in in_batches(readable(frames), images_at_once(predictor, args)):
                    found = predictor([image for _, image, _ in batch], batch_size=args.batch_size, paste_masks=False)
                    for (index, image, time_s), detections in zip(batch, found, strict=True):
                        about = {"file_name": f"{source.name}/frame_{index:06d}.png", "frame": index}
                        findings.add(detections, image, about)
                        if file:
                            write(draw(image, detections, predictor, args.bands), time_s)
                        if index % (LINE_EVERY * args.frame_stride) == 0:
                            line = (source.name, index, video.frames or "?", in_words(detections))
                            log.info("%s, frame %d/%s: %s", *line, extra={"on_bar": True})
    except VideoError as error:
        findings.skip(source.path, error)


def images_at_once(predictor: Predictor, args: argparse.Namespace) -> int:
    """Return the number of images that are held in memory: one if its tiles fill the batches."""
    return args.batch_size if predictor.tile is None else 1


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while batch := [*islice(items, size)]:
        yield batch


def draw(image: Tensor, detections: dict[str, Any], predictor: Predictor, bands: Sequence[int] | None = None) -> Tensor:
    """Draw detections into their image at its size."""
    shown = as_rgb(image, bands)
    return draw_detections(shown, detections, predictor.class_names, score_threshold=0.0, short_side=None)


def as_dataset(findings: Findings) -> dict[str, Any]:
    """Return all detections as a complete COCO file."""
    names = zip(findings.category_ids, findings.class_names, strict=True)
    categories = [{"id": key, "name": name} for key, name in names]
    return coco_dataset(findings.images, findings.results, categories, description=SOFTWARE)


def describe_threshold(trained: Trained, predictor: Predictor, asked: float | str | Path) -> str:
    """Describe the minimum score; the detector does not return detections below its own threshold."""
    option = f"model.{trained.config.model.detector}.score_threshold"
    own = trained.config.model.options.score_threshold
    thresholds = predictor.score_thresholds
    if thresholds is None:
        return f"minimum score {asked:g}" if asked >= own else f"minimum score {own:g} ({option})"
    source = "best scores of the last evaluation" if isinstance(asked, str) else f"best scores of {asked}"
    below = sum(score < own for score in thresholds)
    note = f"; {counted(below, 'class')} below {option} {own:g}, which applies there" if below else ""
    return f"minimum score {min(thresholds):.3f} to {max(thresholds):.3f} by class ({source}{note})"


def describe(
    trained: Trained, predictor: Predictor, args: argparse.Namespace, findings: Findings, seconds: float
) -> str:
    """Describe the detections, the speed and the files."""
    kind = "averaged weights" if choose_weights(trained.state, args.weights, trained.path) == "ema" else "weights"
    mode = describe_mode(trained.config)
    least = describe_threshold(trained, predictor, args.score_threshold)
    lines = [f"{trained.path} ({kind} of step {trained.state['step']}), {predictor.device}, {least}{mode}"]
    rows = findings.rows()
    if rows:
        lines += ["", format_table(("class", "objects", "images", "best score"), rows), ""]
    count = len(findings.images)
    lines.append(
        f"{counted(len(findings.results), 'object')} in {counted(count, 'image')}, {count / seconds:.1f} images/s "
        f"including reading{'' if args.no_images else ', drawing'} and writing"
    )
    if count and not args.no_images:
        lines.append(f"images: {args.out}")
    if args.json:
        lines.append(f"COCO JSON: {args.json} ({counted(len(findings.results), 'detection')})")
    if findings.unreadable:
        lines.append(f"not readable, or only in part: {', '.join(map(str, findings.unreadable))}")
    return "\n".join(lines)


if __name__ == "__main__":
    _clone.run(main)
