"""A widget of napari: predict and measure a layer, see particles as labels and a table; finetune.

What is computed is what `Model.predict` and `Model.measure` return, with their defaults.
"""

# napari and Qt are of the extra `napari`.
# pyright: reportMissingImports=false

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from napari.qt.threading import thread_worker
from qtpy import QtCore, QtWidgets

from emjax.apps.model import Model, load_model
from emjax.errors import EmjaxError, first_line
from emjax.inference.options import MODEL
from emjax.inference.predictor import as_grey
from emjax.measurement import SPLIT
from emjax.measurement.particles import Table
from emjax.measurement.results import joined
from emjax.micrographs.units import UNKNOWN, PixelSize, is_known
from emjax.models import pretrained, saved

FOLDER = "a folder ..."
SHOWN = (
    "label",
    "plane",
    "equivalent_diameter",
    "feret_max",
    "feret_min",
    "area",
    "circularity",
    "border",
)
STEP = re.compile(r"step (\d+)/(\d+) ")  # begins a line of a training


def pixel_size_of(layer: Any) -> PixelSize:
    """Return the (y, x) in nm of a layer; UNKNOWN if its units are no lengths."""
    sides = zip(layer.scale[-2:], layer.units[-2:], strict=True)
    sizes = [float((scale * unit).to("nm").magnitude) if unit.is_compatible_with("nm") else np.nan
             for scale, unit in sides]  # fmt: skip
    return (sizes[0], sizes[1]) if is_known((sizes[0], sizes[1])) else UNKNOWN


def columns(table: Table) -> dict[str, np.ndarray]:
    """Return the columns of a table that are shown, by their names with units."""
    named = {name: next((c for c in table if c in (name, f"{name}_nm", f"{name}_px", f"{name}_nm2",
             f"{name}_px2")), None) for name in SHOWN}  # fmt: skip
    return {found: table[found] for found in named.values() if found}


def task_of(name: str) -> str:
    """Return the task that a model is finetuned on: its own, else segmentation.

    Raises: InputError, UsageError as `saved.read`.
    """
    _, _, config = saved.read(name)
    return config["task"] or "segmentation"


class Particles(QtWidgets.QWidget):
    """Predict and measure a layer of the viewer, or finetune a model on two folders.

    Args:
        napari_viewer: the viewer (napari.viewer.Viewer), which napari gives by this name.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker: Any = None
        self.process: subprocess.Popen[str] | None = None
        self.was_cancelled = False
        self.model: tuple[str, Model] | None = None
        self.labels: Any = None
        self.result: Any = None
        form = QtWidgets.QFormLayout(self)
        self.layer = QtWidgets.QComboBox()
        form.addRow("Micrograph", self.layer)
        self.name = QtWidgets.QComboBox()
        self.name.addItems([*pretrained.for_use(), FOLDER])
        self.name.setCurrentText(MODEL)
        self.name.activated.connect(self.choose_model)
        self.name.currentTextChanged.connect(self.name.setToolTip)  # of a folder, all of its path
        form.addRow("Model", self.name)
        self.size = QtWidgets.QLineEdit()
        self.size.setPlaceholderText("of the layer")
        form.addRow("nm per pixel", self.size)
        self.smallest = QtWidgets.QSpinBox(minimum=1, maximum=1_000_000)
        form.addRow("Smallest particle, pixels", self.smallest)
        self.split = QtWidgets.QCheckBox("split particles that touch")
        self.split.setChecked(True)
        form.addRow(self.split)
        self.updates = QtWidgets.QSpinBox(maximum=1_000_000, specialValueText="by the data")
        form.addRow("Updates of a finetuning", self.updates)
        self.run = QtWidgets.QPushButton("Predict and measure")
        self.run.clicked.connect(self.start)
        self.train = QtWidgets.QPushButton("Finetune on folders ...")
        self.train.clicked.connect(self.choose_folders)
        self.train.setVisible(sys.platform != "win32")  # training is for Linux and macOS
        self.stop = QtWidgets.QPushButton("Cancel", enabled=False)
        self.stop.clicked.connect(self.cancel)
        for button in (self.run, self.train, self.stop):
            form.addRow(button)
        self.bar = QtWidgets.QProgressBar()
        form.addRow(self.bar)
        self.message = QtWidgets.QLabel("", wordWrap=True)
        form.addRow(self.message)
        self.table = QtWidgets.QTableWidget()
        self.table.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.SingleSelection)
        self.table.itemSelectionChanged.connect(self.select_particle)
        form.addRow(self.table)
        events = self.viewer.layers.events
        for event in (events.inserted, events.removed, events.renamed):
            event.connect(self.list_layers)
        self.list_layers()
        self.destroyed.connect(self.leave)
        application = QtWidgets.QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.leave)

    def leave(self) -> None:
        """Stop what still runs when the widget or napari is closed; a finetuning has saved."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def list_layers(self, event: object = None) -> None:
        """Offer the image layers of the viewer."""
        before = self.layer.currentText()
        names = [each.name for each in self.viewer.layers if each._type_string == "image"]
        self.layer.clear()
        self.layer.addItems(names)
        self.layer.setCurrentText(before if before in names else (names[-1] if names else ""))
        self.run.setEnabled(bool(names) and self.worker is None)

    def choose_model(self, index: int) -> None:
        """Ask for the folder of a model, where that was chosen."""
        if self.name.itemText(index) != FOLDER:
            return
        chosen = QtWidgets.QFileDialog.getExistingDirectory(self, "The folder of a model or a run")
        if chosen:
            self.offer(chosen)
        else:
            self.name.setCurrentText(MODEL)

    def offer(self, folder: str) -> None:
        """Choose a model of the user's, which is in the list once."""
        if self.name.findText(folder) < 0:
            self.name.insertItem(0, folder)
        self.name.setCurrentText(folder)

    def say(self, text: str) -> None:
        """Show a message."""
        self.message.setText(text)

    def busy(self, is_busy: bool) -> None:
        """Enable what can be done while work runs, or when none does."""
        self.run.setEnabled(not is_busy and self.layer.count() > 0)
        self.train.setEnabled(not is_busy)
        self.stop.setEnabled(is_busy)

    def pixel_size(self, layer: Any) -> PixelSize:
        """Return the (y, x) in nm that was typed, else that of a layer.

        Raises: ValueError for anything but a positive number.
        """
        text = self.size.text().strip()
        if not text:
            return pixel_size_of(layer)
        if not 0 < float(text) < np.inf:
            raise ValueError(text)
        return float(text), float(text)

    def start(self) -> None:
        """Predict and measure the layer in a thread."""
        layer = self.viewer.layers[self.layer.currentText()]
        try:
            size = self.pixel_size(layer)
        except ValueError:
            self.say(f"nm per pixel: expected a positive number, got {self.size.text()!r}")
            return
        data = layer.data
        if getattr(layer, "rgb", False) or data.ndim not in (2, 3):
            self.say(f"{layer.name}: expected a grey image or a stack, got the shape {data.shape}")
            return
        planes = [data] if data.ndim == 2 else [data[k] for k in range(len(data))]
        self.bar.setRange(0, len(planes))
        self.bar.setValue(0)
        self.say("loads the model ...")
        self.busy(True)
        split = SPLIT if self.split.isChecked() else None
        self.worker = self.work(self.name.currentText(), planes, size, split, self.smallest.value())
        self.worker.yielded.connect(self.bar.setValue)
        self.worker.returned.connect(lambda found: self.show_result(layer, found))
        self.worker.errored.connect(self.failed)
        self.worker.aborted.connect(lambda: self.say("cancelled"))
        self.worker.finished.connect(self.finished)
        self.worker.start()

    @thread_worker
    def work(
        self, name: str, planes: list[Any], size: PixelSize, split: float | None, smallest: int
    ) -> Iterator[Any]:
        """Yield how many planes are done; return (labels or restored planes, table or None)."""
        try:
            yield from self.predicted(name, planes, size, split, smallest)
        except EmjaxError:
            raise
        except Exception as error:  # of any engine; a worker would not end by it
            raise EmjaxError(first_line(error)) from error
        return self.result

    def predicted(
        self, name: str, planes: list[Any], size: PixelSize, split: float | None, smallest: int
    ) -> Iterator[int]:
        """Yield how many planes are done; `result` is then what `work` returns."""
        if self.model is None or self.model[0] != name:
            self.model = name, load_model(pretrained.of_package(name))
        model, nm_per_pixel = self.model[1], size if is_known(size) else None
        images: list[np.ndarray] = []
        tables: list[Table] = []
        number = 0
        # One range for all planes, as predict has it for a stack.
        values = model.intensity_range(as_grey(np.ascontiguousarray(plane)) for plane in planes)
        for index, plane in enumerate(planes):
            image = as_grey(np.ascontiguousarray(plane))
            if model.is_mask and model.classes == 2:
                found, table = model.particles(
                    image, nm_per_pixel, intensity_range=values, split=split, min_size=smallest
                )
                ours = np.where(found.image > 0, found.image + number, 0)
                # The numbers of what is left in the layer, without those that were left out.
                table["label"] = np.arange(1, len(found.names) + 1) + number
                number += len(found.names)
                tables.append({"plane": np.full(len(found.names), index), **table})
                images.append(ours.astype(np.int32))
            elif model.is_mask:
                images.append(model.mask(image, nm_per_pixel, intensity_range=values))
            else:
                images.append(model.predict(image, nm_per_pixel, intensity_range=values))
            yield index + 1
        whole = images[0] if len(images) == 1 else np.stack(images)
        self.result = whole, joined(tables) if tables else None, model.is_mask

    def show_result(self, layer: Any, found: Any) -> None:
        """Add the result as a layer where the micrograph is, and fill the table."""
        whole, table, is_mask = found
        arguments: dict[str, Any] = dict(scale=layer.scale, units=layer.units,
                                         translate=layer.translate)  # fmt: skip
        if not is_mask:
            self.viewer.add_image(whole, name=f"{layer.name} restored", **arguments)
            self.say("restored")
            return
        if table is None:
            self.viewer.add_labels(whole, name=f"{layer.name} classes", **arguments)
            self.say("one number for each class")
            return
        shown = columns(table)
        features = {"index": table["label"], **{k: v for k, v in table.items() if k != "label"}}
        self.labels = self.viewer.add_labels(
            whole, name=f"{layer.name} particles", features=features, **arguments
        )
        self.labels.events.selected_label.connect(self.select_row)
        self.fill(shown)
        inside = table["border"] == 0
        column = next(name for name in shown if name.startswith("equivalent_diameter"))
        unit = column.rpartition("_")[2]
        median = f", median diameter {np.median(table[column][inside]):.4g} {unit}"
        self.say(f"{inside.sum()} particles, {(~inside).sum()} more at the border"
                 f"{median if inside.any() else ''}")  # fmt: skip

    def fill(self, shown: dict[str, np.ndarray]) -> None:
        """Fill the table."""
        self.table.setSortingEnabled(False)
        self.table.setColumnCount(len(shown))
        self.table.setHorizontalHeaderLabels(list(shown))
        self.table.setRowCount(len(next(iter(shown.values()))))
        for column, values in enumerate(shown.values()):
            for row, value in enumerate(values):
                item = QtWidgets.QTableWidgetItem()
                number = int(value) if values.dtype.kind in "iu" else float(f"{value:.5g}")
                item.setData(QtCore.Qt.ItemDataRole.DisplayRole, number)
                self.table.setItem(row, column, item)
        self.table.setSortingEnabled(True)
        self.table.resizeColumnsToContents()

    def select_particle(self) -> None:
        """Select in the viewer the particle whose row is selected."""
        rows = self.table.selectionModel().selectedRows()
        if rows and self.labels is not None:
            item = self.table.item(rows[0].row(), 0)
            chosen = int(item.data(QtCore.Qt.ItemDataRole.DisplayRole))
            if self.labels.selected_label != chosen:
                self.labels.selected_label = chosen

    def select_row(self, event: object = None) -> None:
        """Select the row of the particle that is selected in the viewer."""
        for row in range(self.table.rowCount()):
            item = self.table.item(row, 0)
            if int(item.data(QtCore.Qt.ItemDataRole.DisplayRole)) == self.labels.selected_label:
                self.table.selectRow(row)
                return
        self.table.clearSelection()

    def failed(self, error: BaseException) -> None:
        """Say in a line what was wrong."""
        if not isinstance(error, EmjaxError):
            raise error
        self.say(f"error: {error}")

    def finished(self) -> None:
        """Be ready for the next."""
        self.worker = self.process = None
        if self.bar.maximum() == 0:
            self.bar.setRange(0, 1)
        self.busy(False)

    def cancel(self) -> None:
        """Stop after the plane that is predicted; a finetuning saves and stops."""
        self.was_cancelled = True
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
        elif self.worker is not None:
            self.worker.quit()
        self.say("stops ...")

    def choose_folders(self) -> None:
        """Ask for the folders of a finetuning, and begin it."""
        try:
            is_mask = task_of(self.name.currentText()) == "segmentation"
        except EmjaxError as error:
            self.failed(error)
            return
        chosen: list[str] = []
        targets = "Masks" if is_mask else "Images as they are to become"
        for title in ("Micrographs", targets, "Where the new model goes"):
            folder = QtWidgets.QFileDialog.getExistingDirectory(self, title)
            if not folder:
                return
            chosen.append(folder)
        self.finetune(*chosen)

    def finetune(self, images: str, targets: str, out: str) -> None:
        """Run `emjax finetune` on two folders; the model is chosen when it is done."""
        base = self.name.currentText()
        flags = dict(images=images, base=base, targets=targets, out=out, task=task_of(base))
        if self.updates.value():
            flags["steps"] = str(self.updates.value())
        line = [sys.executable, "-P", "-m", "emjax.finetune",
                *(f"--{name}={value}" for name, value in flags.items())]  # fmt: skip
        self.was_cancelled = False
        self.bar.setRange(0, 0)
        self.say("begins ...")
        self.busy(True)
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        self.worker = self.follow(self.process)
        self.worker.yielded.connect(self.followed)
        self.worker.returned.connect(lambda code: self.finetuned(code, out))
        self.worker.finished.connect(self.finished)
        self.worker.start()

    @thread_worker
    def follow(self, process: "subprocess.Popen[str]") -> Iterator[Any]:
        """Yield what a process says; return its exit code."""
        assert process.stdout
        for line in process.stdout:
            yield line.strip()
        return process.wait()

    def followed(self, line: str) -> None:
        """Show a line of a finetuning, and how far its training is; each of several begins anew."""
        self.say(line)
        step = STEP.match(line)
        self.bar.setRange(0, int(step[2]) if step else 0)
        if step:
            self.bar.setValue(int(step[1]))

    def finetuned(self, code: int, out: str) -> None:
        """Offer the new model."""
        self.model = None  # one of that name is another one now
        if code:  # its last line says why
            if self.was_cancelled:
                self.say("stopped; finetune on the same folders again, and it continues")
            return
        self.offer(out)
        self.bar.setRange(0, 1)
        self.bar.setValue(1)
        self.say(f"{Path(out) / 'report.html'} says how good it is")
