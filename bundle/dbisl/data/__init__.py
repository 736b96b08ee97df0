"""Find the scans of a data set, check them, and read them for training."""

from dbisl.data.cache import cached_dataset, hash_case
from dbisl.data.cases import Cases, find_cases, find_cases_to_evaluate
from dbisl.data.checks import check_cases
from dbisl.data.copy_paste import CopyPaste
from dbisl.data.dicom import DicomSeriesReader, is_dicom_series
from dbisl.data.nifti import is_nifti, read_nifti
from dbisl.data.partial_labels import IGNORE_LABEL, mark_file, mark_unannotated_slices, unlabeled_scans, write_label
from dbisl.data.scans import check_image, find_images
from dbisl.data.statistics import ScanStatistics, describe_scans, measure_scan, unlike_training
from dbisl.data.streams import EndlessSampler, TwoStreamLoader

__all__ = [
    "IGNORE_LABEL",
    "Cases",
    "CopyPaste",
    "DicomSeriesReader",
    "EndlessSampler",
    "ScanStatistics",
    "TwoStreamLoader",
    "cached_dataset",
    "check_cases",
    "check_image",
    "describe_scans",
    "find_cases",
    "find_cases_to_evaluate",
    "find_images",
    "hash_case",
    "is_dicom_series",
    "is_nifti",
    "mark_file",
    "mark_unannotated_slices",
    "measure_scan",
    "read_nifti",
    "unlabeled_scans",
    "unlike_training",
    "write_label",
]
