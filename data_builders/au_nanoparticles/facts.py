"""Facts about the Au sets: their files, thresholds, counts, pixel sizes and authors."""

from typing import NamedTuple

import numpy as np

ZENODO_RECORD = "6419024"


class Facts(NamedTuple):
    """Facts about a dataset."""

    images: str  # the file that its authors published, micrographs or patches
    labels: str
    prepared: str  # begins the names of the files that the authors' notebook writes
    xray_threshold: float | None  # counts above the median; None: filtered by its authors
    patches: int  # that the authors keep
    nm_per_pixel: float  # NaN where it is not stated
    what: str
    address: str = f"https://doi.org/10.5281/zenodo.{ZENODO_RECORD}"


# Source: HRTEM-Receptive-Field @36e4e73, Preprocessing_dataset.ipynb; the pixel size of the 330 kx
# sets: HRTEM-Generalization @0da34bb, Datasets/Dataset_metadata.csv, where all 4096-pixel images
# of this magnification, dose and particle size have 0.02 nm, and as many as there are here.
DATASETS = {
    "au2_2nm": Facts(
        "Au_2p2nm_330kx_423e_Images.h5",
        "Au_2p2nm_330kx_423e_Labels.h5",
        "Au2p2",
        1500,
        355,
        0.02,
        "2.2 nm Au on ultrathin carbon, TEAM 0.5, 330 kx, 423 electrons per square angstrom",
    ),
    "au5nm": Facts(
        "Au_5nm_330kx_423e_Images.h5",
        "Au_5nm_330kx_423e_Labels.h5",
        "Au5nm330kx",
        1500,
        211,
        0.02,
        "5 nm Au on ultrathin carbon, TEAM 0.5, 330 kx, 423 electrons per square angstrom",
    ),
    "au10nm": Facts(
        "Au_10nm_330kx_425e_Images.h5",
        "Au_10nm_330kx_425e_Labels.h5",
        "Au10_330kx",
        1500,
        128,
        0.02,
        "10 nm Au on ultrathin carbon, TEAM 0.5, 330 kx, 425 electrons per square angstrom",
    ),
    "au20nm": Facts(
        "Au_20nm_87kx_16e_Images.h5",
        "Au_20nm_87kx_16e_Labels.h5",
        "Au20Titan",
        400,
        132,
        np.nan,
        "20 nm Au on carbon, Titan, 87 kx, 16 electrons per square angstrom",
    ),
    "au5nm_v1": Facts(
        "Au_Bal_MedFilt_cutimages_20190726.h5",
        "Au_Bal_unFilt_cutimages_20190423_maps.h5",
        "Au",
        None,
        216,
        np.nan,
        "5 nm Au on carbon, TEAM 0.5, median-filtered patches (Au5nmV1)",
    ),
}
LICENCE = "stated on the page of its files; look there before you pass them on"
SYTWU = (
    "K. Sytwu, C. Groschner, M. C. Scott, Understanding the Influence of Receptive Field and "
    "Network Complexity in Neural-Network-Guided TEM Image Analysis (2022), arXiv 2204.04250"
)
GROSCHNER = (
    "C. K. Groschner, C. Choi, M. C. Scott, Machine Learning Pipeline for Segmentation and Defect "
    "Identification from High-Resolution TEM Data (2021), arXiv 2001.05022"
)
