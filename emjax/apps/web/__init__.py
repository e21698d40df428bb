"""A page in the browser: drop micrographs, see masks and sizes, download them. Extra `app`."""
