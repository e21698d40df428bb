"""napari: micrographs with their scale, particles as labels and a table. Extra `napari`."""
