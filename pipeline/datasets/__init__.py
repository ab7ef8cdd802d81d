"""Datasets: their annotation files to segments. One file per dataset."""

from . import charades as charades
from . import egtea_gaze_plus as egtea_gaze_plus
from . import epic_kitchens_55 as epic_kitchens_55
from . import epic_kitchens_100 as epic_kitchens_100
from . import folder as folder
from . import hmdb51 as hmdb51
from . import kinetics as kinetics
from . import kitchen as kitchen
from . import meccano as meccano
from . import ntu_rgbd as ntu_rgbd
from . import nw_ucla as nw_ucla
from . import own_csv as own_csv
from . import something_else as something_else
from . import something_something as something_something
from . import ucf101 as ucf101
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
