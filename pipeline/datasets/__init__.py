"""Datasets: their annotation files to segments. One file per dataset."""

from . import egtea_gaze_plus as egtea_gaze_plus
from . import epic_kitchens_55 as epic_kitchens_55
from . import epic_kitchens_100 as epic_kitchens_100
from . import kitchen as kitchen
from . import something_else as something_else
from . import something_something as something_something
from .contract import CARDS, DATASETS, Dataset, DatasetCard, list_datasets, load_dataset, register
from .layout import LayoutError

__all__ = [
    "CARDS",
    "DATASETS",
    "Dataset",
    "DatasetCard",
    "LayoutError",
    "list_datasets",
    "load_dataset",
    "register",
]
