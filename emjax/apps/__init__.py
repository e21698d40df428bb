"""Ways to use emjax other than by its commands: a Python object, a page, napari."""
