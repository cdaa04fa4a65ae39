"""Write a model's towers as ONNX or OpenVINO files, or a predictor as one ONNX file, checked against the model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.export.folder import ExportFolder
    from ostension.model.clip import CLIP


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Export:
    """What both forms have in common.

    Args:
        model: A model's folder or weight file, or hf-hub:ORG/NAME.
        output: The folder to write.
        towers: Which towers: image,text or one of them.
        int8: Weights and products in 8 bits. With --calibration activations have fixed ranges, which both engines run;
            OpenVINO needs it.
        calibration: Pictures to find the ranges with: a folder, shards, a table. Every second one judges what came of it.
        calibration_count: How many pictures of it to take, at even distances. Default: 256.
        seven_bits: Use 7 of the 8 bits of weights: for processors without VNNI, where sums of 8-bit products overflow.
        measure: A task, or a folder with a folder of pictures for each class: zero-shot accuracy before and after. Repeatable.
        data: The folder of all tasks' data. Default: OSTENSION_DATA.
        limit: Measure on so many samples of each split.
        opset: Version of ONNX's operators.
        overwrite: Replace a folder that has something in it.
    """

    model: Annotated[str, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    towers: str = "image,text"
    int8: bool = False
    calibration: str | None = None
    calibration_count: int | None = None
    seven_bits: bool = False
    measure: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    data: str | None = None
    limit: int | None = None
    opset: int = 20
    overwrite: bool = False

    def __post_init__(self):
        sides = self.sides()
        if not sides or set(sides) - {"image", "text"}:
            raise UsageError(f"--towers is {self.towers!r}", expected="image,text or one of them")
        if self.calibration is not None and not self.int8:
            raise UsageError("--calibration without --int8 has no effect", fix="add --int8, or leave it out")
        if self.seven_bits and not self.int8:
            raise UsageError("--seven-bits without --int8 has no effect", fix="add --int8, or leave it out")
        if self.calibration is None and self.calibration_count is not None:
            raise UsageError("--calibration-count without --calibration has no effect", fix="add --calibration PICTURES")
        if self.calibration_count is not None and self.calibration_count < 2:
            raise UsageError(f"--calibration-count is {self.calibration_count}", expected="2 or more")
        for name in ("data", "limit"):
            if getattr(self, name) is not None and not self.measure:
                raise UsageError(f"--{name} without --measure has no effect", fix="add --measure TASK, or leave it out")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}", expected="1 or more")
        if (self.measure or self.calibration) and len(sides) < 2:
            fix = "leave --towers out, or --measure and --calibration"
            raise UsageError("what is judged by classes needs both towers", fix=fix)
        _check_opset(self.opset)

    def sides(self) -> list[str]:
        """The towers in the order given."""
        return list(dict.fromkeys(name.strip() for name in self.towers.split(",") if name.strip()))

    def write(self, form: Literal["onnx", "openvino"], *, half: bool) -> int:
        """Write the folder and print what was compared."""
        from ostension import runtime
        from ostension.export.calibration import PICTURES, read_calibration
        from ostension.export.write import Options, write_export
        from ostension.formats.load import load

        runtime.set_threads()
        model = load(self.model, device="cpu", dtype="float32")
        calibration = None
        if self.calibration is not None:
            calibration = read_calibration(model, self.calibration, self.calibration_count or PICTURES)
            if calibration.skipped:
                print(f"ostension: {calibration.skipped} pictures could not be read and were left out", file=sys.stderr)

        def judge(opened: ExportFolder) -> Mapping[str, Any]:
            return self._judge(model, opened, form, None if calibration is None else calibration.held_out)

        options = Options(
            form=form, sides=tuple(self.sides()), opset=self.opset, half=half, int8=self.int8, calibration=calibration,
            seven_bits=self.seven_bits,
        )  # fmt: skip
        write_export(model, self.output, options, overwrite=self.overwrite, say=print, judge=judge)
        print(f"{self.model} -> {self.output}")
        return 0

    def _judge(self, model: CLIP, opened: ExportFolder, form: Literal["onnx", "openvino"], held_out: Any) -> Mapping[str, Any]:
        """Agreement and accuracy of the finished folder, printed and given for the record."""
        if held_out is None and not self.measure:
            return {}
        from ostension.export.engines import encoder_of_export
        from ostension.export.judge import agreement, losses

        encoder = encoder_of_export(opened, form, precision="int8" if self.int8 else "float32", like=model)
        found: dict[str, Any] = {}
        if held_out is not None:
            agreed = agreement(model, encoder, held_out)
            print(agreed.line())
            if agreed.warning:
                print(f"ostension: {agreed.warning}", file=sys.stderr)
            found["agreement"] = dataclasses.asdict(agreed)
        for what in self.measure:
            for loss in losses(model, encoder, what, data=self.data, limit=self.limit):
                print(loss.line())
                found.setdefault("accuracy", []).append(dataclasses.asdict(loss))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Onnx(_Export):
    """Write a model's towers as ONNX files, with everything that belongs to the weights, and compare them with the model.

    Batch size and, where nothing after a text's end matters, text length are free. The folder goes wherever a model goes with
    --engine onnx or openvino.

    Examples:
      ostension export onnx MODEL -o exported
      ostension export onnx MODEL -o small --int8 --calibration PICTURES --measure cifar10
    """

    def run(self) -> int:
        return self.write("onnx", half=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVino(_Export):
    """Write a model's towers as OpenVINO files, with everything that belongs to the weights, and compare them with the model.

    Examples:
      ostension export openvino MODEL -o exported --half
      ostension export openvino MODEL -o small --int8 --calibration PICTURES --measure cifar10

    Args:
        half: Keep weights in float16, half as large; the engine computes in what the processor has.
    """

    half: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.int8 and self.calibration is None:
            raise UsageError("OpenVINO gains from int8 with fixed ranges only", fix="give --calibration PICTURES")
        if self.int8 and self.half:
            raise UsageError("--int8 and --half are both given", expected="one of them")

    def run(self) -> int:
        return self.write("openvino", half=self.half)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """Write a saved predictor as one ONNX file: preprocessed pixels in, probabilities of its classes out.

    Image tower, classes, scale and softmax are one graph, compared with the predictor before the file takes its name. Class
    names and preprocessing stand in its metadata, so that whoever runs it needs no more than onnxruntime.

    Examples:
      ostension classify photo.jpg --labels "cat,dog" --model MODEL --save-predictor pets
      ostension export predictor pets -o pets.onnx

    Args:
        predictor: A folder that `ostension adapt`, or `ostension classify --save-predictor`, wrote.
        output: The file to write, called something.onnx.
        model: The predictor's model, where it is not at the place that the predictor remembers.
        opset: Version of ONNX's operators.
        overwrite: Replace a file that is there.
    """

    predictor: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    model: str | None = None
    opset: int = 20
    overwrite: bool = False

    def __post_init__(self):
        _check_opset(self.opset)
        if self.output.suffix != ".onnx":
            raise UsageError(f"--output is {str(self.output)!r}", expected="a file whose name ends in .onnx")

    def run(self) -> int:
        from ostension import runtime
        from ostension.export.predictor import write_predictor_onnx
        from ostension.model.predictor import Predictor

        runtime.set_threads()
        predictor = Predictor.load(self.predictor, self.model, device="cpu", dtype="float32")
        found = write_predictor_onnx(predictor, self.output, opset=self.opset, overwrite=self.overwrite)
        print(f"{self.output.name}: {found.line()}")
        print(f"{self.predictor} ({len(predictor.class_names)} classes) -> {self.output}")
        return 0


def _check_opset(opset: int) -> None:
    if not 18 <= opset <= 23:
        raise UsageError(f"--opset is {opset}", expected="18 to 23, which the exporter writes")


COMMAND = {"onnx": Onnx, "openvino": OpenVino, "predictor": Classifier}
