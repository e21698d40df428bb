"""Ways to use emjax other than by its commands: as a Python object."""
