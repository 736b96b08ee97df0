"""The keys that stand at the head of the configs: what each means, and in which unit.

``scripts/document_keys.py`` makes the table in ``bundle/docs/keys.md`` of them, with the defaults of the configs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """A key of the configs.

    Attributes:
        name: as it stands in the config and on the command line.
        meaning: one or two sentences.
        unit: unit of its value; empty where it has none.
        follows_from: the keys that decide its value; empty for a key that a user sets.
    """

    name: str
    meaning: str
    unit: str = ""
    follows_from: str = ""


KEYS = (
    # Paths
    Key("bundle_root", "Folder of the bundle.", "path"),
    Key(
        "dataset_dir",
        "Training and evaluating: folder of the data set. Inference: a NIfTI file, a folder of them, a DICOM series, a "
        "folder of series at any depth, or a list of these.",
        "path",
    ),
    Key(
        "datalist",
        "JSON file with the lists `labeled`, `unlabeled` and `validation`; null: the folder's layout.",
        "path",
    ),
    Key("output_dir", "Folder of curves, reports, pictures and segmentations.", "path"),
    Key("ckpt_dir", "Folder of the weights and of the checkpoint.", "path"),
    Key(
        "cache_dir",
        "Folder in which prepared scans are kept; null: they are kept in memory. In a folder, a scan is prepared again "
        "when its file changes. `disk_cache.json` sets it to `cache` in `output_dir`.",
        "path",
    ),
    Key("resume", "Whether training goes on from `checkpoint.pt` in `ckpt_dir`."),
    Key(
        "ckpt_path",
        "Weights to evaluate, or to segment with. A list of files is an ensemble, whose prediction is the mean.",
        "path",
    ),
    Key(
        "scans",
        "Folder whose labeled scans are all evaluated, whatever its lists say; null: the validation scans of the data "
        "set.",
        "path",
    ),
    Key("output_postfix", "End of the names of the segmentations."),
    Key("separate_folder", "Whether each scan's files go into a folder of their own."),
    Key("skip_existing", "Whether scans are left out that an earlier run has segmented."),
    Key(
        "max_previews", "Largest number of pictures that a validation or an evaluation draws, worst first.", "pictures"
    ),
    # Task
    Key("class_names", "Names of the classes, background first. Their number is the number of classes."),
    Key("in_channels", "Channels of an image.", "channels"),
    Key("out_channels", "Number of classes, background included.", "classes", follows_from="class_names"),
    Key("num_labeled", "Labeled scans that keep their label, from the first, for experiments; null: all.", "scans"),
    Key(
        "labels_required",
        "Whether a data set without any label is an error. `no_labels.json` sets it to false, for a client of a "
        "federated training.",
    ),
    Key(
        "group",
        "Regular expression whose first group, or whole match, in a scan's name is its patient, such as "
        "`^(patient[0-9]+)`. A patient's scans are all for training or all for validation. Null: each scan stands for "
        "itself.",
    ),
    Key("num_folds", "Folds into which the labeled training scans are split; null: no folds.", "folds"),
    Key("fold", "Fold that is for validation, from 0; null: no folds."),
    # Patch and spacing
    Key("spacing", "Voxel size to which scans are resampled, by axis in R, A, S order.", "mm"),
    Key(
        "patch_size",
        "Size of a training patch and of a window, by axis; a multiple of the product of the strides, by default "
        "`2 ** (levels - 1)`.",
        "voxels",
    ),
    Key("sdm_band", "Distance at which signed distances are truncated; about 5 voxels.", "mm"),
    Key("rotation", "Largest random rotation about an axis, where the other two axes have one spacing.", "radians"),
    Key("overlap", "Least overlap of neighbouring windows: less is faster.", "fraction of a window"),
    # Network
    Key("features", "Channels of the network's first level.", "channels"),
    Key("levels", "Resolutions of the network, 2 to 5."),
    Key(
        "strides",
        "Strides of each level below the first, a number or one per axis, such as `[[2,2,1],[2,2,1],[2,2,2]]` for "
        "thick slices; null: 2 everywhere.",
    ),
    Key(
        "kernel_sizes",
        "Kernel sizes of each level, a number or one per axis, such as `[[3,3,1],[3,3,1],3,3]` for thick slices; null: "
        "3 everywhere.",
    ),
    Key("dropout", "Probability that a channel is dropped at the end of the encoder and of each decoder."),
    Key("dual_task", "Whether the network also regresses the signed distance map."),
    Key(
        "fused_output",
        "Whether the network's output is the fused probabilities (inference, export) or the output of each task, which "
        "the losses need: leave it false in training.",
    ),
    # Schedule
    Key("epochs", "Length of the training.", "epochs"),
    Key("iterations_per_epoch", "Length of an epoch.", "iterations"),
    Key("iterations", "Length of the training.", "iterations", follows_from="epochs and iterations_per_epoch"),
    Key("labeled_batch_size", "Labeled patches in a batch.", "patches"),
    Key("unlabeled_batch_size", "Unlabeled patches in a batch.", "patches"),
    Key("learning_rate", "Highest learning rate; it rises for one epoch and then follows a cosine."),
    Key("weight_decay", "Weight decay of the optimizer."),
    Key("gradient_clip", "Largest norm of the gradient; null: no limit."),
    Key("val_interval", "Epochs between two validations.", "epochs"),
    Key(
        "log_interval",
        "Iterations between two lines with all terms in the log; null: only one line for each epoch.",
        "iterations",
    ),
    Key("curve_interval", "Iterations between two points of the curves in TensorBoard.", "iterations"),
    # Method
    Key("sdm_slope", "Slope `k` of the bridge from distance to segmentation, `softmax(k R)`.", "1 / band"),
    Key("bridge_sharpness", "Power to which probabilities are raised before the bridge makes distances of them."),
    Key("loss_weights", "Weight of each term of the loss; a term with weight 0 is not computed."),
    Key("pseudo_label", "`fused`: both tasks learn from the fused prediction; `cross`: each learns from the other's."),
    Key("harden", "Whether a pseudo-label is the most probable class (true) or the probabilities (false)."),
    Key(
        "uncertainty_gamma", "How fast a voxel's weight `exp(-gamma U)` falls with its uncertainty `U`; 0: all weigh 1."
    ),
    Key("teacher_decay", "Decay of the moving average of the weights, per iteration."),
    Key("teacher_view", "View of the unlabeled scans that the teacher sees: `weak_image` or `image` (the student's)."),
    Key("copy_paste", "Probability that a box of a labeled patch is pasted into an unlabeled one."),
    Key("warm_up", "Least number of iterations before the unlabeled terms start.", "iterations"),
    Key("ramp_up", "Iterations in which the weight of the unlabeled terms rises to 1.", "iterations"),
    Key("min_dice", "Dice of the labeled patches that the start of the unlabeled terms waits for.", "Dice, 0 to 1"),
    Key("max_warm_up", "Largest number of iterations to wait for `min_dice`.", "iterations"),
    Key(
        "min_foreground",
        "Foreground on the unlabeled scans over the labels' foreground: below this ratio, the unlabeled terms pause "
        "for an epoch.",
        "ratio",
    ),
    Key(
        "max_foreground",
        "Foreground on the unlabeled scans over the labels' foreground: above this ratio, the unlabeled terms pause "
        "for an epoch.",
        "ratio",
    ),
    Key("prediction", "What is validated: `fused`, or one task, `segmentation` or `regression`."),
    # Cleaning
    Key("flips", "Axes along which windows are also mirrored; the prediction is the mean.", "axes"),
    Key("keep_largest", "Classes that keep only their largest connected component.", "classes"),
    Key("fill_holes", "Classes whose holes are filled.", "classes"),
    Key("maps", "Maps that `maps.json` writes beside a segmentation: `probability`, `sdm`, `entropy`, `disagreement`."),
    # Machine
    Key("device", "Where the network runs."),
    Key("amp", "Whether the network runs under bfloat16 autocast, also on a CPU."),
    Key("compile", "Whether the network is compiled by `torch.compile`."),
    Key("memory_format", "Memory format of the network; channels last is fastest on a CPU."),
    Key(
        "accumulate_on",
        "Device on which a scan's prediction is put together: `cpu` saves a GPU's memory; null: where the scan is.",
    ),
    Key("cache_rate", "Fraction of the scans that are kept in memory.", "fraction"),
    Key("num_workers", "Processes of each loader.", "processes"),
    Key("seed", "Seed of all random choices."),
    Key("rank", "Number of this process; `multi_gpu_train.json` sets it."),
    Key("world_size", "Number of processes; `multi_gpu_train.json` sets it.", "processes"),
)
"""Every key at the head of ``train.json``, ``evaluate.json``, ``inference.json`` and ``maps.json``."""
